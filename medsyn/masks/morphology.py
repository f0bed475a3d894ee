"""Small tools on binary masks shared by the classical segmentations: (D, H, W) arrays, distances in millimetres.

Coarse working grids keep fine scans fast: `block_mean` averages blocks of voxels, `block_expand` repeats them back,
`coarsened` does the first to a volume with its geometry.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.volume import Volume

Spacing = tuple[float, float, float]
IN_PLANE = np.zeros((3, 3, 3), bool)
IN_PLANE[1, :, 1] = IN_PLANE[1, 1, :] = True
"""4-neighbourhood within axial slices."""


def block_factors(spacing_mm: Spacing, working_mm: float) -> tuple[int, int, int]:
    """Return the voxels (z, y, x) per block, so that its spacing comes near `working_mm` and does not exceed it."""
    z, y, x = (max(1, int(working_mm / step + 1e-6)) for step in spacing_mm)
    return (z, y, x)


def block_mean(array: NDArray, factors: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return the means over blocks of `factors` voxels; edges are repeated to fill the last block."""
    if factors == (1, 1, 1):
        return array.astype(np.float32)
    shape = tuple(-(-count // factor) for count, factor in zip(array.shape, factors, strict=True))
    out = np.empty(shape, np.float32)
    for z in range(shape[0]):  # slice by slice: sums of planes stay in the cache
        first = z * factors[0]
        plane = array[first].astype(np.float32)
        for index in range(first + 1, first + factors[0]):
            plane += array[min(index, array.shape[0] - 1)]
        rest = [(0, -count % factor) for count, factor in zip(plane.shape, factors[1:], strict=True)]
        plane = np.pad(plane, rest, mode="edge")
        plane = np.add.reduce([plane[index :: factors[1]] for index in range(factors[1])])
        out[z] = np.add.reduce([plane[:, index :: factors[2]] for index in range(factors[2])])
    out /= np.prod(factors)
    return out


def coarsened(volume: Volume, working_mm: float) -> Volume:
    """Return float32 means over blocks of at most `working_mm`, as a volume; a coarser volume keeps its own voxels."""
    factors = block_factors(volume.spacing_mm, working_mm)
    spacing: Spacing = tuple(s * f for s, f in zip(volume.spacing_mm, factors, strict=True))  # type: ignore[assignment]
    first = [(f - 1) / 2 * s for f, s in zip(reversed(factors), reversed(volume.spacing_mm), strict=True)]
    x, y, z = np.asarray(volume.origin_mm) + np.array(volume.direction).reshape(3, 3) @ first
    return Volume(block_mean(volume.array, factors), spacing, (float(x), float(y), float(z)), volume.direction)


def block_expand(array: NDArray, factors: tuple[int, int, int], shape: tuple[int, ...]) -> NDArray:
    """Repeat every voxel over its block and cut to `shape`: the inverse of `block_mean` for constant blocks."""
    for axis in (2, 1, 0):  # rows and planes are then copied as wholes
        if factors[axis] > 1:
            array = np.repeat(array, factors[axis], axis=axis)
    return array[tuple(slice(0, count) for count in shape)]


def block_labels(labels: NDArray[np.uint8], factors: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return labels on blocks of `factors` voxels: the label that fills more than half of a block."""
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
    """Return connected components: the label array (0 background) and the voxels per label (0 for the background)."""
    labels, count = ndimage.label(mask, structure)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return labels, sizes


def keep_large(mask: NDArray[np.bool_], minimum_voxels: float, structure: NDArray | None = None) -> NDArray[np.bool_]:
    """Return only the components with at least `minimum_voxels` voxels."""
    labels, sizes = components(mask, structure)
    return (sizes >= max(minimum_voxels, 1))[labels]


def ball(radius_mm: float, spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Return an ellipsoid of `radius_mm` on the grid, at least one voxel."""
    half = [int(radius_mm / step) for step in spacing_mm]
    axes = np.ogrid[tuple(slice(-h, h + 1) for h in half)]
    distance = sum((axis * step) ** 2 for axis, step in zip(axes, spacing_mm, strict=True))
    return np.asarray(distance <= radius_mm**2 + 1e-6)


def bounds(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the first and the last index along z, y, x of a mask that is not empty."""
    inside = [np.flatnonzero(mask.any(axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    return [(int(indices[0]), int(indices[-1])) for indices in inside]


def box_of(mask: NDArray[np.bool_], margin_mm: float, spacing_mm: Spacing) -> tuple[slice, ...]:
    """Return the bounding box of a mask that is not empty, widened by `margin_mm` and a voxel within the array."""
    box = []
    for (first, last), step, count in zip(bounds(mask), spacing_mm, mask.shape, strict=True):
        margin = int(margin_mm / step) + 1
        box.append(slice(max(first - margin, 0), min(last + margin + 1, count)))
    return tuple(box)


def enclosed(mask: NDArray[np.bool_], *, in_plane: bool = False) -> NDArray[np.bool_]:
    """Return the components of a mask that do not reach the border of the array; in_plane: of their axial slice."""
    labels, count = ndimage.label(mask, IN_PLANE if in_plane else None)
    inner = np.ones(count + 1, bool)
    inner[0] = False
    for axis in (1, 2) if in_plane else (0, 1, 2):
        for end in (0, -1):
            inner[labels.take(end, axis)] = False
    return np.asarray(inner[labels])


def dilate_by(mask: NDArray[np.bool_], element: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Dilate a mask by an element such as `ball`: symmetric, and without gaps along x.

    The mask is widened along x once per width of the element's rows, and each row of the element is then one shift of
    a whole array: for a ball of 11 voxels 50 times as fast as `scipy.ndimage.binary_dilation`.
    """
    half_z, half_y, half_x = (count // 2 for count in element.shape)
    depth, height, width = mask.shape
    padded = np.pad(mask, [(half_z, half_z), (half_y, half_y), (half_x, half_x)])
    wide = padded[:, :, half_x : half_x + width].copy()
    out = np.zeros(mask.shape, bool)
    reach = element.sum(2) // 2  # voxels to each side of a row's middle
    for step in range(half_x + 1):
        if step:
            wide |= padded[:, :, half_x - step : half_x - step + width]
            wide |= padded[:, :, half_x + step : half_x + step + width]
        for z, y in np.argwhere((reach == step) & element[:, :, half_x]):
            out |= wide[z : z + depth, y : y + height]
    return out


def dilate(mask: NDArray[np.bool_], radius_mm: float, spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Dilate a mask by a ball."""
    element = ball(radius_mm, spacing_mm)
    if element.size == 1 or not mask.any():
        return mask
    box, out = box_of(mask, radius_mm, spacing_mm), np.zeros_like(mask)
    out[box] = dilate_by(mask[box], element)
    return out


def erode(mask: NDArray[np.bool_], radius_mm: float, spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Erode a mask by a ball; voxels outside of the array count as inside the mask."""
    element = ball(radius_mm, spacing_mm)
    if element.size == 1 or not mask.any():
        return mask
    box, out = box_of(mask, radius_mm, spacing_mm), np.zeros_like(mask)
    out[box] = ~dilate_by(~mask[box], element)
    return out


def close(mask: NDArray[np.bool_], radius_mm: float, spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Close a mask by a ball; the mask is continued beyond the array, so that nothing is closed against its edge."""
    half = [int(radius_mm / step) for step in spacing_mm]
    padded = np.pad(mask, [(h, h) for h in half], mode="edge")
    closed = erode(dilate(padded, radius_mm, spacing_mm), radius_mm, spacing_mm)
    return closed[tuple(slice(h, h + count) for h, count in zip(half, mask.shape, strict=True))] | mask


def open_(mask: NDArray[np.bool_], radius_mm: float, spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Open a mask by a ball."""
    return dilate(erode(mask, radius_mm, spacing_mm), radius_mm, spacing_mm) & mask
