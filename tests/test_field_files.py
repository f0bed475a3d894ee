"""Files as the field has them: padding, false headers, odd containers, false sizes, names of no files."""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from chests import SPECS, chest, write_dicom
from scipy import ndimage

from medsyn.cli import main
from medsyn.ct.doubts import cut_warnings, heart_shift_mm, spine_in_front
from medsyn.ct.inspect import describe, inspect, judge
from medsyn.ct.padding import clip_padding, empty_slices, is_padded
from medsyn.ct.reading import read_scan
from medsyn.ct.scan import Scan
from medsyn.errors import InputError
from medsyn.files import read_json
from medsyn.header_hints import HeaderHints
from medsyn.masks.lungs import segment_lungs
from medsyn.nifti import files_of
from medsyn.orientation import reorient
from medsyn.scan_warnings import topic_of
from medsyn.stages.shards import identity_of
from medsyn.volume import Volume, from_sitk, read_volume, to_sitk, write_volume

nibabel = pytest.importorskip("nibabel")
FAR_BELOW = (-8192, -3024, -2048, -2000, -9999, -32768)


def normal() -> Volume:
    return chest("normal").volume


def outside(volume: Volume) -> np.ndarray:
    """The outside of the round field of view, (H, W)."""
    half = (volume.array.shape[1] - 1) / 2
    y, x = np.ogrid[: volume.array.shape[1], : volume.array.shape[2]]
    return np.asarray((y - half) ** 2 + (x - half) ** 2 > half**2)


def padded(volume: Volume, value: float) -> Volume:
    array = volume.array.astype(np.int32)
    array[:, outside(volume)] = value
    return volume.with_array(array)


def topics(warnings: list[str] | tuple[str, ...]) -> list[str]:
    return [topic_of(warning) for warning in warnings]


