"""Quality control of preprocessing: how many CTs were registered, fell back or were rejected, by finding.

An alignment that depends on a disease puts healthy and ill patients into different coordinate frames, and a rejection
that depends on it removes the ill from the cohort. Both would bias every table, so both are counted per finding.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from medsyn.errors import InputError
from medsyn.evaluate.inputs import labels_of, read_labels
from medsyn.files import read_csv, read_json, write_csv

OUTCOMES = ("registered", "fell_back", "not_registered", "rejected", "unknown")
"""registered to the atlas; fell back to centre alignment; accepted where no registration was asked for; rejected by
preprocessing; no record of what happened."""
ALL, NO_FINDING, UNLABELLED = "all", "no finding", "no labels"
COLUMNS = (
    *("finding", "n", *OUTCOMES, "masks_rejected"),
    *("registered_fraction", "registered_ci_low", "registered_ci_high", "fell_back_fraction"),
    *("rejected_fraction", "rejected_ci_low", "rejected_ci_high", "atlas_dice_mean", "atlas_dice_n"),
    *("commonest_reason", "commonest_reason_count"),
)


@dataclass(frozen=True)
class _Record:
    """What became of one subject."""

    labels: dict[str, int] | None
    outcome: str
    reason: str
    dice: float | None
    has_masks: bool


def alignment_quality(volumes: Sequence[Path], masks: Sequence[Path], cohort: Path, labels: Path, out: Path) -> None:
    """Write COLUMNS: one row for all subjects, for those without a finding, per finding, and for those without labels.

    volumes, masks: shards of `preprocess` and `segment`. Fractions are of n; their bounds are Wilson's (95 %). Those of
    registration are empty where it was not asked for.
    """
    names, by_id = read_labels(labels)
    indexed, rejected_masks = _index(volumes), _index(masks)
    records = []
    for row in read_csv(cohort, ["subject_id"]):
        name = row["subject_id"]
        outcome, reason, dice = (
            _outcome(*indexed[name]) if name in indexed else ("unknown", "not in any index.csv", None)
        )
        has_masks = name not in rejected_masks or rejected_masks[name][1]["status"] == "ok"
        records.append(_Record(labels_of(row, by_id), outcome, reason, dice, has_masks))
    groups: dict[str, Callable[[_Record], bool]] = {
        ALL: lambda record: True,
        NO_FINDING: lambda record: record.labels is not None and not any(record.labels.values()),
        **{name: lambda record, name=name: bool(record.labels and record.labels[name]) for name in names},  # type: ignore[misc]
        UNLABELLED: lambda record: record.labels is None,
    }
    rows = [_row(group, [record for record in records if belongs(record)]) for group, belongs in groups.items()]
    write_csv(out, rows, COLUMNS)


def _index(shards: Sequence[Path]) -> dict[str, tuple[Path, dict[str, str]]]:
    """Return the folder and the row of index.csv by subject."""
    found = {}
    for shard in shards:
        for row in read_csv(shard / "index.csv", ["subject_id", "status"]):
            found[row["subject_id"]] = (shard / row["subject_id"], row)
    return found


def _outcome(folder: Path, row: dict[str, str]) -> tuple[str, str, float | None]:
    """Return one of OUTCOMES, the reason for anything but success, and the overlap with the atlas."""
    if row["status"] != "ok":
        return "rejected", _general(row.get("reason", "")), None
    try:
        facts = read_json(folder / "qc.json")
    except InputError:
        return "unknown", "no qc.json", None
    if facts.get("alignment") != "atlas":
        return "not_registered", "", None
    if facts.get("alignment_used") == "atlas":
        return "registered", "", facts.get("atlas_dice")
    return "fell_back", _general("; ".join(facts.get("registration_faults", []))), facts.get("atlas_dice")


def _general(reason: str) -> str:
    """Return a reason without file and numbers, so that equal faults of several subjects count together."""
    return re.sub(r"-?\d+(\.\d+)?", "#", reason.rpartition("rejected, ")[2])


def _row(group: str, records: Sequence[_Record]) -> dict[str, Any]:
    counts = Counter(record.outcome for record in records)
    row: dict[str, Any] = {"finding": group, "n": len(records)} | {name: counts[name] for name in OUTCOMES}
    row["masks_rejected"] = sum(not record.has_masks for record in records)
    asked = ("registered", "fell_back") if counts["registered"] + counts["fell_back"] else ()
    for name in (*asked, "rejected") if records else ():
        row[f"{name}_fraction"] = round(counts[name] / len(records), 4)
        bounds = stats.binomtest(counts[name], len(records)).proportion_ci(method="wilson")
        if name != "fell_back":
            row |= {f"{name}_ci_low": round(bounds.low, 4), f"{name}_ci_high": round(bounds.high, 4)}
    dice = [record.dice for record in records if record.dice is not None]
    row |= {"atlas_dice_mean": round(float(np.mean(dice)), 4) if dice else None, "atlas_dice_n": len(dice)}
    reasons = Counter(record.reason for record in records if record.reason)
    if reasons:
        row["commonest_reason"], row["commonest_reason_count"] = reasons.most_common(1)[0]
    return row
