"""DICOM folders as they come: localizers, second acquisitions, doubles, gaps, tilts, single and multi-frame files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from chests import write_dicom
from field_files import small, topics

from medsyn.ct.inspect import inspect
from medsyn.ct.reading import read_scan
from medsyn.errors import InputError
from medsyn.header_hints import HeaderHints
from medsyn.orientation import orientation_code, reorient
from medsyn.volume import Volume, to_sitk


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
    writer.SetFileName(str(tmp_path / "many/captures.dcm"))
    writer.Execute(to_sitk(small().with_array((small().array + 1024).astype(np.uint16))))
    for path in (tmp_path / "many/captures.dcm", tmp_path / "many"):
        assert "modality OT, expected CT" in inspect(path)["reasons"][0]
    dataset = pydicom.dcmread(tmp_path / "many/captures.dcm")
    dataset.Modality = "CT"
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.save_as(tmp_path / "many/captures.dcm")
    for path in (tmp_path / "many/captures.dcm", tmp_path / "many"):
        assert "multi-frame DICOM file of 24 images that does not say where each lies" in inspect(path)["reasons"][0]


def write_enhanced(file: Path, volume: Volume, *, shared: bool = False, skip: int | None = None) -> None:
    """An Enhanced CT: frames in an order of their own; intercepts differ per frame unless `shared`.

    skip: a frame that is missing.
    """
    axes = np.array(volume.direction).reshape(3, 3)
    order = [k for k in np.random.default_rng(1).permutation(len(volume.array)) if k != skip]
    intercepts = [-1024 - (0 if shared else int(k) % 3) for k in order]
    scale = [group(RescaleSlope=1, RescaleIntercept=value, RescaleType="HU") for value in intercepts]
    turned = [group(ImageOrientationPatient=[*axes[:, 0], *axes[:, 1]])] * len(order)
    dataset = pydicom.Dataset()
    dataset.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = group(PixelSpacing=list(volume.spacing_mm[1:]))
    if shared:
        dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = scale[0]
        dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence = turned[0]
    frames = [pydicom.Dataset() for _ in order]
    for frame, k, values, axis in zip(frames, order, scale, turned, strict=True):
        place = np.array(volume.origin_mm) + k * volume.spacing_mm[0] * axes[:, 2]
        frame.PlanePositionSequence = group(ImagePositionPatient=[round(float(x), 6) for x in place])
        if not shared:
            frame.PixelValueTransformationSequence, frame.PlaneOrientationSequence = values, axis
    dataset.PerFrameFunctionalGroupsSequence = frames
    stored = volume.array[order] - np.array(intercepts, np.int16)[:, None, None]
    dataset.SOPClassUID = pydicom.uid.EnhancedCTImageStorage
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = (pydicom.uid.generate_uid() for _ in range(2))
    dataset.StudyInstanceUID = pydicom.uid.generate_uid()
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.NumberOfFrames = len(order)
    dataset.Rows, dataset.Columns = volume.array.shape[1:]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = stored.astype("<u2").tobytes()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(file, enforce_file_format=True)


def group(**values: object) -> list[pydicom.Dataset]:
    """A functional group: a sequence of one item."""
    item = pydicom.Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return [item]


@pytest.mark.parametrize("shared", [True, False])
def test_an_enhanced_ct_has_the_values_and_places_of_its_frames(tmp_path: Path, shared: bool) -> None:
    volume = small().with_array(small().array.astype(np.int16))
    write_enhanced(tmp_path / "one/enhanced.dcm", volume, shared=shared)
    for path in (tmp_path / "one/enhanced.dcm", tmp_path / "one"):
        scan = read_scan(path)
        assert (scan.faults, topics(scan.warnings)) == ([], [])
        ours = reorient(scan.volume, orientation_code(volume))
        np.testing.assert_array_equal(ours.array, volume.array)
        np.testing.assert_allclose(ours.spacing_mm, volume.spacing_mm, atol=1e-5)
        np.testing.assert_allclose(ours.origin_mm, volume.origin_mm, atol=1e-4)
        np.testing.assert_allclose(ours.direction, volume.direction, atol=1e-6)


def test_faults_of_an_enhanced_ct_are_named(tmp_path: Path) -> None:
    volume = small().with_array(small().array.astype(np.int16))
    file = tmp_path / "gap.dcm"
    write_enhanced(file, volume, skip=9)
    assert "missing slices: 1 gaps" in read_scan(file).faults[0]
    dataset = pydicom.dcmread(file)
    del dataset.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence
    dataset.save_as(file)
    with pytest.raises(InputError, match=r"its frames cannot be read .*no ImagePositionPatient"):
        read_scan(file)
    dataset.Modality = "MR"
    dataset.save_as(file)
    with pytest.raises(InputError, match="modality MR, expected CT"):
        read_scan(file)
