"""Small chests for the tests of cohort, ct, masks and measures: phantoms at 64^3, each rendered once a session."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from medsyn.files import write_json
from medsyn.phantom.findings import FindingSpec
from medsyn.phantom.subject import RenderedSubject, render_subject
from medsyn.volume import Volume, to_sitk, write_volume

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


def write_dicom(
    folder: Path,
    volume: Volume,
    series: str,
    skip: tuple[int, ...] = (),
    tags: dict[str, str] | None = None,
    shear_mm: float = 0.0,
) -> None:
    """Write axial slices as the DICOM series `series` without the slices `skip`; shear_mm moves each slice against
    the one before, as a tilted gantry does; `tags` replace or add to the headers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    image = sitk.DICOMOrient(to_sitk(volume), "LPS")
    for z in range(image.GetSize()[2]):
        if z in skip:
            continue
        part = image[:, :, z : z + 1]
        position = image.TransformIndexToPhysicalPoint((0, 0, z))
        header = {
            "0008|0060": "CT",
            "0020|000e": f"1.2.826.0.1.3680043.2.1125.{series}",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.1",
            "0020|0032": "\\".join(f"{p:.6f}" for p in np.add(position, (0, z * shear_mm, 0))),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(z),
        }
        header |= tags or {}
        slice_ = sitk.Cast(part, sitk.sitkInt16)
        for key, value in header.items():
            slice_.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{series}_{z:03d}.dcm"))
        writer.Execute(slice_)
