"""NIfTI 1 and 2, Analyze, NPZ and files that are none of them: what is read, and what is refused in one line."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from field_files import normal, save, small

from medsyn.ct.inspect import inspect
from medsyn.ct.reading import read_scan
from medsyn.errors import InputError
from medsyn.header_hints import HeaderHints
from medsyn.nifti import files_of
from medsyn.stages.shards import identity_of
from medsyn.volume import Volume, from_sitk, read_volume, to_sitk, write_volume


def test_nifti_in_every_container_is_read(tmp_path: Path) -> None:
    plain = save(tmp_path / "plain.nii", normal())
    (tmp_path / "named.nii.gz").write_bytes(plain.read_bytes())
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain.read_bytes()))
    save(tmp_path / "two.nii", normal(), kind="Nifti2Image")
    save(tmp_path / "two.nii.gz", normal(), kind="Nifti2Image")
    save(tmp_path / "pair.hdr", normal(), kind="Nifti1Pair")
    reference = read_volume(plain)
    for name in ("named.nii.gz", "packed.nii", "two.nii", "two.nii.gz", "pair.hdr", "pair.img"):
        volume = read_scan(tmp_path / name).volume
        np.testing.assert_array_equal(volume.array, reference.array)
        np.testing.assert_allclose(volume.spacing_mm, reference.spacing_mm, rtol=1e-6)
        np.testing.assert_allclose(volume.origin_mm, reference.origin_mm, atol=1e-4)
        np.testing.assert_allclose(volume.direction, reference.direction, atol=1e-6)
    assert files_of(tmp_path / "pair.hdr") == [tmp_path / "pair.hdr", tmp_path / "pair.img"]
    (tmp_path / "pair.img").unlink()
    assert "pair.img of this pair is missing" in inspect(tmp_path / "pair.hdr")["reasons"][0]


@pytest.mark.parametrize("kind", ["Nifti1Image", "Nifti2Image"])
def test_every_check_holds_for_both_versions(tmp_path: Path, kind: str) -> None:
    values = normal().array.astype(np.float32)
    values[3, 4, 5] = np.nan
    for suffix in (".nii", ".nii.gz"):
        path = save(tmp_path / f"nan{suffix}", normal().with_array(values), kind=kind)
        assert "1 voxels are NaN" in inspect(path)["reasons"][0]
        path = save(tmp_path / f"short{suffix}", normal(), kind=kind)
        path.write_bytes(path.read_bytes()[:-300])
        assert "truncated or damaged" in inspect(path)["reasons"][0]


def test_scaled_nifti_2_has_the_values_of_its_header(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", normal(), kind="Nifti2Image")
    content = bytearray(path.read_bytes())
    content[176:192] = np.array([0.5, -7.0], "<f8").tobytes()
    path.write_bytes(bytes(content))
    np.testing.assert_array_equal(read_volume(path).array, normal().array * 0.5 - 7)


def test_an_analyze_image_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.hdr", normal(), kind="Nifti1Pair")
    content = bytearray((tmp_path / "a.hdr").read_bytes())
    content[344:348] = bytes(4)
    (tmp_path / "a.hdr").write_bytes(bytes(content))
    assert "Analyze 7.5" in inspect(tmp_path / "a.hdr")["reasons"][0]


def test_npz_with_more_arrays_or_a_leading_axis(tmp_path: Path) -> None:
    hints = HeaderHints(spacing_mm=normal().spacing_mm, orientation="LAS")
    array = normal().array
    np.savez_compressed(tmp_path / "many.npz", ct=array, mask=np.zeros_like(array), spacing=np.ones(3))
    np.savez_compressed(tmp_path / "batch.npz", x=array[None])
    np.savez_compressed(tmp_path / "beside.npz", x=array[None, None], spacing=np.ones(3), name="p1")
    for name in ("many", "batch", "beside"):
        np.testing.assert_array_equal(read_scan(tmp_path / f"{name}.npz", hints).volume.array, array)
    np.savez_compressed(tmp_path / "two.npz", a=array, b=array)
    with pytest.raises(InputError, match="or one named 'ct'"):
        read_scan(tmp_path / "two.npz", hints)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (42, np.array([30000] * 3, "<i2"), "damaged"),
        (108, np.array([np.inf], "<f4"), "vox_offset"),
        (108, np.array([np.nan], "<f4"), "vox_offset"),
        (108, np.array([-5.0], "<f4"), "vox_offset"),
        (108, np.array([1e30], "<f4"), "vox_offset"),
        (42, np.array([-1, 5, 5], "<i2"), "voxels"),
        (40, np.array([99], "<i2"), "99 axes"),
        (280, np.zeros(12, "<f4"), "sform"),
        (280, np.full(12, np.nan, "<f4"), "sform"),
        (70, np.array([128], "<i2"), "data type"),
    ],
)
def test_a_header_that_cannot_be_true_costs_one_line(
    tmp_path: Path, suffix: str, offset: int, value: np.ndarray, words: str
) -> None:
    content = bytearray(save(tmp_path / "a.nii", normal()).read_bytes())
    content[offset : offset + value.nbytes] = value.tobytes()
    path = tmp_path / f"b{suffix}"
    path.write_bytes(gzip.compress(bytes(content), 1) if suffix.endswith(".gz") else bytes(content))
    reason = inspect(path)["reasons"][0]
    assert words in reason
    assert "\n" not in reason


@pytest.mark.parametrize(("version", "offset", "kind"), [(1, 256, "<f4"), (2, 352, "<f8")])
def test_a_quaternion_that_is_no_number_is_refused(tmp_path: Path, version: int, offset: int, kind: str) -> None:
    def turn(image: object) -> None:
        image.set_qform(image.affine, 1)  # type: ignore[attr-defined]

    path = save(tmp_path / "a.nii", normal(), turn, kind=f"Nifti{version}Image")
    content, value = bytearray(path.read_bytes()), np.array([np.nan], kind).tobytes()
    content[offset : offset + len(value)] = value
    path.write_bytes(bytes(content))
    assert "its qform has the quaternion (nan, " in inspect(path)["reasons"][0]


def test_what_follows_the_voxels_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", normal().with_array(normal().array.astype(np.float32)))
    path.write_bytes(path.read_bytes() + np.full(9, np.nan, "<f4").tobytes())
    np.testing.assert_array_equal(read_scan(path).volume.array, normal().array)


def test_a_file_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "a.nii.gz", tmp_path / "a.mha"]
    for path in paths:
        write_volume(path, normal())
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}.__getitem__)
    for path in paths:
        assert "its header claims 64 x 64 x 64 voxels" in inspect(path)["reasons"][0]


def test_npz_without_voxels_or_of_another_byte_order(tmp_path: Path) -> None:
    hints = HeaderHints(spacing_mm=normal().spacing_mm, orientation="LAS")
    np.savez(tmp_path / "none.npz", ct=np.zeros((0, 4, 4)))
    assert "expected one 3-D array of numbers" in inspect(tmp_path / "none.npz", hints)["reasons"][0]
    np.savez(tmp_path / "big.npz", ct=normal().array.astype(">f4"))
    volume = read_scan(tmp_path / "big.npz", hints).volume
    assert volume.array.dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(from_sitk(to_sitk(volume)).array, normal().array)


def test_an_npz_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ct=np.zeros((4, 4, 4), np.int16))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        member = archive.read("ct.npy").replace(b"(4, 4, 4), }            ", b"(30000, 30000, 30000), }", 1)
    assert b"30000" in member
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("ct.npy", member)
    reason = inspect(tmp_path / "b.npz", HeaderHints(spacing_mm=(1, 1, 1)))["reasons"][0]
    assert "claims 30000 x 30000 x 30000 numbers" in reason


def test_pipes_and_devices_are_refused_without_being_opened(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    pipes = [tmp_path / name for name in ("a.nii.gz", "a.mha", "a.npz", "a", "series/1.dcm")]
    for pipe in pipes:
        os.mkfifo(pipe)
    hints = HeaderHints(spacing_mm=(1, 1, 1))
    for path in (*pipes[:4], Path("/dev/zero")):
        assert "expected a regular file" in inspect(path, hints)["reasons"][0]
        assert identity_of(path) is None
    assert "holds 1.dcm, a pipe" in inspect(tmp_path / "series")["reasons"][0]
    with pytest.raises(InputError, match="is a folder"):
        read_volume(tmp_path)


def test_a_volume_read_by_itk_keeps_every_bit_of_its_axes(tmp_path: Path) -> None:
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.2, -0.1, 0.3)
    volume = Volume(small().array, (3.0, 0.7, 0.7), (1.0, 2.0, 3.0), turn.GetMatrix())
    for suffix in (".nii", ".nii.gz", ".mha", ".nrrd"):
        write_volume(tmp_path / f"a{suffix}", volume)
        theirs = from_sitk(sitk.ReadImage(str(tmp_path / f"a{suffix}")))
        ours = read_scan(tmp_path / f"a{suffix}")
        assert ours.warnings == []
        assert (ours.volume.direction, ours.volume.origin_mm) == (theirs.direction, theirs.origin_mm)
