"""The manifest of CT-RATE from a download of it: either release, all splits, the tables as they are.

What the data set looks like (its dataset card; the columns as other loaders read them):

- volumes `dataset/train_fixed/train_1/train_1_a/train_1_a_2.nii.gz`: split (train or valid) and release, patient, scan,
  reconstruction;
- `radiology_text_reports/{train,validation}_reports.csv`: VolumeName, ClinicalInformation_EN, Technique_EN,
  Findings_EN, Impressions_EN; the same report for every reconstruction of a scan;
- `metadata/{train,validation}_metadata.csv`: VolumeName, RescaleSlope, RescaleIntercept, XYSpacing ("[x, y]" mm),
  ZSpacing (mm), ConvolutionKernel ("B", or "['Br40f', '3']"), SliceThickness, NumberofSlices;
- `metadata/no_chest_{train,valid}.txt`: names of volumes that show no chest;
- `multi_abnormality_labels/{train,valid}_predicted_labels.csv`: VolumeName and 18 columns of 0/1.

The first release (`dataset/train`, `dataset/valid`) holds raw values and no geometry: rescaling and spacing come from
the metadata. Volumes of the `_fixed` release are in HU and carry their geometry; where a download holds both, they are
taken.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medsyn.cohort.given_labels import finding_name, format_given
from medsyn.cohort.layouts import (
    Manifest,
    Row,
    by_name,
    header_of,
    is_positive,
    label_columns,
    manifest_row,
    natural,
    none_named,
    number,
    positive,
    stem,
    walk,
)
from medsyn.errors import InputError
from medsyn.kernels import equal_thickness_mm, is_sharp

KEY = "VolumeName"
REPORT_COLUMNS = ("Findings_EN", "Impressions_EN")
METADATA_COLUMNS = ("RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing")
LABELS = ("Emphysema", "Atelectasis", "Consolidation", "Cardiomegaly")
"""Some of the 18 labels: what a table of labels is recognised by."""
FIXED = {"train_fixed", "valid_fixed"}
"""Folders of the release whose files are in HU and carry their geometry."""
_NAME = re.compile(r"(?P<scan>(?P<patient>(?P<split>train|valid)_\d+)_[a-z]+)_(?P<reconstruction>\d+)")
_VOLUME = re.compile(rf"{_NAME.pattern}\.nii(\.gz)?")
_NO_METADATA = (
    "no metadata: no row of it in a metadata table, expected one that says spacing and rescaling outside of train_fixed"
    " and valid_fixed; name the table with --metadata"
)
_EMPTY = re.compile(r"(not given|not available|none|nan|n/?a|-*)\.?", re.IGNORECASE)


@dataclass(frozen=True)
class Download:
    """Files of a download: volumes, tables of reports, metadata and labels, lists of volumes without a chest."""

    folder: Path
    volumes: Sequence[Path]
    reports: Sequence[Path]
    metadata: Sequence[Path]
    labels: Sequence[Path]
    no_chest: Sequence[Path]


@dataclass(frozen=True)
class _Volume:
    """One volume on disk and its row of the metadata (None: none)."""

    name: str
    path: Path
    fact: Row | None

    @property
    def parts(self) -> re.Match[str]:
        """Return the name split into patient, scan, split and reconstruction."""
        match = _NAME.fullmatch(self.name)
        assert match is not None
        return match

    @property
    def fixed(self) -> bool:
        """Return whether it belongs to the release whose files hold HU and geometry."""
        return not FIXED.isdisjoint(self.path.parts[:-1])

    @property
    def kernel(self) -> str:
        """Return the reconstruction kernel, the first of several; "" if unknown."""
        kernel = self._fact("ConvolutionKernel").strip("[]() ").split(",")[0].strip(" '\"")
        return "" if _EMPTY.fullmatch(kernel) else kernel

    @property
    def thickness_mm(self) -> float:
        """Return the slice thickness, else the distance of slices; infinite if unknown."""
        return number(self._fact("SliceThickness")) or number(self._fact("ZSpacing")) or float("inf")

    def rank(self) -> tuple[float, ...]:
        """Return which reconstruction of a scan to take, lowest first: kernel, thickness, number of slices, number."""
        sharpness = 1 if not self.kernel else 2 * is_sharp(self.kernel)
        slices = number(self._fact("NumberofSlices")) or 0.0
        return sharpness, equal_thickness_mm(self.thickness_mm), -slices, int(self.parts["reconstruction"])

    def spacing_mm(self) -> str:
        """Return 'z y x' by the metadata; empty where they do not say it in positive numbers."""
        plane = [number(part) for part in re.findall(r"[^\s,\\\[\]()'\"]+", self._fact("XYSpacing"))]
        numbers = [number(self._fact("ZSpacing")), *reversed(plane)]
        if len(numbers) != 3 or any(value is None or value <= 0 for value in numbers):
            return ""
        return " ".join(map(str, numbers))

    def _fact(self, column: str) -> str:
        return (self.fact or {}).get(column, "").strip()


def find_download(folder: str | Path, images: str | Path | None = None) -> Download:
    """Find the files of a download below `folder`: volumes by name, tables by their columns, lists by name.

    images: folder of the volumes, if it is another; no volume in it is an InputError.
    """
    files = list(walk(folder))
    scans = files if images is None else list(walk(images))
    volumes = [path for path in scans if _VOLUME.fullmatch(path.name)]
    if not volumes:
        raise none_named(images or folder, "train_1_a_1.nii.gz or valid_1_a_1.nii.gz", [path.name for path in scans])
    tables = {path: header_of(path) for path in files if path.suffix == ".csv"}
    tables = {path: columns for path, columns in tables.items() if KEY in columns}
    return Download(
        Path(folder),
        volumes,
        [path for path, columns in tables.items() if columns.issuperset(REPORT_COLUMNS)],
        [path for path, columns in tables.items() if columns.issuperset(METADATA_COLUMNS)],
        [path for path, columns in tables.items() if columns.issuperset(LABELS)],
        [path for path in files if path.suffix == ".txt" and "no_chest" in path.name],
    )


def from_ct_rate(download: Download, reconstructions: Literal["one", "all"] = "one") -> Manifest:
    """Return the manifest of a download.

    Patient train_1 and split are those of the names; the report belongs to the scan train_1_a. Left out are volumes
    that a list calls no chest, that have no slice spacing, and, unless `reconstructions` is "all", every reconstruction
    of a scan but one: a soft or standard kernel before an unnamed one before a sharp one, then the thinnest slices (up
    to 1.5 mm count as equal), the most slices, the lowest number.
    """
    if not download.reports:
        raise InputError(
            f"{download.folder}: no table with {KEY}, {', '.join(REPORT_COLUMNS)} in it; download"
            " radiology_text_reports, or name the tables with --reports"
        )
    facts = by_name(download.metadata, KEY, METADATA_COLUMNS)
    volumes, left_out = _one_file_per_name(download.volumes, facts)
    no_chest = {name: path.name for path in download.no_chest for name in _names_in(path)}
    faults = {volume.name: _fault(volume, no_chest) for volume in volumes}
    left_out += [(name, fault) for name, fault in faults.items() if fault]
    volumes = [volume for volume in volumes if not faults[volume.name]]
    if reconstructions == "one":
        volumes, others = _one_per_scan(volumes)
        left_out += others
    reports = _by_scan(by_name(download.reports, KEY, REPORT_COLUMNS), has_text=True)
    labels = _by_scan({name: _marks(row) for name, row in by_name(download.labels, KEY).items()}, has_text=False)
    left_out.sort(key=lambda item: natural(item[0]))
    return Manifest(
        [_row(volume, reports[volume.parts["scan"]], labels[volume.parts["scan"]]) for volume in volumes],
        [{"subject_id": name, "reason": reason} for name, reason in left_out],
        _notes(download),
    )


def _names_in(path: Path) -> list[str]:
    """Return the names of volumes or scans in a list, one per line, with or without folder and suffix."""
    try:
        return [stem(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text ({error}); export it again as UTF-8") from None


def _one_file_per_name(paths: Iterable[Path], facts: Mapping[str, Row]) -> tuple[list[_Volume], list[tuple[str, str]]]:
    """Return volumes in natural order, one file each (of the fixed release if there is one), and the other files."""
    files = defaultdict(list)
    for path in paths:
        files[stem(path.name)].append(_Volume(stem(path.name), path, facts.get(stem(path.name))))
    chosen, others = [], []
    for name in sorted(files, key=natural):
        first, *rest = sorted(files[name], key=lambda volume: (not volume.fixed, str(volume.path)))
        chosen.append(first)
        others += [(name, f"another file of this name: {volume.path} is not read, {first.path} is") for volume in rest]
    return chosen, others


def _fault(volume: _Volume, no_chest: Mapping[str, str]) -> str | None:
    """Return why a volume is left out, or None."""
    listed = no_chest.get(volume.name) or no_chest.get(volume.parts["scan"])
    if listed:
        return f"no chest: listed in {listed}"
    if volume.fact is None:
        return None if volume.fixed else _NO_METADATA
    if not volume.spacing_mm():
        plane, step = (volume.fact.get(name, "") for name in ("XYSpacing", "ZSpacing"))
        return f"no spacing: XYSpacing is '{plane}', ZSpacing '{step}', expected positive mm; correct the metadata"
    return None


def _one_per_scan(volumes: Iterable[_Volume]) -> tuple[list[_Volume], list[tuple[str, str]]]:
    """Return one reconstruction of every scan, and the others with the reason."""
    scans: dict[str, list[_Volume]] = defaultdict(list)
    for volume in volumes:
        scans[volume.parts["scan"]].append(volume)
    chosen, others = [], []
    for reconstructions in scans.values():
        first, *rest = sorted(reconstructions, key=_Volume.rank)
        chosen.append(first)
        taken = f"{first.name} is taken ({_described(first)})"
        others += [(volume.name, f"another reconstruction: {taken}, this is {_described(volume)}") for volume in rest]
    return chosen, others


def _described(volume: _Volume) -> str:
    return f"kernel {volume.kernel or 'unknown'}, {volume.thickness_mm:g} mm"


def _by_scan(rows: Mapping[str, Row], has_text: bool) -> defaultdict[str, dict[str, Row]]:
    """Return rows by scan and by volume; has_text: only those of reports that say something."""
    scans: defaultdict[str, dict[str, Row]] = defaultdict(dict)
    for name, row in rows.items():
        match = _NAME.fullmatch(name)
        if match and (not has_text or any(_text(row, column) for column in REPORT_COLUMNS)):
            scans[match["scan"]][name] = row
    return scans


def _text(row: Mapping[str, str], column: str) -> str:
    """Return a field of a report; empty where it holds a word for nothing, such as "Not given."."""
    text = " ".join(row.get(column, "").split())
    return "" if _EMPTY.fullmatch(text) else row[column].strip()


def _marks(row: Mapping[str, str]) -> Row:
    """Return the labels of a row that are 0 or 1."""
    return {name: row[name] for name in label_columns(row, KEY) if number(row[name]) in (0, 1)}


def _row(volume: _Volume, reports: Mapping[str, Row], labels: Mapping[str, Row]) -> Row:
    """Return the manifest's row of a volume; reports, labels: rows of its scan by volume.

    One report with the same words in all rows is the scan's; else each volume has the one of its own row.
    """
    marks = labels.get(volume.name) or next(iter(labels.values()), {})
    same = len({tuple(" ".join(_text(row, name).split()) for name in REPORT_COLUMNS) for row in reports.values()}) < 2
    report = (None if same else reports.get(volume.name)) or next(iter(reports.values()), {})
    fact = {} if volume.fixed else volume.fact or {}
    return manifest_row(
        subject_id=volume.name,
        image=str(volume.path),
        findings=_text(report, "Findings_EN"),
        impression=_text(report, "Impressions_EN"),
        technique=_text(report, "Technique_EN"),
        clinical_information=_text(report, "ClinicalInformation_EN"),
        split="train" if volume.parts["split"] == "train" else "validation",
        patient_id=volume.parts["patient"],
        report_id=volume.parts["scan"] if same else volume.name,
        labels=positive(marks, KEY),
        given_labels=format_given({finding_name(name): int(is_positive(text)) for name, text in marks.items()}),
        spacing_mm=volume.spacing_mm() if fact else "",
        rescale_slope=fact.get("RescaleSlope", ""),
        rescale_intercept=fact.get("RescaleIntercept", ""),
    )


def _notes(download: Download) -> list[str]:
    """Return warnings of tables that the folder lacks."""
    notes = []
    if not download.metadata:
        notes.append("no metadata table: reconstructions are chosen by their number alone; download dataset/metadata")
    if not download.labels:
        notes.append("no table of labels: given_labels stays empty; download dataset/multi_abnormality_labels")
    if not download.no_chest:
        notes.append("no list no_chest_*.txt: volumes without a chest are found by their content alone")
    return [f"{download.folder}: {note}" for note in notes]
