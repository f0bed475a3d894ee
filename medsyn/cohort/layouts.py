"""Adapters: the manifest of a cohort from the folders and tables of a data set.

`csv` takes any table with renamed columns. `ct_rate` and `rad_chestct` know the naming of two public data sets. What a
file does not say itself (spacing, rescaling) goes into the manifest's columns of `medsyn.reading`; whether a rescaling
is still needed is decided from each file's values when it is read, so raw and converted releases take the same path.
Every adapter gives rows of MANIFEST_COLUMNS, with absolute paths; files on disk decide who is in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from medsyn.errors import InputError
from medsyn.files import read_csv
from medsyn.reading import READING_COLUMNS
from medsyn.volume import STRUCTURES

MANIFEST_COLUMNS = (
    *("subject_id", "image", "findings", "impression", "split", "patient_id", "report_id", "labels"),
    *STRUCTURES,
    *READING_COLUMNS,
)
_CT_RATE_NAME = re.compile(r"(?P<split>train|valid)_(?P<patient>\d+)_(?P<scan>[a-z]+)_(?P<reconstruction>\d+)\.nii\.gz")
_RAD_NAME = re.compile(r"(?P<split>trn|val|tst)(?P<number>\d+)\.npz")
RAD_SPACING_MM = "0.8 0.8 0.8"
"""RAD-ChestCT stores volumes resampled to 0.8 mm along every axis."""
Row = dict[str, str]


def from_csv(table: str | Path, columns: Mapping[str, str], images: str | Path | None = None) -> list[Row]:
    """Rows of `table`; `columns` maps manifest columns to its own names, those with the manifest's names need none.

    images: folder that the paths of images and masks are relative to (none: the table's own).
    """
    unknown = sorted(set(columns) - set(MANIFEST_COLUMNS))
    if unknown:
        raise InputError(f"{table}: {unknown[0]} is no column of a manifest; it has {', '.join(MANIFEST_COLUMNS)}")
    required = [columns.get(name, name) for name in ("subject_id", "image")]
    folder = Path(images) if images is not None else Path(table).parent
    rows = []
    for raw in read_csv(table, [*required, *columns.values()]):
        row = {name: raw.get(columns.get(name, name), "").strip() for name in MANIFEST_COLUMNS}
        row |= {name: str((folder / row[name]).absolute()) for name in ("image", *STRUCTURES) if row[name]}
        rows.append(row)
    return rows


def from_ct_rate(
    images: str | Path, reports: Sequence[str | Path], metadata: Sequence[str | Path], labels: Sequence[str | Path]
) -> list[Row]:
    """Rows of CT-RATE: every train_1_a_1.nii.gz below `images` (patient 1, scan a, reconstruction 1).

    reports: tables with VolumeName, Findings_EN, Impressions_EN; metadata: RescaleSlope, RescaleIntercept, XYSpacing
    ("[x, y]" mm), ZSpacing (mm); labels: VolumeName and one 0/1 column a finding. The patient is train_1, the report
    belongs to the scan train_1_a, the split is the data set's. A volume without report is left for the cohort to
    reject.
    """
    texts = _by_name(reports, "VolumeName", "Findings_EN", "Impressions_EN")
    facts = _by_name(metadata, "VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing")
    marks = _by_name(labels, "VolumeName")
    rows = []
    for path in _files(images, _CT_RATE_NAME):
        name = _CT_RATE_NAME.fullmatch(path.name)
        assert name is not None
        text, fact = texts.get(path.name, {}), facts.get(path.name, {})
        rows.append(
            _row(
                subject_id=path.name.removesuffix(".nii.gz"),
                image=str(path),
                findings=text.get("Findings_EN", ""),
                impression=text.get("Impressions_EN", ""),
                split="train" if name["split"] == "train" else "validation",
                patient_id=f"{name['split']}_{name['patient']}",
                report_id=f"{name['split']}_{name['patient']}_{name['scan']}",
                labels=_positive(marks.get(path.name, {}), "VolumeName"),
                spacing_mm=_ct_rate_spacing(fact, path.name),
                rescale_slope=fact.get("RescaleSlope", ""),
                rescale_intercept=fact.get("RescaleIntercept", ""),
            )
        )
    return rows


def from_rad_chestct(
    images: str | Path, labels: Sequence[str | Path], metadata: Sequence[str | Path] = (), patient_column: str = ""
) -> list[Row]:
    """Rows of RAD-ChestCT: every trn00001.npz below `images`, with the findings of its label tables as text.

    labels: tables with NoteAcc_DEID and 0/1 columns named `finding*location` (or `finding`). The data set has no report
    texts; `findings` is composed from the labels ("Nodule: right upper lobe."), a scan without any gets "No abnormality
    is labelled.". metadata with `patient_column`: NoteAcc_DEID to patient; without it a scan counts as its own patient
    and the data set's own split, made by patient, keeps scans of one patient together (trn: train; val, tst:
    validation).
    """
    if bool(metadata) != bool(patient_column):
        raise InputError("RAD-ChestCT: give the metadata table and the name of its patient column together")
    marks, facts = _by_name(labels, "NoteAcc_DEID"), _by_name(metadata, "NoteAcc_DEID", patient_column)
    rows = []
    for path in _files(images, _RAD_NAME):
        accession = path.name.removesuffix(".npz")
        mark = marks.get(accession, marks.get(path.name))
        patient = facts.get(accession, facts.get(path.name, {})).get(patient_column, "") if patient_column else ""
        rows.append(
            _row(
                subject_id=accession,
                image=str(path),
                findings=_sentences(mark) if mark is not None else "",
                split="train" if path.name.startswith("trn") else "validation",
                patient_id=patient or accession,
                report_id=accession,
                labels=_positive(mark or {}, "NoteAcc_DEID"),
                spacing_mm=RAD_SPACING_MM,
                orientation="auto",
            )
        )
    return rows


def _row(**values: str) -> Row:
    return dict.fromkeys(MANIFEST_COLUMNS, "") | {name: value.strip() for name, value in values.items()}


def _files(folder: str | Path, pattern: re.Pattern[str]) -> list[Path]:
    """Files below `folder` whose whole name fits `pattern`, sorted by name; none is an InputError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name the one that holds the volumes")
    found = sorted((path.absolute() for path in folder.rglob("*") if pattern.fullmatch(path.name)), key=_natural)
    if not found:
        raise InputError(f"{folder}: no file in it is named as {pattern.pattern}; is this the data set's folder?")
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    """train_2 before train_10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]


def _by_name(paths: Sequence[str | Path], key: str, *columns: str) -> dict[str, Row]:
    """Rows of several tables, which must have `columns`, by their column `key`."""
    return {row[key].strip(): row for path in paths for row in read_csv(path, [key, *filter(None, columns)])}


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _ct_rate_spacing(fact: Mapping[str, str], name: str) -> str:
    """'z y x' from XYSpacing "[0.71, 0.71]" and ZSpacing "1.5"; empty where the table says nothing."""
    plane, step = re.findall(r"[\d.eE+-]+", fact.get("XYSpacing", "")), fact.get("ZSpacing", "").strip()
    if not plane or not step:
        return ""
    if not all(_number(part) for part in (*plane, step)):
        raise InputError(
            f"{name}: XYSpacing '{fact['XYSpacing']}' or ZSpacing '{step}' is no number; correct the table"
        )
    return f"{step} {plane[-1]} {plane[0]}"  # x and y are equal in CT


def _is_positive(text: str) -> bool:
    return _number(text) and float(text) > 0.5


def _positive(marks: Mapping[str, str], key: str) -> str:
    """Names of the columns that are 1, joined by semicolons."""
    return ";".join(name for name, value in marks.items() if name != key and _is_positive(value))


def _sentences(marks: Mapping[str, str]) -> str:
    """Findings composed from labels: one sentence a finding with its places."""
    places: dict[str, list[str]] = {}
    for column in _positive(marks, "NoteAcc_DEID").split(";"):
        finding, _, place = column.partition("*")
        if finding:
            places.setdefault(finding.replace("_", " "), []).append(place.replace("_", " "))
    if not places:
        return "No abnormality is labelled."
    return " ".join(
        f"{finding[:1].upper()}{finding[1:]}{': ' if any(where) else ''}{', '.join(filter(None, where))}."
        for finding, where in places.items()
    )
