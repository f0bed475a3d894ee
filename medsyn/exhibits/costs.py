"""Read what a method has cost: training out of its metrics tables, sampling out of the folders of its volumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsyn.methods.cost import FILE, read_cost

if TYPE_CHECKING:
    from medsyn.methods.cost import SamplingCost

TRAINING_COLUMNS = ("training_eflop", "training_hours")
SAMPLING_COLUMNS = ("num_parameters", "seconds_per_volume", "peak_memory_gib", "device")


def training_table(path: str | Path) -> Path:
    """Return the metrics table that a path means: the one in the folder of a language model, or the path itself."""
    path = Path(path)
    return path / "metrics.csv" if path.is_dir() else path


def cost_files(folders: Sequence[str | Path]) -> list[Path]:
    """Return the cost.json of folders of sampled volumes, as far as they have one."""
    return [path for folder in folders if (path := Path(folder) / FILE).exists()]


def training_cost(tables: Sequence[Path]) -> dict[str, float | None]:
    """Return TRAINING_COLUMNS, each the sum of the last rows; None where a table does not say it, or without tables."""
    from medsyn.evaluate.inputs import parse_number
    from medsyn.files import read_csv

    last = [(path, rows[-1] if (rows := read_csv(path)) else {}) for path in tables]
    costs: dict[str, float | None] = {}
    for name in TRAINING_COLUMNS:
        values = [parse_number(row.get(name, ""), name, path) for path, row in last]
        known = [value for value in values if value is not None]
        costs[name] = sum(known) if known and len(known) == len(values) else None
    return costs


def sampling_cost(files: Sequence[Path]) -> dict[str, Any]:
    """Return SAMPLING_COLUMNS over the shards of a method: mean time, largest memory, devices; None where unknown."""
    costs = [read_cost(path.parent) for path in files]
    timed = [(cost.num_volumes, cost.seconds_per_volume) for cost in costs if cost.seconds_per_volume is not None]
    count = sum(volumes for volumes, _ in timed)
    return {
        "num_parameters": max(_known(costs, "num_parameters"), default=None),
        "seconds_per_volume": sum(volumes * each for volumes, each in timed) / count if count else None,
        "peak_memory_gib": max(_known(costs, "peak_memory_gib"), default=None),
        "device": "; ".join(dict.fromkeys(_known(costs, "device"))) or None,
    }


def _known(costs: Sequence[SamplingCost], name: str) -> list[Any]:
    return [value for cost in costs if (value := getattr(cost, name)) is not None]
