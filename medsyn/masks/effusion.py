"""Pleural effusion in the chest: fluid between lung and chest wall. Provisional text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medsyn.masks.morphology import Spacing


def segment_effusion(hu: NDArray, lungs: NDArray[np.uint8], spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Pleural fluid."""
    return np.zeros(hu.shape, bool)
