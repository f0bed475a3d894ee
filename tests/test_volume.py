"""Volumes keep their geometry on the way to disk and back; a damaged file is one clear line."""

import gzip
import sys

import numpy as np
import pytest

from medsyn.errors import InputError
from medsyn.orientation import reorient
from medsyn.volume import (
    Volume,
    centred_origin_mm,
    from_sitk,
    grid_spacing_mm,
    read_volume,
    to_sitk,
    write_volume,
)


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


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_a_truncated_file_is_refused(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(-1000, 1000, (32, 32, 32)).astype(np.int16)
    write_volume(path, Volume(noise, (1.0, 1.0, 1.0)))
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(InputError, match=rf"a\{suffix}: cannot be read, .*damaged"):
        read_volume(path)


@pytest.mark.parametrize("swap", [False, True])
def test_a_nii_file_of_either_byte_order_may_not_be_a_voxel_short(swap, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    array = np.arange(2 * 3 * 4, dtype=">i2" if swap else "<i2").reshape(4, 3, 2)
    image = nibabel.Nifti1Image(array, np.eye(4), nibabel.Nifti1Header(endianness=">" if swap else "<"))
    path = tmp_path / "a.nii"
    image.to_filename(path)
    np.testing.assert_array_equal(read_volume(path).array, array.transpose(2, 1, 0))
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"a\.nii: cannot be read, .*2 bytes are missing"):
        read_volume(path)


def test_a_header_without_the_voxels_offset_is_read_as_itk_reads_it(tmp_path):
    path = tmp_path / "a.nii.gz"
    write_volume(path, Volume(np.ones((4, 5, 6), np.int16), (1.0, 1.0, 1.0)))
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[108:112] = bytes(4)
    path.write_bytes(gzip.compress(bytes(content)))
    assert read_volume(path).array.shape == (4, 5, 6)


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


def test_one_pass_reads_what_itk_reads(tmp_path):
    import SimpleITK as sitk

    rng = np.random.default_rng(1)
    for kind in (np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64):
        array = (100 * rng.random((5, 6, 7))).astype(kind)
        turn = (0.0, 1.0, 0.0, -0.6, 0.0, 0.8, 0.8, 0.0, 0.6)
        write_volume(tmp_path / "a.nii.gz", Volume(array, (2.5, 1.5, 0.7), (3.0, -8.0, 40.0), turn))
        ours, theirs = read_volume(tmp_path / "a.nii.gz"), from_sitk(sitk.ReadImage(str(tmp_path / "a.nii.gz")))
        np.testing.assert_array_equal(ours.array, theirs.array)
        assert ours.array.dtype == theirs.array.dtype == kind
        assert (ours.spacing_mm, ours.origin_mm, ours.direction) == (
            theirs.spacing_mm,
            theirs.origin_mm,
            theirs.direction,
        )


@pytest.mark.parametrize("change", ["slope", "checksum", "fewer voxels"])
def test_one_pass_leaves_conversion_to_itk_and_refuses_damage(change, tmp_path):
    path = tmp_path / "a.nii.gz"
    array = np.random.default_rng(0).integers(-1000, 1000, (40, 40, 40)).astype(np.int16)
    write_volume(path, Volume(array, (1.0, 1.0, 1.0)))
    content = bytearray(gzip.decompress(path.read_bytes()))
    if change == "slope":
        content[112:120] = np.array([2.0, -7.0], "<f4").tobytes()
        path.write_bytes(gzip.compress(bytes(content)))
        np.testing.assert_array_equal(read_volume(path).array, 2.0 * array - 7)
        return
    packed = bytearray(gzip.compress(bytes(content if change == "checksum" else content[:-20])))
    packed[-8] ^= change == "checksum"
    path.write_bytes(bytes(packed))
    with pytest.raises(InputError, match=r"a\.nii\.gz: cannot be read, truncated or damaged"):
        read_volume(path)


def test_turned_volumes_are_itks():
    import SimpleITK as sitk

    array = np.random.default_rng(2).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    euler = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.2, -0.1, 0.3)
    turns = (np.eye(3), np.array(euler.GetMatrix()).reshape(3, 3), np.eye(3)[[2, 0, 1]] * [[1], [-1], [-1]])
    for turn in turns:
        volume = Volume(array, (3.0, 2.0, 0.5), (10.0, -20.0, 5.0), tuple(float(c) for c in turn.ravel()))
        for code in ("LAS", "LPS", "RAI", "SLP", "ARI"):
            ours, theirs = reorient(volume, code), from_sitk(sitk.DICOMOrient(to_sitk(volume), code))
            np.testing.assert_array_equal(ours.array, theirs.array)
            assert ours.spacing_mm == theirs.spacing_mm
            np.testing.assert_allclose(ours.origin_mm, theirs.origin_mm, atol=1e-9)
            np.testing.assert_allclose(ours.direction, theirs.direction, atol=1e-12)
