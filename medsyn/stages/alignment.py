"""Count, per finding, how many CTs were registered, fell back to centre alignment or were rejected.

An alignment that depends on a disease puts healthy and ill patients into different coordinate frames, and a rejection
that depends on a disease removes the ill from the cohort. Both would bias every table.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from medsyn.errors import InputError
from medsyn.evaluate.inputs import labels_of, read_labels
from medsyn.files import read_csv, read_json, write_csv
from medsyn.volume import STRUCTURES

OUTCOMES = ("registered", "fell_back", "not_registered", "rejected", "unknown")
"""registered to the atlas; fell back to centre alignment; accepted where no registration was asked for; rejected by
preprocessing; no record of what happened."""
OK = ("ok", "")
"""Status of a subject that a stage accepted, as `medsyn.stages.shards.accepted_ids` reads it."""
ALL, NO_FINDING, UNLABELLED = "all", "no finding", "no labels"
COLUMNS = (
    *("finding", "n", "alignment_asked", *OUTCOMES, "masks_rejected"),
    *("registered_fraction", "registered_ci_low", "registered_ci_high"),
    *("fell_back_fraction", "fell_back_ci_low", "fell_back_ci_high"),
    *("rejected_fraction", "rejected_ci_low", "rejected_ci_high", "atlas_dice_mean", "atlas_dice_n"),
    *("commonest_reason", "commonest_reason_count"),
)


@dataclass(frozen=True)
class _Fate:
    """What preprocessing did with a CT: one of OUTCOMES, the reason unless all went well, the overlap with the atlas,
    and the alignment that was asked for ("" where there is no record of it).
    """

    outcome: str
    reason: str = ""
    dice: float | None = None
    asked: str = ""


@dataclass(frozen=True)
class _Record:
    """What became of one subject."""

    labels: dict[str, int] | None
    fate: _Fate
    has_masks: bool


def alignment_quality(volumes: Sequence[Path], masks: Sequence[Path], cohort: Path, labels: Path, out: Path) -> None:
    """Write COLUMNS: one row for all subjects, for those without a finding, per finding, and for those without labels.

    volumes, masks: shards of `preprocess` and `segment`; a subject in two of them is an InputError. alignment_asked is
    `preprocess.alignment` as the qc.json files of the cohort name it. Fractions are of n, with Wilson's 95 % bounds;
    those of registration are empty where it was not asked for. atlas_dice_mean is the mean overlap of the lungs with
    the atlas as they were placed: registered, or centred after a fallback.
    """
    names, by_id = read_labels(labels)
    indexed, segmented = _index(volumes), _index(masks)
    records = []
    for row in read_csv(cohort, ["subject_id"]):
        name = row["subject_id"]
        fate = _fate(row, *indexed[name]) if name in indexed else _Fate("unknown", "not in any index.csv")
        has_masks = name not in segmented or segmented[name][1]["status"] in OK
        records.append(_Record(labels_of(row, by_id), fate, has_masks))
    asked = sorted({record.fate.asked for record in records} - {""})
    groups: dict[str, Callable[[_Record], bool]] = {
        ALL: lambda record: True,
        NO_FINDING: lambda record: record.labels is not None and not any(record.labels.values()),
        **{name: lambda record, name=name: bool(record.labels and record.labels[name]) for name in names},  # type: ignore[misc]
        UNLABELLED: lambda record: record.labels is None,
    }
    rows = [_row(group, [record for record in records if belongs(record)], asked) for group, belongs in groups.items()]
    write_csv(out, rows, COLUMNS)


def _index(shards: Sequence[Path]) -> dict[str, tuple[Path, dict[str, str]]]:
    """Return the folder and the row of index.csv by subject."""
    found: dict[str, tuple[Path, dict[str, str]]] = {}
    for shard in shards:
        for row in read_csv(shard / "index.csv", ["subject_id", "status"]):
            name = row["subject_id"]
            if name in found:
                raise InputError(
                    f"{shard / 'index.csv'}: subject {name} is in {found[name][0].parent} as well, expected in one"
                    " shard; name only the shards of the present cohort"
                )
            found[name] = (shard / name, row)
    return found


def _fate(subject: Mapping[str, str], folder: Path, row: Mapping[str, str]) -> _Fate:
    """Return what `row` of index.csv and qc.json in `folder` say of a subject, a row of cohort.csv."""
    if row["status"] not in OK:
        return _Fate("rejected", _general(row.get("reason", ""), subject))
    if not (folder / "qc.json").exists():
        return _Fate("unknown", "no qc.json")
    try:
        facts = read_json(folder / "qc.json")
        asked, used = facts["alignment"], facts["alignment_used"]
    except (InputError, KeyError, TypeError):
        return _Fate("unknown", "qc.json does not say how the CT was aligned")
    if asked != "atlas":
        return _Fate("not_registered", asked=asked)
    dice = facts.get("atlas_dice")
    if used == "atlas":
        return _Fate("registered", "", dice, asked)
    return _Fate("fell_back", _general("; ".join(facts.get("registration_faults", [])), subject), dice, asked)


def _general(reason: str, subject: Mapping[str, str]) -> str:
    """Return a reason without the subject's file before it and without numbers, so that equal faults count together."""
    for name in ("image", *STRUCTURES):
        reason = reason.removeprefix(f"{subject.get(name)}: ")
    return re.sub(r"-?\d+(\.\d+)?", "#", reason.removeprefix("rejected, "))


def _row(group: str, records: Sequence[_Record], asked: Sequence[str]) -> dict[str, Any]:
    counts = Counter(record.fate.outcome for record in records)
    row: dict[str, Any] = {"finding": group, "n": len(records), "alignment_asked": "; ".join(asked)}
    row |= {name: counts[name] for name in OUTCOMES}
    row["masks_rejected"] = sum(not record.has_masks for record in records)
    fractions = ("registered", "fell_back", "rejected") if "atlas" in asked else ("rejected",)
    for name in fractions if records else ():
        bounds = stats.binomtest(counts[name], len(records)).proportion_ci(method="wilson")
        row[f"{name}_fraction"] = round(counts[name] / len(records), 4)
        row |= {f"{name}_ci_low": round(bounds.low, 4), f"{name}_ci_high": round(bounds.high, 4)}
    dice = [record.fate.dice for record in records if record.fate.dice is not None]
    row |= {"atlas_dice_mean": round(float(np.mean(dice)), 4) if dice else None, "atlas_dice_n": len(dice)}
    reasons = Counter(record.fate.reason for record in records if record.fate.reason)
    if reasons:
        row["commonest_reason"], row["commonest_reason_count"] = reasons.most_common(1)[0]
    return row
