"""Segment pulmonary vessels inside the lungs by thresholds.

Takes HU (D, H, W), lung and airway masks and spacing in millimetres. On fine grids the scan is sharpened to remove part
of the scanner's blur; a voxel is vessel if it is then nearer to blood than to lung and not in the airway's wall. On
coarse grids a vessel fills only part of a voxel, so the threshold falls with the voxel's size and is relative to the
lung's own parenchyma.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.masks.airway import FINE_MM
from medsyn.masks.morphology import Spacing, dilate, erode, keep_large

BLOOD_HU = 40.0
SHARPEN, SHARPEN_MM = 0.7, 1.0
"""Weight of what a Gaussian of SHARPEN_MM takes away: a vessel as wide as the point spread gets its true width back."""
THIN_WALL_MM, SPECK_MM3 = 1.3, 2.5
"""Kept free around the lumen for its wall; the smallest piece that is a vessel."""
PARTIAL_HU = -500.0
PARTIAL = 0.37
"""Share of blood in a voxel of the lung, from which it counts as vessel on a coarse grid."""
COARSE_MM = 3.0
PLEURA_MM, WALL_MM, MINIMUM_MM3 = 2.0, 2.5, 15.0


def segment_vessels(
    hu: NDArray, lung: NDArray[np.bool_], airway: NDArray[np.bool_], spacing_mm: Spacing
) -> NDArray[np.uint8]:
    """Return the vessel mask 0/1, arteries and veins together, inside `lung` only."""
    if not lung.any():
        return np.zeros(hu.shape, np.uint8)
    find = _fine if max(spacing_mm[1:]) <= FINE_MM else _coarse
    return find(hu, lung, airway, spacing_mm).astype(np.uint8)


def _fine(hu: NDArray, lung: NDArray[np.bool_], airway: NDArray[np.bool_], spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Return vessels that start inside the lung, grown by one voxel into its outermost layer, which is partly wall."""
    sharp = hu.astype(np.float32)
    blurred = ndimage.gaussian_filter(sharp, [SHARPEN_MM / step for step in spacing_mm], truncate=3)
    sharp *= 1 + SHARPEN
    blurred *= SHARPEN
    sharp -= blurred
    parenchyma = float(np.median(hu[lung]))
    bright = lung & (sharp > (parenchyma + BLOOD_HU) / 2) & ~dilate(airway, THIN_WALL_MM, spacing_mm)
    inner = bright & ndimage.binary_erosion(lung, border_value=1)
    vessels = keep_large(inner, SPECK_MM3 / float(np.prod(spacing_mm)), np.ones((3, 3, 3)))
    return vessels | (ndimage.binary_dilation(vessels) & bright)


def _coarse(hu: NDArray, lung: NDArray[np.bool_], airway: NDArray[np.bool_], spacing_mm: Spacing) -> NDArray[np.bool_]:
    in_plane = min(spacing_mm[1:])
    threshold = PARTIAL_HU
    if in_plane > COARSE_MM:
        parenchyma = float(np.median(hu[lung]))
        threshold = min(PARTIAL_HU, parenchyma + PARTIAL * (BLOOD_HU - parenchyma))
    core = erode(lung, max(PLEURA_MM, in_plane), spacing_mm)
    bright = core & (hu > threshold) & ~dilate(airway, WALL_MM, spacing_mm)
    minimum = MINIMUM_MM3 / float(np.prod(spacing_mm))
    return keep_large(bright, minimum, np.ones((3, 3, 3)))
