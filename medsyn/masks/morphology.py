"""Small tools on binary masks shared by the classical segmentations: (D, H, W) arrays, distances in millimetres.

Coarse working grids keep fine scans fast: `block_mean` averages blocks of voxels, `block_expand` repeats them back.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Spacing = tuple[float, float, float]
IN_PLANE = np.zeros((3, 3, 3), bool)
IN_PLANE[1, :, 1] = IN_PLANE[1, 1, :] = True
"""4-neighbourhood within axial slices."""


def block_factors(spacing_mm: Spacing, working_mm: float) -> tuple[int, int, int]:
    """Voxels (z, y, x) to average so that the working grid's spacing comes near, not above, `working_mm`."""
    z, y, x = (max(1, int(working_mm / step + 1e-6)) for step in spacing_mm)
    return (z, y, x)


def block_mean(array: NDArray, factors: tuple[int, int, int]) -> NDArray[np.float32]:
    """Mean over blocks of `factors` voxels; edges are repeated to fill the last block."""
    if factors == (1, 1, 1):
        return array.astype(np.float32)
    for axis, factor in enumerate(factors):
        count = array.shape[axis]
        rest = -count % factor
        if rest:
            array = np.concatenate([array, np.repeat(np.take(array, [-1], axis=axis), rest, axis=axis)], axis=axis)
        shape = (*array.shape[:axis], array.shape[axis] // factor, factor, *array.shape[axis + 1 :])
        array = array.reshape(shape).mean(axis=axis + 1, dtype=np.float32)
    return array.astype(np.float32, copy=False)


def block_expand(array: NDArray, factors: tuple[int, int, int], shape: tuple[int, ...]) -> NDArray:
    """Repeat every voxel over its block and cut to `shape`: the inverse of `block_mean` for constant blocks."""
    for axis, factor in enumerate(factors):
        if factor > 1:
            array = np.repeat(array, factor, axis=axis)
    return array[tuple(slice(0, count) for count in shape)]


def block_labels(labels: NDArray[np.uint8], factors: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Labels on blocks of `factors` voxels: the one that fills more than half of a block."""
    if factors == (1, 1, 1):
        return labels
    out: NDArray[np.uint8] | None = None
    for value in np.unique(labels[labels > 0]):
        share = block_mean(labels == value, factors)
        out = np.zeros(share.shape, np.uint8) if out is None else out
        out[share > 0.5] = value
    return np.zeros(block_mean(labels, factors).shape, np.uint8) if out is None else out


def components(
    mask: NDArray[np.bool_], structure: NDArray | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Connected components: label array (0 background) and voxels of each label (index 0 is background, set to 0)."""
    labels, count = ndimage.label(mask, structure)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return labels, sizes


def keep_large(mask: NDArray[np.bool_], minimum_voxels: float, structure: NDArray | None = None) -> NDArray[np.bool_]:
    """Only the components with at least `minimum_voxels` voxels."""
    labels, sizes = components(mask, structure)
    return (sizes >= max(minimum_voxels, 1))[labels]


def ball(radius_mm: float, spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Ellipsoid of `radius_mm` on the grid, one voxel at least."""
    half = [int(radius_mm / step) for step in spacing_mm]
    axes = np.ogrid[tuple(slice(-h, h + 1) for h in half)]
    distance = sum((axis * step) ** 2 for axis, step in zip(axes, spacing_mm, strict=True))
    return np.asarray(distance <= radius_mm**2 + 1e-6)


def dilate(mask: NDArray[np.bool_], radius_mm: float, spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Dilation by a ball."""
    element = ball(radius_mm, spacing_mm)
    return ndimage.binary_dilation(mask, element) if element.size > 1 else mask


def erode(mask: NDArray[np.bool_], radius_mm: float, spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Erosion by a ball; outside the array counts as inside."""
    element = ball(radius_mm, spacing_mm)
    return ndimage.binary_erosion(mask, element, border_value=1) if element.size > 1 else mask


def close(mask: NDArray[np.bool_], radius_mm: float, spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Closing by a ball; the array's edge counts as going on unchanged, so that nothing is closed against it."""
    half = [int(radius_mm / step) for step in spacing_mm]
    padded = np.pad(mask, [(h, h) for h in half], mode="edge")
    closed = erode(dilate(padded, radius_mm, spacing_mm), radius_mm, spacing_mm)
    return closed[tuple(slice(h, h + count) for h, count in zip(half, mask.shape, strict=True))] | mask


def open_(mask: NDArray[np.bool_], radius_mm: float, spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Opening by a ball."""
    return dilate(erode(mask, radius_mm, spacing_mm), radius_mm, spacing_mm) & mask
