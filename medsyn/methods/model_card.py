"""The card of the phantom model: what it is, what it is not, and how it was made, read from the model's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medsyn.config import PhantomConfig, PreprocessConfig
from medsyn.errors import InputError
from medsyn.files import read_csv, read_json
from medsyn.models.weights import load
from medsyn.phantom.findings import UNITS
from medsyn.tensors import count_numbers, read_metadata

CARD = """\
# {label}

Makes a chest CT, with masks of lobes, airway and vessels, from a sentence of a radiology report. `medsyn generate` uses
this model where `--weights` is not given.

## What it is

Two diffusion networks and a text encoder, trained by the workflow of this repository on procedural chest phantoms
(`medsyn phantom`). A volume has {size} voxels over {field} mm (z, y, x). The model knows the findings that the
phantoms have, in the words of their reports: {findings}.

## What it is not

- **It has never seen a patient.** A program made every CT and every report that it learned from.
- It is not a medical device and must not be used for diagnosis. Its volumes are not evidence about any disease.
- It is not the model of the paper, which was trained on CTs and reports of patients.
- A text in other words than those of the phantoms' reports gives a volume too, but the volume need not show what the
  text says.

## How it was made

The networks learned from {num_volumes} phantoms of a cohort of {num_subjects} (seed {seed}, {voxels} voxels along each
axis), the text encoder from the reports of these and {num_reports} reports without images.

| part | parameters | steps | loss at the last step | seed | commit | hours |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

Hours are processor time for training on a CPU, and wall-clock time times the number of GPUs for training on GPUs. The
curves are in `low_res_metrics.csv`, `super_res_metrics.csv` and `text/metrics.csv`. Versions: {versions}.

The weights are the averages of the training (EMA), rounded to bfloat16. They are used as float32.

## Licence

MIT, as the repository. No data of others went into the model.
"""


def model_card(folder: Path, label: str, phantoms: PhantomConfig, grid: PreprocessConfig) -> str:
    """Return the text of card.md for the packaged model in `folder`."""
    low_res, super_res = (read_provenance(folder / f"{name}.safetensors") for name in ("low_res", "super_res"))
    held_out = read_json(folder / "text/heldout.json")
    text = held_out["provenance"] | {"seed": held_out["provenance"]["config"]["encoder"]["seed"]}
    num_text = count_numbers(folder / "text/model.safetensors")
    rows = [
        _row("low_res", _num_parameters(folder / "low_res.safetensors"), folder / "low_res_metrics.csv", low_res),
        _row(
            "super_res", _num_parameters(folder / "super_res.safetensors"), folder / "super_res_metrics.csv", super_res
        ),
        _row("text encoder", num_text, folder / "text/metrics.csv", text),
    ]
    return CARD.format(
        label=label,
        size=" x ".join(map(str, grid.size)),
        field=" x ".join(f"{extent:g}" for extent in grid.field_of_view_mm),
        findings=", ".join(kind.replace("_", " ") for kind in UNITS),
        num_subjects=phantoms.num_subjects,
        num_reports=phantoms.num_text_only_reports,
        seed=phantoms.seed,
        voxels=phantoms.size,
        num_volumes=low_res["num_volumes"],
        rows="\n".join(rows),
        versions=", ".join(f"{name} {version}" for name, version in low_res["versions"].items()),
    )


def read_provenance(path: Path) -> dict[str, Any]:
    """Return the provenance of a denoiser's file; one that `medsyn train` did not write is an InputError."""
    origin: dict[str, Any] = json.loads(read_metadata(path).get("provenance", "{}"))
    if missing := [name for name in ("num_volumes", "data") if name not in origin]:
        raise InputError(
            f"{path}: its provenance has no {missing[0]}, expected that of `medsyn train`; give a run that it trained"
        )
    return origin


def _num_parameters(path: Path) -> int:
    """Return how many parameters the network of a file has, without its buffers."""
    network, _ = load(path)
    return sum(parameter.numel() for parameter in network.parameters())


def _row(name: str, num_parameters: int, metrics: Path, origin: dict[str, Any]) -> str:
    """Return a row of the card's table."""
    last = read_csv(metrics)[-1]
    loss = last.get("loss", last.get("train_loss", ""))
    cells = [name, f"{num_parameters:,}", last["step"], f"{float(loss):.4f}"]
    cells += [origin["seed"], origin["commit"], f"{float(last['training_hours']):.2f}"]
    return f"| {' | '.join(map(str, cells))} |"
