"""A tiny store, tiny text and tiny settings for the tests of the image model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from medsyn.config import (
    DenoiserTrainConfig,
    ModelStage,
    PreprocessConfig,
    SamplingConfig,
    SamplingStage,
    UNetConfig,
)
from medsyn.ct.store import write_shard
from medsyn.files import write_json
from medsyn.methods.run import assemble
from medsyn.models.channels import CHANNELS
from medsyn.models.weights import build, save
from medsyn.tensors import save_tensors

SIZE = (16, 16, 16)
NUM_TOKENS, HIDDEN = 5, 12
SECTIONS = ("report", "findings", "impression")


def stage(
    name: str = "low_res",
    channels: tuple[str, ...] = CHANNELS,
    unet: dict | None = None,
    text: bool | None = None,
    reduction: str = "nearest",
    **train,
) -> ModelStage:
    """A network of two levels and its training; keywords override DenoiserTrainConfig.

    text: whether the network takes it, by default the low-resolution one alone.
    """
    settings = {"num_steps": 12, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3, "checkpoint_every": 4}
    if name == "super_res":
        settings["crop_size"] = (8, 8, 8)
    net = {"dim": 8, "mults": (1, 2), "num_heads": 2, "init_kernel": 3, "num_bottom_blocks": 2, **(unet or {})}
    return ModelStage(
        stage=name,
        channels=channels,
        unet=UNetConfig(**net),
        train=DenoiserTrainConfig(**{**settings, "log_every": 5, **train}),
        window_hu=(-1024.0, 600.0),
        low_res_factor=4,
        low_res_reduction=reduction,
        **({"num_tokens": NUM_TOKENS, "sections": SECTIONS} if text or (text is None and name == "low_res") else {}),
    )


def make_store(folder: Path, num_subjects: int = 5, size: tuple[int, int, int] = SIZE, seed: int = 0) -> Path:
    """One shard of random volumes; the last subject belongs to the validation split."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    image = rng.integers(-1024, 600, (num_subjects, *size)).astype(np.int16)
    label = (rng.integers(0, 6, image.shape) + 8 * rng.integers(0, 4, image.shape)).astype(np.uint8)
    rows = [
        {"subject_id": f"s{i}", "report_id": f"r{i}", "split": "validation" if i == num_subjects - 1 else "train"}
        for i in range(num_subjects)
    ]
    write_shard(folder, rows, zip(image, label, strict=True), size, 4)
    return folder


def make_embeddings(path: Path, num_reports: int = 5) -> Path:
    """Random text states of reports r0, r1, ..."""
    generator = torch.Generator().manual_seed(3)
    keys = {f"r{i}": [f"{i}{section}" for section in SECTIONS] for i in range(num_reports)}
    names = [key for report in keys.values() for key in report]
    states = torch.randn(len(names), NUM_TOKENS, HIDDEN, generator=generator).half()
    shard = path.with_suffix("") / "shard.safetensors"
    save_tensors(shard, {"states": states}, {"encoder": "tiny", "keys": json.dumps(names)})
    index = {"encoder": "tiny", "sections": SECTIONS, "texts": keys, "shards": [shard.name]}
    write_json(path, index | {"num_tokens": NUM_TOKENS, "hidden_size": HIDDEN})
    return path


def sampling_stage(**sampling) -> SamplingStage:
    """Two and one DDIM steps on the 16^3 grid of SIZE."""
    steps = {"num_steps_low_res": 2, "num_steps_super_res": 1}
    settings = {**steps, "guidance_scale": 2.0, "fix_super_res": True, "batch_size": 3, **sampling}
    return SamplingStage(sampling=SamplingConfig(**settings), preprocess=PreprocessConfig(size=SIZE))


def make_run(folder: Path, channels: tuple[str, ...] = CHANNELS, **options) -> Path:
    """An untrained run: folder/run.json with its weights; options of both networks' `stage`."""
    torch.manual_seed(0)
    for name in ("low_res", "super_res"):
        settings = stage(name, channels, **options)
        network = build(settings, HIDDEN if settings.sections else None)
        save(folder / f"{name}.safetensors", network.state_dict(), settings, {})
    (folder / "text").mkdir()
    write_json(folder / "sampling.json", sampling_stage().model_dump(mode="json"))
    assemble(
        folder / "run.json",
        label="Tiny",
        low_res=folder / "low_res.safetensors",
        super_res=folder / "super_res.safetensors",
        text_encoder=folder / "text",
        sampling=folder / "sampling.json",
    )
    return folder


def install_text_encoder(monkeypatch) -> None:
    """Replace the language model by states that are a function of the text's bytes."""

    class TextEncoder:
        def __init__(self, folder: Path) -> None:
            assert folder.is_dir()

        def encode(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
            states = [
                torch.randn(NUM_TOKENS, HIDDEN, generator=torch.Generator().manual_seed(sum(text.encode()) + len(text)))
                for text in texts
            ]
            return torch.stack(states), torch.ones(len(texts), NUM_TOKENS)

    monkeypatch.setattr(f"{assemble.__module__}.open_text_encoder", TextEncoder)
