"""From a sentence to a chest CT: one volume, or a shard of a prompts table (the verb `generate`).

A row of the table is sample_id, text, seed and optionally prompt_type, section, text_mode (text or none),
guidance_scale (empty: that of the settings) and fix_image, fix_lobes, fix_airway, fix_vessels: a file on the model's
grid or a subject of the cohort whose image or mask is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsyn.errors import InputError
from medsyn.files import read_csv, sha256, write_csv, write_json
from medsyn.masks.labels import as_labels
from medsyn.models.channels import CHANNEL_OF, STRUCTURE_OF
from medsyn.names import parse_shard, sample_fault
from medsyn.orientation import reorient
from medsyn.outputs import check_folder, volume_name
from medsyn.progress import log, track
from medsyn.provenance import provenance
from medsyn.run import Prompt, Run, record, to_volumes
from medsyn.stages.shards import Outcome, Shard, identity_of, open_shard
from medsyn.volume import grid_spacing_mm, read_volume, write_volume


@dataclass(frozen=True)
class Roots:
    """Where the subjects of fix_* columns lie: <root>/<shard>/<subject_id>/."""

    volumes: Path | None = None
    masks: Path | None = None


def generate_one(run: Run, text: str, seed: int | None, fixes: Sequence[str], out: Path) -> None:
    """Draw one volume; write `out`, <stem>_<structure>.nii.gz and <stem>.json."""
    stem, suffix = volume_name(out)
    if seed is not None and seed < 0:
        raise InputError(f"--seed {seed}: give 0 or more")
    fixed: dict[str, NDArray] = {}
    sources: dict[str, str] = {}
    for item in fixes:
        name, separator, file = item.partition("=")
        if not separator:
            raise InputError(f"--fix {item}: write NAME=FILE, for example lobes=lobes.nii.gz")
        channel = _channel(run, name)
        fixed[channel], sources[channel] = _read_fixed(run, channel, Path(file)), file
    prompt = Prompt(
        sample_id=stem,
        text=text or None,
        seed=run.settings.sampling.seed if seed is None else seed,
        fixed=fixed,
        facts={"fixed": sources},
    )
    array = run.draw([prompt])[0]
    for name, volume in to_volumes(run, array).items():
        path = out if name == "volume" else out.with_name(f"{stem}_{name}{suffix}")
        write_volume(path, volume)
        log.info("wrote %s", path)
    write_json(out.with_name(f"{stem}.json"), record(run, prompt))


def generate_shard(run: Run, prompts: Path, shard: str, roots: Roots, out: Path, state: Path | None = None) -> None:
    """Draw rows k, k+N, ... of a prompts table into `out`/<sample_id>/; a bad row is rejected in index.csv.

    state: where finished volumes lie until the end (`open_shard`).
    """
    check_folder(out)
    number, count = parse_shard(shard)
    rows = read_csv(prompts, ("sample_id", "text", "seed"))
    if repeated := _repeated([row["sample_id"] for row in rows]):
        raise InputError(f"{prompts}: sample_id {repeated} appears twice; make the ids unique")
    outcomes: list[Outcome] = []
    chosen = rows[number::count]
    facts: dict[str, Any] = {"weights": run.hashes, "encoder": identity_of(run.text_encoder), "device": run.device.type}
    facts |= {"prompts": sha256(prompts), "shard": shard, "label": run.label}
    with open_shard(out, state, provenance(run.settings, stage="sample", **facts)) as kept:
        for batch in track(list(_batches(run, chosen)), description="generating volumes"):
            outcomes += _generate_batch(run, batch, roots, kept)
            log.info("generated %d of %d volumes", len(outcomes), len(chosen))
        index = [{"sample_id": item.name, "status": item.status, "reason": item.reason} for item in outcomes]
        write_csv(kept.folder / "index.csv", index, ("sample_id", "status", "reason"))
        kept.publish(out)


def _generate_batch(run: Run, batch: list[dict[str, str]], roots: Roots, kept: Shard) -> list[Outcome]:
    """Outcomes of a batch, rejected rows first; its volumes are drawn again together if one of them is not there."""
    identities = {row["sample_id"]: _identity(run, row, roots) for row in batch}
    outcomes, ready = [], []
    for row in batch:
        name = row["sample_id"]
        try:
            ready.append(_prompt(run, row, roots))
        except InputError as error:
            log.warning("%s: rejected: %s", name, error)
            outcomes.append(kept.reject(name, identities[name], str(error)))
    known = [kept.recall(prompt.sample_id, identities[prompt.sample_id]) for prompt in ready]
    if None not in known:
        return [*outcomes, *(item for item in known if item is not None)]
    for prompt, array in zip(ready, run.draw(ready), strict=True):

        def write(target: Path, prompt: Prompt = prompt, array: NDArray = array) -> None:
            for name, volume in to_volumes(run, array).items():
                write_volume(target / f"{name}.nii.gz", volume)
            write_json(target / "provenance.json", record(run, prompt))

        outcomes.append(kept.make(prompt.sample_id, identities[prompt.sample_id], write))
    return outcomes


def _identity(run: Run, row: Mapping[str, str], roots: Roots) -> str | None:
    """Hash of a row and of the files that it fixes; None if one is missing, or the row's id names no folder."""
    if sample_fault(row["sample_id"]):
        return None
    try:
        return identity_of(row, *(_find(_channel(run, name), value, roots) for name, value in _fixes(row).items()))
    except InputError:
        return None


