"""The one lobe channel -> five lobes: label/5 is an ordinal code, and a blurred step from 0 to 5 passes through 1 to 4.

Rounding turns every blurred border into shells of lobes that are not there. Here a label counts only where it has a
core, and a voxel between two cores takes the one whose value it is nearer to, so the border lies at half the step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

NUM_LOBES = 5
_BOX = 5  # edge of the cube, in voxels, in which a core's label must prevail
_THIN_BOX = 3  # the same for a lobe that is too thin for that
_THIN_PIECE = 27  # least voxels of a thin lobe's core
_SHARE = 0.8  # least share of the cube that has the core's label
_PIECE = 0.2  # least size of a core relative to the largest core of its label
_REACH = 3  # voxels, along each axis, from which a core's label may be taken by its value
_UNSURE = 1.0  # labels; error in value from which the nearest core counts as well
_EXACT = 0.01  # labels; a channel this close to whole labels was not blurred there


def lobe_labels(channel: NDArray) -> NDArray[np.uint8]:
    """Return the labels 0..5 of a lobe channel (D, H, W) with values 2 label/5 - 1, as a network makes it.

    A voxel belongs to a core if 80 % of the 5 x 5 x 5 voxels around it round to its label and the core is not a small
    fragment beside the largest one of that label, or if its 26 neighbours and itself hold whole labels. A lobe without
    such a core is absent or thin, see `_thin_core`. Every voxel takes, of the labels with a core within 3 voxels along
    each axis, the one nearest in value; if none is within 1 of the value, the nearest core of a lobe is a candidate
    too. A channel made from a label map gives back that map exactly.
    """
    value = np.clip((channel.astype(np.float32) + 1) * (NUM_LOBES / 2), 0, NUM_LOBES)
    rounded = np.round(value).astype(np.uint8)
    lung = ndimage.find_objects((rounded > 0).astype(np.uint8))
    if not lung:
        return rounded
    box = tuple(slice(max(part.start - _BOX, 0), part.stop + _BOX) for part in lung[0])
    out = np.zeros_like(rounded)
    out[box] = _decide(value[box], _cores(value[box], rounded[box]))
    return out


def _cores(value: NDArray[np.float32], rounded: NDArray[np.uint8]) -> list[NDArray[np.bool_]]:
    """Return the core of every label 0..5, see `lobe_labels`."""
    exact = ndimage.minimum_filter(np.abs(value - rounded) < _EXACT, 3)
    cores = []
    for label in range(NUM_LOBES + 1):
        own = rounded == label
        core = own & _prevails(own, _BOX)
        if label > 0:
            core = _large_pieces(core, 1) if core.any() else _thin_core(rounded, label)
        cores.append(core | (own & exact))
    return cores


def _thin_core(rounded: NDArray[np.uint8], label: int) -> NDArray[np.bool_]:
    """Return the core of a thin lobe: 80 % of 3 x 3 x 3 voxels have its label, in pieces of 27 voxels and more.

    A shell of a blurred border has lower labels on one side and higher ones on the other; such places do not count.
    """
    own = rounded == label
    step = (ndimage.minimum_filter(rounded, _BOX) < label) & (ndimage.maximum_filter(rounded, _BOX) > label)
    return _large_pieces(own & ~step & _prevails(own, _THIN_BOX), _THIN_PIECE)


def _prevails(own: NDArray[np.bool_], box: int) -> NDArray[np.bool_]:
    """Return where the share of `own` in the cube of edge `box` is large enough for a core."""
    return np.asarray(ndimage.uniform_filter(own.astype(np.float32), box) >= _SHARE)


def _large_pieces(mask: NDArray[np.bool_], num_voxels: int) -> NDArray[np.bool_]:
    """Return the connected pieces of `mask` of at least `num_voxels` that are not small beside the largest one."""
    pieces, _ = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return (sizes >= max(_PIECE * sizes.max(), num_voxels))[pieces]


def _decide(value: NDArray[np.float32], cores: list[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """Return for every voxel the label nearest in value among its candidates, see `lobe_labels`."""
    out = np.zeros(value.shape, np.uint8)
    lobe_cores = np.zeros(value.shape, np.uint8)
    error = np.full(value.shape, np.inf, np.float32)
    for label, core in enumerate(cores):
        nearer = ndimage.maximum_filter(core, 2 * _REACH + 1) & (np.abs(value - label) < error)
        error[nearer] = np.abs(value[nearer] - label)
        out[nearer] = label
        lobe_cores[core] = label
    if not lobe_cores.any():
        return np.round(value).astype(np.uint8)
    unsure = error > _UNSURE
    if unsure.any():
        nearest = ndimage.distance_transform_edt(lobe_cores == 0, return_distances=False, return_indices=True)
        label = lobe_cores[tuple(index[unsure] for index in nearest)]
        out[unsure] = np.where(np.abs(value[unsure] - label) < error[unsure], label, out[unsure])
    return out
