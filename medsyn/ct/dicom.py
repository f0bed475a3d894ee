"""DICOM folders: which series is the axial chest CT, and whether its slices make a straight, complete stack.

A folder (not what lies below it) may hold several series. Named by SeriesInstanceUID or SeriesDescription, that one is
read. Otherwise, in this order:

1. modality CT, at least MINIMUM_SLICES slices; no localizer, reformat or screen capture (ImageType value 3 LOCALIZER,
   or SECONDARY in value 2 - DICOM PS3.3, C.8.2.1.1.1);
2. slices across the body: the normal within about 37 degrees of the body's axis;
3. described as chest (BodyPartExamined, SeriesDescription) before those that say nothing, those before another part;
4. a soft or standard reconstruction before a sharp one (kernels named as bone, edge or lung; the paper's images are
   smooth, and noise of sharp kernels hides what the classical tools measure);
5. the thinnest slices, at most THICK_ENOUGH_MM counting as equal; then the most slices; then the lowest UID.

Where rules 1 and 2 leave none, the series with the most slices is read, so that inspection can say what is wrong.

One SeriesInstanceUID may hold more than one stack: a localizer, another orientation, a second acquisition of the same
place. `list_series` gives each stack as a `Series` of its own, drops slices that are there twice with the same pixels,
and the reader names what it left out.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsyn.ct.dicom_slices import IMAGE_TYPE, KERNEL, MOST_UNEVEN, SAME_COSINE, Slice, is_dicom, read_slice, stacks
from medsyn.ct.geometry import MOST_SKEW_DEGREES, HeaderFacts, check_geometry, tilt_notes
from medsyn.ct.scan import Scan
from medsyn.errors import InputError
from medsyn.header_hints import HeaderHints
from medsyn.kernels import equal_thickness_mm, is_sharp
from medsyn.scan_warnings import SERIES, SPACING, warn
from medsyn.volume import from_sitk

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK warns of uneven slices on stderr; `series_faults` refuses them

MINIMUM_SLICES = 16
AXIAL_COSINE = 0.8
MODALITY, DESCRIPTION, BODY_PART = "0008|0060", "0008|103e", "0018|0015"
SOP_CLASS = "0008|0016"
TILT, ORIENTATION = "0018|1120", "0020|0037"
PIXEL_SPACINGS = ("0028|0030", "0018|1164", "0018|2010")
"""Pixel Spacing, and what captured images have instead: GDCM takes 1 mm where all are missing."""
_MULTI_FRAME = (
    "a multi-frame DICOM file of {} images that does not say where each lies, or one of several; convert it to NIfTI"
    " (dcm2niix) or to one file per slice"
)
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
    """One stack of slices: its files in slice order and what the first slice says.

    num_doubles: slices that were dropped because another has their place and pixels; num_frames: images of the first
    file, above 1 in a multi-frame file; facts: whether the first slice says spacing and orientation.
    """

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
    num_doubles: int = 0
    num_frames: int = 1
    facts: HeaderFacts = field(default_factory=HeaderFacts)

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
        return self.is_ct and self.num_slices >= MINIMUM_SLICES and not {"LOCALIZER", "SECONDARY"} & kinds

    @property
    def num_slices(self) -> int:
        """Slices of all files."""
        return len(self.files) * self.num_frames

    @property
    def step_mm(self) -> float:
        """Usual distance of neighbouring slices."""
        return float(np.median(np.abs(np.diff(self.positions @ self.normals[0])))) if len(self.files) > 1 else np.inf

    @property
    def tilt(self) -> float:
        """Degrees by which the stack is sheared: from the positions of its slices, and what the tag says."""
        span = self.positions[-1] - self.positions[0]
        along = abs(float(span @ self.normals[0]))
        across = float(np.linalg.norm(np.cross(span, self.normals[0])))
        return max(float(np.degrees(np.arctan2(across, along))) if along else 0.0, self.tilt_degrees)

    def rank(self) -> tuple[float, ...]:
        """Return what rules 3 to 5 sort by, best first."""
        words = f"{self.body_part} {self.description}"
        part = 0 if _CHEST.search(words) else 2 if _OTHER_PART.search(words) else 1
        return (part, is_sharp(self.kernel), equal_thickness_mm(self.step_mm), -self.num_slices)


def list_series(folder: str | Path) -> list[Series]:
    """Return every stack of slices of a folder, by SeriesInstanceUID; none is an InputError."""
    odd = [path.name for path in Path(folder).iterdir() if not (path.is_file() or path.is_dir())]
    if odd:
        raise InputError(f"{folder}: holds {odd[0]}, a pipe, device or broken link, expected files; remove it")
    found: list[Series] = []
    for name in sorted(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))):
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), name)
        slices = [slice_ for file in files if (slice_ := read_slice(file)) is not None]
        found += [_series(name, *part) for part in stacks(slices)]
    if not found:
        raise InputError(f"{folder}: no DICOM series in this folder; name the folder that holds the slices")
    return found


def read_dicom_file(path: Path, hints: HeaderHints) -> Scan:
    """Read the file of an enhanced CT; any other DICOM file is an InputError."""
    slice_ = read_slice(str(path))
    if slice_ is not None and slice_.num_frames > 1:
        return _read_enhanced(_series("", [slice_], 0), hints, str(path))
    raise InputError(f"{path}: one DICOM file, expected a folder that holds the slices of a series; name that folder")


def choose_series(folder: str | Path, wanted: str | None = None) -> Series:
    """Return the series named `wanted`, else the axial chest series by the rules above; InputError if unknown."""
    return _chosen(folder, list_series(folder), wanted)


def _chosen(folder: str | Path, series: list[Series], wanted: str | None) -> Series:
    if wanted:
        named = [s for s in series if wanted in (s.uid, s.description)]
        num_named = len({s.uid for s in named})
        if num_named != 1:
            have = "; ".join(f"{s.uid} ({s.description or 'no description'}, {len(s.files)} slices)" for s in series)
            count = "no" if not named else f"{num_named}"
            raise InputError(f"{folder}: {count} series '{wanted}'; it holds {have}")
        series = named
    fit = [s for s in series if s.primary and s.axial]
    return min(fit, key=Series.rank) if fit else max(series, key=lambda s: (s.is_ct, s.num_slices))


def read_series(folder: str | Path, hints: HeaderHints | None = None) -> Scan:
    """Read the chosen series in HU (GDCM applies slope and intercept), with its faults and what was left out."""
    hints = hints or HeaderHints()
    found = list_series(folder)
    series = _chosen(folder, found, hints.series)
    if not series.is_ct:
        raise InputError(f"{folder}: its DICOM series has modality {series.modality}, expected CT; give a CT series")
    if series.num_frames > 1:
        scan = _read_enhanced(series, hints, str(folder))
        return replace(scan, warnings=_left_out(found, series) + _unreadable(folder, found) + list(scan.warnings))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(series.files)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{folder}: its DICOM series cannot be read ({reason}); export it again") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{folder}: its DICOM series is not a 3-D grey-level volume; give an axial CT series")
    volume, faults, warnings = check_geometry(from_sitk(image), series.facts, hints, str(folder))
    _, notes = tilt_notes(series.tilt, 0.0)  # `series_faults` names a tilt that is too large
    left_out = _left_out(found, series) + _unreadable(folder, found)
    return Scan(volume, series_faults(series) + faults, left_out + _uneven(series) + warnings + notes)


def _read_enhanced(series: Series, hints: HeaderHints, name: str) -> Scan:
    """Read a series that is one multi-frame file; one whose frames have no places of their own is an InputError."""
    from medsyn.ct.dicom_frames import has_frames, read_frames

    path = Path(series.files[0])
    if len(series.files) > 1 or not has_frames(path):
        raise InputError(f"{name}: {_MULTI_FRAME.format(series.num_slices)}")
    frames = read_frames(path)
    files = series.files * len(frames.positions)
    series = replace(series, files=files, positions=frames.positions, normals=frames.normals, num_frames=1)
    volume, faults, warnings = check_geometry(frames.volume, HeaderFacts(), hints, name)
    _, notes = tilt_notes(series.tilt, 0.0)
    return Scan(volume, series_faults(series) + faults, _uneven(series) + warnings + notes)


def _left_out(found: list[Series], chosen: Series) -> list[str]:
    """Warn of slices of the chosen series that are not read."""
    warnings = []
    if chosen.num_doubles:
        warnings.append(warn(SERIES, f"{chosen.num_doubles} identical doubles of slices were dropped"))
    counts: dict[str, int] = {}
    for other in found:
        if other.uid != chosen.uid or other.files == chosen.files:
            continue
        localizer = "LOCALIZER" in {part.strip().upper() for part in other.image_type}
        apart = abs(float(other.normals[0] @ chosen.normals[0])) < SAME_COSINE
        what = "a localizer" if localizer else "another orientation" if apart else "another acquisition or image type"
        counts[what] = counts.get(what, 0) + len(other.files)
    for what, count in counts.items():
        warnings.append(warn(SERIES, f"{count} slices of the same series were left out: {what}"))
    return warnings


def _unreadable(folder: str | Path, found: list[Series]) -> list[str]:
    """Warn of DICOM files that GDCM finds no image in: a truncated slice at the end of a stack leaves no gap."""
    known = {"DICOMDIR"}.union(Path(file).name for series in found for file in series.files)
    files = [path for path in sorted(Path(folder).iterdir()) if path.is_file() and path.name not in known]
    names = [path.name for path in files if is_dicom(path) and read_slice(str(path)) is None]
    if not names:
        return []
    return [warn(SERIES, f"{len(names)} DICOM files were left out, damaged or without an image (first: {names[0]})")]


def _uneven(series: Series) -> list[str]:
    """Warn of slices at uneven distances that are no gap: ITK reads their mean as the spacing."""
    steps = np.abs(np.diff(series.positions @ series.normals[0]))
    if not steps.size or steps.max() < MOST_UNEVEN * steps.min():
        return []
    text = f"slices lie {steps.min():.3g} to {steps.max():.3g} mm apart, used as {steps.mean():.3g} mm everywhere"
    return [warn(SPACING, text)]


def series_faults(series: Series) -> list[str]:
    """Return reasons, from the slices' own positions, not to trust a series: gaps, doubles, tilt, no axial slices."""
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
    if across > 0.1 * max(usual, 1.0) or series.tilt > MOST_SKEW_DEGREES:
        faults.append("gantry tilt: slices are shifted against each other; resample the series to a straight grid")
    return faults


