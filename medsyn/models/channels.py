"""Channels of the models <-> Hounsfield units and labels (numpy; any shape, but lobes are decoded in 3-D).

image: HU clipped to the window, mapped to [-1, 1]; lobe: label 0..5 as 2 label/5 - 1; airway, vessel: 0/1 as -1/1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NUM_LOBES = 5
CHANNELS = ("image", "lobe", "airway", "vessel")
STRUCTURE_OF = {"lobe": "lobes", "airway": "airway", "vessel": "vessels"}
"""Channel -> the structure's name in files (medsyn.volume.STRUCTURES)."""
CHANNEL_OF = {name: name for name in CHANNELS} | {structure: name for name, structure in STRUCTURE_OF.items()}
"""A channel, by its own name or by that of its structure -> the channel."""


def to_channel(name: str, values: NDArray, window_hu: tuple[float, float]) -> NDArray:
    """Return HU or labels as a float32 model channel in [-1, 1]."""
    values = values.astype(np.float32)
    if name == "image":
        low, high = window_hu
        return (np.clip(values, low, high) - low) * np.float32(2 / (high - low)) - 1
    return 2 * (values / NUM_LOBES if name == "lobe" else values) - 1


def from_channel(name: str, values: NDArray, window_hu: tuple[float, float]) -> NDArray:
    """Return a model channel as int16 HU (image), uint8 labels 0..5 (lobe, (D, H, W)) or uint8 0/1 (airway, vessel)."""
    if name == "image":
        low, high = window_hu
        return np.round((np.clip(values, -1, 1) + 1) / 2 * (high - low) + low).astype(np.int16)
    if name == "lobe":
        from medsyn.models.lobe_channel import lobe_labels  # needs scipy, which training does not

        return lobe_labels(values)
    return (values > 0).astype(np.uint8)
