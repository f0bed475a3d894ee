"""One contract for every mask tool: a CT in, label maps on the CT's own grid out, with a record of what was run.

`segment` turns the CT into model orientation, asks the tool that the configuration names for each structure, and turns
the masks back, so that the files lie voxel for voxel on the input. Masks that came with the CT replace a tool's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsyn import __version__
from medsyn.config import MasksConfig
from medsyn.errors import InputError
from medsyn.masks.effusion import fluid_on_grid, pleural_cavities
from medsyn.masks.lobes import segment_lobes
from medsyn.masks.lungs import Lungs, segment_lungs
from medsyn.masks.vessels import segment_vessels
from medsyn.orientation import orientation_code, reorient
from medsyn.volume import STRUCTURES, Volume

GIVEN = "given"
MAX_LABEL = 5  # five lobes


@dataclass(frozen=True)
class Masks:
    """labels: structure -> uint8 volume on the input's grid; record: per structure tool, version, weights hash,
    seconds, volume_ml.
    """

    labels: dict[str, Volume]
    record: dict[str, dict[str, Any]]


def check_tools(config: MasksConfig) -> None:
    """InputError for a tool that cannot be run here."""
    for structure in STRUCTURES:
        tool = getattr(config, structure)
        if tool != "classical":
            raise InputError(
                f"masks.{structure}: the tool '{tool}' is not available here; choose 'classical', or make the"
                f" masks elsewhere and name them in the cohort manifest's column '{structure}'"
            )


def segment(
    volume: Volume, config: MasksConfig, given: Mapping[str, Volume] | None = None, name: str = "volume"
) -> Masks:
    """Lobes, airway and vessels of one CT in HU; a volume without two lungs is an InputError that names `name`."""
    check_tools(config)
    given = given or {}
    model = reorient(volume)
    started = time.perf_counter()
    lungs = segment_lungs(model.array, model.spacing_mm)
    if not {1, 2} <= set(np.unique(lungs.label)) and "lobes" not in given:
        sides = [side for value, side in ((1, "right"), (2, "left")) if not (lungs.label == value).any()]
        raise InputError(f"{name}: no {' and no '.join(sides)} lung found; is this a chest CT in HU?")
    lung_seconds = time.perf_counter() - started
    labels, record = {}, {}
    for structure in STRUCTURES:
        started = time.perf_counter()
        if structure in given:
            mask, tool = _on_grid(given[structure], volume, f"{name}: given {structure}"), GIVEN
        else:
            mask, tool = _classical(structure, model, lungs, volume), "classical"
        seconds = time.perf_counter() - started + (lung_seconds if structure == "lobes" else 0)
        labels[structure] = mask
        record[structure] = {
            "tool": tool,
            "version": __version__ if tool == "classical" else None,
            "weights_hash": None,
            "volume_ml": round(float((mask.array > 0).sum()) * mask.voxel_mm3 / 1000, 3),
            "seconds": round(seconds, 2),
        }
    return Masks(labels, record)


def _classical(structure: str, model: Volume, lungs: Lungs, target: Volume) -> Volume:
    """One structure by the weights-free tools, on the grid of `target`."""
    if structure == "lobes":
        fluid = fluid_on_grid(model.array, lungs.label, model.spacing_mm)
        mask: NDArray = segment_lobes(lungs.label, pleural_cavities(lungs.label, fluid))
    elif structure == "airway":
        mask = lungs.airway.astype(np.uint8)
    else:
        mask = segment_vessels(model.array, lungs.mask, lungs.airway, model.spacing_mm)
    back = reorient(model.with_array(mask), orientation_code(target))
    return target.with_array(back.array)


def _on_grid(mask: Volume, target: Volume, name: str) -> Volume:
    """A given mask as uint8 on the grid of `target`; another grid is an InputError."""
    if mask.array.shape != target.array.shape:
        raise InputError(f"{name}: its grid {mask.array.shape} is not the CT's {target.array.shape}; resample it first")
    if mask.array.min() < 0 or mask.array.max() > MAX_LABEL:
        raise InputError(f"{name}: labels run from {mask.array.min()} to {mask.array.max()}, not 0 to {MAX_LABEL}")
    return target.with_array(mask.array.astype(np.uint8))
