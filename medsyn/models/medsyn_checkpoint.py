"""The authors' checkpoints as denoiser files of this project: the driver behind `medsyn import-checkpoint`.

It reads what their programs leave (facts: public repository batmanlab/MedSyn and the file names of
`accelerate.Accelerator.save_state`): a folder with `pytorch_model.bin` or `model.safetensors`, the raw weights, and
`pytorch_model_1.bin` or `model_1.safetensors`, their moving average (EMA); one such file; or a .pt file with `model`
and `ema`. Widths, levels, heads, text and channels are read from the tensors; only tensors are unpickled, never code.

The order of the up path is not in the weights. The release samples with order B (medsyn.models.unet), its training
scripts use A. Window and reduction are those of the release; its training settings go into the file as a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from medsyn.config import DenoiserTrainConfig, ModelStage, UNetConfig
from medsyn.errors import InputError
from medsyn.files import sha256
from medsyn.models.channels import CHANNELS
from medsyn.models.medsyn_keys import from_medsyn_keys, read_shape, strip_prefixes
from medsyn.models.unet import UNet
from medsyn.models.weights import build, save
from medsyn.progress import log
from medsyn.provenance import provenance
from medsyn.tensors import load_checkpoint

Stage = Literal["low_res", "super_res"]
Weights = Literal["ema", "raw"]

_FILES: dict[str, tuple[str, ...]] = {
    "raw": ("model.safetensors", "pytorch_model.bin"),
    "ema": ("model_1.safetensors", "pytorch_model_1.bin"),
}
_KEYS = {"raw": "model", "ema": "ema"}  # of a .pt file that holds both
_WRAPPERS = ("state_dict", "model", "ema", "module")  # names under which programs put a state dict into a file
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_ODD_SHAPES = (ValueError, RuntimeError, ZeroDivisionError, KeyError, IndexError, TypeError, AttributeError)
"""What tensors of other shapes than expected raise, on the way to a network of theirs."""
_WINDOW_HU = (-1024.0, 600.0)
_LOW_RES_FACTOR = 4
_DEFAULT_TOKENS = 192


def import_medsyn(
    source: Path, stage: Stage, out: Path, *, weights: Weights | None = None, up_order: Literal["A", "B"] = "B"
) -> None:
    """Write the network of `source` (folder or file) to `out` (.safetensors); whatever does not fit is an InputError.

    weights: which of two sets to take where there are two; None takes the EMA if there is one.
    """
    file, state, kind = read_checkpoint(source, weights)
    settings, network_state = convert(state, stage, up_order, source=str(file))
    facts = {"kind": "medsyn", "file": file.name, "sha256": sha256(file), "weights": kind}
    save(out, network_state, settings, provenance(settings, source=facts))
    count = sum(value.numel() for value in network_state.values())
    log.info("%s: %s network, %s weights, %d parameters, up order %s", out, stage, kind, count, up_order)


def read_checkpoint(source: Path, weights: Weights | None = None) -> tuple[Path, dict[str, Tensor], str]:
    """Return (file, state dict under the authors' names, "ema", "raw" or "only") of a folder or file."""
    if source.is_dir():
        file, kind = _choose_file(source, weights)
        return file, _tensors(_load(file), file), kind
    content = _load(source)
    if all(isinstance(content.get(key), Mapping) for key in _KEYS.values()):
        kind = weights or "ema"
        return source, _tensors(content[_KEYS[kind]], source), kind
    if weights is not None:
        raise InputError(f"{source}: holds one set of weights; leave --weights out")
    return source, _tensors(content, source), "only"


def convert(
    state: Mapping[str, Tensor], stage: Stage, up_order: Literal["A", "B"], *, source: str = "checkpoint"
) -> tuple[ModelStage, dict[str, Tensor]]:
    """Return the settings and the float32 tensors, under our names, of the authors' state dict (prefixes allowed)."""
    plain = strip_prefixes(state)
    try:
        config, arguments = read_shape(plain, up_order, source)
    except _ODD_SHAPES as error:
        raise InputError(f"{source}: not a checkpoint of the authors' networks ({_first_line(error)})") from None
    found: Stage = "low_res" if "cond_dim" in arguments else "super_res"
    if found != stage:
        raise InputError(f"{source}: is a {found} network; import it with --stage {found}")
    settings = _settings(stage, config, arguments, source)
    try:
        with torch.device("meta"):
            network: UNet = build(settings, arguments.get("cond_dim"))
    except _ODD_SHAPES as error:
        raise InputError(f"{source}: not a checkpoint of the authors' networks ({_first_line(error)})") from None
    result = {name: value.float() for name, value in from_medsyn_keys(plain, network, source).items()}
    for name, value in result.items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{source}: tensor {name} holds values that are not finite; take another checkpoint")
    return settings, result


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:160]


def _settings(stage: Stage, config: UNetConfig, arguments: Mapping[str, int], source: str) -> ModelStage:
    channels, condition = arguments["channels"], arguments["condition_channels"]
    if channels not in (1, len(CHANNELS)) or condition != (channels if stage == "super_res" else 0):
        raise InputError(
            f"{source}: a network of {channels} output and {channels + condition} input channels;"
            f" only image alone or {', '.join(CHANNELS)} can be used"
        )
    return ModelStage(
        stage=stage,
        channels=CHANNELS[:channels],
        unet=config,
        train=_published_training(stage),
        window_hu=_WINDOW_HU,
        low_res_factor=_LOW_RES_FACTOR,
        num_tokens=arguments.get("num_tokens", _DEFAULT_TOKENS),
        sections=("report",),
    )


def _published_training(stage: Stage) -> DenoiserTrainConfig:
    """Return the recipe of the authors' training scripts, with the paper's steps, which is recorded only."""
    high = stage == "super_res"
    return DenoiserTrainConfig(
        num_steps=40_000,
        batch_size=8,
        micro_batch_size=1,
        learning_rate=1e-4,
        ema_decay=0.995 if high else 0.999,
        ema_every=10 if high else 1,
        ema_start_step=10_000,
        precision="fp16",
        crop_size=(256, 72, 72) if high else None,
    )


def _choose_file(folder: Path, weights: Weights | None) -> tuple[Path, str]:
    found = {
        kind: next((folder / name for name in names if (folder / name).is_file()), None)
        for kind, names in _FILES.items()
    }
    raw, ema = found["raw"], found["ema"]
    if weights is not None:
        file = found[weights]
        if file is None:
            raise InputError(f"{folder}: no {weights} weights ({' or '.join(_FILES[weights])}) in this folder")
        return file, weights
    if ema is not None:
        return ema, "ema"
    if raw is not None:
        return raw, "raw"
    names = ", ".join(name for pair in _FILES.values() for name in pair)
    raise InputError(f"{folder}: no checkpoint of accelerate ({names}) in this folder; name the weight file itself")


def _load(file: Path) -> dict[str, Any]:
    if file.suffix not in _SUFFIXES:
        raise InputError(f"{file}: unknown kind of checkpoint; give one of {', '.join(_SUFFIXES)} or its folder")
    return load_checkpoint(file)


def _tensors(content: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """Return the state dict in a file, out of the usual wrappers; entries that are not tensors are left out."""
    wrapped = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    if wrapped is not None:
        return _tensors(wrapped, file)
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{file}: holds no tensors; give the file with the weights of the network")
    return tensors
