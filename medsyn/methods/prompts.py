"""Rows of a table of prompts as what a method is asked for.

A row is sample_id, text, seed and optionally prompt_type, section, text_mode (text or none), guidance_scale (empty:
that of the settings) and fix_image, fix_lobes, fix_airway, fix_vessels: a file on the model's grid or a subject of the
cohort whose image or mask is kept. A row that is wrong is an InputError, which costs only that row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsyn.errors import InputError
from medsyn.files import read_csv
from medsyn.masks.labels import as_labels
from medsyn.methods.base import Method, Prompt
from medsyn.models.channels import CHANNEL_OF, STRUCTURE_OF
from medsyn.names import sample_fault
from medsyn.orientation import reorient
from medsyn.stages.shards import identity_of
from medsyn.volume import grid_spacing_mm, read_volume

Row = Mapping[str, str]


@dataclass(frozen=True)
class Roots:
    """Folders <subject_id>/ of the files that fix_* columns name by subject: one per shard."""

    volumes: Sequence[Path] = ()
    masks: Sequence[Path] = ()

    @classmethod
    def below(cls, volumes: Path | None, masks: Path | None) -> Roots:
        """Return the roots whose shards are the sub-folders of the given folders."""
        return cls(*(sorted(root.glob("*/")) if root is not None else () for root in (volumes, masks)))


def read_prompts(path: Path) -> list[dict[str, str]]:
    """Read a table of prompts; an id that occurs twice is an InputError."""
    rows = read_csv(path, ("sample_id", "text", "seed"))
    seen: set[str] = set()
    for row in rows:
        if row["sample_id"] in seen:
            raise InputError(f"{path}: sample_id {row['sample_id']} appears twice; make the ids unique")
        seen.add(row["sample_id"])
    return rows


def prompt_of(method: Method, row: Row, number: int, roots: Roots) -> Prompt:
    """Return what row `number` of a table asks of `method`."""
    sample_id = row["sample_id"]
    if fault := sample_fault(sample_id):
        raise InputError(fault)
    if not row["seed"].isdecimal():
        raise InputError(f"seed '{row['seed']}' is not a whole number of 0 or more")
    mode = row.get("text_mode") or "text"
    if mode not in ("text", "none"):
        raise InputError(f"text_mode '{mode}' is neither text nor none")
    fixed: dict[str, NDArray] = {}
    sources: dict[str, str] = {}
    for name, value in fixes(row).items():
        channel = fixed_channel(method, name)
        fixed[channel] = read_fixed(method, channel, _find(channel, value, roots))
        sources[channel] = value
    facts = {key: row[key] for key in ("prompt_type", "section") if row.get(key)}
    text = row["text"] if mode == "text" and row["text"].strip() else None
    return Prompt(sample_id, text, int(row["seed"]), {**facts, "fixed": sources}, fixed, _guidance(row), number)


def identity_of_row(method: Method, row: Row, roots: Roots) -> str | None:
    """Hash a row and the files that it fixes; None if one is missing, or the row's id names no folder."""
    if sample_fault(row["sample_id"]):
        return None
    try:
        files = [_find(fixed_channel(method, name), value, roots) for name, value in fixes(row).items()]
    except InputError:
        return None
    return identity_of(row, *files)


def fixes(row: Row) -> dict[str, str]:
    """Return what a row fixes: name -> file or subject."""
    return {key.removeprefix("fix_"): value for key, value in row.items() if key.startswith("fix_") and value}


def fixed_channel(method: Method, name: str) -> str:
    """Return the channel called `name` in a table or on the command line, if `method` can keep it."""
    channel = CHANNEL_OF.get(name)
    if channel is None:
        raise InputError(f"'{name}' cannot be fixed; give image, lobes, airway or vessels")
    if channel not in method.fixable:
        able = ", ".join(method.fixable) or "no channel that can"
        raise InputError(f"'{name}' cannot be fixed: the model '{method.label}' has only {able}")
    return channel


def read_fixed(method: Method, channel: str, path: Path) -> NDArray:
    """Read HU or labels (D, H, W) to be kept; a file on another grid than the model's is an InputError."""
    volume = reorient(read_volume(path))
    grid = method.grid
    spacing = grid_spacing_mm(grid.size, grid.field_of_view_mm)
    if volume.array.shape != tuple(grid.size) or not np.allclose(volume.spacing_mm, spacing, rtol=0.01):
        have, want = (
            f"{list(size)} at {[round(s, 2) for s in steps]} mm"
            for size, steps in ((volume.array.shape, volume.spacing_mm), (grid.size, spacing))
        )
        raise InputError(f"{path}: its grid is {have}, the model's {want}; run `medsyn preprocess` first")
    return volume.array if channel == "image" else as_labels(volume.array, STRUCTURE_OF[channel], str(path))


def _guidance(row: Row) -> float | None:
    value = row.get("guidance_scale") or None
    try:
        scale = None if value is None else float(value)
    except ValueError:
        scale = math.nan
    if scale is not None and not math.isfinite(scale):
        raise InputError(f"guidance_scale '{value}' is not a number; give one, or leave the field empty")
    return scale


def _find(channel: str, value: str, roots: Roots) -> Path:
    """Return the file of a fix_* entry: a path, or a subject looked up as <shard>/<subject>/<name>.nii.gz."""
    if Path(value).is_file():
        return Path(value)
    shards = roots.volumes if channel == "image" else roots.masks
    name = f"{STRUCTURE_OF.get(channel, 'volume')}.nii.gz"
    found = next((path for path in (shard / value / name for shard in shards) if path.is_file()), None)
    if found is None:
        where = ", ".join(map(str, shards)) or "a given root"
        raise InputError(f"{value}: neither a file nor a subject with {name} under {where}")
    return found
