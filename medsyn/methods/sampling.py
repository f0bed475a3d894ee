"""Answers of a method to prompts as files: one volume, or a shard of a table of prompts.

A shard is a folder with `<sample_id>/` for each row k, k+N, ... of the table, whatever the method is: volume.nii.gz (HU
on the model's grid), masks if the method makes them, provenance.json; index.csv with the rows that are rejected; and
cost.json with what sampling cost (`medsyn.methods.cost`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medsyn.ct.preview import two_windows, write_png
from medsyn.errors import InputError
from medsyn.files import sha256, write_csv, write_json
from medsyn.methods.base import Answer, Method, Prompt, Rejected
from medsyn.methods.cost import Stopwatch, write_cost
from medsyn.methods.prompts import (
    Roots,
    fixed_channel,
    fixes,
    identity_of_row,
    prompt_of,
    read_fixed,
    read_prompts,
)
from medsyn.names import parse_shard
from medsyn.outputs import check_folder, volume_name
from medsyn.progress import log, track
from medsyn.provenance import provenance
from medsyn.stages.shards import Outcome, Shard, open_shard
from medsyn.volume import Volume, write_volume

NumberedRow = tuple[int, dict[str, str]]


def sample_one(method: Method, text: str, seed: int, fix: Sequence[str], out: Path) -> None:
    """Sample one volume; write `out`, <stem>_<structure>.nii.gz, <stem>.json and <stem>.png (two_windows).

    fix: NAME=FILE of kept channels.
    """
    stem, suffix = volume_name(out)
    if seed < 0:
        raise InputError(f"--seed {seed}: give 0 or more")
    fixed, sources = {}, {}
    for item in fix:
        name, separator, file = item.partition("=")
        if not separator:
            raise InputError(f"--fix {item}: write NAME=FILE, for example lobes=lobes.nii.gz")
        channel = fixed_channel(method, name)
        fixed[channel], sources[channel] = read_fixed(method, channel, Path(file)), file
    prompt = Prompt(stem, text or None, seed, facts={"fixed": sources}, fixed=fixed)
    answer = next(iter(method.sample([prompt])))
    if isinstance(answer, Rejected):
        raise InputError(f"{out}: rejected, {answer.reason}")
    for name, volume in answer.items():
        path = out if name == "volume" else out.with_name(f"{stem}_{name}{suffix}")
        write_volume(path, volume)
        log.info("wrote %s", path)
    write_json(out.with_name(f"{stem}.json"), record(method, prompt))
    picture = out.with_name(f"{stem}.png")
    write_png(picture, two_windows(answer["volume"]))
    log.info("wrote %s", picture)


def sample_shard(method: Method, prompts: Path, shard: str, roots: Roots, out: Path, state: Path | None = None) -> None:
    """Answer rows k, k+N, ... of a table of prompts in `out`/<sample_id>/; a bad row is rejected in index.csv.

    state: where finished volumes lie until the end (`open_shard`).
    """
    check_folder(out)
    number, count = parse_shard(shard)
    chosen = list(enumerate(read_prompts(prompts)))[number::count]
    outcomes: list[Outcome] = []
    stopwatch = Stopwatch(method)
    facts = method.identity() | {"prompts": sha256(prompts), "shard": shard, "label": method.label}
    with open_shard(out, state, provenance(method.settings, stage="sample", **facts)) as kept:
        for batch in track(list(batches(method, chosen)), description="sampling volumes"):
            outcomes += _sample_batch(method, batch, roots, kept, stopwatch)
            log.info("sampled %d of %d volumes", len(outcomes), len(chosen))
        index = [{"sample_id": item.name, "status": item.status, "reason": item.reason} for item in outcomes]
        write_csv(kept.folder / "index.csv", index, ("sample_id", "status", "reason"))
        _check_rejected(method, outcomes, out)
        write_cost(kept.folder, stopwatch.cost())
        kept.publish(out)


def record(method: Method, prompt: Prompt) -> dict[str, Any]:
    """Return the provenance of one volume: settings, prompt, and what the method says of it."""
    facts = {"sample_id": prompt.sample_id, "seed": prompt.seed, **prompt.facts}
    facts["text"] = prompt.text if method.takes_text else None
    facts |= method.record(prompt)
    return provenance(method.settings, label=method.label, channels=list(method.channels), **facts)


def _sample_batch(
    method: Method, batch: Sequence[NumberedRow], roots: Roots, kept: Shard, stopwatch: Stopwatch
) -> list[Outcome]:
    """Return the outcomes of a batch, wrong rows first; one missing volume samples all volumes of the batch again."""
    identities = {row["sample_id"]: identity_of_row(method, row, roots) for _, row in batch}
    outcomes, ready = [], []
    for number, row in batch:
        name = row["sample_id"]
        try:
            ready.append(prompt_of(method, row, number, roots))
        except InputError as error:
            log.warning("%s: rejected: %s", name, error)
            outcomes.append(kept.reject(name, identities[name], str(error)))
    known = [kept.recall(prompt.sample_id, identities[prompt.sample_id]) for prompt in ready]
    if None not in known:
        return [*outcomes, *(item for item in known if item is not None)]
    method.prepare(ready)
    for prompt, answer in zip(ready, stopwatch.timed(method.sample(ready)), strict=True):
        outcomes.append(_keep(method, prompt, answer, kept, identities[prompt.sample_id]))
    return outcomes


def _keep(method: Method, prompt: Prompt, answer: Answer, kept: Shard, identity: str | None) -> Outcome:
    """Write one answer into the shard's state, or why there is none; the next run asks for a rejected one again."""
    if isinstance(answer, Rejected):
        log.warning("%s: rejected: %s", prompt.sample_id, answer.reason)
        return kept.reject(prompt.sample_id, None, answer.reason)
    volumes: Mapping[str, Volume] = answer

    def write(target: Path) -> None:
        for name, volume in volumes.items():
            write_volume(target / f"{name}.nii.gz", volume)
        write_json(target / "provenance.json", record(method, prompt))

    return kept.make(prompt.sample_id, identity, write)


def _check_rejected(method: Method, outcomes: Sequence[Outcome], out: Path) -> None:
    """Raise InputError if more than max_reject_fraction, and more than one volume, is rejected."""
    rejected = [item for item in outcomes if item.status != "ok"]
    if len(rejected) > max(1.0, method.max_reject_fraction * len(outcomes)):
        raise InputError(
            f"{out}: {len(rejected)} of {len(outcomes)} volumes of '{method.label}' are rejected, at most"
            f" {method.max_reject_fraction:.0%} may be; first: {rejected[0].name}: {rejected[0].reason}; repair them,"
            " or raise max_reject_fraction and say so where the numbers are shown"
        )


def batches(method: Method, rows: Sequence[NumberedRow]) -> Iterator[list[NumberedRow]]:
    """Yield at most batch_size rows at a time that fix the same channels and have the same guidance."""

    def kind(row: dict[str, str]) -> tuple[list[str], str]:
        return sorted(fixes(row)), row.get("guidance_scale") or ""

    batch: list[NumberedRow] = []
    for number, row in sorted(rows, key=lambda item: kind(item[1])):
        if batch and (len(batch) == method.batch_size or kind(row) != kind(batch[0][1])):
            yield batch
            batch = []
        batch.append((number, row))
    if batch:
        yield batch
