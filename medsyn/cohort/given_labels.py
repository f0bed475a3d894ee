"""Keep labels that came with a data set, beside those that `medsyn label` parses from its reports.

In a manifest and in cohort.csv they are one field, "pleural_effusion=1;nodule=0", with the report labeler's names of
findings. `write_cohort` makes given_labels.csv from them: `id` (the report's) and one 0/1 column per finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from medsyn.errors import InputError
from medsyn.progress import log

_ENTRY = re.compile(r"([a-z][a-z0-9_]*)=([01])")
_ALIASES = {"lung_nodule": "nodule"}


def finding_name(column: str) -> str:
    """Return our name of a finding that a table calls "Pleural effusion" or "Lung nodule"."""
    name = re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")
    return _ALIASES.get(name, name)


def format_given(labels: Mapping[str, int]) -> str:
    """Return labels as one field, sorted by finding."""
    return ";".join(f"{name}={value}" for name, value in sorted(labels.items()))


def parse_given(text: str) -> dict[str, int]:
    """Return the labels of a field; other text than finding=0 and finding=1 between semicolons is an InputError."""
    labels: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        match = _ENTRY.fullmatch(part)
        if match is None:
            raise InputError(f"given_labels holds '{part}', expected such as nodule=0 or nodule=1; correct it")
        labels[match[1]] = int(match[2])
    return labels


def given_table(subjects: Iterable[tuple[str, str]]) -> tuple[list[str], list[dict[str, object]]]:
    """Return columns and rows of given_labels.csv; subjects: report id and field of each.

    A report that lacks a label which others have, or whose subjects contradict each other, is left out with a warning:
    the table is complete, so that a 0 always means that the data set says so.
    """
    reports: dict[str, dict[str, int]] = {}
    contradictory = set()
    for report_id, text in subjects:
        labels = parse_given(text)
        if not labels:
            continue
        known = reports.setdefault(report_id, labels)
        if any(known.get(name, value) != value for name, value in labels.items()):
            contradictory.add(report_id)
        reports[report_id] = known | labels
    names = sorted({name for labels in reports.values() for name in labels})
    partial = [name for name, labels in reports.items() if len(labels) < len(names)]
    _warn(partial, len(reports), "lack some of the given labels")
    _warn(sorted(contradictory), len(reports), "have given labels that contradict each other")
    dropped = contradictory.union(partial)
    return ["id", *names], [{"id": key, **labels} for key, labels in reports.items() if key not in dropped]


def _warn(reports: Sequence[str], total: int, what: str) -> None:
    if reports:
        log.warning(
            "given_labels.csv: %d of %d reports are left out, they %s: %s", len(reports), total, what, reports[0]
        )
