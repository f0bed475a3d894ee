"""The mask tool for NaviAirway: our own network with the authors' two checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsyn import __version__
from medsyn.config import MasksConfig
from medsyn.device import network_device
from medsyn.masks.naviairway import NaviAirway
from medsyn.volume import Volume
from medsyn.weight_files import find_weights, hash_weights


class NaviAirwayTool:
    """Find the airway with NaviAirway; see `medsyn.masks.tools.Segmenter`."""

    version = __version__

    def __init__(self, config: MasksConfig, structures: Sequence[str]) -> None:
        root = Path(config.weights_dir)
        supervised, semi_supervised = files = find_weights("naviairway", ["airway"], root)
        self.weights_hash = hash_weights(files, root)
        self._networks = NaviAirway.load(supervised, semi_supervised, network_device().type)

    def segment(self, volume: Volume, structures: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """Return the airway of a CT in HU."""
        return {"airway": self._networks.segment(volume.array.astype(np.float32), "airway")}
