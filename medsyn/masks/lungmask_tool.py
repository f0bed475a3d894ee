"""Lobes with lungmask (Hofmanninger et al. 2020), through its own package and weights.

Models, named as lungmask names them: LTRCLobes (five lobes, without very dense areas), LTRCLobes_R231 (the same; where
it is empty and R231 sees lung, filled; where R231 sees none, cleared), and R231 (two lungs with dense areas), to which
our atlas adds the fissures. lungmask looks at axial slices; spacing does not matter to it.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsyn.config import MasksConfig
from medsyn.errors import InputError
from medsyn.masks.classical import lobes_of_lungs
from medsyn.masks.lungs import LEFT, RIGHT
from medsyn.volume import LOBE_NAMES, Volume, to_sitk
from medsyn.weight_files import find_weights, hash_weights

LOBES = {1: "left_upper", 2: "left_lower", 3: "right_upper", 4: "right_middle", 5: "right_lower"}
LUNGS = {1: RIGHT, 2: LEFT}
"""Labels of the two kinds of models (lungmask's README, "Semantics of output")."""
CPU_BATCH, GPU_BATCH = 4, 20
"""Slices at a time; 20 is lungmask's own and takes 3.3 GB on a CPU, where 4 are as fast in 1.3 GB."""


class Lungmask:
    """Find lobes with lungmask; see `medsyn.masks.tools.Segmenter`."""

    def __init__(self, config: MasksConfig, structures: Sequence[str]) -> None:
        self._model = config.lungmask_model
        root = Path(config.weights_dir)
        files = find_weights("lungmask", config.lungmask_model.split("_"), root)
        self.version = metadata.version("lungmask")
        self.weights_hash = hash_weights(files, root)
        self._inferer = _load(files)

    def segment(self, volume: Volume, structures: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """Return the lobes of a CT in HU in model orientation."""
        labels = self._inferer.apply(to_sitk(volume))
        if self._model == "R231":
            return {"lobes": lobes_of_lungs(volume, _relabel(labels, LUNGS))}
        return {"lobes": _relabel(labels, {label: LOBE_NAMES.index(lobe) + 1 for label, lobe in LOBES.items()})}


def _load(files: Sequence[Path]) -> Any:
    """Return lungmask's inference object with the networks of a model and, if asked for, of the one that fills it."""
    from lungmask import LMInferer

    logging.getLogger("lungmask").setLevel(logging.WARNING)  # it writes to standard output
    gpu = torch.cuda.is_available()
    paths = dict(zip(("modelpath", "fillmodel_path"), map(str, files), strict=False))
    try:
        inferer = LMInferer(**paths, force_cpu=not gpu, batch_size=GPU_BATCH if gpu else CPU_BATCH, tqdm_disable=True)
    except (RuntimeError, AttributeError, TypeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{', '.join(paths.values())}: not lungmask's weights ({reason}); copy them again") from None
    for path, net in zip(files, (inferer.model, inferer.fillmodelm), strict=False):
        expected = 1 + len(LOBES if "lobes" in path.name else LUNGS)
        if net.last.out_channels != expected:
            raise InputError(f"{path}: a model of {net.last.out_channels} classes, expected {expected}; copy it again")
    return inferer


def _relabel(labels: NDArray[np.uint8], names: dict[int, int]) -> NDArray[np.uint8]:
    """Return `labels` with each key of `names` replaced by its value, and all others by 0."""
    table = np.zeros(256, np.uint8)
    table[list(names)] = list(names.values())
    return table[labels]