def _prompt(run: Run, row: Mapping[str, str], roots: Roots) -> Prompt:
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
    for name, value in _fixes(row).items():
        channel = _channel(run, name)
        fixed[channel] = _read_fixed(run, channel, _find(channel, value, roots))
        sources[channel] = value
    facts = {key: row[key] for key in ("prompt_type", "section") if row.get(key)}
    text = row["text"] if mode == "text" and row["text"].strip() else None
    return Prompt(sample_id, text, int(row["seed"]), {**facts, "fixed": sources}, fixed, _guidance(row))


def _guidance(row: Mapping[str, str]) -> float | None:
    value = row.get("guidance_scale") or None
    try:
        scale = None if value is None else float(value)
    except ValueError:
        scale = math.nan
    if scale is not None and not math.isfinite(scale):
        raise InputError(f"guidance_scale '{value}' is not a number; give one, or leave the field empty")
    return scale


def _fixes(row: Mapping[str, str]) -> dict[str, str]:
    return {key.removeprefix("fix_"): value for key, value in row.items() if key.startswith("fix_") and value}


def _batches(run: Run, rows: Sequence[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    """Runs of at most batch_size rows that fix the same channels and have the same guidance."""

    def kind(row: dict[str, str]) -> tuple[list[str], str]:
        return sorted(_fixes(row)), row.get("guidance_scale") or ""

    batch: list[dict[str, str]] = []
    for row in sorted(rows, key=kind):
        if batch and (len(batch) == run.batch_size or kind(row) != kind(batch[0])):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _channel(run: Run, name: str) -> str:
    channel = CHANNEL_OF.get(name)
    if channel is None:
        raise InputError(f"'{name}' cannot be fixed; give image, lobes, airway or vessels")
    if channel not in run.channels:
        raise InputError(f"'{name}' cannot be fixed: the model '{run.label}' has only {', '.join(run.channels)}")
    return channel


def _find(channel: str, value: str, roots: Roots) -> Path:
    """The file of a fix_* entry: a path, or a subject looked up as <root>/*/<subject>/<name>.nii.gz."""
    if Path(value).is_file():
        return Path(value)
    root = roots.volumes if channel == "image" else roots.masks
    name = f"{STRUCTURE_OF.get(channel, 'volume')}.nii.gz"
    found = sorted(root.glob(f"*/{value}/{name}")) if root is not None else []
    if not found:
        raise InputError(f"{value}: neither a file nor a subject with {name} under {root or 'a given root'}")
    return found[0]


def _read_fixed(run: Run, channel: str, path: Path) -> NDArray:
    volume = reorient(read_volume(path))
    grid = run.settings.preprocess
    spacing = grid_spacing_mm(grid.size, grid.field_of_view_mm)
    if volume.array.shape != tuple(grid.size) or not np.allclose(volume.spacing_mm, spacing, rtol=0.01):
        have, want = (
            f"{list(size)} at {[round(s, 2) for s in steps]} mm"
            for size, steps in ((volume.array.shape, volume.spacing_mm), (grid.size, spacing))
        )
        raise InputError(f"{path}: its grid is {have}, the model's {want}; run `medsyn preprocess` first")
    return volume.array if channel == "image" else as_labels(volume.array, STRUCTURE_OF[channel], str(path))


def _repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]
