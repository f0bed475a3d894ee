"""Segment one CT: lobes, airway and vessels on its own grid, each by the tool that the configuration names.

`segment` turns the CT into model orientation, runs the tools (`medsyn.mask_tools`), checks what they return, and turns
the masks back, so that the files lie voxel for voxel on the input. Masks that came with the CT replace a tool's. Faults
that the networks do not report (an empty mask, swapped sides) are errors here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsyn.config import MasksConfig
from medsyn.errors import InputError
from medsyn.mask_tools import MASK_TOOLS, Segmenter, open_tool
from medsyn.masks.labels import as_labels
from medsyn.orientation import orientation_code, reorient, reorient_to
from medsyn.progress import log
from medsyn.volume import STRUCTURES, Volume

GIVEN = "given"
RIGHT_LOBES, LEFT_LOBES = (3, 4, 5), (1, 2)
"""Labels of `medsyn.volume.LOBE_NAMES` by side."""


@dataclass(frozen=True)
class Masks:
    """Masks of one CT and the record of how they were made.

    labels: structure -> uint8 volume on the input's grid; record: per structure tool, version, weights_hash (SHA-256),
    volume_ml, and the seconds of the one call that made all structures of its tool.
    """

    labels: dict[str, Volume]
    record: dict[str, dict[str, Any]]


@cache
def open_tools(config: MasksConfig) -> dict[str, Segmenter]:
    """Return the tools that the configuration names, by name, opened once per process.

    Without their packages or weights, InputError.
    """
    chosen = {structure: getattr(config, structure) for structure in STRUCTURES}
    return {
        name: open_tool(name, config, [structure for structure, tool in chosen.items() if tool == name])
        for name in dict.fromkeys(chosen.values())
    }


def segment(
    volume: Volume, config: MasksConfig, given: Mapping[str, Volume] | None = None, name: str = "volume"
) -> Masks:
    """Return lobes, airway and vessels of one CT in HU; a volume without any lung is an InputError.

    given: masks on the same grid, which replace a tool's; name: of the CT, for messages.
    """
    tools = open_tools(config)
    model = reorient(volume)
    labels = {key: _on_grid(mask, volume, f"{name}: given {key}") for key, mask in (given or {}).items()}
    record = {key: _record(GIVEN, mask, None, 0.0) for key, mask in labels.items()}
    wanted = {structure: getattr(config, structure) for structure in STRUCTURES if structure not in labels}
    for tool in dict.fromkeys(wanted.values()):
        started = time.perf_counter()
        found = _run(tools[tool], tool, model, [key for key, chosen in wanted.items() if chosen == tool], name)
        seconds = time.perf_counter() - started
        for structure, mask in found.items():
            back = reorient(model.with_array(mask), orientation_code(volume))
            labels[structure] = volume.with_array(back.array)
            record[structure] = _record(tool, labels[structure], tools[tool], seconds)
    check_sides(reorient(labels["lobes"]).array, f"{name}: {record['lobes']['tool']}")
    return Masks({structure: labels[structure] for structure in STRUCTURES}, record)


def _run(
    tool: Segmenter, tool_name: str, model: Volume, structures: Sequence[str], name: str
) -> dict[str, NDArray[np.uint8]]:
    """Return what the tool finds; an empty or unfit result is an InputError that begins with `name`."""
    try:
        found = tool.segment(model, structures)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    masks = {structure: _checked(found, structure, model, f"{name}: {tool_name}") for structure in structures}
    for structure, mask in masks.items():
        if structure == "lobes":
            missing = missing_sides(mask)
            if len(missing) == 2:
                raise InputError(f"{name}: no right and no left lung found; is this a chest CT in HU?")
            if missing:
                log.warning("segment: %s: no %s lung found; its lobes are left empty", name, missing[0])
        elif not MASK_TOOLS[tool_name].may_find_nothing and not mask.any():
            raise InputError(f"{name}: {tool_name} found no {structure}; is this a chest CT in HU with a whole lung?")
    return masks


def _checked(found: Mapping[str, NDArray[np.uint8]], structure: str, model: Volume, source: str) -> NDArray[np.uint8]:
    """Return one mask of a tool; InputError, which begins with `source`, for another shape or other labels."""
    mask = found.get(structure) if isinstance(found, Mapping) else None
    if not isinstance(mask, np.ndarray) or mask.shape != model.array.shape:
        shown = f"an array of shape {mask.shape}" if isinstance(mask, np.ndarray) else "no mask"
        raise InputError(f"{source} gave {shown} for {structure}, expected {model.array.shape} voxels; repair the tool")
    return as_labels(mask, structure, f"{source}'s {structure}")


def missing_sides(lobes: NDArray[np.uint8]) -> list[str]:
    """Return the sides (right, left) without a lobe: one where a lung is filled by fluid, consolidated or removed."""
    labels = np.unique(lobes)
    return [side for side, own in (("right", RIGHT_LOBES), ("left", LEFT_LOBES)) if not np.isin(own, labels).any()]


def check_sides(lobes: NDArray[np.uint8], name: str) -> None:
    """Raise InputError if the right lung of lobe labels (model orientation) does not lie to the right of the left."""
    right, left = (np.isin(lobes, side).sum((0, 1)) for side in (RIGHT_LOBES, LEFT_LOBES))
    columns = np.arange(lobes.shape[2])
    if right.any() and left.any() and np.average(columns, weights=right) >= np.average(columns, weights=left):
        raise InputError(
            f"{name}: the right lung lies on the patient's left; is the scan mirrored or its orientation wrong?"
        )


def _record(tool: str, mask: Volume, made_by: Segmenter | None, seconds: float) -> dict[str, Any]:
    return {
        "tool": tool,
        "version": made_by.version if made_by else None,
        "weights_hash": made_by.weights_hash if made_by else None,
        "volume_ml": round(float((mask.array > 0).sum()) * mask.voxel_mm3 / 1000, 3),
        "seconds": round(seconds, 2),
    }


def _on_grid(mask: Volume, target: Volume, name: str) -> Volume:
    """Return a given mask as uint8 on the grid of `target`; another grid is an InputError."""
    mask = reorient_to(mask, target, name)
    return mask.with_array(as_labels(mask.array, name.rpartition(" ")[2], name))
