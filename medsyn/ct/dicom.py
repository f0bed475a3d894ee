"""DICOM folders: which series is the axial chest CT, and whether its slices make a straight, complete stack.

A folder (not what lies below it) may hold several series. Named by SeriesInstanceUID or SeriesDescription, that one is
read. Otherwise, in this order:

1. modality CT, at least MINIMUM_SLICES slices; no localizer, reformat or screen capture (ImageType value 3 LOCALIZER,
   or SECONDARY in value 2 - DICOM PS3.3, C.8.2.1.1.1);
2. slices across the body: the normal within about 37 degrees of the body's axis;
3. described as chest (BodyPartExamined, SeriesDescription) before those that say nothing, those before another part;
4. a soft or standard reconstruction before a sharp one (kernels named as bone, edge or lung; the paper's images are
   smooth, and noise of sharp kernels hides what the classical tools measure);
5. the thinnest slices, up to 1.5 mm (`medsyn.kernels`) counting as equal; then the most slices; then the lowest UID.

Where rules 1 and 2 leave none, the series with the most slices is read, a CT before another modality, so that
inspection can say what is wrong. A series of another modality, named or chosen, is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsyn.errors import InputError
from medsyn.kernels import equal_thickness_mm, is_sharp
from medsyn.volume import Volume, from_sitk

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK warns of uneven slices on stderr; `series_faults` refuses them

MINIMUM_SLICES = 16
AXIAL_COSINE = 0.8
MODALITY, IMAGE_TYPE, DESCRIPTION, BODY_PART = "0008|0060", "0008|0008", "0008|103e", "0018|0015"
SOP_CLASS = "0008|0016"
KERNEL, TILT, POSITION, ORIENTATION = "0018|1210", "0018|1120", "0020|0032", "0020|0037"
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_SOP_MODALITY = {
    **dict.fromkeys(("4", "4.1", "4.2", "4.3", "4.4"), "MR"),
    **dict.fromkeys(("128", "128.1", "130"), "PT"),
    **dict.fromkeys(("1", "1.1", "1.1.1"), "DX"),
    **dict.fromkeys(("3.1", "6.1", "6.2"), "US"),
    **dict.fromkeys(("7", "7.1", "7.2", "7.3", "7.4"), "OT"),
    "1.2": "MG",
    "12.1": "XA",
    "20": "NM",
    "66.4": "SEG",
    "481.2": "RTDOSE",
}
"""Modality by SOP class (DICOM PS3.4, B.5: the number after _STORAGE), for images that lack the attribute Modality."""
_CHEST = re.compile(r"chest|thorax|lung|pulmo|torax", re.IGNORECASE)
_OTHER_PART = re.compile(r"abd|pelv|head|brain|neck|spine|knee|liver|renal|kidney", re.IGNORECASE)


@dataclass(frozen=True)
class Series:
    """One series: its files in slice order and what the first slice says."""

    uid: str
    files: tuple[str, ...]
    description: str
    modality: str
    image_type: tuple[str, ...]
    body_part: str
    kernel: str
    positions: NDArray[np.float64]
    normals: NDArray[np.float64]
    tilt_degrees: float

    @property
    def is_ct(self) -> bool:
        """Modality CT, or neither Modality nor SOP class names another."""
        return self.modality in ("CT", "")

    @property
    def axial(self) -> bool:
        """Slices lie across the body."""
        return bool(abs(self.normals[0][2]) >= AXIAL_COSINE)

    @property
    def primary(self) -> bool:
        """A stack of CT slices as scanned, no localizer, reformat or capture."""
        kinds = {part.strip().upper() for part in self.image_type}
        return self.is_ct and len(self.files) >= MINIMUM_SLICES and not {"LOCALIZER", "SECONDARY"} & kinds

    @property
    def step_mm(self) -> float:
        """Usual distance of neighbouring slices."""
        return float(np.median(np.abs(np.diff(self.positions @ self.normals[0])))) if len(self.files) > 1 else np.inf

    def rank(self) -> tuple[float, ...]:
        """Rules 3 to 5, lowest first."""
        words = f"{self.body_part} {self.description}"
        part = 0 if _CHEST.search(words) else 2 if _OTHER_PART.search(words) else 1
        return (part, is_sharp(self.kernel), equal_thickness_mm(self.step_mm), -len(self.files))


def list_series(folder: str | Path) -> list[Series]:
    """Every series of a folder, by UID; none is an InputError."""
    found = []
    for name in sorted(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))):
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), name)
        if files:
            found.append(_describe(name, files))
    if not found:
        raise InputError(f"{folder}: no DICOM series in this folder; name the folder that holds the slices")
    return found


def choose_series(folder: str | Path, wanted: str | None = None) -> Series:
    """The series named `wanted`, else the axial chest series by the rules above; an unknown name is an InputError."""
    series = list_series(folder)
    if wanted:
        named = [s for s in series if wanted in (s.uid, s.description)]
        if len(named) != 1:
            have = "; ".join(f"{s.uid} ({s.description or 'no description'}, {len(s.files)} slices)" for s in series)
            count = "no" if not named else f"{len(named)}"
            raise InputError(f"{folder}: {count} series '{wanted}'; it holds {have}")
        return named[0]
    fit = [s for s in series if s.primary and s.axial]
    return min(fit, key=Series.rank) if fit else max(series, key=lambda s: (s.is_ct, len(s.files)))


def read_series(folder: str | Path, wanted: str | None = None) -> tuple[Volume, list[str]]:
    """The chosen series in HU (GDCM applies slope and intercept) and the reasons not to trust its geometry."""
    series = choose_series(folder, wanted)
    if not series.is_ct:
        raise InputError(f"{folder}: its DICOM series has modality {series.modality}, expected CT; give a CT series")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(series.files)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{folder}: its DICOM series cannot be read ({reason}); export it again") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{folder}: its DICOM series is no 3-D grey-level volume; give an axial CT series")
    return from_sitk(image), series_faults(series)


def series_faults(series: Series) -> list[str]:
    """Reasons, from the slices' own positions, not to trust a series: gaps, doubles, tilt, no axial slices."""
    if len(series.files) < 3:
        return [f"{len(series.files)} slices in the series"]
    normal, faults = series.normals[0], []
    if (np.abs(series.normals - normal).max(1) > 1e-3).any():
        faults.append("slices of different orientation in one series (a localizer among them?)")
    steps = np.diff(series.positions @ normal)
    usual = float(np.median(np.abs(steps)))
    if (np.abs(steps) < 0.1 * usual).any() or usual == 0:
        faults.append("duplicate slices: two lie at the same position")
    gaps = np.abs(steps) > 1.5 * usual
    if gaps.any():
        faults.append(
            f"missing slices: {int(gaps.sum())} gaps, up to {np.abs(steps).max():.1f} mm where {usual:.1f} mm is usual"
        )
    if not series.axial:
        faults.append("not axial: the slices' normal does not run along the body")
    shift = np.diff(series.positions, axis=0)
    across = np.linalg.norm(shift - np.outer(shift @ normal, normal), axis=1).max()
    if across > 0.1 * max(usual, 1.0) or series.tilt_degrees > 1.0:
        faults.append("gantry tilt: slices are shifted against each other; resample the series to a straight grid")
    return faults


