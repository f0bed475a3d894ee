"""Decide from its voxels and geometry whether a file is a chest CT in Hounsfield units.

`inspect` reads a file or DICOM folder and returns a dict: size (x, y, z voxels), spacing_mm (x, y, z), orientation, HU
range and a verdict with reasons. `describe` does the same for a volume in memory. Each reason is one sentence that says
what was found and what is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medsyn.ct.air import air_is_off, measure_air
from medsyn.ct.cavities import Cavities, find_cavities
from medsyn.ct.doubts import (
    air_warnings,
    cut_warnings,
    mirrored_warnings,
    range_warnings,
    slice_warnings,
    spine_in_front,
)
from medsyn.ct.padding import is_padded
from medsyn.ct.reading import read_scan
from medsyn.ct.scan import Scan
from medsyn.errors import InputError
from medsyn.header_hints import HeaderHints
from medsyn.masks.lungs import LEFT, RIGHT, WORKING_MM, Lungs, segment_lungs
from medsyn.masks.morphology import coarsened
from medsyn.orientation import orientation_code, reorient
from medsyn.volume import Volume

COARSEST_MM = 10.0
MOST_OBLIQUE_DEGREES = 35.0
MINIMUM_VOXELS = 16
MINIMUM_EXTENT_MM = 100.0
MINIMUM_LUNGS_ML, MINIMUM_WITHOUT_AIRWAY_ML = 200.0, 700.0
"""Least air in both lungs together, with a trachea and without: adults have 2 to 7 litres, compressed lungs
less. Gas in a bowel may look like lung, so more is needed without a trachea."""
MINIMUM_CAVITY_ML = 150.0
"""A pleural cavity from which a lung was removed years ago still has this volume."""
MINIMUM_RIBS_ML, MINIMUM_RIBS_WITHOUT_AIRWAY_ML = 40.0, 100.0
"""Bone beside a pleural cavity without aerated lung: 88 to 255 ml were measured on phantoms and on a real chest."""
MINIMUM_INSIDE = 0.7
"""Share of the one aerated lung within the fitted atlas: 0.86 to 0.97 on phantoms, 0.5 to 0.86 in abdomens."""
MINIMUM_TRACHEA_ML = 10.0
"""Less at the lower end of a scan may be gas in a stomach."""


@dataclass(frozen=True)
class Chest:
    """Lungs of a CT and the volume they were found in: model orientation, 2.5 mm voxels or the CT's own if coarser."""

    volume: Volume
    lungs: Lungs

    @cached_property
    def cavities(self) -> Cavities:
        """Return the pleural cavities: the lungs and what fills the rest of each side."""
        return find_cavities(self.volume, self.lungs)


class Verdict(NamedTuple):
    """reasons: why a volume is refused (none: it is a chest CT in HU); chest: its lungs, if it came that far;
    warnings: lines of `medsyn.scan_warnings`.
    """

    reasons: list[str]
    chest: Chest | None = None
    warnings: tuple[str, ...] = ()


