"""The reports of a cohort: those of its subjects, and those without an image that train the text encoder as well.

A CSV of reports without images has the columns report_id, findings, impression and, if known, patient_id and
subject_id. No report of a validation patient may train the text encoder, because Tables I to VII prompt with the
validation reports. So a row is rejected when one of its ids is that of a validation patient, subject or report, or when
its text is that of a validation report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsyn.csv_reading import Table, read_table
from medsyn.errors import InputError
from medsyn.progress import log
from medsyn.text.plain import plain_text
from medsyn.text.sections import text_fingerprints

REPORT_COLUMNS = ("report_id", "patient_id", "findings", "impression", "split")
_REQUIRED = ("report_id", "findings", "impression")
_LEAKS = "of the validation split"


def collect_reports(
    subjects: Sequence[Mapping[str, Any]], path: str | Path | None, rejects: list[dict[str, str]]
) -> list[dict[str, str]]:
    """Return one row (REPORT_COLUMNS) per report: the subjects' with their split, then those of `path` as text_only.

    subjects: subject_id, patient_id, report_id, findings, impression and split of each. Rows of `path` that cannot be
    used are added to `rejects` with their reason.
    """
    reports: dict[str, dict[str, str]] = {}
    for subject in subjects:
        row = {name: subject[name] for name in REPORT_COLUMNS[:4]}
        known = reports.setdefault(subject["report_id"], row | {"split": subject["split"]})
        if subject["split"] == "validation":
            known["split"] = "validation"
    if path is None:
        return list(reports.values())
    held_out = _HeldOut([subject for subject in subjects if subject["split"] == "validation"])
    num_leaks = 0
    for number, raw in enumerate(_read(path, rejects), 1):
        row = {name: raw.get(name, "").strip() for name in (*REPORT_COLUMNS[:4], "subject_id")}
        row |= {name: plain_text(row[name]) for name in ("findings", "impression")}
        reason = _fault(row, reports) or held_out.leak(row)
        if reason is None:
            row["patient_id"] = row["patient_id"] or row["subject_id"] or row["report_id"]
            reports[row["report_id"]] = {name: row[name] for name in REPORT_COLUMNS[:4]} | {"split": "text_only"}
            continue
        num_leaks += reason.endswith(_LEAKS)
        rejects.append({"subject_id": row["report_id"] or f"row {number}", "stage": "reports", "reason": reason})
    if num_leaks:
        log.warning("%s: %d reports belong to validation patients and are left out; see rejects.csv", path, num_leaks)
    if not any(row["split"] == "text_only" for row in reports.values()):
        log.warning("%s: no usable report in it; the text encoder trains on the training subjects' reports alone", path)
    return list(reports.values())


def faults_of(table: Table, path: str | Path, key: str, *, stage: str) -> list[dict[str, str]]:
    """Return the rows of rejects.csv for the faults of a table, named by the column `key` or by their line."""
    return [
        {
            "subject_id": fault.fields.get(key, "").strip() or f"line {fault.line}",
            "stage": stage,
            "reason": f"{path}: {fault.reason}",
        }
        for fault in table.faults
    ]


def _read(path: str | Path, rejects: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the rows of a table of reports; those that cannot be read are added to `rejects`."""
    if not Path(path).exists():
        raise InputError(
            f"{path}: no such file, cohort.reports names it; write the reports without images there as CSV with the"
            f" columns {','.join(_REQUIRED)} (optional: patient_id, subject_id), or set cohort.reports to null"
        )
    table = read_table(path, _REQUIRED)
    rejects += faults_of(table, path, "report_id", stage="reports")
    if table.rows and "patient_id" not in table.columns:
        log.warning(
            "%s: no column patient_id; reports of validation patients are recognised by report_id and by identical text"
            " alone; add patient_id",
            path,
        )
    return table.rows


def _fault(row: Mapping[str, str], reports: Mapping[str, object]) -> str | None:
    """Return why a row cannot be used as a report, or None."""
    if not row["report_id"]:
        return "no report_id"
    if row["report_id"] in reports:
        return "duplicate report_id"
    if not row["findings"] and not row["impression"]:
        return "empty report: neither findings nor impression"
    return None


class _HeldOut:
    """What the validation split is recognised by: ids of patients, subjects and reports, and texts."""

    def __init__(self, subjects: Sequence[Mapping[str, Any]]) -> None:
        names, patients, reports = (
            {subject[key].casefold() for subject in subjects} for key in ("subject_id", "patient_id", "report_id")
        )
        self._people, self._reports = names | patients, names | reports
        self._texts: set[str] = set()
        for subject in subjects:
            self._texts |= text_fingerprints(subject["findings"], subject["impression"])

    def leak(self, row: Mapping[str, str]) -> str | None:
        """Return why a row may not train the text encoder, or None."""
        places = {"subject_id": self._people, "patient_id": self._people, "report_id": self._reports}
        for name, known in places.items():
            if row[name].casefold() in known:
                return f"{name} {row[name]} is {_LEAKS}"
        if not self._texts.isdisjoint(text_fingerprints(row["findings"], row["impression"])):
            return f"the text is that of a report {_LEAKS}"
        return None