def _describe(uid: str, files: tuple[str, ...]) -> Series:
    """Headers of all slices, without their pixels."""
    positions, normals, tilt = [], [], 0.0
    first: dict[str, str] = {}
    header = sitk.ImageFileReader()
    header.LoadPrivateTagsOff()
    for index, name in enumerate(files):
        header.SetFileName(name)
        header.ReadImageInformation()
        if index == 0:
            first = {key: header.GetMetaData(key).strip() for key in header.GetMetaDataKeys()}
        direction = np.array(header.GetDirection()).reshape(header.GetDimension(), -1)[:3, :3]
        normals.append(np.cross(direction[:, 0], direction[:, 1]))
        positions.append(np.array(header.GetOrigin()[:3]))
        if header.HasMetaDataKey(TILT):
            tilt = max(tilt, abs(float(header.GetMetaData(TILT).strip() or 0)))
    sop_class = first.get(SOP_CLASS, "")
    return Series(
        uid=first.get("0020|000e", uid).strip("\0 ") or uid,
        files=tuple(files),
        description=first.get(DESCRIPTION, ""),
        modality=first.get(MODALITY, "").upper() or _SOP_MODALITY.get(sop_class.removeprefix(_STORAGE), ""),
        image_type=tuple(first.get(IMAGE_TYPE, "").split("\\")),
        body_part=first.get(BODY_PART, ""),
        kernel=first.get(KERNEL, ""),
        positions=np.array(positions),
        normals=np.array(normals),
        tilt_degrees=tilt,
    )
