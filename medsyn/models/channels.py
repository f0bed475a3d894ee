"""Channels of the models <-> Hounsfield units and labels (numpy, any shape).

image: HU clipped to the window, mapped to [-1, 1]; lobe: label 0..5 as 2 label/5 - 1; airway, vessel: 0/1 as -1/1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHANNELS = ("image", "lobe", "airway", "vessel")
STRUCTURE_OF = {"lobe": "lobes", "airway": "airway", "vessel": "vessels"}
"""Channel -> the structure's name in files (medsyn.volume.STRUCTURES)."""
_MAX_LOBE = 5


def to_channel(name: str, values: NDArray, window_hu: tuple[float, float]) -> NDArray:
    """HU or labels as a float32 model channel in [-1, 1]."""
    values = values.astype(np.float32)
    if name == "image":
        low, high = window_hu
        return (np.clip(values, low, high) - low) * np.float32(2 / (high - low)) - 1
    return 2 * (values / _MAX_LOBE if name == "lobe" else values) - 1


def from_channel(name: str, values: NDArray, window_hu: tuple[float, float]) -> NDArray:
    """A model channel as int16 HU (image), uint8 labels 0..5 (lobe) or uint8 0/1 (airway, vessel)."""
    if name == "image":
        low, high = window_hu
        return np.round((np.clip(values, -1, 1) + 1) / 2 * (high - low) + low).astype(np.int16)
    if name == "lobe":
        return np.clip(np.round((values + 1) / 2 * _MAX_LOBE), 0, _MAX_LOBE).astype(np.uint8)
    return (values > 0).astype(np.uint8)
