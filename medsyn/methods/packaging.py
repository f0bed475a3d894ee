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
from medsyn.layout import Layout
from medsyn.methods.model_card import model_card, read_provenance
from medsyn.methods.phantom_model import SUMS
from medsyn.methods.run import assemble, load_pair, run_files
from medsyn.models.weights import read_stage
from medsyn.phantom.subject import subject_id
from medsyn.tensors import load_checkpoint, read_metadata, save_tensors
from medsyn.text.corpus import read_reports
from medsyn.text.encoder import MODEL_FILE, SETTINGS_FILE, TextEncoder
from medsyn.text.pretrain import hash_reports
from medsyn.training.data import Store, reads_high

LABEL = "MedSyn phantom model"
MAX_MB = 25
"""Limit of the folder's size in 10^6 bytes: it is a part of the wheel."""


def package_model(weights: Path, results: Path, out: Path) -> float:
    """Write the run at `weights` as the folder `out`, and return its size in 10^6 bytes.

    results: the results folder in which it was trained. Raises InputError if the hashes in the weights are not those of
    this folder's store and reports, if these are not of the embedded phantoms, if the text encoder did not begin from
    nothing, or if the model is larger than MAX_MB; then nothing is written.
    """
    parts, layout = run_files(weights), Layout(str(results))
    phantoms = load_stage(PhantomConfig, Path(layout.config("phantom")))
    _check_networks(parts, layout, phantoms)
    _check_text_encoder(parts["text_encoder"], Path(layout.cohort("reports")))
    low_res, super_res, _ = load_pair(parts["low_res"], parts["super_res"])
    TextEncoder.from_folder(parts["text_encoder"])
    sampling = load_stage(SamplingStage, parts["sampling"])
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


def _check_networks(parts: Mapping[str, Path], layout: Layout, phantoms: PhantomConfig) -> None:
    """Raise InputError if a network was not trained on the store of a results folder, or this not made of phantoms."""
    path = Path(layout.config("cohort"))
    cohort = load_stage(CohortStage, path)
    if cohort.source != "phantom":
        raise InputError(f"{path}: source is {cohort.source}, expected phantom; only a model of phantoms is packaged")
    shards = [Path(layout.store(str(number))) for number in range(cohort.num_shards)]
    known = {subject_id(index) for index in range(phantoms.num_subjects)}
    for name in ("low_res", "super_res"):
        store = Store(shards, "high" if reads_high(read_stage(parts[name])) else "low")
        if others := sorted(set(store.subject_ids) - known):
            raise InputError(
                f"{shards[0].parent}: subject {others[0]} is not one of the {len(known)} phantoms of this folder,"
                f" expected ids such as {subject_id(0)}; only a model of phantoms is packaged"
            )
        found = read_provenance(parts[name])["data"].get("data.store")
        if found != store.hash:
            raise InputError(
                f"{parts[name]}: was trained on a store with the hash {found}, expected {store.hash}, that of"
                f" {shards[0].parent}; give the results folder in which it was trained (--results)"
            )


def _check_text_encoder(folder: Path, reports: Path) -> None:
    """Raise InputError if a text encoder read anything but a results folder's table of reports."""
    record = read_json(folder / "heldout.json")["provenance"]
    for name, expected in (("init", "scratch"), ("vocabulary", "reports")):
        if (found := record["config"]["encoder"][name]) != expected:
            raise InputError(
                f"{folder}: was trained with {name} {found}, expected {expected}, because the card says that no data of"
                " others went into the model; train the text encoder with it"
            )
    found, expected = record["reports_sha256"], hash_reports(read_reports(reports))
    if found != expected:
        raise InputError(
            f"{folder}: was trained on reports with the SHA-256 {found[:16]}, expected {expected[:16]}, that of"
            f" {reports}; give the results folder in which it was trained (--results)"
        )


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
    """Write the parameters of a network and its principal components as bfloat16; other buffers stay as they are."""
    state = network.state_dict()
    halves = {name for name, _ in network.named_parameters()} | {"data_components"}
    save_tensors(out, {k: v.to(torch.bfloat16) if k in halves else v for k, v in state.items()}, metadata)


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
