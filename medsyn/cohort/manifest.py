"""The cohort manifest: who is in, which split and shard, where files lie.

A user writes CSV files with the columns subject_id, image, findings, impression. Optional columns are split,
patient_id, report_id, labels, given_labels, technique, clinical_information; lobes, airway and vessels (paths of masks
that exist already); those of `medsyn.header_hints` (what an image file does not say itself); and truth (a phantom's
truth.json). Paths are relative to the CSV. An image belongs to one patient.

`build_cohort` checks every row, gives each patient a split (the paper holds out 12 % of the patients) and each subject
a shard, and lists the rows that it refuses. `write_cohort` writes cohort.csv, rejects.csv, reports.csv
(`medsyn.cohort.reports`) and given_labels.csv (`medsyn.cohort.given_labels`). `load_cohort` reads cohort.csv.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medsyn.cohort.given_labels import given_table, parse_given
from medsyn.cohort.reports import REPORT_COLUMNS, collect_reports, faults_of
from medsyn.config import CohortConfig, CohortStage
from medsyn.csv_reading import read_table
from medsyn.errors import InputError
from medsyn.files import read_csv, write_csv
from medsyn.header_hints import HINT_COLUMNS, parse_hints
from medsyn.names import subject_fault
from medsyn.text.plain import plain_text
from medsyn.text.sections import SECTIONS, section_text
from medsyn.volume import STRUCTURES

REQUIRED = ("subject_id", "image", "findings", "impression")
NOTES = ("given_labels", "technique", "clinical_information")
"""Columns that a cohort.csv need not have: labels that came with the data set, report fields beside the sections."""
COLUMNS = (
    *(*REQUIRED, "split", "patient_id", "report_id", "labels", "shard", *STRUCTURES, "truth", *HINT_COLUMNS),
    *NOTES,
)
REJECT_COLUMNS = ("subject_id", "stage", "reason")
SPLITS = ("train", "validation")
EXAMPLE = 'p001_scan1,images/p001.nii.gz,"Both lungs are clear.","No acute disease."'


@dataclass(frozen=True)
class Subject:
    """One row of cohort.csv; `masks` holds the paths of masks that came with the image, `labels` is free text,
    `hints` what the image's file does not say (HINT_COLUMNS), `given_labels` labels that came with the data set
    (medsyn.cohort.given_labels).
    """

    subject_id: str
    image: str
    findings: str
    impression: str
    split: str
    patient_id: str
    report_id: str
    labels: str = ""
    shard: int = 0
    masks: dict[str, str] = field(default_factory=dict)
    truth: str = ""
    hints: dict[str, str] = field(default_factory=dict)
    given_labels: str = ""
    technique: str = ""
    clinical_information: str = ""

    def row(self) -> dict[str, object]:
        """Return the subject as a row of cohort.csv."""
        values = dict(vars(self))
        given = values.pop("masks") | values.pop("hints")
        return values | {name: given.get(name, "") for name in (*STRUCTURES, *HINT_COLUMNS)}


@dataclass(frozen=True)
class Cohort:
    """What a manifest gives: subjects, refused rows (REJECT_COLUMNS) and reports (REPORT_COLUMNS)."""

    subjects: list[Subject]
    rejects: list[dict[str, str]]
    reports: list[dict[str, str]]


def build_cohort(manifests: Sequence[str | Path], reports: str | Path | None, config: CohortConfig) -> Cohort:
    """Return the cohort of manifests and of a CSV of reports without images; a missing file or column is an InputError.

    A CohortStage also names the sections that the image model may be conditioned on; a subject whose report has none of
    them is rejected.
    """
    sections = config.sections if isinstance(config, CohortStage) else SECTIONS
    rejects: list[dict[str, str]] = []
    rows = [row for path in manifests for row in _read_manifest(Path(path), rejects)]
    accepted: list[dict[str, str]] = []
    seen: dict[str, set[str]] = {"subject_id": set()}
    texts: dict[str, tuple[str, str]] = {}
    given: dict[str, str] = {}
    owners: dict[tuple[int, int, str], dict[str, str]] = {}
    for number, row in enumerate(rows, 1):
        reason = _fault(row, seen["subject_id"], texts, given, sections) or _shared_image(row, owners)
        if reason:
            rejects.append({"subject_id": row["subject_id"] or f"row {number}", "stage": "cohort", "reason": reason})
            continue
        seen["subject_id"].add(row["subject_id"])
        texts[row["report_id"]] = (row["findings"], row["impression"])
        if row["split"]:
            given[row["patient_id"]] = row["split"]
        accepted.append(row)
    splits = split_patients([row["patient_id"] for row in accepted], given, config.validation_fraction, config.seed)
    subjects = [
        Subject(
            **{name: row[name] for name in (*REQUIRED, "patient_id", "report_id", "labels", "truth", *NOTES)},
            split=splits[row["patient_id"]],
            shard=index * config.num_shards // len(accepted),
            masks={name: row[name] for name in STRUCTURES if row[name]},
            hints={name: row[name] for name in HINT_COLUMNS if row[name]},
        )
        for index, row in enumerate(accepted)
    ]
    return Cohort(subjects, rejects, collect_reports([vars(subject) for subject in subjects], reports, rejects))


def split_patients(
    patients: Sequence[str], given: dict[str, str], validation_fraction: float, seed: int
) -> dict[str, str]:
    """Split of every patient: as given, else the share with the lowest SHA-256 of seed and name is held out."""
    free = sorted(set(patients) - given.keys())
    ranked = sorted(free, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())
    count = round(validation_fraction * len(free))
    if count == 0 and validation_fraction > 0 and len(free) > 1 and "validation" not in given.values():
        count = 1
    held_out = set(ranked[:count])
    return {name: given.get(name, "validation" if name in held_out else "train") for name in set(patients)}


def write_cohort(cohort: Cohort, out: str | Path, max_reject_fraction: float) -> None:
    """Write the four tables into folder `out`; too many rejects, or nobody left, is an InputError after rejects.csv."""
    out = Path(out)
    write_csv(out / "rejects.csv", cohort.rejects, REJECT_COLUMNS)
    refused = [row for row in cohort.rejects if row["stage"] == "cohort"]
    total = len(cohort.subjects) + len(refused)
    if not cohort.subjects or len(refused) > max_reject_fraction * total:
        raise InputError(
            f"{out / 'rejects.csv'}: {len(refused)} of {total} subjects are rejected (at most {max_reject_fraction:.0%}"
            " allowed by max_reject_fraction); correct the manifest as the list says, or raise the limit"
        )
    write_csv(out / "reports.csv", cohort.reports, REPORT_COLUMNS)
    columns, labelled = given_table([(subject.report_id, subject.given_labels) for subject in cohort.subjects])
    write_csv(out / "given_labels.csv", labelled, columns)
    write_csv(out / "cohort.csv", (subject.row() for subject in cohort.subjects), COLUMNS)


def load_cohort(path: str | Path, shard: int | None = None, num_shards: int | None = None) -> list[Subject]:
    """Read a written cohort.csv, all of it or one shard; paths in it are absolute or relative to the working folder.

    A shard that the cohort cannot have is an InputError. num_shards: how many shards the cohort was cut into, which
    cohort.csv does not say (the last ones are empty where subjects are few); None: up to the last that has subjects.
    """
    subjects = []
    last = -1
    for raw in read_csv(path, [name for name in COLUMNS if name not in NOTES]):
        row = dict.fromkeys(NOTES, "") | raw
        if not row["shard"].isdecimal():
            raise InputError(
                f"{path}: subject {row['subject_id']}: shard '{row['shard']}' is not a number; write it again"
            )
        last = max(last, int(row["shard"]))
        if shard is not None and int(row["shard"]) != shard:
            continue
        plain = {name: row[name] for name in COLUMNS if name not in (*STRUCTURES, *HINT_COLUMNS, "shard")}
        masks, hints = ({name: row[name] for name in names if row[name]} for names in (STRUCTURES, HINT_COLUMNS))
        subjects.append(Subject(**plain, shard=int(row["shard"]), masks=masks, hints=hints))
    if num_shards is not None and last >= num_shards:
        raise InputError(
            f"{path}: shard {last} in it, expected shards 0 to {num_shards - 1}; give its number of shards"
        )
    if shard is not None and not 0 <= shard < (last + 1 if num_shards is None else num_shards):
        raise InputError(f"{path}: no shard {shard} in it, it has shards 0 to {last}; name one of them")
    return subjects


def _read_manifest(path: Path, rejects: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the rows of a manifest with every optional column, and with paths that do not depend on the CSV's folder.

    Reports are plain text (medsyn.text.plain). Rows that cannot be read are added to `rejects`.
    """
    if not path.exists():
        raise InputError(
            f"{path}: no such cohort manifest; write a CSV there with the columns {','.join(REQUIRED)} (paths relative"
            f" to it; optional: split, patient_id, report_id, labels), for example the row {EXAMPLE}"
        )
    table = read_table(path, REQUIRED)
    rejects += faults_of(table, path, "subject_id", stage="cohort")
    working, folder = str(Path.cwd()), str(path.absolute().parent)
    known = [name for name in COLUMNS if name in table.columns]
    rows = []
    for raw in table.rows:
        row = dict.fromkeys(COLUMNS, "") | {name: raw[name].strip() for name in known}
        for name in ("image", *STRUCTURES, "truth"):
            if row[name]:
                row[name] = stable_path(row[name] if row[name].startswith("/") else f"{folder}/{row[name]}", working)
        for name in ("findings", "impression"):
            row[name] = plain_text(row[name])
        row["patient_id"] = row["patient_id"] or row["subject_id"]
        row["report_id"] = row["report_id"] or row["subject_id"]
        rows.append(row)
    return rows


