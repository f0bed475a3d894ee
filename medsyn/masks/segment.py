"""One contract for every mask tool: a CT in, label maps on the CT's own grid out, with a record of what was run.

`segment` turns the CT into model orientation, asks the tool that the configuration names for each structure, checks
what comes back, and turns the masks back, so that the files lie voxel for voxel on the input. Masks that came with the
CT replace a tool's. What the networks do in silence when something is wrong (an empty mask, sides swapped) is an error
here.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medsyn.config import MasksConfig
from medsyn.errors import InputError
from medsyn.masks.classical import Classical
from medsyn.masks.labels import as_labels
from medsyn.orientation import orientation_code, reorient, reorient_to
from medsyn.progress import log
from medsyn.volume import STRUCTURES, Volume

GIVEN = "given"
RIGHT_LOBES, LEFT_LOBES = (3, 4, 5), (1, 2)
"""Labels of `medsyn.volume.LOBE_NAMES` by side."""
PACKAGES = {"lungmask": ("lungmask",), "totalsegmentator": ("totalsegmentator", "nnunetv2")}
"""What a tool imports, by its name in the configuration."""


class Tool(Protocol):
    """A tool, held over a shard: it loads its networks at the first volume and keeps them."""

    @property
    def version(self) -> str:
        """Of the package that does the work."""

    @property
    def weights_hash(self) -> str | None:
        """SHA-256 of what `medsyn.weight_files.hash_weights` says; None without weights."""

    def segment(self, volume: Volume, structures: Sequence[str]) -> Mapping[str, NDArray[np.uint8]]:
        """Masks of the named structures on the grid of `volume`, a CT in HU (D, H, W) in model orientation."""


@dataclass(frozen=True)
class Masks:
    """labels: structure -> uint8 volume on the input's grid; record: per structure tool, version, weights_hash
    (SHA-256), volume_ml, and the seconds of the one call that made all structures of its tool.
    """

    labels: dict[str, Volume]
    record: dict[str, dict[str, Any]]


@cache
def open_tools(config: MasksConfig) -> dict[str, Tool]:
    """The tools that the configuration names, by name, the same objects at every call.

    Without their packages and weights, InputError.
    """
    chosen = {structure: getattr(config, structure) for structure in STRUCTURES}
    return {
        name: open_tool(name, config, [structure for structure, tool in chosen.items() if tool == name])
        for name in dict.fromkeys(chosen.values())
    }


def open_tool(name: str, config: MasksConfig, structures: Sequence[str]) -> Tool:
    """One tool, ready for `structures`; InputError without its package or weights."""
    for package in PACKAGES.get(name, ()):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"masks: the tool '{name}' needs the Python package {package}, which is not installed here; run"
                " `pip install --no-deps -r envs/requirements.lock`, or choose 'classical'"
            )
    root = Path(config.weights_dir)
    if name == "classical":
        return Classical()
    if name == "lungmask":
        from medsyn.masks.lungmask_tool import Lungmask

        return Lungmask(root, config.lungmask_model)
    if name == "naviairway":
        from medsyn.masks.naviairway_tool import NaviAirwayTool

        return NaviAirwayTool(root)
    from medsyn.masks.totalsegmentator_tool import TotalSegmentator

    return TotalSegmentator(root, structures)


def segment(
    volume: Volume, config: MasksConfig, given: Mapping[str, Volume] | None = None, name: str = "volume"
) -> Masks:
    """Lobes, airway and vessels of one CT in HU; a volume without any lung is an InputError that names `name`."""
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
    tool: Tool, tool_name: str, model: Volume, structures: Sequence[str], name: str
) -> dict[str, NDArray[np.uint8]]:
    """What the tool finds; an empty result is an InputError that names `name`."""
    try:
        found = tool.segment(model, structures)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    for structure in structures:
        mask = found[structure]
        if mask.shape != model.array.shape or mask.dtype != np.uint8:
            raise ValueError(f"{tool_name} gave {structure} of shape {mask.shape}, {mask.dtype}")
        if structure == "lobes":
            missing = missing_sides(mask)
            if len(missing) == 2:
                raise InputError(f"{name}: no right and no left lung found; is this a chest CT in HU?")
            if missing:
                log.warning("segment: %s: no %s lung found; its lobes are left empty", name, missing[0])
        elif tool_name != "classical" and not mask.any():
            raise InputError(f"{name}: {tool_name} found no {structure}; is this a chest CT in HU with a whole lung?")
    return {structure: found[structure] for structure in structures}


def missing_sides(lobes: NDArray[np.uint8]) -> list[str]:
    """Return the sides (right, left) without a lobe: one where a lung is filled by fluid, consolidated or removed."""
    labels = np.unique(lobes)
    return [side for side, own in (("right", RIGHT_LOBES), ("left", LEFT_LOBES)) if not np.isin(own, labels).any()]


def check_sides(lobes: NDArray[np.uint8], name: str) -> None:
    """InputError if the right lung of lobe labels (model orientation) does not lie to the right of the left one."""
    right, left = (np.isin(lobes, side).sum((0, 1)) for side in (RIGHT_LOBES, LEFT_LOBES))
    columns = np.arange(lobes.shape[2])
    if right.any() and left.any() and np.average(columns, weights=right) >= np.average(columns, weights=left):
        raise InputError(
            f"{name}: the right lung lies on the patient's left; is the scan mirrored or its orientation wrong?"
        )


def _record(tool: str, mask: Volume, made_by: Tool | None, seconds: float) -> dict[str, Any]:
    return {
        "tool": tool,
        "version": made_by.version if made_by else None,
        "weights_hash": made_by.weights_hash if made_by else None,
        "volume_ml": round(float((mask.array > 0).sum()) * mask.voxel_mm3 / 1000, 3),
        "seconds": round(seconds, 2),
    }


def _on_grid(mask: Volume, target: Volume, name: str) -> Volume:
    """A given mask as uint8 on the grid of `target`; another grid is an InputError."""
    mask = reorient_to(mask, target, name)
    return mask.with_array(as_labels(mask.array, name.rpartition(" ")[2], name))
