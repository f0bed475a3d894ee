"""Choose the settings of a training run that stand as `auto` for the memory that is found, before it starts.

A smaller micro-batch means more accumulation, and activation checkpointing computes the same numbers again, so the
gradient is the same up to rounding. The choice is that of `medsyn plan`: no activation checkpointing where that fits,
then the largest micro-batch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from medsyn.config import TrainConfig
from medsyn.errors import InputError
from medsyn.memory import available_bytes
from medsyn.progress import log
from medsyn.training.checkpoint import newest_identity
from medsyn.training.cost import GIB
from medsyn.training.need import Need
from medsyn.training.task import PhasedTask

CHOSEN = ("micro_batch_size", "activation_checkpointing")
"""Settings of TrainConfig that may be `auto`."""
HOST_FACTOR = 2.5
"""On a CPU resident memory grows by up to 2.3 times the counted tensors (docs/memory.md)."""

Settings = dict[str, Any]


@dataclass(frozen=True)
class Option:
    """Settings (keys of the configuration's section) and the memory that is needed under them."""

    settings: Settings
    need: Need


class Search:
    """Options of one job, counted once each, and the search for the best whose size(need) is at most `limit` bytes."""

    def __init__(
        self, count: Callable[[Settings], Need], limit: int, size: Callable[[Need], int] = lambda need: need.total
    ) -> None:
        self._count, self._limit, self.size = count, limit, size
        self.counted: list[Option] = []

    def option(self, settings: Settings) -> Option:
        """Count these settings, if they have not been counted yet."""
        for known in self.counted:
            if known.settings == settings:
                return known
        self.counted.append(Option(settings, self._count(settings)))
        return self.counted[-1]

    def fits(self, settings: Settings) -> bool:
        """Whether these settings fit."""
        return self.size(self.option(settings).need) <= self._limit

    def largest(self, key: str, sizes: Sequence[Any], settings: Settings) -> Option | None:
        """Find by bisection the largest of rising sizes of `key` that fits beside the other settings."""
        low, high = -1, len(sizes)
        while high - low > 1:
            middle = (low + high) // 2
            if self.fits(settings | {key: sizes[middle]}):
                low = middle
            else:
                high = middle
        return None if low < 0 else self.option(settings | {key: sizes[low]})

    @property
    def smallest(self) -> Option:
        """The least need that was counted."""
        return min(self.counted, key=lambda option: self.size(option.need))


def fit_training(task: PhasedTask, config: TrainConfig, folder: Path, accelerator: Accelerator) -> TrainConfig:
    """Return the settings with what fits in place of `auto`; the plan is one line of the log.

    A run that resumes from `folder` keeps its micro-batch. Raises InputError where nothing fits, with what would, and
    where the task does not count its memory. All processes choose the same, for the least memory among them.
    """
    auto = [name for name in CHOSEN if getattr(config, name) == "auto"]
    if not auto:
        return config
    memory, processes = task.memory, accelerator.num_processes
    if memory is None:
        raise InputError(f"{task.name}: train.{auto[0]} auto: this task does not count its memory, expected a value")
    free = _free_bytes(accelerator)
    on_host = accelerator.device.type == "cpu"
    search = Search(
        lambda settings: memory(config.model_copy(update=settings), processes),
        free,
        (lambda need: round(HOST_FACTOR * need.counted)) if on_host else (lambda need: need.total),
    )
    sizes, began = micro_batches(config, processes), newest_identity(folder).get("train.micro_batch_size")
    found = choose(search, config, [began] if began in sizes else sizes)
    if not search.fits(found.settings):
        remedies = _remedies(task, config, search, found, "machine" if on_host else "GPU")
        if began is not None:
            remedies.insert(0, f"delete {folder}, where a run with micro batch {began} began")
        raise InputError(
            f"{task.name}: train.{auto[0]} auto: nothing fits: {in_words(found.settings)} needs about"
            f" {search.size(found.need) / GIB:.3g} GiB, {free / GIB:.3g} GiB are free; {', or '.join(remedies)}"
        )
    log.info(
        "%s: plan: %s; training needs about %.3g GiB, %.3g GiB are free",
        *(task.name, in_words(found.settings), search.size(found.need) / GIB, free / GIB),
    )
    return config.model_copy(update={name: found.settings[name] for name in auto})


def choose(search: Search, config: TrainConfig, sizes: Sequence[int], **others: Any) -> Option:
    """Return the best that fits of the settings that are `auto`, or where nothing fits that with the least need.

    sizes: what a micro-batch that is `auto` may be, smallest first; others: further settings to count with.
    """
    sizes = sizes if config.micro_batch_size == "auto" else [config.micro_batch]
    given = config.activation_checkpointing
    forms = [{"activation_checkpointing": form, **others} for form in ([False, True] if given == "auto" else [given])]
    for form in forms:
        if found := search.largest("micro_batch_size", sizes, form):
            return found
    return search.option({**forms[-1], "micro_batch_size": sizes[0]})


def micro_batches(train: TrainConfig, processes: int) -> list[int]:
    """List the micro batches that share out the batch over the processes evenly, smallest first."""
    each, rest = divmod(train.batch_size, processes)
    if rest:
        raise InputError(
            f"train.batch_size {train.batch_size} is not a multiple of the {processes} processes that"
            " compute.num_gpus_training and num_nodes_training ask for"
        )
    return [size for size in range(1, each + 1) if each % size == 0]


def in_words(settings: Settings) -> str:
    """Describe settings as the plan shows them."""
    parts = []
    for name, value in settings.items():
        if name == "activation_checkpointing":
            parts += ["checkpointing"] if value else []
        elif name == "precision":
            parts.append(value)
        elif name == "input_size":
            parts.append(f"input {value or 'of full size'}")
        else:
            parts.append(f"{name.removesuffix('_size').replace('_', ' ')} {value}")
    return ", ".join(parts) or "fixed settings"


def _free_bytes(accelerator: Accelerator) -> int:
    """Return the free memory of a process: the least of all processes, which share that of a host."""
    free = available_bytes(accelerator.device)
    if accelerator.device.type == "cpu":
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(accelerator.gather(torch.tensor([free], device=accelerator.device)).min())


def _remedies(task: PhasedTask, config: TrainConfig, search: Search, least: Option, device: str) -> list[str]:
    """List what would fit: the first of each kind of change to the least settings, and more memory."""
    kinds: list[Sequence[Mapping[str, Any]]] = [task.smaller]
    if config.precision == "fp32":
        kinds.insert(0, [{"precision": "bf16"}])
    if not least.settings["activation_checkpointing"]:
        kinds.insert(0, [{"activation_checkpointing": True}])
    fitting = (next((each for each in kind if search.fits({**least.settings, **each})), {}) for kind in kinds)
    changes = [f"set train.{name} {json.dumps(value)}" for change in fitting for name, value in change.items()]
    return [*changes, f"take a {device} with {math.ceil(search.size(least.need) / GIB)} GiB of free memory"]
