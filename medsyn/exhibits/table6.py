"""Table VI: classifiers trained on real volumes alone and with generated volumes added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsyn.config import EvaluationConfig
from medsyn.exhibits.base import Exhibit, PaperTable, Rows, Table
from medsyn.exhibits.finding_tables import reference_takes_text
from medsyn.exhibits.inputs import Inputs
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources

AUGMENTED_WITH = "augmented with "
"""What `medsyn classify` writes before the name of the method whose volumes were added."""
SCORES = ("accuracy", "f1")


def needs(sources: Sources) -> list[Need]:
    """Return the scores of the classifiers of every finding."""
    findings = sources.config.evaluation.augmentation.findings
    paths = tuple(sources.layout.classification(finding) for finding in findings)
    scores = Need("scores", (), paths, sampled=(sources.reference, "augmentation"))
    return [scores, *sources.names([sources.reference])]


def make(inputs: Inputs, _: EvaluationConfig) -> Table:
    """Return Table VI of the score files that were given."""
    return table6(inputs.require("scores"), inputs.names)


def table6(scores: Sequence[str | Path], labels: Mapping[str, str] | None = None) -> Table:
    """Return accuracy and F1 over the folds, one row per method and finding, from files of `medsyn classify`.

    labels: full names of the generating methods, by the name that `classify` was given. p_paired: over the folds, the
    method is better than the first one, the baseline. n_synthetic and n_synthetic_min: the most and the fewest
    generated volumes in the training set of a fold.
    """
    from medsyn.evaluate.pairing import paired_columns
    from medsyn.exhibits.rows import read_scores

    parts = read_scores(scores, ("method", "finding", "fold"), (*SCORES, "n_test", "n_synthetic"))
    entries = [row for part in parts for row in part]
    findings = [part[0]["finding"] if part else Path(path).stem for path, part in zip(scores, parts, strict=True)]
    columns = ["method", "finding", "accuracy_mean", "accuracy_std", "f1_mean", "f1_std"]
    columns += ["folds", "n_real", "n_synthetic", "n_synthetic_min"]
    columns += [*paired_columns("accuracy_"), *paired_columns("f1_")]
    for name, label in (labels or {}).items():
        for entry in entries:
            if entry["method"] == f"{AUGMENTED_WITH}{name}":
                entry["method"] = f"{AUGMENTED_WITH}{label}"
    methods = list(dict.fromkeys(entry["method"] for entry in entries)) or ["baseline", "augmented"]
    rows: Rows = []
    for method in methods:
        for finding in dict.fromkeys(findings):
            of_finding = [entry for entry in entries if entry["finding"] == finding]
            rows.append({"method": method, "finding": finding} | _columns(of_finding, method, methods[0]))
    return columns, rows


def _columns(entries: Rows, method: str, baseline: str) -> dict[str, Any]:
    """Return the columns of one method from the scores of all methods for one finding."""
    import numpy as np

    from medsyn.evaluate.statistics import known_values

    chosen = [entry for entry in entries if entry["method"] == method]
    first = [entry for entry in entries if entry["method"] == baseline]
    row: dict[str, Any] = {"folds": len(chosen)}
    for score in SCORES:
        values = known_values([entry[score] for entry in chosen])
        row[f"{score}_mean"] = float(np.mean(values)) if len(values) else None
        row[f"{score}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        if method != baseline:
            row |= _paired_columns(chosen, first, score)
    row["n_real"] = sum(int(entry["n_test"]) for entry in chosen)
    added = [int(entry["n_synthetic"]) for entry in chosen]
    return row | {"n_synthetic": max(added, default=0), "n_synthetic_min": min(added, default=0)}


def _paired_columns(
    chosen: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], score: str
) -> dict[str, Any]:
    from medsyn.evaluate.pairing import paired_test

    scores = [{entry["fold"]: entry[score] for entry in part} for part in (chosen, other)]
    folds = dict.fromkeys(scores[0] | scores[1])
    return paired_test((fold, scores[0].get(fold), scores[1].get(fold)) for fold in folds).columns(f"{score}_")


TABLE6 = Exhibit(
    name="table6",
    kind="table",
    title="Table VI. Data augmentation",
    caption=(
        "Cross-validated classifiers trained on real volumes alone and with generated volumes added, for the same"
        " number of optimiser steps; tested on real volumes only. Accuracy and F1: mean ± standard deviation over the"
        " folds. p, paired: the one-tailed paired t-test of augmented against baseline over the folds, which share"
        " training volumes and are not independent, so that p is too small; the paper has no test here. Generated"
        " volumes: most and fewest in the training set of a fold; those prompted by reports of the tested patients are"
        " left out."
    ),
    needs=needs,
    options=("scores", "label"),
    make=make,
    paper=PaperTable(
        ("Method", "Effusion acc. %", "F1", "Opacity acc. %", "F1"),
        (
            ("Baseline", "90.7 ± 3.2", "0.79 ± 0.05", "61.0 ± 2.2", "0.72 ± 0.03"),
            ("Augmented", "94.0 ± 0.2", "0.84 ± 0.01", "62.0 ± 1.5", "0.75 ± 0.00"),
        ),
    ),
    in_all=reference_takes_text,
)
