"""Denoiser files: safetensors with the settings of the network and its provenance in the metadata.

`build` makes the network of a training stage, `save` and `load` are inverse to each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor

from medsyn.config import DenoiserTrainConfig, DistilledStage, ModelStage
from medsyn.errors import InputError
from medsyn.models.fast.unet import FastUNet
from medsyn.tensors import check_tensors, read_metadata, save_tensors


def build(stage: ModelStage, cond_dim: int | None) -> FastUNet:
    """Build the untrained network of a stage; cond_dim is the width of the text states (None: no text).

    The super-resolution network takes its low-resolution condition and has one bottom block.
    """
    config, channels = stage.unet, len(stage.channels)
    condition_channels = 0
    if stage.stage == "super_res":
        config, condition_channels = config.model_copy(update={"num_bottom_blocks": 1}), channels
    return FastUNet(
        config,
        channels=channels,
        condition_channels=condition_channels,
        cond_dim=cond_dim,
        num_tokens=stage.num_tokens,
    )


def save(path: str | Path, state: Mapping[str, Tensor], stage: ModelStage, provenance: Mapping[str, Any]) -> None:
    """Write weights with their settings, atomically."""
    metadata = {
        "config": json.dumps(stage.model_dump(mode="json"), sort_keys=True),
        "provenance": json.dumps(provenance, sort_keys=True),
    }
    save_tensors(path, state, metadata)


def read_stage(path: str | Path) -> ModelStage:
    """Return the settings in a file, without its tensors; a file of another kind is an InputError.

    Settings of the training that this version does not know are dropped: they do not concern the trained network.
    """
    metadata = read_metadata(path)
    try:
        settings = json.loads(metadata["config"])
        settings["train"] = {k: v for k, v in settings["train"].items() if k in DenoiserTrainConfig.model_fields}
        return DistilledStage(**settings) if "distillation" in settings else ModelStage(**settings)
    except (KeyError, ValidationError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a denoiser written by `medsyn train` ({error})") from None


def load(path: str | Path) -> tuple[FastUNet, ModelStage]:
    """Load the network of a file, in evaluation mode, and its settings; a file of another kind is an InputError.

    The network is float32, also if the file holds 16-bit numbers, as that of a packaged model does.
    """
    check_tensors(path)
    stage = read_stage(path)
    with safe_open(path, framework="pt") as handle:
        # Copied: in the file a tensor's place in memory depends on the length of the provenance before it, and the
        # last bits of matrix products on a CPU depend on that place.
        names = handle.keys()
        state = {name: handle.get_tensor(name).to(torch.float32, copy=True) for name in names}
    null = state.get("null_cond_emb")
    with torch.device("meta"):
        network = build(stage, None if null is None else null.shape[2])
        for name, value in state.items():
            if name.startswith("data_") and getattr(network, name, None) is not None:
                setattr(network, name, torch.empty(value.shape))
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise InputError(f"{path}: tensors do not fit the settings in the file ({error})") from None
    if isinstance(stage, DistilledStage):
        network.set_calls(stage.distillation.times, stage.distillation.end_time)
    return network.eval(), stage
