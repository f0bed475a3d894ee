"""The reports table (report_id, findings, impression, split) as the text stages read it.

`split` is train, validation or text_only (a report without an image, which the language model learns from as well).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medsyn.errors import InputError
from medsyn.files import read_csv
from medsyn.text import SPLITS
from medsyn.text.plain import plain_text
from medsyn.text.sections import section_text, text_fingerprints

REPORT_COLUMNS = ("report_id", "findings", "impression", "split")


@dataclass(frozen=True)
class ReportRow:
    """One report; patient is the report's own id where the table has no column patient_id."""

    report_id: str
    findings: str
    impression: str
    split: str
    patient: str

    def text(self, section: str) -> str:
        """Return the text of section `report`, `findings` or `impression`."""
        return section_text(self.findings, self.impression, section)


def read_reports(path: str | Path) -> list[ReportRow]:
    """Read all reports; an empty report, an unknown split or an id that comes twice is an InputError."""
    reports: list[ReportRow] = []
    seen: set[str] = set()
    for row in read_csv(path, REPORT_COLUMNS):
        name = row["report_id"]
        row |= {section: plain_text(row[section]) for section in ("findings", "impression")}
        if name in seen:
            raise InputError(f"{path}: report {name} is listed twice; keep one of them")
        if not (row["findings"] or row["impression"]):
            raise InputError(f"{path}: report {name} is empty; give it findings or an impression, or leave the row out")
        if row["split"] not in SPLITS:
            raise InputError(f"{path}: report {name} has split '{row['split']}'; it must be one of {', '.join(SPLITS)}")
        seen.add(name)
        patient = row.get("patient_id") or name
        reports.append(ReportRow(name, row["findings"], row["impression"], row["split"], patient))
    if not reports:
        raise InputError(f"{path}: no reports in it; at least one of the training split is needed")
    return reports


def of_split(reports: Iterable[ReportRow], *splits: str) -> list[ReportRow]:
    """Return the reports of the named splits, in the table's order."""
    return [report for report in reports if report.split in splits]


def without_leaks(training: Iterable[ReportRow], held_out: Iterable[ReportRow]) -> list[ReportRow]:
    """Return the training reports that are of no held-out patient and, without an image, of no held-out text."""
    held_out = list(held_out)
    patients = {report.patient for report in held_out}
    texts = set().union(*(text_fingerprints(report.findings, report.impression) for report in held_out))

    def leaks(report: ReportRow) -> bool:
        if report.patient in patients:
            return True
        return report.split == "text_only" and not texts.isdisjoint(
            text_fingerprints(report.findings, report.impression)
        )

    return [report for report in training if not leaks(report)]
