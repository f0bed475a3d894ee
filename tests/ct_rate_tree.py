"""A small download of CT-RATE for the tests: folders, names, tables and quirks of the data set, phantoms for patients.

Every scan is described by a `Scan`; `write_tree` makes its volumes and rows. Volumes are phantoms at 64^3.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from chests import SPECS, chest

from medsyn.files import write_csv
from medsyn.volume import Volume, write_volume

REPORTS = ("VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")
METADATA = (
    *("VolumeName", "Manufacturer", "RescaleIntercept", "RescaleSlope", "XYSpacing", "ZSpacing"),
    *("ConvolutionKernel", "SliceThickness", "NumberofSlices"),
)
LABELS = (
    *("VolumeName", "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion"),
    *("Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis"),
    *("Lung nodule", "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion", "Mosaic attenuation pattern"),
    *("Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening"),
)
TEXTS = {
    "normal": ("Both lungs are clear.", "No acute disease."),
    "effusion": ("There is a pleural effusion on the right.", "Pleural effusion."),
    "emphysema": ("There is severe bullous emphysema.", "Emphysema."),
    "cardiomegaly": ("The heart is enlarged. There is cardiomegaly.", "Cardiomegaly."),
}
MARKS = {"effusion": "Pleural effusion", "emphysema": "Emphysema", "cardiomegaly": "Cardiomegaly"}


@dataclass(frozen=True)
class Scan:
    """One scan: its name (train_1_a), the phantom's kind, and per reconstruction kernel and quirk.

    quirks: "" (as it should be), "padded" (-8192 outside of the circle), "no spacing", "truncated", "empty" (a download
    that was stopped), "no chest" (listed as such), "head" (not listed, shows no lungs), "mirrored" (left and right
    exchanged), "clipped" (at 200 HU), "drifted" (air at -975 HU).
    """

    name: str
    kind: str = "normal"
    kernels: tuple[str, ...] = ("['Br40f', '3']", "Bl57d")
    quirks: tuple[str, ...] = ("", "")
    texts: tuple[str, str] | None = None
    release: str = "_fixed"
    reported: tuple[int, ...] = (1, 2, 3)
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def split(self) -> str:
        return self.name.split("_")[0]


def write_tree(root: Path, scans: Iterable[Scan], voxels: bool = False) -> Path:
    """Write a download below `root`, tables and volumes; returns the folder.

    voxels: fill the first two reconstructions of each scan; other files are empty.
    """
    tables: dict[str, list[dict[str, str]]] = {}
    for scan in scans:
        for number, (kernel, quirk) in enumerate(zip(scan.kernels, scan.quirks, strict=True), 1):
            name = f"{scan.name}_{number}"
            patient = scan.name.rpartition("_")[0]
            path = root / "dataset" / f"{scan.split}{scan.release}" / patient / scan.name / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            if voxels and number < 3 and quirk != "empty":
                _write(path, _volume(scan.kind, int(patient.split("_")[1]), number, quirk), quirk, raw=not scan.release)
            else:
                path.touch()
            tables.setdefault(f"metadata/{scan.split}", []).append(_metadata(name, kernel, quirk))
            if number in scan.reported:
                texts = scan.texts or TEXTS[scan.kind]
                fields = ("Not given.", "Non-contrast images were taken in the axial plane.", *texts)
                row = dict(zip(REPORTS, (f"{name}.nii.gz", *fields), strict=True))
                tables.setdefault(f"reports/{scan.split}", []).append(row | scan.extra)
            marks = dict.fromkeys(LABELS[1:], "0") | ({MARKS[scan.kind]: "1"} if scan.kind in MARKS else {})
            tables.setdefault(f"labels/{scan.split}", []).append({"VolumeName": f"{name}.nii.gz"} | marks)
            if quirk == "no chest":
                tables.setdefault(f"no_chest/{scan.split}", []).append({"name": name})
    _write_tables(root / "dataset", tables)
    return root


def _write_tables(folder: Path, tables: dict[str, list[dict[str, str]]]) -> None:
    for key, rows in tables.items():
        kind, split = key.split("/")
        word = "validation" if split == "valid" else split
        if kind == "no_chest":
            lines = [f"{row['name'].rpartition('_')[0]}/{row['name']}.nii.gz\n" for row in rows]
            (folder / "metadata" / f"no_chest_{split}.txt").write_text("".join(lines))
            continue
        path, columns = {
            "metadata": (f"metadata/{word}_metadata.csv", METADATA),
            "reports": (f"radiology_text_reports/{word}_reports.csv", REPORTS),
            "labels": (f"multi_abnormality_labels/{split}_predicted_labels.csv", LABELS),
        }[kind]
        write_csv(folder / path, rows, columns)


def _metadata(name: str, kernel: str, quirk: str) -> dict[str, str]:
    intercept = "-8192.0" if quirk == "padded" else "-1024.0"
    step = "" if quirk == "no spacing" else "4.5625"
    values = ("Siemens", intercept, "1.0", "[4.9375, 4.9375]", step, kernel, "1.5", "64")
    return dict(zip(METADATA, (f"{name}.nii.gz", *values), strict=True))


def _volume(kind: str, person: int, number: int, quirk: str) -> Volume:
    """A phantom with noise of its own, so that no two files are equal."""
    source = chest(kind if kind in SPECS else "normal").volume
    array = source.array.astype(np.int16)
    noise = np.random.default_rng([person, number]).integers(-3, 4, array.shape)
    array = array + noise.astype(np.int16)
    if quirk == "head":
        array = np.where(array < -300, np.int16(-1000), array)
        array[:, 12:-12, 12:-12] = np.maximum(array[:, 12:-12, 12:-12], np.int16(30))
    if quirk == "mirrored":
        array = np.ascontiguousarray(array[:, :, ::-1])
    if quirk == "clipped":
        array = array.clip(None, 200)
    if quirk == "drifted":
        array += 24
    if quirk == "padded":
        rows, columns = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in array.shape[1:]), indexing="ij")
        array = np.where(rows**2 + columns**2 > (array.shape[1] / 2) ** 2, np.int16(-8192), array)
    return Volume(array, source.spacing_mm, source.origin_mm, source.direction)


def _write(path: Path, volume: Volume, quirk: str, raw: bool) -> None:
    """raw: as the first release, values without the intercept and no geometry."""
    shift = 8192 if quirk == "padded" else 1024
    write_volume(path, Volume(volume.array + np.int16(shift), (1.0, 1.0, 1.0)) if raw else volume)
    if quirk == "truncated":
        content = gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(content)[: len(content) // 8])
