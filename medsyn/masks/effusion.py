"""Pleural effusion in a chest CT without contrast in the fluid: homogeneous water-like tissue behind and below a lung.

Fluid lies some 30 to 40 HU below muscle and liver. The scan is smoothed, so that noise no longer hides this step, and
compared with its own soft tissue (a bias of the whole scan cancels). What remains after an opening are pools of fluid and
things that look like it: the stomach (does not reach the back of the thorax), fatty muscle (apart from the lungs), the
edges of consolidations and of the heart (not as dark, or anterior). Takes arrays (D, H, W) in model orientation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.masks.morphology import Spacing, components, dilate, open_

SMOOTH_MM = 4.5
LOWEST_HU = -25.0
CORE_HU, EDGE_HU = 21.0, 28.0
"""Smoothed HU below which a voxel can be the core and the edge of a pool; effusions measure 0 to 20, muscle 40 to 60."""
OPENING_MM, EDGE_MM, CONTACT_MM = 6.0, 7.0, 14.0
MINIMUM_ML = 12.0
BACK = 0.28
"""A pool begins within this share of the thorax's depth from its back ..."""
BASE = 0.6
"""... and within this share of the lungs' height from their base."""
EVEN_HU = 30.0
"""Standard deviation within a pool; the edge of a consolidation, half air, has more."""


def segment_effusion(hu: NDArray, lungs: NDArray[np.uint8], spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Pleural fluid (bool) of a scan in HU whose voxels are about 4 to 5 mm; lungs: 0, 1 right, 2 left."""
    nothing = np.zeros(hu.shape, bool)
    if not (lungs > 0).any():
        return nothing
    smooth = ndimage.gaussian_filter(np.clip(hu, -200, 200), [SMOOTH_MM / step for step in spacing_mm])
    free = (lungs == 0) & (hu > -150)
    core = open_(free & (smooth > LOWEST_HU) & (smooth < CORE_HU), OPENING_MM, spacing_mm)
    pools = _pleural(core, lungs > 0, hu, _noise_hu(hu, smooth), spacing_mm)
    edge = dilate(pools, EDGE_MM, spacing_mm) & (lungs == 0) & (hu > -400) & (smooth < EDGE_HU)
    return np.asarray(pools | edge)


def _noise_hu(hu: NDArray, smooth: NDArray) -> float:
    """Standard deviation of the scan's noise, from the middle of muscle and solid organs."""
    solid = ndimage.binary_erosion((smooth > EDGE_HU) & (smooth < 80))
    return 1.48 * float(np.median(np.abs(hu[solid] - smooth[solid]))) if solid.any() else 0.0


def _pleural(
    core: NDArray[np.bool_], lung: NDArray[np.bool_], hu: NDArray, noise_hu: float, spacing_mm: Spacing
) -> NDArray[np.bool_]:
    """The pools that touch a lung, reach the back of the thorax and its lower part, and are as even as the scan's noise allows."""
    labels, sizes = components(core)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    near = dilate(lung, CONTACT_MM, spacing_mm)
    touching = np.bincount(labels[near], minlength=len(sizes)) > 0
    pools = {i: np.nonzero(labels == i) for i in np.flatnonzero((sizes * voxel_ml >= MINIMUM_ML) & touching) if i}
    back, front = np.percentile(np.concatenate([np.nonzero(lung)[1], *(pool[1] for pool in pools.values())]), [1, 99])
    low, high = np.flatnonzero(lung.any((1, 2)))[[0, -1]]
    keep = np.zeros(len(sizes), bool)
    for index, pool in pools.items():
        dependent = np.percentile(pool[1], 5) <= back + BACK * (front - back)
        basal = np.percentile(pool[0], 5) <= low + BASE * (high - low)
        keep[index] = dependent and basal and hu[pool].std() <= max(EVEN_HU, 1.4 * noise_hu)
    return np.asarray(keep[labels])
