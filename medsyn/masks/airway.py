"""Segment the airway's lumen by region growing from the trachea with leak control.

Takes HU (D, H, W) in model orientation and spacing in millimetres. The seed is the round dark blob near the midline
that continues through the slices of the upper part of the volume. The threshold rises in steps of 10 HU, and the last
volume before a jump is kept. The threshold at which a leak begins differs per scan (-880 on one, -810 on another), so
the jump decides and not a constant. This runs on a coarse grid (`medsyn.masks.lungs`). On a fine grid `follow`
continues into the smaller bronchi; there a leak stops only the branch that leaks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import flood

from medsyn.masks.morphology import Spacing, box_of, components

LUMEN_HU = -600.0
"""The trachea's blob in a slice: below this (partial volume raises the rim)."""
FIRST_HU, LAST_HU, STEP_HU = -980, -700, 10
JUMP_RATIO, JUMP_ML, LIMIT_ML = 1.35, 30.0, 160.0
"""A leak multiplies the volume by more than JUMP_RATIO, counted from JUMP_ML up: below that a wide trachea fills."""
FINE_MM = 2.5
"""Bronchi are followed where the voxels of a slice are at most so large."""
SMOOTH_MM, FOLLOW_STEP_HU, RIM_HU = 0.7, 20, -550.0
"""Standard deviation of the smoothing; how bright the lumen's outermost layer may be, which is partly wall."""
PIECE_ML, BEYOND_MM = 0.4, 40.0
"""Largest piece of bronchus that one step may add; how far beyond the coarse airway bronchi are looked for."""


def central_airway(hu: NDArray, inside: NDArray[np.bool_], spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Return the trachea and the bronchi that can be followed; empty where no trachea is found.

    inside: air within the body (`medsyn.masks.lungs.inner_air`).
    """
    seeds = find_trachea(hu, inside, spacing_mm)
    if not seeds.any():
        return seeds
    return grow(hu, inside, seeds, spacing_mm)


def find_trachea(hu: NDArray, inside: NDArray[np.bool_], spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Return the trachea above the carina: the best chain of round blobs, at least 15 mm long, from the top down."""
    empty = np.zeros(hu.shape, bool)
    body = hu > -300
    columns = np.flatnonzero(body.any((0, 1)))
    if not inside.any() or columns.size == 0:
        return empty
    lungs = np.flatnonzero(inside.sum((1, 2)) * spacing_mm[1] * spacing_mm[2] > 2000)
    if lungs.size == 0:
        return empty
    low = lungs[-1] - max(0.45 * (lungs[-1] - lungs[0] + 1), 3)
    middle, half_width = columns.mean(), (columns[-1] - columns[0] + 1) / 2
    chains: list[tuple[float, list[tuple[int, NDArray[np.bool_], float, float]]]] = []
    for z in range(hu.shape[0] - 1, max(int(low), 0) - 1, -1):
        for blob in _round_blobs(inside[z] & (hu[z] < LUMEN_HU), hu[z], spacing_mm):
            mask, y, x, roundness = blob
            if abs(x - middle) > 0.3 * half_width:
                continue
            score = roundness - abs(x - middle) / half_width
            step = (z, mask, y, x)
            for index, (total, chain) in enumerate(chains):
                last_z, _, last_y, last_x = chain[-1]
                shift = np.hypot((y - last_y) * spacing_mm[1], (x - last_x) * spacing_mm[2])
                if last_z == z + 1 and shift < 8 + 0.6 * spacing_mm[0]:
                    chains[index] = (total + score, [*chain, step])
                    break
            else:
                chains.append((score, [step]))
    long = [item for item in chains if len(item[1]) * spacing_mm[0] >= 15]
    if not long:
        return empty
    for z, mask, _, _ in max(long, key=lambda item: item[0])[1]:
        empty[z] |= mask
    return empty


def _round_blobs(
    air: NDArray[np.bool_], hu: NDArray, spacing_mm: Spacing
) -> list[tuple[NDArray[np.bool_], float, float, float]]:
    """Return blobs of a slice that may be a trachea (60 to 700 mm2, round, dark).

    Each is a mask, its centre (y, x) and its roundness from 0 to 1.
    """
    labels, _ = ndimage.label(air)
    pixel_mm2 = spacing_mm[1] * spacing_mm[2]
    found = []
    for index, box in enumerate(ndimage.find_objects(labels), 1):
        blob = labels[box] == index
        area = blob.sum() * pixel_mm2
        height, width = blob.shape[0] * spacing_mm[1], blob.shape[1] * spacing_mm[2]
        if not 60 <= area <= 700 or max(height, width) > 2.2 * min(height, width):
            continue
        roundness = area / (np.pi / 4 * max(height, width) ** 2)
        if roundness < 0.45 or hu[box][blob].min() > -800:
            continue
        mask = np.zeros(air.shape, bool)
        mask[box] = blob
        y, x = ndimage.center_of_mass(mask)
        found.append((mask, float(y), float(x), float(min(roundness, 1.0))))
    return found


def grow(hu: NDArray, inside: NDArray[np.bool_], seeds: NDArray[np.bool_], spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Return what is joined to `seeds` below the highest threshold that does not leak into the lung."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    box, out = box_of(inside, 0.0, spacing_mm), seeds.copy()
    air = np.where(inside[box], hu[box], np.inf)
    start = np.unravel_index(np.argmin(np.where(seeds[box], air, np.inf)), air.shape)
    kept = np.zeros(air.shape, bool)
    for threshold in range(FIRST_HU, LAST_HU + 1, STEP_HU):
        if air[start] >= threshold:
            continue
        region = flood(air < threshold, start, connectivity=1)
        volume, before = region.sum() * voxel_ml, kept.sum() * voxel_ml
        if volume > LIMIT_ML or (before > 0 and volume > JUMP_RATIO * max(before, JUMP_ML)):
            break
        kept = region
    out[box] |= kept
    return out


def follow(hu: NDArray, airway: NDArray[np.bool_], spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Return the lumen on a fine grid: `airway` found on a coarser grid, its rim, and the bronchi beyond its ends.

    The threshold rises in steps. A piece that a step joins to the lumen is added if it is small. A piece larger than a
    bronchus can be is lung: it is excluded at this and later thresholds, with everything attached to it. Other branches
    continue to grow.
    """
    if not airway.any():
        return airway
    box = box_of(airway, BEYOND_MM, spacing_mm)
    smooth = ndimage.gaussian_filter(hu[box].astype(np.float32), [SMOOTH_MM / step for step in spacing_mm], truncate=3)
    free = np.pad(smooth, 1, constant_values=np.inf)
    kept = np.pad(airway[box] & (smooth < LAST_HU), 1)
    free[kept] = np.inf
    strides = (free.shape[1] * free.shape[2], free.shape[2], 1)
    neighbours = np.array([step for stride in strides for step in (-stride, stride)])
    largest = PIECE_ML * 1000 / float(np.prod(spacing_mm))
    for threshold in range(FIRST_HU, LAST_HU + 1, FOLLOW_STEP_HU):
        labels, sizes = components(free < threshold)
        joined = np.zeros(len(sizes), bool)
        joined[labels.ravel()[np.flatnonzero(kept)[:, None] + neighbours]] = True
        joined[0] = False
        new = (joined & (sizes <= largest))[labels]
        kept |= new
        free[new] = np.inf
    lumen = kept[1:-1, 1:-1, 1:-1]
    out = np.zeros(hu.shape, bool)
    out[box] = lumen | (ndimage.binary_dilation(lumen) & (smooth < RIM_HU))
    return out
