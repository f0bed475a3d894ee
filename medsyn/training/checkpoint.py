"""Checkpoints of a training run: folders `step_<n>` written whole or not at all, the newest two kept.

A checkpoint is tensors.safetensors (weights, average, moments of the optimiser; names `group/name`) and facts.json: the
step, the logged metrics, the cost so far and the run's identity, which is everything that the final weights depend on.
There is no state of a random generator to keep, because the samples are functions of the seed and their number. A run
refuses to continue from the state of a different one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medsyn.errors import InputError
from medsyn.files import atomic_dir, read_json, to_disk, write_json
from medsyn.progress import log
from medsyn.tensors import check_tensors, save_tensors

_KEPT = 2
Tensors = dict[str, dict[str, Tensor]]  # group -> name -> tensor


def save_checkpoint(folder: Path, step: int, tensors: Tensors, facts: Mapping[str, Any]) -> None:
    """Write step_<step> under `folder` and remove all others but the newest before it.

    Later ones are damaged, or the run would have gone on from them; unfinished ones are of a process that was killed.
    """
    for unfinished in folder.glob(".step_*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    flat = {f"{group}/{name}": value for group, values in tensors.items() for name, value in values.items()}
    with atomic_dir(folder / _name(step), replace=True) as temporary:
        save_tensors(temporary / "tensors.safetensors", flat, {})
        write_json(temporary / "facts.json", {"step": step, **facts})
        to_disk(temporary)
    steps = _checkpoints(folder)
    kept = sorted(number for number in steps if number <= step)[-_KEPT:]
    for number, path in steps.items():
        if number not in kept:
            shutil.rmtree(path, ignore_errors=True)


def drop_checkpoints(folder: Path, from_step: int) -> int | None:
    """Remove the checkpoints of step `from_step` and later; the newest step that is left, if any."""
    steps = _checkpoints(folder)
    for step, path in steps.items():
        if step >= from_step:
            shutil.rmtree(path, ignore_errors=True)
    return max((step for step in steps if step < from_step), default=None)


def newest_identity(folder: Path) -> Mapping[str, Any]:
    """Return the identity of the run whose checkpoints lie in `folder`, of the newest readable one, or {}."""
    steps = _checkpoints(folder)
    for step in sorted(steps, reverse=True):
        try:
            return dict(read_json(steps[step] / "facts.json")["identity"])
        except (InputError, FileNotFoundError, KeyError, TypeError, ValueError):
            continue  # `newest_checkpoint` says so
    return {}


def newest_checkpoint(folder: Path, identity: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]] | None:
    """Return (tensors, facts) of the newest readable checkpoint, or None if there never was one.

    Another run's state, or a state of which nothing can be read, is an InputError. The tensors are mapped from the
    file, so that the processes of a machine share their memory.
    """
    steps = _checkpoints(folder)
    for step in sorted(steps, reverse=True):
        try:
            file = steps[step] / "tensors.safetensors"
            check_tensors(file)
            facts, flat = read_json(steps[step] / "facts.json"), load_file(file)
            missing = {"identity", "step"} - set(facts)
            if missing or not all("/" in name for name in flat):
                raise InputError(f"{file}: not what a training run writes")
        except (InputError, SafetensorError, FileNotFoundError, TypeError) as error:
            log.warning("%s: damaged checkpoint ignored (%s)", steps[step], error)
            continue
        _check_identity(folder, facts["identity"], identity)
        tensors: Tensors = {}
        for path, value in flat.items():
            group, _, name = path.partition("/")
            tensors.setdefault(group, {})[name] = value
        return tensors, facts
    if steps:
        raise InputError(f"{folder}: none of its checkpoints can be read; delete the folder to start again")
    return None


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted keys, so that a difference can be named."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Return the folder of every checkpoint by its step."""
    found = ((path.name.removeprefix("step_"), path) for path in folder.glob("step_*"))
    return {int(number): path for number, path in found if number.isdecimal() and path.is_dir()}


def _check_identity(folder: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(current))
    for key in sorted({*stored, *now}):
        before, after = stored.get(key, "absent"), now.get(key, "absent")
        if before != after:
            raise InputError(
                f"{folder}: this state belongs to a training with {key} = {before}, now it is {after};"
                " restore the setting, or delete the folder to start again"
            )
