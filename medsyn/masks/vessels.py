"""Pulmonary vessels inside the lungs by thresholds.

Takes HU (D, H, W), lung and airway masks and spacing in millimetres. On fine grids a vessel is what exceeds -500 HU
away from the pleura and the airway's wall; on coarse ones a vessel fills only part of a voxel, so the threshold falls
with the voxel's size and is measured against the lung's own parenchyma.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medsyn.masks.morphology import Spacing, dilate, erode, keep_large

FINE_HU = -500.0
PARTIAL = 0.37
"""Share of blood (40 HU) in a voxel of the lung, from which it counts as vessel on a coarse grid."""
COARSE_MM = 3.0
PLEURA_MM, WALL_MM, MINIMUM_MM3 = 2.0, 2.5, 15.0


def segment_vessels(
    hu: NDArray, lung: NDArray[np.bool_], airway: NDArray[np.bool_], spacing_mm: Spacing
) -> NDArray[np.uint8]:
    """Vessel mask 0/1, arteries and veins together, only inside `lung`."""
    if not lung.any():
        return np.zeros(hu.shape, np.uint8)
    in_plane = min(spacing_mm[1:])
    threshold = FINE_HU
    if in_plane > COARSE_MM:
        parenchyma = float(np.median(hu[lung]))
        threshold = min(FINE_HU, parenchyma + PARTIAL * (40.0 - parenchyma))
    core = erode(lung, max(PLEURA_MM, in_plane), spacing_mm)
    bright = core & (hu > threshold) & ~dilate(airway, WALL_MM, spacing_mm)
    minimum = MINIMUM_MM3 / float(np.prod(spacing_mm))
    return keep_large(bright, minimum, np.ones((3, 3, 3))).astype(np.uint8)
