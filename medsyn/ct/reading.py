"""A CT from disk, whatever its format: NIfTI, MetaImage, NRRD, or a folder of DICOM slices.

Gives a `Volume`: array (D, H, W) in the file's own orientation, true spacing, origin and direction. DICOM through
SimpleITK's GDCM, which applies RescaleSlope and RescaleIntercept. A folder with several series gives the one with the
most slices.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from medsyn.errors import InputError
from medsyn.volume import Volume, from_sitk, read_volume

TILT_TAG = "0018|1120"
SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")


def read_ct(path: str | Path) -> Volume:
    """Read one CT; a file of no known format, a damaged one or a folder without a series is an InputError."""
    path = Path(path)
    if path.is_dir():
        return read_dicom_folder(path)
    if path.exists() and not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path}: not a format read here; give {', '.join(SUFFIXES)} or a folder of DICOM slices")
    volume = read_volume(path)
    if path.name.lower().endswith(SUFFIXES[:2]):
        count = nifti_non_finite(path)
        if count:
            raise InputError(f"{path}: {count} voxels are NaN or infinite; write the file again from its source")
    return volume


def nifti_non_finite(path: Path) -> int:
    """Voxels of a NIfTI file of floats that are NaN or infinite: ITK's reader turns them into 0 in silence.

    NIfTI-1 header: its size (348) tells the byte order, the data type is at byte 70 (16 float32, 64 float64), the
    offset of the voxels a float at byte 108.
    """
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as handle:
        header = handle.read(348)
        order = "<" if header[:4] == (348).to_bytes(4, "little") else ">"
        kind = {16: "f4", 64: "f8"}.get(int(np.frombuffer(header, f"{order}i2", 1, 70)[0]))
        if kind is None:
            return 0
        handle.read(int(np.frombuffer(header, f"{order}f4", 1, 108)[0]) - len(header))
        count = 0
        while block := handle.read(1 << 22):
            values = np.frombuffer(block[: len(block) // int(kind[1]) * int(kind[1])], order + kind)
            count += int(values.size - np.isfinite(values).sum())
    return count


def read_dicom_folder(folder: str | Path) -> Volume:
    """Read the series with the most slices (first by identifier among equals) of a DICOM folder."""
    files = largest_series(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{folder}: its DICOM series cannot be read ({reason}); export it again") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{folder}: its DICOM series is no 3-D grey-level volume; give an axial CT series")
    return from_sitk(image)


def largest_series(folder: str | Path) -> list[str]:
    """Files, in slice order, of the series with the most slices in `folder` (not below it)."""
    series = {
        name: list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), name))
        for name in sorted(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))
    }
    if not any(series.values()):
        raise InputError(f"{folder}: no DICOM series in this folder; name the folder that holds the slices")
    return max(series.values(), key=len)


def slice_faults(folder: str | Path) -> list[str]:
    """Reasons, from the slices' own positions, not to trust a DICOM folder's geometry: gaps, doubles, tilt, no axial
    slices.
    """
    positions, normals = [], []
    tilt = 0.0
    for name in largest_series(folder):
        header = sitk.ImageFileReader()
        header.SetFileName(name)
        header.LoadPrivateTagsOff()
        header.ReadImageInformation()
        direction = np.array(header.GetDirection()).reshape(-1, 3)[:3]
        normals.append(direction[:, 2])
        positions.append(np.array(header.GetOrigin()[:3]))
        if header.HasMetaDataKey(TILT_TAG):
            tilt = max(tilt, abs(float(header.GetMetaData(TILT_TAG) or 0)))
    if len(positions) < 3:
        return [f"{len(positions)} slices in the series"]
    normal = normals[0]
    steps = np.diff([position @ normal for position in positions])
    usual = float(np.median(np.abs(steps)))
    faults = []
    if (np.abs(steps) < 0.1 * usual).any():
        faults.append("duplicate slices: two lie at the same position")
    gaps = np.abs(steps) > 1.5 * usual
    if gaps.any():
        faults.append(
            f"missing slices: {int(gaps.sum())} gaps, up to {np.abs(steps).max():.1f} mm where {usual:.1f} mm is usual"
        )
    if abs(normal[2]) < 0.8:
        faults.append("not axial: the slices' normal does not run along the body")
    shift = np.diff(np.array(positions), axis=0)
    across = np.linalg.norm(shift - np.outer(shift @ normal, normal), axis=1).max()
    if across > 0.1 * max(usual, 1.0) or tilt > 1.0:
        faults.append("gantry tilt: slices are shifted against each other; resample the series to a straight grid")
    return faults
