"""The mask tool without weights: thresholds, shape and an atlas of the fissures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medsyn import __version__
from medsyn.config import MasksConfig
from medsyn.masks.airway import FINE_MM, follow
from medsyn.masks.effusion import fluid_on_grid, pleural_cavities
from medsyn.masks.lobes import segment_lobes
from medsyn.masks.lungs import Lungs, segment_lungs
from medsyn.masks.vessels import segment_vessels
from medsyn.volume import Volume


class Classical:
    """Find lobes, airway and vessels with `medsyn.masks`; see `medsyn.masks.tools.Segmenter`."""

    version = __version__
    weights_hash = None

    def __init__(self, config: MasksConfig, structures: Sequence[str]) -> None:
        """Take the settings and structures that every tool is opened with; neither matters here."""

    def segment(self, volume: Volume, structures: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """Return the structures of a CT in HU in model orientation; what is not found is empty."""
        lungs = with_bronchi(segment_lungs(volume.array, volume.spacing_mm), volume)
        masks: dict[str, NDArray[np.uint8]] = {}
        for structure in structures:
            if structure == "lobes":
                masks[structure] = lobes_of_lungs(volume, lungs.label)
            elif structure == "airway":
                masks[structure] = lungs.airway.astype(np.uint8)
            else:
                masks[structure] = segment_vessels(volume.array, lungs.mask, lungs.airway, volume.spacing_mm)
        return masks


def with_bronchi(lungs: Lungs, volume: Volume) -> Lungs:
    """Return lungs and airway with, on a fine grid, the bronchi that the coarse working grid does not show."""
    if max(volume.spacing_mm[1:]) > FINE_MM:
        return lungs
    airway = follow(volume.array, lungs.airway, volume.spacing_mm)
    return Lungs(np.where(airway, 0, lungs.label).astype(np.uint8), airway)


def lobes_of_lungs(volume: Volume, lungs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the lobes 1..5 of lungs (1 right, 2 left): the atlas's fissures placed in the pleural cavities."""
    fluid = fluid_on_grid(volume.array, lungs, volume.spacing_mm)
    return segment_lobes(lungs, pleural_cavities(lungs, fluid))
