"""The tool without weights: thresholds, shape and an atlas of the fissures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medsyn import __version__
from medsyn.masks.effusion import fluid_on_grid, pleural_cavities
from medsyn.masks.lobes import segment_lobes
from medsyn.masks.lungs import segment_lungs
from medsyn.masks.vessels import segment_vessels
from medsyn.volume import Volume


class Classical:
    """Lobes, airway and vessels from `medsyn.masks`; see `medsyn.masks.segment.Tool`."""

    version = __version__
    weights_hash = None

    def segment(self, volume: Volume, structures: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """The structures of a CT in HU in model orientation; nothing found is an empty mask."""
        lungs = segment_lungs(volume.array, volume.spacing_mm)
        masks: dict[str, NDArray[np.uint8]] = {}
        for structure in structures:
            if structure == "lobes":
                masks[structure] = lobes_of_lungs(volume, lungs.label)
            elif structure == "airway":
                masks[structure] = lungs.airway.astype(np.uint8)
            else:
                masks[structure] = segment_vessels(volume.array, lungs.mask, lungs.airway, volume.spacing_mm)
        return masks


def lobes_of_lungs(volume: Volume, lungs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lobes 1..5 of lungs (1 right, 2 left): the atlas's fissures, laid into the pleural cavities."""
    fluid = fluid_on_grid(volume.array, lungs, volume.spacing_mm)
    return segment_lobes(lungs, pleural_cavities(lungs, fluid))