def _degrees(text: str) -> float:
    """Return the angle of a Decimal String without its sign; 0 where it is empty or no number."""
    try:
        angle = abs(float(text))
    except ValueError:
        return 0.0
    return angle if math.isfinite(angle) else 0.0


def _series(uid: str, slices: list[Slice], num_doubles: int) -> Series:
    first = slices[0].tags
    sop_class = first.get(SOP_CLASS, "")
    return Series(
        uid=first.get("0020|000e", uid).strip("\0 ") or uid,
        files=tuple(slice_.file for slice_ in slices),
        description=first.get(DESCRIPTION, ""),
        modality=first.get(MODALITY, "").upper() or _SOP_MODALITY.get(sop_class.removeprefix(_STORAGE), ""),
        image_type=tuple(first.get(IMAGE_TYPE, "").split("\\")),
        body_part=first.get(BODY_PART, ""),
        kernel=first.get(KERNEL, ""),
        positions=np.array([slice_.position for slice_ in slices]),
        normals=np.array([slice_.normal for slice_ in slices]),
        tilt_degrees=max(_degrees(slice_.tags.get(TILT, "")) for slice_ in slices),
        num_doubles=num_doubles,
        num_frames=slices[0].num_frames,
        facts=HeaderFacts(not first.keys().isdisjoint(PIXEL_SPACINGS), ORIENTATION in first),
    )
