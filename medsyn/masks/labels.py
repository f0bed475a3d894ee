"""Label maps: checks of masks that a user gives, and the Dice coefficient of two masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medsyn.errors import InputError
from medsyn.volume import LOBE_NAMES

TOLERANCE = 1e-3
"""Scaled storage (a slope in the header) turns 3 into 2.999997; a value farther from a whole number is not a label."""
_FULL = 255
"""What many programs write for 1 in a mask of one structure."""


def as_labels(array: NDArray, structure: str, name: str, *, may_be_empty: bool = True) -> NDArray[np.uint8]:
    """Return a mask (D, H, W) as uint8: lobes 0 to 5, any other structure 0 and 1 (255 counts as 1).

    Fractions, other labels and, unless `may_be_empty`, a mask without any label are InputErrors that name `name`.
    """
    labels = array
    if array.dtype.kind == "f":
        labels = np.rint(array)
        with np.errstate(invalid="ignore"):
            off = np.abs(array - labels)
        if not (off <= TOLERANCE).all():  # true for NaN as well
            worst = array.ravel()[int(np.argmax(np.where(np.isnan(off), np.inf, off)))]
            raise InputError(f"{name}: holds the value {worst:.6g}, expected whole numbers; write it with its labels")
    highest = len(LOBE_NAMES) if structure == "lobes" else 1
    if structure != "lobes" and labels.size and labels.max() == _FULL:
        labels = np.where(labels == _FULL, 1, labels)
    if labels.size and (labels.min() < 0 or labels.max() > highest):
        raise InputError(
            f"{name}: labels run from {labels.min():g} to {labels.max():g}, expected 0 to {highest}; correct the mask"
        )
    if not may_be_empty and not labels.any():
        raise InputError(f"{name}: is empty; correct the mask, or leave it out to have {structure} segmented")
    return labels.astype(np.uint8)


def dice(first: NDArray, second: NDArray) -> float | None:
    """Return 2 |A and B| / (|A| + |B|) of two boolean masks of one shape, None if both are empty."""
    a, b = first.astype(bool), second.astype(bool)
    total = int(a.sum()) + int(b.sum())
    return None if total == 0 else 2.0 * int((a & b).sum()) / total


def mean_label_dice(first: NDArray, second: NDArray, labels: Sequence[int]) -> float | None:
    """Return the mean Dice over those `labels` that occur in either label map, None if none does."""
    scores = [dice(first == label, second == label) for label in labels]
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else None
