"""Volumes keep their geometry on the way to disk and back; a damaged file is one clear line."""

import sys

import numpy as np
import pytest

from medsyn.errors import InputError
from medsyn.volume import Volume, centred_origin_mm, grid_spacing_mm, read_volume, write_volume


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_round_trip_keeps_values_and_geometry(suffix, tmp_path):
    array = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    volume = Volume(array, (4.5, 2.0, 1.0), (10.0, -20.0, 30.0))
    write_volume(tmp_path / f"a{suffix}", volume)
    back = read_volume(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_allclose(back.spacing_mm, volume.spacing_mm)
    np.testing.assert_allclose(back.origin_mm, volume.origin_mm)
    np.testing.assert_allclose(back.direction, volume.direction)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "a.nii.gz"
    noise = np.random.default_rng(0).integers(-1000, 1000, (32, 32, 32)).astype(np.int16)
    write_volume(path, Volume(noise, (1.0, 1.0, 1.0)))
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(InputError, match=r"a\.nii\.gz: cannot be read, truncated or damaged"):
        read_volume(path)


def test_no_image_at_all(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"a\.nii: cannot be read"):
        read_volume(tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"b\.nii: no such file"):
        read_volume(tmp_path / "b.nii")


def test_the_models_grid_is_centred():
    size, field = (64, 64, 64), (292.0, 316.0, 316.0)
    spacing = grid_spacing_mm(size, field)
    assert spacing == (4.5625, 4.9375, 4.9375)
    x, y, z = centred_origin_mm(size, spacing)
    assert (x, y, z) == (-63 / 2 * 4.9375, 63 / 2 * 4.9375, -63 / 2 * 4.5625)


def test_contracts():
    with pytest.raises(ValueError, match="3 axes"):
        Volume(np.zeros((2, 2)), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="spacing"):
        Volume(np.zeros((2, 2, 2)), (1.0, 0.0, 1.0))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_a_disk_that_takes_no_more_is_an_error_and_leaves_nothing(suffix, tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    noise = np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20), dtype=np.int16)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(OSError, match="not all of it") as caught:
            write_volume(tmp_path / f"a{suffix}", Volume(noise, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []
