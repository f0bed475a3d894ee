"""Orientation, spacing and tilt: what a header leaves open or says twice is named."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from chests import SPECS, chest
from field_files import nifti, normal, save, topics

from medsyn.cli import main
from medsyn.ct.doubts import heart_shift_mm, spine_in_front
from medsyn.ct.inspect import inspect
from medsyn.ct.reading import read_scan
from medsyn.files import read_json
from medsyn.header_hints import HeaderHints
from medsyn.masks.lungs import segment_lungs
from medsyn.volume import Volume, read_volume, to_sitk, write_volume


@pytest.mark.parametrize("axes", [(1,), (0, 1)])
@pytest.mark.parametrize("kind", ["normal", "effusion"])
def test_front_and_back_exchanged_by_the_header_are_refused(tmp_path: Path, axes: tuple[int, ...], kind: str) -> None:
    def turn(image: object) -> None:
        affine = image.affine.copy()  # type: ignore[attr-defined]
        affine[list(axes)] *= -1
        image.set_sform(affine)  # type: ignore[attr-defined]

    facts = inspect(save(tmp_path / "a.nii.gz", chest(kind).volume, turn))
    assert facts["verdict"] == "rejected"
    assert facts["reasons"][0].startswith("front and back exchanged")


@pytest.mark.parametrize("kind", SPECS)
def test_a_mirrored_chest_is_a_warning_and_a_sound_one_is_none(kind: str) -> None:
    volume = chest(kind).volume
    lungs = segment_lungs(volume.array, volume.spacing_mm).label
    shift = heart_shift_mm(volume, lungs)
    assert shift is not None
    assert shift > 9
    assert not spine_in_front(volume, lungs)
    mirrored = volume.with_array(volume.array[:, :, ::-1])
    sides = np.where(lungs > 0, 3 - lungs, 0)[:, :, ::-1]
    assert heart_shift_mm(mirrored, sides) == pytest.approx(-shift, abs=6)


def test_a_mirrored_header_is_named_in_every_place(tmp_path: Path) -> None:
    volume = chest("effusion").volume
    write_volume(tmp_path / "m.nii.gz", volume.with_array(volume.array[:, :, ::-1]))
    facts = inspect(tmp_path / "m.nii.gz")
    assert facts["verdict"] == "ok"
    assert "heart on the right" in facts["warnings"][0]
    assert main(["measure", str(tmp_path / "m.nii.gz"), "--out", str(tmp_path / "m.json"), "--quiet"]) == 0
    assert topics(read_json(tmp_path / "m.json")["warnings"]) == ["mirrored"]


def test_two_transforms_that_differ_are_named(tmp_path: Path) -> None:
    def differ(image: object) -> None:
        affine = image.affine.copy()  # type: ignore[attr-defined]
        image.set_sform(affine, 1)  # type: ignore[attr-defined]
        affine[0] *= -1
        image.set_qform(affine, 1)  # type: ignore[attr-defined]

    def agree(image: object) -> None:
        image.set_qform(image.affine, 1)  # type: ignore[attr-defined]
        image.set_sform(image.affine, 1)  # type: ignore[attr-defined]

    scan = read_scan(save(tmp_path / "a.nii.gz", normal(), differ))
    assert topics(scan.warnings) == ["orientation"]
    assert "qform says RAS" in scan.warnings[0]
    assert "sform says LAS" in scan.warnings[0]
    assert read_scan(save(tmp_path / "b.nii.gz", normal(), agree)).warnings == []
    assert read_scan(tmp_path / "a.nii.gz", HeaderHints(orientation="LAS")).warnings == []


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "gzipped.nii"])
def test_a_spacing_that_differs_from_the_only_transform_is_named(tmp_path: Path, name: str) -> None:
    def differ(image: object) -> None:
        image.set_qform(None, 0)  # type: ignore[attr-defined]
        image.header["pixdim"][1:4] = 1  # type: ignore[index]

    path = save(tmp_path / "a.nii", normal(), differ)
    content = path.read_bytes()
    path.unlink()
    (tmp_path / name).write_bytes(gzip.compress(content) if name != "a.nii" else content)
    scan = read_scan(tmp_path / name)
    assert topics(scan.warnings) == ["spacing"]
    assert scan.warnings[0].startswith("spacing: pixdim says 1 x 1 x 1 mm, sform says 4.")
    assert read_scan(tmp_path / name, HeaderHints(spacing_mm=normal().spacing_mm)).warnings == []


def test_a_file_without_orientation_or_spacing_says_so(tmp_path: Path) -> None:
    def forget(image: object) -> None:
        image.set_sform(None, 0)  # type: ignore[attr-defined]
        image.set_qform(None, 0)  # type: ignore[attr-defined]

    path = save(tmp_path / "a.nii.gz", normal(), forget)
    assert topics(read_scan(path).warnings) == ["orientation"]
    assert read_scan(path, HeaderHints(orientation="LAS")).warnings == []
    big = np.zeros((130, 130, 130), np.int16)
    bare = [tmp_path / "bare.nii.gz", tmp_path / "bare.mha", tmp_path / "bare.nrrd"]
    nibabel.Nifti1Image(big, np.eye(4)).to_filename(bare[0])
    for file in bare[1:]:
        sitk.WriteImage(sitk.GetImageFromArray(big), str(file))
    for file in bare:
        assert topics(read_scan(file).warnings) == ["spacing", "orientation"]
        told = HeaderHints(spacing_mm=(1.0, 1.0, 1.0), orientation="LPS")
        assert read_scan(file, told).warnings == []


def test_a_refusal_repeats_what_the_header_leaves_open(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    grid = np.pad(normal().array, 40, constant_values=-1000)
    nibabel.Nifti1Image(grid.transpose(2, 1, 0), np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    assert main(["preprocess", str(tmp_path / "a.nii.gz"), "--out", str(tmp_path / "o"), "--quiet"]) == 2
    error = capfd.readouterr().err.strip()
    assert "\n" not in error
    assert "rejected, not a chest" in error
    assert "give spacing_mm" in error


def test_formats_without_a_spacing_need_one(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nrrd", normal())
    content = (tmp_path / "a.nrrd").read_bytes()
    head, _, voxels = content.partition(b"\n\n")
    lines = [line for line in head.split(b"\n") if not line.startswith((b"space", b"spacing"))]
    (tmp_path / "a.nrrd").write_bytes(b"\n".join(lines) + b"\n\n" + voxels)
    write_volume(tmp_path / "a.mha", normal())
    content = (tmp_path / "a.mha").read_bytes()
    start, end = (content.index(name) for name in (b"ElementSpacing", b"ElementType"))
    (tmp_path / "a.mha").write_bytes(content[:start] + content[content.index(b"\n", start) + 1 :])
    assert start < end

    write_volume(tmp_path / "a.nii", normal())
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[88:92] = bytes(4)  # pixdim[3]
    content[254:256] = bytes(2)  # sform_code
    (tmp_path / "a.nii").write_bytes(bytes(content))
    for suffix in ("nrrd", "mha", "nii"):
        facts = inspect(tmp_path / f"a.{suffix}")
        assert "carries no spacing; give spacing_mm" in facts["reasons"][0], suffix
        scan = read_scan(tmp_path / f"a.{suffix}", HeaderHints(spacing_mm=normal().spacing_mm, orientation="LAS"))
        np.testing.assert_array_equal(scan.volume.array, normal().array)


def tilted(degrees: float, axis: int = 1) -> Volume:
    """The normal chest with its slice axis (or, axis 0, its columns' axis) sheared."""
    direction = np.array(normal().direction).reshape(3, 3).copy()
    target = 2 if axis == 1 else 1
    direction[axis, target] += np.tan(np.radians(degrees)) * abs(direction[target, target])
    direction[:, target] /= np.linalg.norm(direction[:, target])
    return Volume(normal().array, normal().spacing_mm, normal().origin_mm, tuple(direction.ravel()))


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii.gz", ".nii"])
def test_a_tilted_gantry_is_named_in_every_format(tmp_path: Path, suffix: str) -> None:
    def write(name: str, volume: Volume) -> Path:
        path = tmp_path / f"{name}{suffix}"
        if suffix.startswith(".nii"):
            return save(path, volume)
        sitk.WriteImage(to_sitk(volume), str(path))
        return path

    scan = read_scan(write("tilt", tilted(12)))
    assert scan.faults[0].startswith("gantry tilt: the slices are shifted against each other by 12.0 degrees")
    scan = read_scan(write("little", tilted(0.4)))
    assert scan.faults == []
    assert scan.warnings == ["geometry: gantry tilt of 0.4 degrees, the axes were made orthogonal"]
    skewed = read_scan(write("skew", tilted(0.3, axis=0)))
    assert skewed.warnings == ["geometry: skew of 0.3 degrees, the axes were made orthogonal"]
    for volume in (scan.volume, skewed.volume, read_volume(tmp_path / f"little{suffix}")):
        direction = np.array(volume.direction).reshape(3, 3)
        np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-9)
        np.testing.assert_array_equal(volume.array, normal().array)
    assert "not at right angles" in read_scan(write("odd", tilted(5, axis=0))).faults[0]


def test_a_tilt_in_the_transform_that_is_not_used_is_named(tmp_path: Path) -> None:
    def both(image: object) -> None:
        image.set_sform(nifti(tilted(8))[1], 1)  # type: ignore[attr-defined]
        image.set_qform(nifti(normal())[1], 1)  # type: ignore[attr-defined]

    assert "gantry tilt" in read_scan(save(tmp_path / "a.nii.gz", normal(), both)).faults[0]
