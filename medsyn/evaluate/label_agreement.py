"""Labels parsed from reports against labels that came with a data set: counts, precision, recall and F1 per finding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medsyn.errors import InputError
from medsyn.evaluate.inputs import read_labels

COLUMNS = ("finding", "n", "tp", "fp", "fn", "tn", "precision", "recall", "f1")


def compare_labels(labels: Path, given: Path) -> list[dict[str, Any]]:
    """Return one row (COLUMNS) per finding that both tables have, the given label taken as the truth.

    Reports are joined by `id`. Precision, recall and F1 are None where their denominator is 0. Tables without a common
    report or finding are an InputError.
    """
    names, parsed = read_labels(labels)
    given_names, truth = read_labels(given)
    common = [name for name in names if name in given_names]
    reports = [name for name in parsed if name in truth]
    if not common or not reports:
        raise InputError(f"{given}: no report and finding that {labels} has too; give the labels of the same reports")
    rows = []
    for name in common:
        found = np.array([parsed[report][name] for report in reports], dtype=bool)
        real = np.array([truth[report][name] for report in reports], dtype=bool)
        tp, fp, fn = (int(part.sum()) for part in (found & real, found & ~real, ~found & real))
        counts = {"n": len(reports), "tp": tp, "fp": fp, "fn": fn, "tn": len(reports) - tp - fp - fn}
        shares = {"precision": _share(tp, tp + fp), "recall": _share(tp, tp + fn)}
        rows.append({"finding": name} | counts | shares | {"f1": _share(2 * tp, 2 * tp + fp + fn)})
    return rows


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
