"""Make the manifest of RAD-ChestCT from a download (Draelos et al., Medical Image Analysis 2021; 3,630 scans).

What the data set looks like (its record on Zenodo, 10.5281/zenodo.6406114, and the loaders of its author):

- volumes `trn00001.npz`, `val00001.npz`, `tst00001.npz`: one array `ct` in HU, resampled to 0.8 mm along every axis;
  axis 0 runs to the feet, axis 1 to the back, axis 2 to the left (the columns sup_axis0min, ant_axis1min, rig_axis2min
  of the table of extrema);
- `img{train,valid,test}_Abnormality_and_Location_Labels.csv`: NoteAcc_DEID and 0/1 columns `finding*location`;
- `CT_Scan_Metadata_Complete_35747.csv`: NoteAcc_DEID and MRN_DEID, the patient.

There are no report texts. The findings are composed from the labels, so that a text encoder and the report labeler have
something to read; they are not what a radiologist wrote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsyn.cohort.given_labels import format_given
from medsyn.cohort.layouts import (
    Manifest,
    Row,
    by_name,
    header_of,
    is_positive,
    manifest_row,
    natural,
    none_named,
    positive,
    stem,
    walk,
)
from medsyn.errors import InputError

KEY, PATIENT = "NoteAcc_DEID", "MRN_DEID"
SPACING_MM = "0.8 0.8 0.8"
"""The scans were resampled to 0.8 mm along every axis."""
FINDINGS = {
    "pleural_effusion": ("pleural_effusion",),
    "lung_opacity": ("opacity",),
    "cardiomegaly": ("cardiomegaly",),
    "emphysema": ("emphysema",),
    "consolidation": ("consolidation",),
    "ground_glass_opacity": ("groundglass",),
    "nodule": ("nodule", "nodulegr1cm"),
    "atelectasis": ("atelectasis",),
    "pericardial_effusion": ("pericardial_effusion",),
    "lymphadenopathy": ("lymphadenopathy",),
    "bronchiectasis": ("bronchiectasis",),
    "peribronchial_thickening": ("bronchial_wall_thickening",),
    "interlobular_septal_thickening": ("septal_thickening",),
}
"""Findings of the report labeler and the labels of the data set that say the same."""
_VOLUME = re.compile(r"(?P<split>trn|val|tst)\d+\.npz")
NOTHING = "No abnormality is labelled."
_IN_WORDS = {
    "cabg": "coronary artery bypass graft",
    "gi_tube": "gastrointestinal tube",
    "groundglass": "ground-glass opacity",
    "nodulegr1cm": "nodule larger than 1 cm",
    "pacemaker_or_defib": "pacemaker or defibrillator",
}
"""Labels whose names are no words that a reader, or the report labeler, knows."""


@dataclass(frozen=True)
class Download:
    """Files of a download: volumes, tables of labels, and tables that name the patient of a scan."""

    folder: Path
    volumes: Sequence[Path]
    labels: Sequence[Path]
    patients: Sequence[Path]
    patient_column: str = PATIENT


def find_download(folder: str | Path, images: str | Path | None = None) -> Download:
    """Find the files of a download below `folder`: volumes by name, tables by their columns.

    images: folder of the volumes, if it is another; no volume in it is an InputError.
    """
    files = list(walk(folder))
    scans = files if images is None else list(walk(images))
    volumes = sorted((path for path in scans if _VOLUME.fullmatch(path.name)), key=lambda path: natural(path.name))
    if not volumes:
        raise none_named(images or folder, "trn00001.npz, val00001.npz or tst00001.npz", [path.name for path in scans])
    tables = {path: header_of(path) for path in files if path.suffix == ".csv"}
    return Download(
        Path(folder),
        volumes,
        [path for path, names in tables.items() if KEY in names and any("*" in name for name in names)],
        [path for path, names in tables.items() if names.issuperset((KEY, PATIENT))],
    )


def from_rad_chestct(download: Download) -> Manifest:
    """Return the manifest of a download.

    The data set's own split, made by patient, is kept: trn is train, val and tst are validation. Without a table of
    patients a scan counts as a patient of its own. A scan without labels has no text: the cohort rejects it. Of two
    files of one name the first is taken.
    """
    if not download.labels:
        raise InputError(
            f"{download.folder}: no table with {KEY} and finding*location in it; download"
            " img*_Abnormality_and_Location_Labels.csv, or name the tables with --labels"
        )
    marks = by_name(download.labels, KEY)
    people = by_name(download.patients, KEY, (download.patient_column,))
    files: dict[str, Path] = {}
    left_out = []
    for path in download.volumes:
        if (first := files.setdefault(stem(path.name), path)) != path:
            reason = f"another file of this name: {path} is not read, {first} is"
            left_out.append({"subject_id": stem(path.name), "reason": reason})
    patients = {name: people.get(name, {}).get(download.patient_column, "").strip() for name in files}
    alone = [name for name, patient in patients.items() if not patient]
    notes = [
        f"{download.folder}: {len(alone)} of {len(files)} scans (first: {alone[0]}) have no patient in a column"
        f" {download.patient_column} and count as a patient each; download CT_Scan_Metadata_Complete_35747.csv"
    ]
    rows = [_row(name, path, marks.get(name), patients[name]) for name, path in files.items()]
    return Manifest(rows, left_out, notes if alone else [])


def _row(name: str, path: Path, marks: Row | None, patient: str) -> Row:
    return manifest_row(
        subject_id=name,
        image=str(path),
        findings="" if marks is None else _sentences(marks),
        split="train" if name.startswith("trn") else "validation",
        patient_id=patient or name,
        report_id=name,
        labels=positive(marks or {}, KEY),
        given_labels=format_given(_findings(marks or {})),
        spacing_mm=SPACING_MM,
        orientation="auto",
    )


def _findings(marks: Mapping[str, str]) -> dict[str, int]:
    """Return labels of our findings: 1 where the scan has it in any place; without those that no column names."""
    places: dict[str, list[bool]] = {}
    for column, text in marks.items():
        places.setdefault(column.partition("*")[0], []).append(is_positive(text))
    return {
        ours: int(any(any(places.get(name, [])) for name in theirs))
        for ours, theirs in FINDINGS.items()
        if any(name in places for name in theirs)
    }


def _sentences(marks: Mapping[str, str]) -> str:
    """Return findings composed from labels: one sentence per finding with its places."""
    places: dict[str, list[str]] = {}
    for column in positive(marks, KEY).split(";"):
        finding, _, place = column.partition("*")
        if finding:
            places.setdefault(_IN_WORDS.get(finding, finding.replace("_", " ")), []).append(place.replace("_", " "))
    if not places:
        return NOTHING
    return " ".join(
        f"{finding[:1].upper()}{finding[1:]}{': ' if any(where) else ''}{', '.join(filter(None, where))}."
        for finding, where in places.items()
    )