def stable_path(path: str | Path, working: str | None = None) -> str:
    """Return `path` relative to the working folder where it lies below it, else absolute.

    Without a working folder, the present one.
    """
    working = working or str(Path.cwd())
    absolute = os.path.normpath(path if str(path).startswith("/") else f"{working}/{path}")  # symbolic links are kept
    below = f"{working.rstrip('/')}/"
    if absolute.startswith(below):
        return absolute[len(below) :]
    return "." if absolute == working else absolute


def _path_fault(path: str) -> str | None:
    """Return why there is nothing to read at `path`, or None."""
    try:
        return None if Path(path).exists() else "does not exist"
    except OSError as error:  # a name that is too long, a folder without permission
        return f"cannot be reached: {error.strerror}"


def _fault(
    row: dict[str, str],
    seen: set[str],
    texts: dict[str, tuple[str, str]],
    given: dict[str, str],
    sections: Sequence[str],
) -> str | None:
    """Return why a row cannot be used, or None."""
    subject_id = row["subject_id"]
    if fault := subject_fault(subject_id):
        return fault
    if subject_id in seen:
        return "duplicate subject_id"
    if not row["findings"] and not row["impression"]:
        return "empty report: neither findings nor impression"
    if "report" not in sections and not any(
        section_text(row["findings"], row["impression"], section) for section in sections
    ):
        return f"report without {' or '.join(sections)}, which text.sections asks for; add it, or name more sections"
    for name in ("image", *STRUCTURES, "truth"):
        if name == "image" and not row[name]:
            return "no image named"
        if row[name] and (fault := _path_fault(row[name])):
            return f"{name} file {row[name]} {fault}"
    if row["split"] not in ("", *SPLITS):
        return f"split '{row['split']}' is unknown; expected one of {', '.join(SPLITS)}"
    if row["split"] and given.get(row["patient_id"], row["split"]) != row["split"]:
        return f"patient {row['patient_id']} is already in split {given[row['patient_id']]}"
    try:
        parse_given(row["given_labels"])
        if any(row[name] for name in HINT_COLUMNS):
            parse_hints(row, subject_id)
    except InputError as error:
        return str(error)
    if texts.get(row["report_id"], (row["findings"], row["impression"])) != (row["findings"], row["impression"]):
        return f"report_id {row['report_id']} is already used by another report"
    return None


def _shared_image(row: dict[str, str], owners: dict[tuple[int, int, str], dict[str, str]]) -> str | None:
    """Return why a row's image cannot be its own, or None; `owners` holds the row that first named each image.

    One image of two patients could stand in both splits. Files are compared by device and inode, so that links and
    other spellings of a path are found. Two series of one DICOM folder are two images.
    """
    image = Path(row["image"])
    facts = image.stat()
    first = owners.setdefault((facts.st_dev, facts.st_ino, row["series"] if image.is_dir() else ""), row)
    if first["patient_id"] == row["patient_id"]:
        return None
    return (
        f"image {row['image']} is that of subject {first['subject_id']}, patient {first['patient_id']}, expected one"
        " patient per image; give both rows one patient_id, or remove one of them"
    )
