"""Checkpoints of a training run: folders `step_<n>` written whole or not at all, the newest two kept.

A checkpoint holds network, average and optimiser tensors and a JSON with the step, the logged metrics and the run's
identity: everything that the final weights depend on. A run refuses to continue from the state of a different one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsyn.errors import InputError
from medsyn.files import atomic_dir, read_json, write_json
from medsyn.progress import log

_KEPT = 2


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write step_<step> under `folder` and remove all but the newest two."""
    with atomic_dir(folder / f"step_{step:08d}", replace=True) as temporary:
        torch.save(dict(tensors), temporary / "tensors.pt")
        write_json(temporary / "facts.json", {"step": step, **facts})
    for old in _checkpoints(folder)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def drop_checkpoints(folder: Path, from_step: int) -> int | None:
    """Remove the checkpoints of step `from_step` and later; the newest step that is left, if any."""
    steps = {int(path.name.removeprefix("step_")): path for path in _checkpoints(folder)}
    for step, path in steps.items():
        if step >= from_step:
            shutil.rmtree(path, ignore_errors=True)
    return max((step for step in steps if step < from_step), default=None)


def load_checkpoint(folder: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(tensors, facts) of the newest readable checkpoint, or None; another run's state is an InputError."""
    for path in reversed(_checkpoints(folder)):
        try:
            facts = read_json(path / "facts.json")
            tensors = torch.load(path / "tensors.pt", map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a truncated file makes the unpickler raise
            log.warning("%s: damaged checkpoint ignored (%s)", path, error)
            continue
        _check_identity(folder, facts["identity"], identity)
        return tensors, facts
    return None


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys, so that a difference can be named."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def cpu_copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors detached and on the CPU."""
    return {name: value.detach().cpu() for name, value in state.items()}


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def _check_identity(folder: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(current))
    for key in sorted({*stored, *now}):
        before, after = stored.get(key, "absent"), now.get(key, "absent")
        if before != after:
            raise InputError(
                f"{folder}: this state belongs to a training with {key} = {before}, now it is {after};"
                " restore the setting, or delete the folder to start anew"
            )
