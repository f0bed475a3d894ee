"""Short training runs: the command of the tiny networks, and a task with a known optimum."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny_models import stage
from torch import nn

from medsyn.config import TrainConfig
from medsyn.files import write_json
from medsyn.training.task import Task


def command(data: Path, out: Path, name: str = "low_res", **changes) -> list[str]:
    """Return the words of the verb that trains a tiny network on the data of `training_data`."""
    config = out.parent / f"{out.stem}.json"
    write_json(config, stage(name, **changes).model_dump(mode="json"))
    text = ["--embeddings", str(data / "embeddings.json")] if name == "low_res" else []
    stores = [str(data / "store" / "0"), str(data / "store" / "1")]
    folders = ["--state", str(out.parent / f"{out.stem}_state"), "--out", str(out)]
    return ["train", "--config", str(config), "--store", *stores, *text, *folders]


def quadratic(identity=None, poison_at=None, on_step=None):
    """A task with a known optimum: weights -> the mean of the data."""

    def batch(step, slots):
        if on_step is not None:
            on_step(step)
        value = float("nan") if step == poison_at else 1.0
        return {"x": torch.stack([torch.full((3,), value + 0.1 * ((step * 7 + slot) % 5)) for slot in slots])}

    def build():
        return nn.Linear(3, 2)

    return Task("toy", build, batch, lambda net, b: (net(b["x"]) - 1).square().mean(), identity or {"data": "d"})


SETTINGS = TrainConfig(
    num_steps=20, batch_size=4, micro_batch_size=2, learning_rate=0.05, checkpoint_every=5, log_every=4
)


def _identity(state: Path) -> dict:
    newest = max(state.glob("step_*"))
    return json.loads((newest / "facts.json").read_text(encoding="utf-8"))["identity"]
