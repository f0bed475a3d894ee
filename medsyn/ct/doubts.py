"""Find what may change a measure of a chest CT but does not prove a fault, and return it as warnings.

Takes a volume in HU that `medsyn.ct.inspect` does not refuse, and returns lines of `medsyn.scan_warnings`. Arrays are
(D, H, W) in model orientation. Of these findings only `spine_in_front` proves a fault.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from medsyn.ct.air import AIR_HU
from medsyn.ct.atlas import load_atlas
from medsyn.ct.padding import empty_slices
from medsyn.masks.lungs import LEFT, RIGHT
from medsyn.masks.morphology import Spacing
from medsyn.scan_warnings import AIR, CUT, EMPTY_SLICES, MIRRORED, RANGE, warn
from medsyn.volume import Volume

CLIPPED_SHARE = 0.002
"""Share of the voxels with the highest (or lowest) value of a scan that was clipped there. On a real CT it is 0.00001;
clipped at 200, 400 and 600 HU it is 0.029, 0.010 and 0.0036."""
LOWEST_FREE_HU = -1000.0
"""Values clipped at or below this lose nothing that is measured: it is the HU of air."""
AIR_DRIFT_HU = 15.0
"""Air farther from -1000 HU moves the share of lung below -950 HU."""
BONE_HU = 200.0
END_DEPTH = 0.25
"""Share of the lungs' depth at the back, where the spine is, and at the front, where the sternum is thin."""
HEART_LEVELS, HEART_DEPTH = (0.1, 0.55), (0.4, 0.9)
"""Shares of the lungs' height and depth between which the heart parts the lungs."""
LEAST_SHIFT_MM, MINIMUM_CM2, LEAST_GAP_MM = 6.0, 10.0, 20.0
"""The heart parts the lungs by more than the gap, and moves the middle between them to the left of the spine: by 12 to
20 mm on phantoms with and without disease, 20 mm on a real CT. It must be seen on a sagittal area of MINIMUM_CM2."""
CUT_AREA = 0.05
"""Area of lung in the first or last slice, of the largest axial area: lungs that end there are cut."""


