"""`medsyn export --dicom`: the series that pydicom, SimpleITK, dcm2niix and our own reader get back."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from medsyn.cli import main
from medsyn.ct.reading import read_scan
from medsyn.orientation import reorient
from medsyn.volume import MODEL_DIRECTION, Volume, from_sitk, read_volume, write_volume

SPACING, ORIGIN = (2.5, 0.7, 1.1 / 3), (-91.23456789, 17.5, -1203.25)


def turned(degrees: float) -> tuple[float, ...]:
    """Model orientation turned about the body's axis and about the x axis."""
    a, b = np.radians([degrees, degrees / 3])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return tuple((about_z @ about_x @ np.array(MODEL_DIRECTION).reshape(3, 3)).ravel())


def generated(dtype: type = np.int16, degrees: float = 0.0) -> Volume:
    """(20, 12, 14) HU between -1024 and 3000, every voxel with a value of its own."""
    values = np.linspace(-1024, 3000, 20 * 12 * 14).reshape(20, 12, 14)
    direction = turned(degrees) if degrees else MODEL_DIRECTION
    return Volume(values.astype(dtype), SPACING, ORIGIN, direction)


def export(tmp_path: Path, volume: Volume, name: str = "effusion.nii.gz") -> tuple[Volume, Path]:
    write_volume(tmp_path / name, volume)
    out = tmp_path / "series"
    assert main(["export", str(tmp_path / name), "--dicom", "--out", str(out), "--quiet"]) == 0
    return read_volume(tmp_path / name), out


def assert_same(found: Volume, written: Volume) -> None:
    """The same voxels at the same place, however the axes run."""
    found, written = reorient(found), reorient(written)
    np.testing.assert_array_equal(found.array, np.rint(written.array))
    np.testing.assert_allclose(found.spacing_mm, written.spacing_mm, rtol=1e-6)
    np.testing.assert_allclose(found.direction, written.direction, atol=1e-6)
    np.testing.assert_allclose(found.origin_mm, written.origin_mm, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "degrees", "name"),
    [(np.int16, 0, "effusion.nii.gz"), (np.float32, 0, "a/volume.nii.gz"), (np.int32, 20, "oblique.mha")],
)
def test_the_geometry_and_the_values_come_back(tmp_path, dtype, degrees, name):
    written, out = export(tmp_path, generated(dtype, degrees), name)
    scan = read_scan(out)
    assert scan.faults == []
    assert_same(scan.volume, written)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(out)))
    assert_same(from_sitk(reader.Execute()), written)
    assert_same(read_with_pydicom(out), written)
    if shutil.which("dcm2niix"):
        assert_same(read_with_dcm2niix(out, tmp_path / "nifti"), written)


def read_with_pydicom(folder: Path) -> Volume:
    """The series by the equations of DICOM PS3.3, C.7.6.2.1.1."""
    slices = sorted((pydicom.dcmread(path) for path in folder.iterdir()), key=lambda s: s.InstanceNumber)
    assert [s.InstanceNumber for s in slices] == list(range(1, len(slices) + 1))
    positions = np.array([s.ImagePositionPatient for s in slices], float)
    row, column = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    steps = np.diff(positions, axis=0)
    normal = steps[0] / np.linalg.norm(steps[0])
    np.testing.assert_allclose(normal, np.cross(row, column), atol=1e-6)
    np.testing.assert_allclose(steps, steps[:1].repeat(len(steps), 0), atol=1e-6)
    assert {(float(s.RescaleSlope), float(s.RescaleIntercept)) for s in slices} == {(1.0, 0.0)}
    array = np.stack([s.pixel_array for s in slices])
    y, x = map(float, slices[0].PixelSpacing)
    direction = np.stack([row, column, normal], axis=1)
    return Volume(array, (float(slices[0].SliceThickness), y, x), tuple(positions[0]), tuple(direction.ravel()))


def read_with_dcm2niix(folder: Path, out: Path) -> Volume:
    out.mkdir()
    command = ["dcm2niix", "-z", "y", "-f", "x", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    (path,) = out.glob("*.nii.gz")
    assert nibabel.load(path).header["sform_code"] > 0
    return read_volume(path)


def test_every_slice_is_marked_as_synthetic_and_has_new_uids(tmp_path):
    _, first = export(tmp_path, generated())
    second = tmp_path / "again"
    source = str(tmp_path / "effusion.nii.gz")
    assert main(["export", source, "--dicom", "--out", str(second), "--quiet"]) == 0
    series = [[pydicom.dcmread(path) for path in sorted(folder.iterdir())] for folder in (first, second)]
    for slices in series:
        for s in slices:
            assert s.SyntheticData == "YES" and s.ImageType[:2] == ["DERIVED", "SECONDARY"]
            assert "SYNTHETIC" in s.SeriesDescription and "Synthetic" in s.DerivationDescription
            assert s.Modality == "CT" and s.SOPClassUID == pydicom.uid.CTImageStorage
            assert s.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
            assert s.PatientID == "SYNTHETIC-effusion" and "effusion" in str(s.PatientName)
            assert s.file_meta.MediaStorageSOPInstanceUID == s.SOPInstanceUID
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            assert len({s[name].value for s in slices}) == 1
    a, b = ({s.SOPInstanceUID for s in slices} for slices in series)
    assert len(a) == len(b) == 20 and not a & b
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert series[0][0][name].value != series[1][0][name].value


@pytest.mark.parametrize("name", ["größe^x\\y=z.nii.gz", f"{'l' * 200}.nii.gz"])
def test_any_file_name_gives_valid_attributes(tmp_path, name):
    _, out = export(tmp_path, generated(), name)
    first = pydicom.dcmread(out / "0001.dcm")
    assert len(first.PatientID) <= 64 and "\\" not in first.PatientID
    assert str(first.PatientName).count("^") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.with_array((v.array / 3000.0).clip(-1, 1).astype(np.float32)), "give a volume in HU"),
        (lambda v: v.with_array(np.where(v.array > 2990, np.nan, v.array).astype(np.float32)), "NaN or infinite"),
        (lambda v: v.with_array(np.where(v.array > 2990, 40000, v.array).astype(np.int32)), "do not fit"),
    ],
)
def test_a_volume_that_is_no_ct_is_refused_and_nothing_is_written(tmp_path, capsys, change, words):
    write_volume(tmp_path / "x.mha", change(generated(np.float32)))
    assert main(["export", str(tmp_path / "x.mha"), "--dicom", "--out", str(tmp_path / "series"), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert words in message and "x.mha" in message and message.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.mha"]


def test_nothing_of_the_users_is_replaced_or_taken_for_a_volume(tmp_path, capsys):
    write_volume(tmp_path / "v.nii.gz", generated())
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "0001.dcm").write_bytes(b"mine")
    command = ["export", str(tmp_path / "v.nii.gz"), "--dicom", "--quiet", "--out"]
    assert main([*command, str(folder)]) == 2
    assert main([*command, str(folder), "--force"]) == 2
    assert "holds files, expected a new or empty folder for the series" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "v.nii.gz")]) == 2
    assert (folder / "0001.dcm").read_bytes() == b"mine" and len(list(folder.iterdir())) == 1
    capsys.readouterr()
    assert main(["export", str(folder), "--dicom", "--out", str(tmp_path / "o"), "--quiet"]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none.nii.gz"), "--dicom", "--out", str(tmp_path / "o"), "--quiet"]) == 2
    assert "no such file" in capsys.readouterr().err
