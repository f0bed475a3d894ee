"""Write everything that is said about a study's answers into one folder: tables, Figures 7 and 8, a summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from medsyn.errors import InputError
from medsyn.evaluate.inputs import text_fields
from medsyn.exhibits.base import Table
from medsyn.exhibits.panels import write_figure
from medsyn.exhibits.reader_figures import figure7, figure8
from medsyn.files import atomic_dir, read_csv, sha256, write_csv, write_json
from medsyn.layout import REAL
from medsyn.provenance import provenance
from medsyn.study.analysis import (
    agreement_table,
    confusion_table,
    groups_table,
    pairs_table,
    ranking_table,
    recognition_table,
    reference_of,
)
from medsyn.study.definition import read_key
from medsyn.study.responses import Response, by_block, read_responses

TESTS = {
    "recognition": "counts of right answers per CT, exact (Clopper-Pearson) 95 % bounds",
    "ranking": "Friedman's test with Kendall's W, both corrected for ties",
    "pairs": "normal test of mean ranks (Dunn 1964) after Friedman's, and Wilcoxon's signed-rank test; two-tailed,"
    " times the number of pairs (Bonferroni)",
    "blocks": "reader and set: every ranking is a block, as in the paper, though those of one reader are dependent;"
    " reader: the mean ranks of each reader are a block",
    "bounds": "of mean ranks: Student's t over the readers' means",
    "agreement": "Fleiss' kappa; repeated items: share of the same answers, mean Kendall's tau-b",
    "groups": "Mann-Whitney test of the readers' values",
}


def analyse(answers: Path, key: Path | None, out: Path, reference: str | None = None) -> dict[str, Any]:
    """Write the analysis of an answers table into the new folder `out`; returns the summary, analysis.json.

    key: of the study; None: the answers have the columns method and truth themselves. reference: the method that the
    others are compared with (default: that of the recognition items). Answers that cannot be true are an InputError.
    """
    responses = read_responses(answers, read_key(key) if key else None)
    methods = sorted({part.method for part in responses})
    reference = reference or reference_of(responses)
    if reference not in methods:
        raise InputError(f"--reference {reference}: is not a method of {answers}; expected one of {', '.join(methods)}")
    tables = {
        "recognition": recognition_table(responses),
        "confusion": confusion_table(responses),
        "ranking": ranking_table(responses, reference),
        "pairs": pairs_table(responses, reference),
        "agreement": agreement_table(responses),
        "groups": groups_table(responses, reference),
    }
    files = {str(path): sha256(path) for path in (answers, key) if path is not None}
    summary = summarise(responses, tables) | {"reference": reference, "tests": TESTS}
    with atomic_dir(out) as folder:
        for name, table in tables.items():
            write_rows(folder / f"{name}.csv", table)
        for number, name, draw in ((7, "recognition", figure7), (8, "ranking", figure8)):
            rows = read_csv(folder / f"{name}.csv")
            facts = {"readers": "readers", "num_readers": str(summary["num_readers"]), "note": ""}
            write_figure(folder / f"figure{number}.png", draw([row | facts for row in rows], phantom=False))
        write_json(folder / "analysis.json", provenance(inputs=files, **summary))
    return summary


def write_rows(out: Path, table: Table) -> None:
    """Write a table as CSV."""
    columns, rows = table
    write_csv(out, (text_fields(row, columns) for row in rows), columns)


def summarise(responses: Sequence[Response], tables: dict[str, Table]) -> dict[str, Any]:
    """Return the numbers of readers, items and missing answers, and the readers' times in minutes."""
    times: dict[str, float] = {}
    for (reader, _), block in by_block(responses).items():
        seconds = [part.seconds for part in block if part.seconds is not None]
        if seconds:
            times[reader] = times.get(reader, 0.0) + max(seconds) / 60
    ranking = {row["structure"]: row["num_incomplete"] for row in tables["ranking"][1]}
    groups = {part.reader: part.group for part in responses}
    return {
        "num_readers": len(groups),
        "num_by_group": {name or "none": list(groups.values()).count(name) for name in sorted(set(groups.values()))},
        "num_items": len({part.item for part in responses}),
        "num_missing_recognition": sum(row["num_missing"] for row in tables["recognition"][1]),
        "num_incomplete_rankings": ranking,
        "num_real_volumes": len({part.volume for part in responses if part.method == REAL}),
        "minutes_per_reader_mean": fmean(times.values()) if times else None,
        "minutes_per_reader_std": stdev(times.values()) if len(times) > 1 else None,
    }
