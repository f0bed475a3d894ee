"""Decoding of the lobe channel: label maps from the one ordinal channel, whose value is 2 label/5 - 1.

A blurred border between background (0) and lobe 5 passes through the values of lobes 1 to 4. Rounding turns such a
border into shells of wrong lobes. `lobe_labels` gives a voxel only those labels that have a core close by.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.models.channels import NUM_LOBES

_BOX = 5  # edge in voxels of the cube in which a label's share is taken
_SHARE_OF_PEAK = 0.8  # a core voxel's share of its label, relative to the largest share of that label in the volume
_LEAST_SHARE = 0.5  # what a core voxel's share must reach in any case; a shell of two voxels has 0.4
_LEAST_PIECE = 0.5  # size of a connected core relative to the largest core of its label
_REACH = 2  # voxels along each axis from a core within which its label is a candidate
_MAX_ERROR = 1.0  # labels; above this distance in value the nearest core of a lobe is a candidate too
_WHOLE = 0.01  # labels; tolerance within which a value is a whole label

Mask = NDArray[np.bool_]


def lobe_labels(channel: NDArray) -> NDArray[np.uint8]:
    """Return the lobe labels 0..5 (D, H, W) of a generated lobe channel (D, H, W) with values in [-1, 1].

    Background's cores are all voxels that round to 0. A lobe's core are the voxels that round to its label and are
    surrounded by it: its share of the 5 x 5 x 5 voxels around is at least 0.8 of the largest such share and at least
    0.5. Connected pieces of less than half the size of the largest one are left out. Voxels whose 26 neighbours all
    hold whole labels are cores in any case, so a channel made from a label map is decoded exactly.

    A voxel takes the label that is nearest in value among those with a core within 2 voxels along each axis. If that
    label is more than 1 away in value, or if there is none, the label of the nearest core of a lobe competes as well.
    A channel without any core of a lobe is rounded.
    """
    value = np.clip((channel.astype(np.float32) + 1) * (NUM_LOBES / 2), 0, NUM_LOBES)
    rounded = np.round(value).astype(np.uint8)
    lungs = ndimage.find_objects((rounded > 0).astype(np.uint8))
    if not lungs:
        return rounded
    box = _widen(lungs[0], _BOX)
    cores = _lobe_cores(value[box], rounded[box])
    if cores.any():
        rounded[box] = _nearest_in_value(value[box], rounded[box], cores)
    return rounded


def _lobe_cores(value: NDArray[np.float32], rounded: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a map of the cores of the lobes (label, 0 elsewhere), see `lobe_labels`."""
    whole = ndimage.minimum_filter(np.abs(value - rounded) < _WHOLE, 3)
    cores = np.where(whole, rounded, 0).astype(np.uint8)
    for label, box in enumerate(ndimage.find_objects(rounded), 1):
        if box is not None:
            wide = _widen(box, _BOX // 2)
            cores[wide][_surrounded(rounded[wide] == label)] = label
    return cores


def _surrounded(own: Mask) -> Mask:
    """Return the core of one label's voxels `own` (at least one), without its small pieces."""
    share = ndimage.uniform_filter(own.astype(np.float32), _BOX)
    least = max(_SHARE_OF_PEAK * float(share[own].max()), _LEAST_SHARE)
    pieces, _ = ndimage.label(own & (share >= least - 1e-4))  # float32 sums are inexact
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return (sizes >= max(_LEAST_PIECE * sizes.max(), 1))[pieces]


def _nearest_in_value(
    value: NDArray[np.float32], rounded: NDArray[np.uint8], cores: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return for every voxel the label nearest in value among its candidates, see `lobe_labels`."""
    out = np.zeros_like(rounded)
    error = np.where(ndimage.maximum_filter(rounded == 0, 2 * _REACH + 1), value, np.float32(np.inf))
    for label, box in enumerate(ndimage.find_objects(cores), 1):
        if box is None:
            continue
        wide = _widen(box, _REACH)
        distance = np.abs(value[wide] - label)
        nearer = ndimage.maximum_filter(cores[wide] == label, 2 * _REACH + 1) & (distance < error[wide])
        out[wide][nearer] = label
        error[wide][nearer] = distance[nearer]
    unsure = error > _MAX_ERROR
    if unsure.any():
        nearest = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
        label = cores[tuple(index[unsure] for index in nearest)]
        out[unsure] = np.where(np.abs(value[unsure] - label) < error[unsure], label, out[unsure])
    return out


def _widen(box: tuple[slice, ...], margin: int) -> tuple[slice, ...]:
    """Return a bounding box with `margin` voxels more on every side, cut at the volume's lower faces."""
    return tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in box)
