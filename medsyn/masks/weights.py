"""Find the weight files that mask tools and a configuration need."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from medsyn.config import Config
from medsyn.mask_tools import ANATOMY, MASK_TOOLS
from medsyn.volume import STRUCTURES
from medsyn.weight_files import WeightFile, own_weight_files


def weight_files() -> list[WeightFile]:
    """Return the rows of weight_files.yaml, and those that mask tools of other packages and plugins bring."""
    return [*own_weight_files(), *(row for name in MASK_TOOLS.names() for row in MASK_TOOLS[name].weight_files)]


def weights_of(tool: str, parts: Iterable[str]) -> list[WeightFile]:
    """Return the rows that a tool needs for `parts` (structures, or lungmask's models), in the table's order."""
    wanted = set(parts)
    return [row for row in weight_files() if row.tool == tool and wanted & set(row.parts)]


def find_weights(tool: str, parts: Iterable[str], root: Path) -> list[Path]:
    """Return the files of `weights_of` under the weights folder `root`; a missing one is an InputError."""
    return [path for row in weights_of(tool, parts) for path in row.find(root)]


def needed_weights(config: Config) -> list[WeightFile]:
    """Return the rows that a configuration needs: for its mask tools and measures, and what else it names."""
    root = Path(config.masks.weights_dir)
    wanted = [(getattr(config.masks, structure), structure) for structure in STRUCTURES]
    wanted += [(config.evaluation.anatomy_tool, structure) for structure in ANATOMY]
    needs = {(tool, part) for tool, name in wanted for part in MASK_TOOLS[tool].weight_parts(config.masks, [name])}
    named = {Path(encoder.init) for encoder in config.text.encoders.values()}
    named |= {Path(config.evaluation.features.weights)} if config.evaluation.features.weights else set()
    return [
        row
        for row in weight_files()
        if root / row.path in named or any((row.tool, part) in needs for part in row.parts)
    ]