def range_warnings(array: NDArray) -> list[str]:
    """Return warnings of HU that were clipped: many voxels hold exactly the highest or the lowest value."""
    sample = array[:: max(1, array.shape[0] // 32), ::2, ::2]
    warnings = []
    for end, value in (("maximum", float(sample.max())), ("minimum", float(sample.min()))):
        share = float((sample == value).mean())
        if share >= CLIPPED_SHARE and (end == "maximum" or value > LOWEST_FREE_HU):
            warnings.append(warn(RANGE, f"{share:.1%} of the voxels at the {end}, {value:g} HU: were they clipped?"))
    return warnings


def air_warnings(air_hu: float | None) -> list[str]:
    """Return a warning where the measured air around the patient has drifted from -1000 HU."""
    if air_hu is None or abs(air_hu - AIR_HU) <= AIR_DRIFT_HU:
        return []
    return [warn(AIR, f"air at {air_hu:.0f} HU, expected -1000: %LAA-950 is not comparable")]


def slice_warnings(array: NDArray) -> list[str]:
    """Return a warning of slices without an image between others."""
    empty = empty_slices(array)
    if not empty:
        return []
    return [
        warn(EMPTY_SLICES, f"{len(empty)} of {len(array)} slices hold one value only, between slices with an image")
    ]


def cut_warnings(lung: NDArray[np.bool_], spacing_mm: Spacing) -> list[str]:
    """Return a warning for each end of the scan that cuts the lungs, with the share that may be missing.

    The share is that of the atlas's lungs beyond the end, the atlas scaled to the largest axial area and laid on the
    end that is whole. Where both are cut, the end lies where the atlas has the axial area of the end slice.
    """
    area = lung.sum((1, 2)).astype(float) * spacing_mm[1] * spacing_mm[2]
    if not area.any():
        return []
    cut = [bool(area[index] > CUT_AREA * area.max()) for index in (0, -1)]
    profile, step_mm = _atlas_profile()
    height_mm = np.count_nonzero(area) * spacing_mm[0] * float(np.sqrt(profile.max() / area.max()))
    warnings = []
    for index, name, beyond in ((0, "first (lowest)", profile), (-1, "last (highest)", profile[::-1])):
        if not cut[index]:
            continue
        share = float(area[index] / area.max())
        level = int(np.argmax(beyond >= share * profile.max()))
        if not all(cut):
            level = max(level, round(len(profile) - height_mm / step_mm))
        text = f"the {name} slice shows lung, {share:.0%} of the largest axial area"
        missing = float(beyond[:level].sum() / profile.sum())
        warnings.append(warn(CUT, f"{text}: about {missing:.0%} of the lungs may be missing"))
    return warnings


@cache
def _atlas_profile() -> tuple[NDArray[np.float64], float]:
    """Return the axial area (mm2) of the atlas's lungs, lowest slice first, and the distance of the slices (mm)."""
    atlas = load_atlas(None)
    area = (atlas.array > 0).sum((1, 2)).astype(float) * atlas.spacing_mm[1] * atlas.spacing_mm[2]
    return np.asarray(area[area > 0]), atlas.spacing_mm[0]


def spine_in_front(volume: Volume, lungs: NDArray[np.uint8]) -> bool:
    """Return whether the bone between the lungs lies in front, in most slices and twice what lies behind them."""
    box = _box(lungs > 0)
    if box is None:
        return False
    (low, high), rows, columns = box
    third = (columns[1] - columns[0]) // 3
    bone = volume.array[low:high, :, columns[0] + third : columns[1] - third] > BONE_HU
    margin = int(END_DEPTH * (rows[1] - rows[0]))
    behind, before = bone[:, : rows[0] + margin].sum((1, 2)), bone[:, rows[1] - margin :].sum((1, 2))
    return bool((before > 2 * behind).mean() >= 0.5 and before.sum() > 2 * behind.sum())


def mirrored_warnings(volume: Volume, lungs: NDArray[np.uint8]) -> list[str]:
    """Return a warning where the heart lies on the right of the spine; lungs: 0, 1 right, 2 left."""
    shift = heart_shift_mm(volume, lungs)
    if shift is None or shift > -LEAST_SHIFT_MM:
        return []
    seen = f"heart on the right, {-shift:.0f} mm from the middle of the spine"
    return [warn(MIRRORED, f"{seen}: a mirrored header, or situs inversus")]


def heart_shift_mm(volume: Volume, lungs: NDArray[np.uint8]) -> float | None:
    """Return how far left of the spine the middle between the lungs lies at the heart; None where it is not seen.

    Fluid and liver do not count: only rows of voxels that hold both lungs are looked at.
    """
    box = _box(lungs > 0)
    if box is None:
        return None
    (low, high), rows, columns = box
    depth, third = rows[1] - rows[0], (columns[1] - columns[0]) // 3
    left, right = columns[0] + third, columns[1] - third
    bone = np.nonzero(volume.array[low:high, : rows[0] + int(END_DEPTH * depth), left:right] > BONE_HU)[2]
    if not bone.size:
        return None
    middle = float(np.median(bone)) + left
    levels = slice(*(low + int(share * (high - low)) for share in HEART_LEVELS))
    part = lungs[levels, slice(*(rows[0] + int(share * depth) for share in HEART_DEPTH))]
    inner_right = part.shape[2] - 1 - (part == RIGHT)[:, :, ::-1].argmax(2)
    inner_left = (part == LEFT).argmax(2)
    z_mm, y_mm, x_mm = volume.spacing_mm
    seen = (part == RIGHT).any(2) & (part == LEFT).any(2) & ((inner_left - inner_right) * x_mm > LEAST_GAP_MM)
    if seen.sum() * z_mm * y_mm / 100 < MINIMUM_CM2:
        return None
    return float(np.median(((inner_right + inner_left) / 2 - middle)[seen])) * x_mm


def _box(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    """Return the first index, and one past the last, of a mask along z, y and x; None where it is empty."""
    if not mask.any():
        return None
    ends = [np.flatnonzero(mask.any(axes))[[0, -1]] for axes in ((1, 2), (0, 2), (0, 1))]
    z, y, x = ((int(first), int(last) + 1) for first, last in ends)
    return z, y, x
