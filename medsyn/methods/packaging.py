"""Make the folder of the phantom model from a finished run: what `medsyn package-model` does.

It holds run.json and all that it names, with the weights as bfloat16, the curves of the training, card.md and
SHA256SUMS, in at most MAX_MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from medsyn.config import CohortStage, PhantomConfig, SamplingStage, load_stage
from medsyn.errors import InputError
from medsyn.files import atomic_dir, read_csv, read_json, sha256, write_csv, write_json, write_text
from medsyn.methods.model_card import model_card
from medsyn.methods.phantom_model import SUMS
from medsyn.methods.run import assemble, load_pair, run_files
from medsyn.tensors import load_checkpoint, read_metadata, save_tensors
from medsyn.text.encoder import MODEL_FILE, SETTINGS_FILE, TextEncoder

LABEL = "MedSyn phantom model"
MAX_MB = 25
"""Limit of the folder's size in 10^6 bytes: it is a part of the wheel."""


def package_model(weights: Path, settings: Path, out: Path) -> float:
    """Write the run at `weights` as the folder `out`, and return its size in 10^6 bytes.

    settings: results/config of the run. Raises InputError if it was not trained on the embedded phantoms, or if it is
    larger than MAX_MB; then nothing is written.
    """
    parts = run_files(weights)
    cohort = settings / "cohort.json"
    if (found := load_stage(CohortStage, cohort).source) != "phantom":
        raise InputError(f"{cohort}: source is {found}, expected phantom; only a model of phantoms is packaged")
    low_res, super_res, _ = load_pair(parts["low_res"], parts["super_res"])
    TextEncoder.from_folder(parts["text_encoder"])
    sampling = load_stage(SamplingStage, parts["sampling"])
    phantoms = load_stage(PhantomConfig, settings / "phantom.json")
    with atomic_dir(out) as folder:
        for name, network in (("low_res", low_res), ("super_res", super_res)):
            _write_network(network, read_metadata(parts[name]), folder / f"{name}.safetensors")
            _copy_table(parts[name].with_name(f"{parts[name].stem}_metrics.csv"), folder / f"{name}_metrics.csv")
        _write_text_encoder(parts["text_encoder"], folder / "text")
        write_json(folder / "sampling.json", sampling.model_dump(mode="json"))
        assemble(
            folder / "run.json",
            label=LABEL,
            low_res=folder / "low_res.safetensors",
            super_res=folder / "super_res.safetensors",
            text_encoder=folder / "text",
            sampling=folder / "sampling.json",
        )
        write_text(folder / "card.md", model_card(folder, LABEL, phantoms, sampling.preprocess))
        return _close(folder, out)


def _close(folder: Path, out: Path) -> float:
    """Write SHA256SUMS of all files in `folder`, and return their size in 10^6 bytes; too much is an InputError."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files) / 1e6
    if size > MAX_MB:
        raise InputError(
            f"{out}: the model has {size:.1f} MB as bfloat16, expected at most {MAX_MB}; train smaller networks"
            " (low_res.unet, super_res.unet, text.encoders)"
        )
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_text(folder / SUMS, "".join(lines))
    return size


def _write_network(network: nn.Module, metadata: Mapping[str, str], out: Path) -> None:
    """Write the parameters of a network as bfloat16; its buffers stay as they are."""
    halves = {name: parameter.to(torch.bfloat16) for name, parameter in network.named_parameters()}
    save_tensors(out, network.state_dict() | halves, metadata)


def _write_text_encoder(source: Path, out: Path) -> None:
    """Write what encoding a text needs: BERT as bfloat16 without the heads of its pretraining, tokenizer, settings."""
    out.mkdir()
    tensors = load_checkpoint(source / MODEL_FILE)
    halves = {name: value.to(torch.bfloat16) for name, value in tensors.items() if name.startswith("bert.")}
    save_tensors(out / MODEL_FILE, halves, {"format": "pt"})  # transformers asks for the format
    write_json(out / "config.json", read_json(source / "config.json") | {"dtype": "bfloat16"})
    settings = read_json(source / SETTINGS_FILE)
    write_json(out / SETTINGS_FILE, settings | {"model_sha256": sha256(out / MODEL_FILE)})
    for name in ("tokenizer.json", "tokenizer_config.json", "heldout.json"):
        write_json(out / name, read_json(source / name))
    _copy_table(source / "metrics.csv", out / "metrics.csv")


def _copy_table(source: Path, out: Path) -> None:
    """Copy the metrics of a training run."""
    rows = read_csv(source, ("step", "training_hours"))
    write_csv(out, rows, list(rows[0]))
