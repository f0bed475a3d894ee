"""Measure the cardiothoracic ratio from the lungs: cardiac over inner thoracic width at one level (paper, V-C).

Thresholds cannot separate the heart from vessels and diaphragm, but they find its two lateral borders, where the soft
tissue between the lungs ends in front of the vertebral bodies. Per axial slice, the tissue between the lungs is the
convex hull of the pleural cavities without the cavities. Its left and right ends count where it is at least
`THICKNESS_MM` deep, which excludes slivers along the chest wall. Below the dome of the right diaphragm, where the liver
would be taken for the heart, the right border is held constant; below the left dome nothing is measured. Takes arrays
(D, H, W) in model orientation, spacing in mm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import convex_hull_image

from medsyn.masks.effusion import pleural_cavities
from medsyn.masks.lungs import LEFT, RIGHT
from medsyn.masks.morphology import Spacing, components

SOFT_HU = -30.0
"""Heart and blood lie above, mediastinal fat below."""
ANTERIOR = 0.38
"""Share of the cavity's depth behind which lie spine and aorta."""
THICKNESS_MM = 20.0
SMOOTH_MM = 15.0
DOME_PERCENTILE = 90


def cardiothoracic_ratio(
    hu: NDArray, lungs: NDArray[np.uint8], effusion: NDArray[np.bool_], spacing_mm: Spacing
) -> float | None:
    """Return maximal cardiac width / maximal inner thoracic width at the same level; None if no slice shows a heart.

    lungs: 0, 1 right, 2 left; effusion: pleural fluid, part of the thoracic cavity.
    """
    return _ratio(cardiac_borders(hu, lungs, effusion, spacing_mm), (lungs > 0) | effusion)


def ratio_of_heart(heart: NDArray[np.bool_], cavity: NDArray[np.bool_]) -> float | None:
    """Return the cardiothoracic ratio from masks (D, H, W) of heart (its largest part) and thoracic cavity."""
    labels, sizes = components(heart)
    heart = (labels > 0) & (labels == np.argmax(sizes))
    borders = np.full((heart.shape[0], 2), np.nan)
    for z in np.flatnonzero(heart.any((1, 2)) & cavity.any((1, 2))):
        columns = np.flatnonzero(heart[z].any(0))
        borders[z] = columns[0], columns[-1] + 1
    return _ratio(borders, cavity)


def _ratio(borders: NDArray[np.float64], cavity: NDArray[np.bool_]) -> float | None:
    """Return the largest width between the borders (D, 2) over the width of the cavity at the same level."""
    best = None
    for z in np.flatnonzero(np.isfinite(borders).all(1)):
        columns = np.flatnonzero(cavity[z].any(0))
        cardiac = borders[z, 1] - borders[z, 0]
        if best is None or cardiac > best[0]:
            best = (cardiac, cardiac / (columns[-1] - columns[0] + 1))
    return None if best is None else float(best[1])


def cardiac_borders(
    hu: NDArray, lungs: NDArray[np.uint8], effusion: NDArray[np.bool_], spacing_mm: Spacing
) -> NDArray[np.float64]:
    """Return the right and left border of the heart per slice, as x edges in voxels (D, 2); NaN where not seen."""
    borders = np.full((lungs.shape[0], 2), np.nan)
    sides = pleural_cavities(lungs, effusion)
    right, left, cavity = sides == RIGHT, sides == LEFT, sides > 0
    minimum = 1500.0 / (spacing_mm[1] * spacing_mm[2])
    right_dome, left_dome = dome_level(right, spacing_mm, RIGHT), dome_level(left, spacing_mm, LEFT)
    measured = (right.sum((1, 2)) > minimum) & (left.sum((1, 2)) > minimum)
    measured[: min(right_dome, left_dome)] = False
    for z in np.flatnonzero(measured):
        depth = np.flatnonzero(cavity[z].any(1))
        between = convex_hull_image(cavity[z]) & ~cavity[z] & (hu[z] > SOFT_HU)
        between[: int(depth[0] + ANTERIOR * (depth[-1] - depth[0]))] = False
        run = _central_run(between.sum(0) * spacing_mm[1] >= THICKNESS_MM, cavity[z])
        if run is not None:
            borders[z] = run
    held = borders[right_dome : right_dome + max(2, round(SMOOTH_MM / spacing_mm[0])), 0]
    borders[:right_dome, 0] = np.where(
        np.isfinite(borders[:right_dome, 0]), np.nanmedian(held) if np.isfinite(held).any() else np.nan, np.nan
    )
    borders[:left_dome] = np.nan
    return _median_along_z(borders, max(1, round(SMOOTH_MM / spacing_mm[0]) // 2 * 2 + 1))


def _central_run(thick: NDArray[np.bool_], cavity: NDArray[np.bool_]) -> tuple[int, int] | None:
    """Return the first and one past the last column of the run of `thick` columns in the middle third of the cavity."""
    columns = np.flatnonzero(cavity.any(0))
    width = columns[-1] - columns[0] + 1
    labels, count = ndimage.label(thick)
    if not count:
        return None
    central = np.bincount(labels[columns[0] + width // 3 : columns[-1] + 1 - width // 3], minlength=count + 1)
    central[0] = 0
    if not central.any():
        return None
    run = np.flatnonzero(labels == int(np.argmax(central)))
    return int(run[0]), int(run[-1]) + 1


def dome_level(lung: NDArray[np.bool_], spacing_mm: Spacing, side: int) -> int:
    """Return the first slice above the diaphragm's dome: the highest floor of the lung in its lateral third, behind."""
    columns, rows = np.flatnonzero(lung.any((0, 1))), np.flatnonzero(lung.any((0, 2)))
    if columns.size == 0:
        return 0
    third, back = (columns[-1] - columns[0]) // 3 + 1, (rows[0] + rows[-1]) // 2
    outer = slice(columns[0], columns[0] + third) if side == RIGHT else slice(columns[-1] + 1 - third, columns[-1] + 1)
    lateral = lung[:, :back, outer]
    footprint = lateral.sum(0) * spacing_mm[0] > 60.0
    if not footprint.any():
        return 0
    floor = lateral.argmax(0)
    return int(np.percentile(floor[footprint], DOME_PERCENTILE)) + 1


def _median_along_z(borders: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the running median over slices, NaN where the slice itself is NaN."""
    if window <= 1:
        return borders
    filled = borders.copy()
    for column in range(2):
        good = np.isfinite(borders[:, column])
        if good.any():
            index = np.arange(len(borders))
            filled[:, column] = np.interp(index, index[good], borders[good, column])
    smooth = ndimage.median_filter(np.nan_to_num(filled), size=(window, 1), mode="nearest")
    return np.where(np.isfinite(borders), smooth, np.nan)
