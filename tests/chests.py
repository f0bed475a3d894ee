"""Small chests for the tests of cohort, ct, masks and measures: phantoms at 64^3, each rendered once a session."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

from medsyn.files import write_json
from medsyn.phantom.findings import FindingSpec
from medsyn.phantom.subject import RenderedSubject, render_subject
from medsyn.volume import write_volume

SPECS = {
    "normal": (),
    "effusion": (FindingSpec("pleural_effusion", 0.6, 900.0, side="right"),),
    "both_effusions": (
        FindingSpec("pleural_effusion", 0.5, 500.0, side="left"),
        FindingSpec("pleural_effusion", 0.5, 700.0, side="right"),
    ),
    "emphysema": (FindingSpec("emphysema", 0.7, 25.0),),
    "cardiomegaly": (FindingSpec("cardiomegaly", 0.7, 0.62),),
}


@cache
def chest(kind: str, seed: int = 3) -> RenderedSubject:
    """A phantom with the findings of SPECS[kind]; the seed is the person."""
    return render_subject(seed, 0, size=64, specs=SPECS[kind])


def write_chest(folder: Path, kind: str = "normal") -> Path:
    """Write a phantom's volume, masks and truth into `folder`; returns the volume's path."""
    subject = chest(kind)
    folder.mkdir(parents=True, exist_ok=True)
    write_volume(folder / "volume.nii.gz", subject.volume)
    for name, mask in subject.masks.items():
        write_volume(folder / f"{name}.nii.gz", subject.volume.with_array(mask))
    write_json(folder / "truth.json", subject.truth)
    return folder / "volume.nii.gz"


def write_manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write manifest rows; missing columns become empty, findings and impression get a sentence."""
    columns = ["subject_id", "image", "findings", "impression", "split", "patient_id", "report_id", "truth", "lobes"]
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({"findings": "Lungs are clear.", "impression": "Normal."} | row)
    return path
