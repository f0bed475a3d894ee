"""Segment pleural effusion in a chest CT: pools of even, water-like tissue behind and below a lung.

Fluid is some 30 to 40 HU darker than muscle. The scan is smoothed, so that noise does not hide this difference, and
compared with the muscle of the same scan's back, so that an offset of the whole scan matters less. After an opening,
pools of fluid remain together with tissue that looks like them. These are excluded by place and evenness: the stomach
(below the lungs or away from the back), fatty muscle (apart from the lungs or high up), the edges of consolidations
(uneven) and of the heart (anterior). Takes arrays (D, H, W) in model orientation. Checked on phantoms only, not on real
effusions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.masks.lungs import LEFT, RIGHT
from medsyn.masks.morphology import (
    Spacing,
    block_expand,
    block_factors,
    block_labels,
    block_mean,
    components,
    dilate,
    enclosed,
    open_,
)

WORKING_MM = 4.0
"""Grid for fluid and heart: they do not need finer voxels."""
SMOOTH_MM = 4.5
LOWEST_HU = -25.0
STEEP_HU_PER_MM = 8.0
"""The smoothed scan is steeper than this where lung borders on solid tissue, and passes through fluid's values."""
DARKER_HU, CORE_HU_RANGE, EDGE_STEP_HU = 30.0, (15.0, 36.0), 5.0
"""A pool's core is this much below the muscle of the back, within a range; its edge a step less. Muscle: 30 to 60."""
OPENING_MM, EDGE_MM, CONTACT_MM = 6.0, 5.0, 25.0
MINIMUM_ML = 12.0
BACK = 0.28
"""A pool begins within this share of the thorax's depth from its back ..."""
BASE = 0.6
"""... and within this share of the lungs' height from their base, most of it beside the lungs."""
WALL_PERCENTILE = 5.0
"""Fluid lies deeper below the skin than the shallowest lung, but for this share of outliers: above is chest wall."""
EVEN_HU = 30.0
"""Standard deviation within a pool; the edge of a consolidation, half air, has more."""


def depth_below_skin_mm(body: NDArray[np.bool_], spacing_mm: Spacing) -> NDArray[np.float64]:
    """Return the distance of every voxel of the body, holes filled, to the air around it in its slice; outside 0."""
    slices = np.pad(body | enclosed(~body, in_plane=True), [(0, 0), (1, 1), (1, 1)])
    return np.stack([ndimage.distance_transform_edt(part, sampling=spacing_mm[1:])[1:-1, 1:-1] for part in slices])


def segment_effusion(hu: NDArray, lungs: NDArray[np.uint8], spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Return the pleural fluid (bool) of a scan in HU with voxels of about 4 to 5 mm; lungs: 0, 1 right, 2 left."""
    nothing = np.zeros(hu.shape, bool)
    if not (lungs > 0).any():
        return nothing
    smooth = ndimage.gaussian_filter(np.clip(hu, -200, 200), [SMOOTH_MM / step for step in spacing_mm])
    core_hu = float(np.clip(muscle_hu(smooth, lungs > 0, spacing_mm) - DARKER_HU, *CORE_HU_RANGE))
    free = (lungs == 0) & (hu > -150)
    even = np.sqrt(sum(g**2 for g in np.gradient(smooth, *spacing_mm))) < STEEP_HU_PER_MM
    depth = depth_below_skin_mm((hu > -300) | (lungs > 0), spacing_mm)
    free &= depth > np.percentile(depth[lungs > 0], WALL_PERCENTILE)
    core = open_(free & even & (smooth > LOWEST_HU) & (smooth < core_hu), OPENING_MM, spacing_mm)
    pools = _pleural(core, lungs > 0, hu, _noise_hu(hu, smooth, core_hu), spacing_mm)
    edge = dilate(pools, EDGE_MM, spacing_mm) & (lungs == 0) & (hu > -250) & (smooth < core_hu + EDGE_STEP_HU)
    return np.asarray(pools | edge)


def pleural_cavities(lungs: NDArray[np.uint8], effusion: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return lung labels (1 right, 2 left) with the fluid added to the side of the midline on which it lies."""
    found = [np.flatnonzero(mask.any((0, 1))) for mask in (lungs > 0, effusion)]
    ends = [end for columns in found if columns.size for end in (columns[0], columns[-1])]
    middle = (min(ends) + max(ends)) / 2 if ends else 0.0
    sides = np.where(np.arange(lungs.shape[2]) < middle, RIGHT, LEFT).astype(np.uint8)
    return np.where((lungs == 0) & effusion, sides, lungs).astype(np.uint8)


def fluid_on_grid(hu: NDArray, lungs: NDArray[np.uint8], spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Return `segment_effusion` on a grid of any spacing: it is run on blocks of about 4 mm."""
    factors = block_factors(spacing_mm, WORKING_MM)
    coarse = block_labels(lungs, factors)
    steps: Spacing = tuple(s * f for s, f in zip(spacing_mm, factors, strict=True))  # type: ignore[assignment]
    fluid = segment_effusion(block_mean(hu, factors), coarse, steps)
    return np.asarray(block_expand(fluid, factors, hu.shape))


def muscle_hu(smooth: NDArray, lung: NDArray[np.bool_], spacing_mm: Spacing) -> float:
    """Return the mode of the smoothed HU (25 to 95) of the muscles beside the spine; 51 if there are too few voxels.

    The muscles are sought 10 to 40 mm below the skin of the back.
    """
    levels = np.flatnonzero(lung.any((1, 2)))
    columns = np.flatnonzero(lung.any((0, 1)))
    middle, half = (columns[0] + columns[-1]) // 2, int(70 / spacing_mm[2])
    back = smooth[levels[0] : levels[-1] + 1, :, max(middle - half, 0) : middle + half + 1]
    skin = (back > -150).argmax(1)[:, None, :]
    depth = (np.arange(smooth.shape[1])[None, :, None] - skin) * spacing_mm[1]
    counts, edges = np.histogram(back[(depth >= 10) & (depth <= 40)], bins=70, range=(25.0, 95.0))
    if counts.sum() < 200:
        return 51.0
    return float(edges[int(np.argmax(ndimage.gaussian_filter1d(counts.astype(float), 4.0)))])


def _noise_hu(hu: NDArray, smooth: NDArray, core_hu: float) -> float:
    """Return the standard deviation of the scan's noise, from the middle of muscle and solid organs."""
    solid = ndimage.binary_erosion((smooth > core_hu + EDGE_STEP_HU) & (smooth < 80))
    return 1.48 * float(np.median(np.abs(hu[solid] - smooth[solid]))) if solid.any() else 0.0


def _pleural(
    core: NDArray[np.bool_], lung: NDArray[np.bool_], hu: NDArray, noise_hu: float, spacing_mm: Spacing
) -> NDArray[np.bool_]:
    """Return the pools near a lung that reach the back and the lower thorax and are as even as the noise allows."""
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
        basal = np.percentile(pool[0], 5) <= low + BASE * (high - low) and np.median(pool[0]) > low
        keep[index] = dependent and basal and hu[pool].std() <= max(EVEN_HU, 1.4 * noise_hu)
    return np.asarray(keep[labels])