def inspect(path: str | Path, hints: HeaderHints | None = None) -> dict[str, Any]:
    """Return facts and verdict on one file; one that cannot be read is `rejected` with that reason.

    A path that does not exist is an InputError.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    try:
        scan = read_scan(path, hints)
    except InputError as error:
        return {"path": str(path), "verdict": "rejected", "reasons": [str(error)], "warnings": []}
    return {"path": str(path)} | describe(scan)


def describe(scan: Scan) -> dict[str, Any]:
    """Return facts and verdict on a scan."""
    volume = scan.volume
    reasons, chest, warnings = judge(volume)
    reasons = [*scan.faults, *reasons]
    finite = np.isfinite(volume.array).all() if volume.array.dtype.kind == "f" else True
    facts: dict[str, Any] = {
        "size": list(reversed(volume.array.shape)),
        "spacing_mm": [round(float(s), 6) for s in reversed(volume.spacing_mm)],
        "orientation": orientation_code(volume),
        "hu_min": float(volume.array.min()) if finite else None,
        "hu_max": float(volume.array.max()) if finite else None,
        "air_hu": measure_air(volume.array) if finite else None,
        "verdict": "rejected" if reasons else "ok",
        "reasons": reasons,
        "warnings": [*scan.warnings, *warnings],
    } | scan.facts
    if chest is not None:
        facts["lung_volume_ml"] = {
            side: round(float((chest.lungs.label == value).sum()) * chest.volume.voxel_mm3 / 1000, 1)
            for side, value in (("right", RIGHT), ("left", LEFT))
        }
    return facts


def read_hu(path: str | Path, hints: HeaderHints | None = None) -> Volume:
    """Read one CT; a series that is not straight and complete and values that cannot be HU are an InputError."""
    return read_hu_scan(path, hints).volume


def read_hu_scan(path: str | Path, hints: HeaderHints | None = None) -> Scan:
    """Read one CT as `read_hu` does, with its warnings."""
    scan = read_scan(path, hints)
    faults = scan.faults + value_faults(scan.volume.array)
    if faults:
        raise InputError(f"{path}: {'; '.join(faults)}; give a whole CT in HU")
    return scan


def judge(volume: Volume) -> Verdict:
    """Return the faults, facts and warnings of a volume: whether it is a chest CT in HU."""
    model = reorient(volume)
    values = value_faults(model.array)
    air = None if values else measure_air(model.array)
    reasons = _grid_faults(model) + (values or _air_faults(model.array, air))
    if reasons:
        return Verdict(reasons)
    coarse = coarsened(model, WORKING_MM)
    chest = Chest(coarse, segment_lungs(coarse.array, coarse.spacing_mm))
    warnings = [*range_warnings(model.array), *air_warnings(air), *slice_warnings(model.array)]
    if reasons := lung_faults(chest) or _turned_faults(chest):
        return Verdict(reasons, chest, tuple(warnings))
    label = chest.lungs.label
    warnings += [*cut_warnings(label > 0, coarse.spacing_mm), *mirrored_warnings(coarse, label)]
    return Verdict([], chest, tuple(warnings))


def _grid_faults(volume: Volume) -> list[str]:
    reasons = []
    extent = [count * step for count, step in zip(volume.array.shape, volume.spacing_mm, strict=True)]
    if max(volume.spacing_mm) > COARSEST_MM:
        reasons.append(f"too coarse: spacing {max(volume.spacing_mm):.1f} mm, at most {COARSEST_MM:.0f} mm is useful")
    if min(volume.array.shape) < MINIMUM_VOXELS:
        reasons.append(
            f"too few slices: {min(volume.array.shape)} along one axis, at least {MINIMUM_VOXELS} are needed"
        )
    elif min(extent) < MINIMUM_EXTENT_MM:
        reasons.append(
            f"too small: {min(extent):.0f} mm along one axis, a chest needs {MINIMUM_EXTENT_MM:.0f} mm;"
            " is the spacing right?"
        )
    tilt = _oblique_degrees(volume)
    if tilt > MOST_OBLIQUE_DEGREES:
        reasons.append(f"not axial: the axes are turned by {tilt:.0f} degrees against the patient's")
    steps = np.sort(volume.spacing_mm)
    body_axis = np.argmax(np.abs(np.array(volume.direction).reshape(3, 3)[2]))  # x, y or z index along the body
    if steps[2] > 1.5 * steps[1] and int(np.argmax(volume.spacing_mm)) != 2 - body_axis:
        reasons.append("not axial: the slices, the coarse axis, do not follow each other along the body")
    return reasons


def _oblique_degrees(volume: Volume) -> float:
    """Return the largest angle between an axis of the grid and the patient's axis nearest to it."""
    cosines = np.abs(np.array(volume.direction).reshape(3, 3)).max(0)
    return float(np.degrees(np.arccos(np.clip(cosines.min(), 0, 1))))


def value_faults(array: np.ndarray) -> list[str]:
    """Return why voxels (D, H, W) cannot be those of a CT: not on the scale of HU, constant, or without bone."""
    if faults := scale_faults(array):
        return faults
    low, high = float(array.min()), float(array.max())
    if low == high:
        return [f"constant: every voxel is {low:g}"]
    return [f"not HU: nothing is above {high:g}, bone should be above 300"] if high < 100 else []


