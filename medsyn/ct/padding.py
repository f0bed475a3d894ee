"""Find padding: values far below air that scanners, archives and resampling write where there is no image.

Padding is the outside of the round field of view or of a rotated box, or an empty slice: it reaches the border of every
axial slice. A scan whose intercept was applied twice holds equally low values, but also in the lungs, which the body
encloses. So padding is recognised by where the low voxels lie and not by their value.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.masks.morphology import IN_PLANE
from medsyn.volume import Volume

FILL_HU = -1024
"""HU where there is no image: padding that was found, and the outside of a scan on the model's grid."""
LOW_HU = -1500.0
"""Far below air; noise and streaks reach -1200."""
MOST_INSIDE = 0.02
"""Of the voxels that are not padding, the share that may be low and enclosed: streaks of metal. Lungs are 10 %."""
SOFT_HU, MINIMUM_SOFT = (-200.0, 200.0), 0.04
"""Soft tissue, and its least share of the image: rescaled twice it lies near -1000."""


def is_padded(hu: NDArray) -> bool:
    """Return whether the voxels below LOW_HU of (D, H, W), slices first, are padding (also where there are none)."""
    sample = hu[:: max(1, hu.shape[0] // 32), ::2, ::2]
    low = sample < LOW_HU
    if not low.any():
        return True
    labels, count = ndimage.label(low, IN_PLANE)
    outside = np.zeros(count + 1, bool)
    for edge in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        outside[np.unique(edge)] = True
    outside[0] = False
    image = ~outside[labels]
    inside = low & image
    soft = image & (sample > SOFT_HU[0]) & (sample < SOFT_HU[1])
    few_inside = inside.sum() <= MOST_INSIDE * image.sum()
    return bool(image.any() and few_inside and soft.sum() >= MINIMUM_SOFT * image.sum())


def clip_padding(volume: Volume) -> tuple[Volume, dict[str, float]]:
    """Return a CT with its padding at FILL_HU, and facts for qc.json: `padding_percent` and `padding_lowest_hu`.

    Low values that are not padding stay, so that inspection refuses them.
    """
    array = volume.array
    lowest = float(array.min())
    if not -np.inf < lowest < LOW_HU:  # NaN too
        return volume, {"padding_percent": 0.0}
    slices = np.moveaxis(array, _body_axis(volume), 0)
    if not is_padded(slices):
        return volume, {"padding_percent": 0.0}
    percent = 100.0 * float(np.count_nonzero(array < LOW_HU)) / array.size
    facts = {"padding_percent": round(percent, 2), "padding_lowest_hu": lowest}
    return volume.with_array(np.maximum(array, np.array(FILL_HU, array.dtype))), facts


def empty_slices(hu: NDArray) -> list[int]:
    """Return the indices of slices of (D, H, W) between others that hold one value only."""
    coarse = hu[:, ::4, ::4].reshape(hu.shape[0], -1)
    filled = np.flatnonzero(coarse.min(1) != coarse.max(1))
    if filled.size == 0:
        return []
    return sorted(set(range(int(filled[0]), int(filled[-1]))) - set(filled.tolist()))


def _body_axis(volume: Volume) -> int:
    """Return the axis of the array that runs along the body."""
    return 2 - int(np.argmax(np.abs(np.array(volume.direction).reshape(3, 3)[2])))
