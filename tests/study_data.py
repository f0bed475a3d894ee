"""A small run's results for reader studies: CTs, samples of three methods, prompts and labels, on a grid of 16^3."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medsyn.config import StudyStage, validate
from medsyn.files import write_csv
from medsyn.layout import Layout
from medsyn.text.prompts import COLUMNS
from medsyn.volume import Volume, centred_origin_mm, grid_spacing_mm, write_volume

SIZE, FIELD = (16, 16, 16), (292.0, 316.0, 316.0)
METHODS = {"medsyn": "MedSyn", "hagan": "HA-GAN", "medical_diffusion": "Medical Diffusion"}
FINDINGS = ("consolidation", "pleural_effusion", "cardiomegaly")
PROMPTED = ("consolidation", "pleural_effusion", "pleural_effusion", "cardiomegaly", "no_abnormality")


def stage(**changes: object) -> StudyStage:
    """Return the settings of a study of three methods and real CTs."""
    values = {
        "reference": "medsyn",
        "methods": METHODS,
        "preprocess": {"size": SIZE, "field_of_view_mm": FIELD},
        "recognition": {"method": "medsyn"},
        "ranking": {"methods": ["real", *METHODS]},
    }
    return validate(StudyStage, values | changes, "study.json")


def write_results(root: Path, per_method: int = 6) -> Path:
    """Write the results of a run; methods differ in smoothness, background and range, as real ones do."""
    layout, rng = Layout(str(root)), np.random.default_rng(3)
    subjects = [f"p{number}" for number in range(per_method + 6)]
    for name in subjects:
        _write(Path(layout.preprocessed("0")) / name, rng, noise=60, low=-1024)
    rows = [{"subject_id": name, "split": "validation", "report_id": name} for name in subjects]
    write_csv(layout.cohort(), rows, ("subject_id", "split", "report_id"))
    labels = [
        {"id": name} | {f: int(number % 4 == place) for place, f in enumerate(FINDINGS)}
        for number, name in enumerate(subjects)
    ]
    write_csv(layout.labels(), labels, ("id", *FINDINGS))
    for place, method in enumerate(METHODS):
        for number in range(per_method):
            folder = Path(layout.samples(method, "reports", "0")) / f"report_{number:05d}"
            _write(folder, rng, noise=3 + 20 * place, low=-1000 - 8 * place)
    prompts = [(f"{f}_{number:03d}", f) for number in range(2) for f in PROMPTED[1:]]
    prompts = list(dict.fromkeys([*prompts, ("consolidation_000", PROMPTED[0]), ("pleural_effusion_002", PROMPTED[1])]))
    for name, _ in prompts:
        _write(Path(layout.samples("medsyn", "study", "0")) / name, rng, noise=3, low=-1024)
    rows = [dict.fromkeys(COLUMNS, "") | {"sample_id": name, "prompt_type": finding} for name, finding in prompts]
    write_csv(layout.prompts("study"), rows, COLUMNS)
    return root


def _write(folder: Path, rng: np.random.Generator, *, noise: float, low: float) -> None:
    spacing = grid_spacing_mm(SIZE, FIELD)
    array = np.full(SIZE, low, np.float32)
    array[3:13, 3:13, 3:13] = 40.0
    array[5:11, 5:11, 5:11] = -800.0
    array += noise * rng.standard_normal(SIZE)
    volume = Volume(np.rint(array).astype(np.int16), spacing, centred_origin_mm(SIZE, spacing))
    folder.mkdir(parents=True)
    write_volume(folder / "volume.nii.gz", volume)