def nifti(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (x, y, z) and RAS affine of a volume, for nibabel."""
    lps = np.array(volume.direction).reshape(3, 3) * np.array(volume.spacing_mm[::-1])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = lps, volume.origin_mm
    return volume.array.transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine


def save(path: Path, volume: Volume, change: Callable[[object], None] | None = None, kind: str = "Nifti1Image") -> Path:
    image = getattr(nibabel, kind)(*nifti(volume))
    if change:
        change(image)
    image.to_filename(path)
    return path


# ---- padding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", FAR_BELOW)
def test_padding_outside_the_circle_becomes_air_whatever_its_value(value: int) -> None:
    clipped, facts = clip_padding(padded(normal(), value))
    expected = np.where(outside(normal())[None], -1024, normal().array)
    np.testing.assert_array_equal(clipped.array, expected)
    assert facts == {
        "padding_percent": pytest.approx(100 * outside(normal()).mean(), abs=0.01),
        "padding_lowest_hu": value,
    }


@pytest.mark.parametrize("code", ["LPS", "SLP", "PIR"])
def test_padding_is_looked_for_in_axial_slices_of_any_file(code: str) -> None:
    clipped, _ = clip_padding(reorient(padded(normal(), -8192), code))
    assert clipped.array.min() == -1024


def test_padding_is_accepted_and_counted(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", padded(normal(), -8192))
    raw = padded(normal(), -8192).array + 8192  # as CT-RATE's first release: slope and intercept are told apart
    write_volume(tmp_path / "raw.nii.gz", normal().with_array(raw.astype(np.int16)))
    for name, options in (("a", []), ("raw", ["--rescale-slope", "1", "--rescale-intercept", "-8192"])):
        out = tmp_path / name
        verb = ["preprocess", str(tmp_path / f"{name}.nii.gz"), "--out", str(out), "--quiet", *options]
        assert main(verb) == 0
        qc = read_json(out / "qc.json")
        assert (qc["padding_percent"], qc["padding_lowest_hu"]) == (pytest.approx(23, abs=2), -8192)
        assert qc["warnings"] == []
    np.testing.assert_array_equal(read_volume(tmp_path / "a/volume.nii.gz").array.min(), -1024)


def test_padding_in_the_headers_own_scale(tmp_path: Path) -> None:
    def shift(image: object) -> None:
        image.header.set_slope_inter(1, -8192)  # type: ignore[attr-defined]

    stored = normal().with_array((padded(normal(), -8192).array + 8192).astype(np.int16))
    path = save(tmp_path / "a.nii.gz", stored)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[112:120] = np.array([1.0, -8192.0], "<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    scan = read_scan(path)
    assert scan.facts["padding_lowest_hu"] == -8192
    assert scan.volume.array.min() == -1024


@pytest.mark.parametrize("value", [-2000, -8192])
def test_padding_smoothed_by_a_resampling_is_accepted(value: int) -> None:
    smooth = ndimage.gaussian_filter(padded(normal(), value).array.astype(np.float32), (0, 0.7, 0.7))
    volume, facts = clip_padding(normal().with_array(smooth))
    assert facts["padding_percent"] > 15
    assert judge(volume)[0] == []


def test_empty_slices_and_turned_boxes_are_padding() -> None:
    array = padded(normal(), -3024).array.copy()
    array[:3], array[-2:] = -3024, -3024
    assert is_padded(array)
    y, x = np.indices(array.shape[1:]) - 31.5
    turned = normal().array.astype(int)
    turned[:, np.abs(y * 0.94 + x * 0.34) > 28] = -2048
    assert is_padded(turned)
    holes = normal().array.copy()
    holes[20:23] = -1024
    assert empty_slices(holes) == [20, 21, 22]
    assert "empty slices" in topics(judge(normal().with_array(holes)).warnings)
    holes[:4] = -1024
    assert empty_slices(holes) == [20, 21, 22]  # empty ends are padding


@pytest.mark.parametrize("kind", ["plain", "padded", "twice 8192", "without lungs"])
def test_double_rescaling_is_told_from_padding_by_where_the_low_voxels_lie(kind: str) -> None:
    array = normal().array.astype(int) - (8192 if kind == "twice 8192" else 1024)
    if kind == "padded":
        array[:, outside(normal())] = -3072
    if kind == "without lungs":
        array[segment_lungs(normal().array, normal().spacing_mm).mask] = -994
    scan = clip_padding(normal().with_array(array))
    assert scan[1] == {"padding_percent": 0.0}
    assert judge(scan[0])[0][0].startswith("rescaled twice")


# ---- orientation -------------------------------------------------------------------------------------------------


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


# ---- axes that are not at right angles ---------------------------------------------------------------------------


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


# ---- DICOM -------------------------------------------------------------------------------------------------------


def small() -> Volume:
    volume = normal()
    return Volume(volume.array[:24, 20:40, 20:40], volume.spacing_mm, volume.origin_mm)


def add_dicom(folder: Path, prefix: str, volume: Volume, tags: dict[str, str]) -> None:
    """Write slices of series 2 under other file names."""
    write_dicom(folder / "x", volume, "2", tags=tags)
    for file in (folder / "x").iterdir():
        file.rename(folder / f"{prefix}_{file.name}")
    (folder / "x").rmdir()


def test_a_localizer_in_the_series_is_left_out(tmp_path: Path) -> None:
    write_dicom(tmp_path, small(), "2")
    scout = Volume(small().array[:2], small().spacing_mm, (0.0, 0.0, 900.0))
    add_dicom(tmp_path, "scout", scout, {"0020|0037": "1\\0\\0\\0\\0\\-1", "0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"})
    scan = read_scan(tmp_path)
    assert scan.faults == []
    np.testing.assert_array_equal(reorient(scan.volume).array, small().array)
    assert scan.warnings == ["series: 2 slices of the same series were left out: a localizer"]


def test_a_second_acquisition_in_the_series_is_left_out(tmp_path: Path) -> None:
    write_dicom(tmp_path, small(), "2", tags={"0020|0012": "1"})
    later = Volume(small().array[:20] + 5, small().spacing_mm, small().origin_mm)
    add_dicom(tmp_path, "later", later, {"0020|0012": "2"})
    scan = read_scan(tmp_path)
    assert scan.faults == []
    np.testing.assert_array_equal(reorient(scan.volume).array, small().array)
    assert scan.warnings == ["series: 20 slices of the same series were left out: another acquisition or image type"]


@pytest.mark.parametrize("change", ["between", "beside"])
def test_a_second_acquisition_between_or_beside_the_slices_is_left_out(tmp_path: Path, change: str) -> None:
    """Half a step further along the body, or another field of view of the same levels without a tag that says so."""
    x, y, z = small().origin_mm
    moved = (x, y, z + small().spacing_mm[0] / 2) if change == "between" else (x + 7, y, z)
    write_dicom(tmp_path, small(), "2", tags={"0020|0012": "1"})
    number = "2" if change == "between" else "1"
    add_dicom(tmp_path, "more", Volume(small().array[:20], small().spacing_mm, moved), {"0020|0012": number})
    scan = read_scan(tmp_path)
    assert scan.faults == []
    np.testing.assert_array_equal(reorient(scan.volume).array, small().array)
    assert topics(scan.warnings) == ["series"]


def test_a_gap_between_two_acquisitions_is_no_second_stack(tmp_path: Path) -> None:
    write_dicom(tmp_path, Volume(small().array[:10], small().spacing_mm, small().origin_mm), "2")
    x, y, z = small().origin_mm
    rest = Volume(small().array[12:], small().spacing_mm, (x, y, z + 12 * small().spacing_mm[0]))
    add_dicom(tmp_path, "rest", rest, {"0020|0012": "2"})
    assert read_scan(tmp_path).faults[0].startswith("missing slices: 1 gaps")


def test_acquisitions_that_follow_each_other_stay_one_stack(tmp_path: Path) -> None:
    volume = small()
    for part, number in ((slice(0, 12), "1"), (slice(12, 24), "2")):
        z = volume.origin_mm[2] + part.start * volume.spacing_mm[0]
        piece = Volume(volume.array[part], volume.spacing_mm, (*volume.origin_mm[:2], z))
        add_dicom(tmp_path, number, piece, {"0020|0012": number})
    scan = read_scan(tmp_path)
    assert (scan.faults, scan.warnings) == ([], [])
    assert len(scan.volume.array) == 24


def test_identical_doubles_are_dropped_and_others_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", small(), "2")
    add_dicom(tmp_path / "a", "copy", Volume(small().array[:5], small().spacing_mm, small().origin_mm), {})
    scan = read_scan(tmp_path / "a")
    assert scan.faults == []
    assert scan.warnings == ["series: 5 identical doubles of slices were dropped"]
    np.testing.assert_array_equal(reorient(scan.volume).array, small().array)
    write_dicom(tmp_path / "b", small(), "2")
    other = Volume(small().array[:5] + 3, small().spacing_mm, small().origin_mm)
    add_dicom(tmp_path / "b", "other", other, {})
    assert read_scan(tmp_path / "b").faults[0].startswith("duplicate slices")


def test_a_small_tilt_of_dicom_slices_is_noted(tmp_path: Path) -> None:
    shear = float(np.tan(np.radians(0.5)) * small().spacing_mm[0])
    write_dicom(tmp_path, small(), "2", shear_mm=shear)
    scan = read_scan(tmp_path)
    assert scan.faults == []
    assert scan.warnings == ["geometry: gantry tilt of 0.5 degrees, the axes were made orthogonal"]


def test_a_truncated_slice_at_the_end_of_a_series_is_named(tmp_path: Path) -> None:
    """Its absence leaves no gap in the stack."""
    write_dicom(tmp_path, small(), "2")
    last = sorted(tmp_path.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-100])
    (tmp_path / "readme.txt").write_text("Chest CT")
    scan = read_scan(tmp_path)
    assert scan.faults == []
    assert scan.warnings == [f"series: 1 DICOM files were left out, damaged or without an image (first: {last.name})"]
    np.testing.assert_array_equal(reorient(scan.volume).array, small().array[:-1])


@pytest.mark.parametrize("text", ["n/a", "0,0", "0\\0", " ", "nan"])
def test_a_tilt_tag_that_is_no_number_says_nothing(tmp_path: Path, text: str) -> None:
    write_dicom(tmp_path, small(), "2")
    for file in tmp_path.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.add_new(0x00181120, "LO", text)
        dataset.save_as(file)
    scan = read_scan(tmp_path)
    assert (scan.faults, scan.warnings) == ([], [])


def test_slices_at_uneven_distances_are_named(tmp_path: Path) -> None:
    """Two distances of which none is a gap, as where a protocol changes the increment."""
    write_dicom(tmp_path, small(), "2")
    step = small().spacing_mm[0]
    for number, file in enumerate(sorted(tmp_path.iterdir())):
        dataset = pydicom.dcmread(file)
        x, y, _ = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, round(number * step + max(0, number - 12) * 0.3 * step, 4)]
        dataset.save_as(file)
    scan = read_scan(tmp_path)
    assert scan.faults == []
    assert topics(scan.warnings) == ["spacing"]
    assert f"apart, used as {scan.volume.spacing_mm[0]:.3g} mm everywhere" in scan.warnings[0]


def test_a_dicom_series_without_spacing_or_orientation_says_so(tmp_path: Path) -> None:
    for name, keyword in (("a", "PixelSpacing"), ("b", "ImageOrientationPatient")):
        write_dicom(tmp_path / name, small(), "2")
        for file in (tmp_path / name).iterdir():
            dataset = pydicom.dcmread(file)
            delattr(dataset, keyword)
            dataset.save_as(file)
    assert "carries no spacing; give spacing_mm" in inspect(tmp_path / "a")["reasons"][0]
    assert read_scan(tmp_path / "a", HeaderHints(spacing_mm=small().spacing_mm)).volume.spacing_mm == small().spacing_mm
    assert topics(read_scan(tmp_path / "b").warnings) == ["orientation"]
    assert read_scan(tmp_path / "b", HeaderHints(orientation="LPS")).warnings == []


def test_single_and_multi_frame_dicom_files_are_named(tmp_path: Path) -> None:
    write_dicom(tmp_path / "one", small(), "2")
    file = next((tmp_path / "one").iterdir())
    assert "one DICOM file, expected a folder" in inspect(file)["reasons"][0]
    (tmp_path / "many").mkdir()
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "many/enhanced.dcm"))
    writer.Execute(to_sitk(small().with_array((small().array + 1024).astype(np.uint16))))
    for path in (tmp_path / "many/enhanced.dcm", tmp_path / "many"):
        assert "multi-frame (enhanced) DICOM file of 24 images" in inspect(path)["reasons"][0]


# ---- cut lungs, air ----------------------------------------------------------------------------------------------


def test_lungs_cut_by_the_first_or_last_slice_are_a_warning() -> None:
    lungs = segment_lungs(normal().array, normal().spacing_mm).mask
    spacing = normal().spacing_mm
    assert cut_warnings(lungs, spacing) == []
    levels = np.flatnonzero(lungs.any((1, 2)))
    low, high = int(levels[0]) + 8, int(levels[-1]) - 3
    below, above = cut_warnings(lungs[low:], spacing), cut_warnings(lungs[:high], spacing)
    assert below[0].startswith("cut: the first (lowest) slice shows lung")
    assert above[0].startswith("cut: the last (highest) slice shows lung")
    both = cut_warnings(lungs[low:high], spacing)
    assert topics(both) == ["cut", "cut"]
    missing = int(below[0].split("about ")[1].split("%")[0])
    assert missing == pytest.approx(100 * lungs[:low].sum() / lungs.sum(), abs=8)
    part = Volume(normal().array[low:], normal().spacing_mm, normal().origin_mm)
    assert topics(describe(Scan(part))["warnings"]) == ["cut"]


def test_air_that_has_drifted_is_a_warning() -> None:
    drifted = judge(normal().with_array(normal().array + 25))  # the phantom's air lies at -1001
    assert drifted.warnings[-1] == "air: air at -976 HU, expected -1000: %LAA-950 is not comparable"
    assert topics(drifted.warnings) == ["range", "air"]  # the lowest values were those of a clipped scan


# ---- containers --------------------------------------------------------------------------------------------------


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


# ---- hostile headers and names -----------------------------------------------------------------------------------


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