def scale_faults(array: np.ndarray) -> list[str]:
    """Return why voxels (D, H, W) are not on the scale of HU: NaN, a small range, an offset, rescaled twice.

    A poor image on the right scale, a constant one for example, has none.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        return [f"{count} voxels are NaN or infinite"]
    low, high = float(array.min()), float(array.max())
    if low == high:
        return []
    if low >= -1.5 and high <= 1.5:
        return [f"not HU: values lie in [{low:g}, {high:g}], an image scaled to the range of a network"]
    if low >= 0 and high <= 255:
        return [f"not HU: values lie in [{low:g}, {high:g}], an 8-bit picture"]
    if low >= -200:
        return [f"not HU: nothing is below {low:g}, air should be near -1000 (an intercept of -1024 was not applied?)"]
    twice = float((array < -1500).mean()) if low < -1500 else 0.0
    if twice > 0.05 and not is_padded(array):
        return [
            f"rescaled twice: {twice:.0%} of the voxels are below -1500 HU (lowest {low:g}), in the body too; air"
            " should be near -1000 (the file held HU already and the intercept was applied again)"
        ]
    return []


def _air_faults(array: np.ndarray, measured: float | None) -> list[str]:
    """Return faults of the air around the patient: a scanner's drift is small, a wrong slope or intercept is not."""
    air = None if measured is None else air_is_off(array, measured)
    if air is None:
        return []
    return [f"not HU: the air lies at {air:.0f}, it should be near -1000 (a wrong slope or intercept?)"]


def lung_faults(chest: Chest) -> list[str]:
    """Return the reasons why lungs found in a volume do not make it a chest."""
    lungs = chest.lungs
    ml = {value: float((lungs.label == value).sum()) * chest.volume.voxel_mm3 / 1000 for value in (RIGHT, LEFT)}
    if not max(ml.values()):
        return ["not a chest: no lung found"]
    least = MINIMUM_LUNGS_ML if lungs.airway.any() else MINIMUM_WITHOUT_AIRWAY_ML
    if sum(ml.values()) < least:
        seen = "a trachea" if lungs.airway.any() else "no trachea"
        return [
            f"not a chest: {seen}, and air that looks like lung is {sum(ml.values()):.0f} ml, less than {least:.0f} ml"
        ]
    return [] if min(ml.values()) else _one_lung_faults(chest, LEFT if ml[RIGHT] else RIGHT)


def _one_lung_faults(chest: Chest, missing: int) -> list[str]:
    """Return the reasons why a volume with one aerated lung is not a chest: the other pleural cavity is missing."""
    cavities, side = chest.cavities, {RIGHT: "right", LEFT: "left"}[missing]
    seen = f"one lung only found, and on the {side}"
    if cavities.filled_ml[missing] < MINIMUM_CAVITY_ML:
        return [
            f"not a chest: {seen} a filled pleural cavity of {cavities.filled_ml[missing]:.0f} ml, less than"
            f" {MINIMUM_CAVITY_ML:.0f} ml"
        ]
    least = MINIMUM_RIBS_ML if chest.lungs.airway.any() else MINIMUM_RIBS_WITHOUT_AIRWAY_ML
    if cavities.rib_ml[missing] < least:
        return [f"not a chest: {seen} {cavities.rib_ml[missing]:.0f} ml of ribs, less than {least:.0f} ml"]
    if cavities.lung_inside < MINIMUM_INSIDE:
        return [
            f"not a chest: {seen} no pleural cavity that fits to it: {cavities.lung_inside:.0%} of the lung lies in the"
            f" fitted atlas, at least {MINIMUM_INSIDE:.0%} is needed"
        ]
    return []


def _turned_faults(chest: Chest) -> list[str]:
    """Return a reason if the volume is upside down, or front and back are exchanged.

    The first: no trachea where the header says that the head is, but one when head and feet change places. The second:
    the spine in front of the lungs.
    """
    if spine_in_front(chest.volume, chest.lungs.label):
        return ["front and back exchanged: the spine lies where the header calls the front; give the orientation"]
    if chest.lungs.airway.any():
        return []
    turned = segment_lungs(chest.volume.array[::-1], chest.volume.spacing_mm).airway
    if turned.sum() * chest.volume.voxel_mm3 / 1000 < MINIMUM_TRACHEA_ML:
        return []
    return ["upside down: the trachea lies at the end that the header calls the lower one; give the orientation"]
