"""The one training loop, for every network: accelerate, AdamW, clipping, EMA, and exact resume.

An optimiser step runs the phases of a task in order (`medsyn.training.task`); a plain Task has one. A task gives
batches that are pure functions of (number of the update, slots), so the weights after step n depend on the settings and
the data only: a run that is killed and started again with the same command ends with the same bits on a CPU, and the
processes of a distributed run share the slots of one batch.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from medsyn.cluster import requeue_job
from medsyn.config import TrainConfig
from medsyn.errors import InputError
from medsyn.files import write_csv
from medsyn.memory import keep_freed_memory
from medsyn.progress import log, track
from medsyn.training.checkpoint import drop_checkpoints, newest_checkpoint, save_checkpoint
from medsyn.training.events import Events
from medsyn.training.fitting import CHOSEN, fit_training
from medsyn.training.metrics import Fault, PhaseMetrics, Update, columns_of
from medsyn.training.processes import (
    any_process,
    make_accelerator,
    num_data_threads,
    pinned,
    prefetch,
    sigterm_event,
    to_device,
    wait_for_main_process,
)
from medsyn.training.state import TrainingState
from medsyn.training.task import Batch, Networks, Phase, PhasedTask, Task
from medsyn.training.throughput import Throughput

NO_EFFECT = ("checkpoint_every", "log_every", "preview_every", "tensorboard", "activation_checkpointing")
"""Settings of TrainConfig that the weights do not depend on: a run may be resumed with others."""
_FLUSH_EVERY = 10  # steps between looks at the loss on the device


@dataclass(frozen=True)
class TrainingResult:
    """The networks by name, in the main process with the averaged (EMA) weights, and the rows of the metrics table.

    chosen: the values of the settings that stood as `auto`.
    """

    networks: Networks
    metrics: list[dict[str, Any]]
    is_main_process: bool
    num_processes: int
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> nn.Module:
        """The network of a plain Task."""
        [network] = self.networks.values()
        return network

    def facts(self) -> dict[str, Any]:
        """Return what the provenance of the weights says of the run beside its settings."""
        return {"num_processes": self.num_processes} | ({"chosen": dict(self.chosen)} if self.chosen else {})


class DivergedError(InputError):
    """A loss is no longer a finite number or has exploded (medsyn.training.watch), or the task reports a collapse."""


def train(task: Task | PhasedTask, config: TrainConfig, state: Path) -> TrainingResult:
    """Train, or continue from the newest checkpoint in `state`; settings that are `auto` are chosen before.

    Raises InputError for a state of another run, DivergedError for a non-finite or exploded loss or a collapse (the
    last good checkpoint is kept) and SystemExit(143) after writing a checkpoint when SIGTERM arrives. SLURM is then
    asked to requeue the job, because the training run made progress.
    """
    keep_freed_memory()
    accelerator = make_accelerator(config.precision)
    wait_for_main_process(accelerator)  # which may still be busy with the result of the training run before
    phased = task.phased() if isinstance(task, Task) else task
    fitted = fit_training(phased, config, state, accelerator)
    run = TrainingRun(phased, fitted, state, accelerator)
    run.resume()
    run.start()
    steps = range(run.step, config.num_steps)
    with sigterm_event() as stop, closing(run.batches()) as batches, torch.random.fork_rng(devices=[]):
        for step in track(steps, description=task.name, total=config.num_steps, initial=run.step):
            run.optimise(step, batches)
            if any_process(accelerator, stop.is_set()):
                run.save()
                log.warning("%s: stopped by SIGTERM at step %d of %d", task.name, run.step, config.num_steps)
                if accelerator.is_main_process:
                    requeue_job()
                raise SystemExit(143)
    chosen = {name: getattr(fitted, name) for name in CHOSEN if getattr(config, name) == "auto"}
    return replace(run.finish(), chosen=chosen)


def learning_rate(config: TrainConfig, step: int, first_step: int = 0) -> float:
    """Return the rate of 0-based optimiser step `step`: linear warm-up from `first_step`, then constant or cosine to 0.

    Before `first_step` it is 0.
    """
    done = step - first_step
    if done < 0:
        return 0.0
    if done < config.num_warmup_steps:
        return config.learning_rate * (done + 1) / config.num_warmup_steps
    if config.learning_rate_decay == "constant":
        return config.learning_rate
    span = max(config.num_steps - first_step - config.num_warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - config.num_warmup_steps) / span))


class TrainingRun:
    """One training run between two steps."""

    def __init__(self, task: PhasedTask, config: TrainConfig, folder: Path, accelerator: Accelerator) -> None:
        self.task, self.config, self.folder, self.accelerator = task, config, folder, accelerator
        self.micro = config.micro_batch
        if config.batch_size % (self.micro * accelerator.num_processes):
            raise InputError(
                f"{task.name}: train.batch_size {config.batch_size} is not a multiple of micro_batch_size {self.micro}"
                f" times {accelerator.num_processes} processes"
            )
        self.state = TrainingState(task, config, accelerator)
        self.phases = {phase.name: PhaseMetrics(phase, accelerator) for phase in task.phases}
        self.throughput = Throughput(task, config, accelerator)
        self.events: Events | None = None
        self.metrics: list[dict[str, Any]] = []
        self.step = self.saved_step = 0
        stride = self.micro * accelerator.num_processes
        self.firsts = range(accelerator.process_index * self.micro, config.batch_size, stride)

    def resume(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        found = newest_checkpoint(self.folder, self._identity())
        if found is None:
            return
        tensors, facts = found
        if facts["step"] > self.config.num_steps:
            raise InputError(
                f"{self.folder}: this state is at step {facts['step']}, beyond num_steps {self.config.num_steps};"
                " delete the folder to start again"
            )
        if "cost" not in facts:
            raise InputError(
                f"{self.folder}: this state holds no cost, expected one; an earlier version wrote it: finish the run"
                " with that version, or delete the folder to start again"
            )
        self.state.load(tensors)
        for phase in self.phases.values():
            phase.load(facts)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        self.step = self.saved_step = facts["step"]
        self.metrics = facts["metrics"]
        self.throughput.resume(facts["cost"])
        log.info(
            "%s: resumes after step %d of %d from %s", self.task.name, self.step, self.config.num_steps, self.folder
        )

    def start(self) -> None:
        """Get ready for the first step: count the work of a sample, open the event files, start the clocks."""
        here = torch.tensor([float(self.step), -float(self.step)], device=self.accelerator.device)
        if self.accelerator.gather(here[None]).amax(0).sum() != 0:
            raise InputError(
                f"{self.folder}: the processes do not see the same checkpoints there; put it on a file system that all"
                " nodes share, then run the same command again"
            )
        if self.accelerator.is_main_process and self.step < self.config.num_steps:
            self.throughput.count()
            if self.config.tensorboard:
                self.events = Events(self.folder / "tensorboard", self.step + 1)
        wait_for_main_process(self.accelerator)
        self.throughput.start(self.step)

    def batches(self) -> Generator[Batch]:
        """Yield this process's micro-batches from the next step on, in the order in which the updates take them."""
        on_cpu = self.accelerator.device.type == "cpu"

        def make(place: tuple[Phase, int, int]) -> Batch:
            phase, update, first = place
            batch = phase.batch(update, range(first, first + self.micro))
            return batch if on_cpu else pinned(batch)

        steps = range(self.step, self.config.num_steps)
        updates = ((phase, update) for step in steps for phase, update in self._updates(step))
        places = ((phase, update, first) for phase, update in updates for first in self.firsts)
        return prefetch(make, places, num_data_threads(self.accelerator.device))

    def _updates(self, step: int) -> Iterator[tuple[Phase, int]]:
        """Yield the phases that take part in a step and the numbers of their updates."""
        for phase in self.task.phases:
            if step >= phase.first_step:
                for number in range(phase.num_updates):
                    yield phase, step * phase.num_updates + number

    def optimise(self, step: int, batches: Iterator[Batch]) -> None:
        """Make one optimiser step over batch_size samples per update, then log and checkpoint when they are due."""
        config = self.config
        for phase, number in self._updates(step):
            update = self._update(phase, step, number, islice(batches, len(self.firsts)))
            self.phases[phase.name].pending.append(update)
        self.step = step + 1
        self.state.average(self.step)
        due = self.step % config.checkpoint_every == 0
        logs = self.step % config.log_every == 0 or self.step == config.num_steps
        if due or logs or self.step % _FLUSH_EVERY == 0:
            self._flush()
        if logs:
            self._log()
        if self.step == config.num_steps:
            return
        if due and not any(phase.doubtful for phase in self.phases.values()):
            self.save()
        if config.preview_every and self.step % config.preview_every == 0:
            self._preview()

    def _update(self, phase: Phase, step: int, number: int, batches: Iterable[Batch]) -> Update:
        """Accumulate the gradients of one update of a phase over its micro-batches, and let its optimiser step."""
        accelerator, state = self.accelerator, self.state
        state.begin(phase)
        num_micro = len(self.firsts)
        total = torch.zeros((), device=accelerator.device)
        named: dict[str, torch.Tensor] = {}
        for micro, (first, batch) in enumerate(zip(self.firsts, batches, strict=True), start=1):
            self._seed(phase, number, first)
            with state.exchange(last=micro == num_micro):
                with accelerator.autocast():
                    result = phase.loss(state.given, to_device(batch, accelerator.device), step)
                loss, others = result if isinstance(result, tuple) else (result, {})
                accelerator.backward(loss / num_micro)
            total += loss.detach() / num_micro
            for name, value in others.items():
                named[name] = named.get(name, 0) + value.detach().float() / num_micro
        norm = state.update(phase, learning_rate(state.configs[phase.name], step, phase.first_step))
        return Update(step + 1, total, norm, named)

    def _seed(self, phase: Phase, number: int, first: int) -> None:
        """Seed what networks draw from torch's generators (dropout, new codes) by the place of the micro-batch."""
        key = (self.config.seed, list(self.phases).index(phase.name), number, first)
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a millisecond without a GPU
        if self.accelerator.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _preview(self) -> None:
        """Let the task draw what the averaged weights make (main process)."""
        if self.accelerator.is_main_process and self.task.preview is not None:
            with self.state.evaluated() as networks:
                self.task.preview(networks, self.step)
        wait_for_main_process(self.accelerator)

    def save(self) -> None:
        """Write a checkpoint (main process), after making sure that the losses so far are finite."""
        self._flush()
        cost = self.throughput.cost(self.step)
        if self.accelerator.is_main_process and self.step > self.saved_step:
            scaler = self.accelerator.scaler
            facts: dict[str, Any] = {
                "identity": self._identity(),
                "metrics": self.metrics,
                "cost": cost,
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            for phase in self.phases.values():
                facts |= phase.facts()
            save_checkpoint(self.folder, self.step, self.state.tensors(), facts)
        self.saved_step = self.step
        wait_for_main_process(self.accelerator)

    def finish(self) -> TrainingResult:
        """Write the last checkpoint and hand out the averaged weights."""
        self.save()
        if self.events is not None:
            self.events.close()
        is_main, num_processes = self.accelerator.is_main_process, self.accelerator.num_processes
        return TrainingResult(self.state.finish(), self.metrics, is_main, num_processes)

    def _flush(self) -> None:
        """Look at the losses and norms since the last look; a bad one ends the run."""
        for phase in self.phases.values():
            fault = phase.flush()
            if fault is not None:
                remedy = "Lower train.learning_rate or use precision bf16 or fp32"
                name = phase.phase.name
                self._end(f"the {name} loss" if name else "the loss", fault, remedy)

    def _end(self, what: str, fault: Fault, remedy: str) -> NoReturn:
        """End the run; checkpoints whose weights are already bad are removed."""
        if not self.accelerator.is_main_process:
            raise SystemExit(1)  # the main process says why
        left = drop_checkpoints(self.folder, fault.bad_from)
        kept = f"the checkpoint of step {left} in {self.folder} is kept" if left else "there was no good checkpoint yet"
        raise DivergedError(
            f"{self.task.name}: {what} {fault.reason}; {kept}. {remedy}, then delete {self.folder} and start again"
        )

    def _log(self) -> None:
        """Add a row to the metrics table; end the run where the task reports a collapse."""
        row: dict[str, Any] = {"step": self.step}
        for phase in self.task.phases:
            rate = learning_rate(self.state.configs[phase.name], self.step - 1, phase.first_step)
            row |= self.phases[phase.name].row(rate)
        row |= self.throughput.row(self.step)
        last = self.metrics[-1]["step"] if self.metrics else 0
        self.metrics.append(row)
        if self.accelerator.is_main_process:
            write_csv(self.folder / "metrics.csv", self.metrics, columns_of(self.metrics))
            if self.events is not None:
                self.events.add(self.step, row)
            losses = ", ".join(f"{name} {row[name]:.4f}" for name in _loss_columns(row))
            words = self.throughput.describe(row, self.step)
            log.info("%s: step %d of %d, %s, %s", self.task.name, self.step, self.config.num_steps, losses, words)
        reason = None if self.task.collapsed is None else self.task.collapsed(row)
        if reason is not None:
            fault = Fault(f"{reason} at step {self.step}", last + 1)
            self._end("the training has collapsed:", fault, "Change the settings of the task")

    def _identity(self) -> dict[str, Any]:
        """Return all that the weights after a step depend on (not how long the run is, unless the rate decays)."""
        free = set(NO_EFFECT)
        if all(config.learning_rate_decay == "constant" for config in self.state.configs.values()):
            free.add("num_steps")
        settings = {f"train.{k}": v for k, v in self.config.model_dump(mode="json").items() if k not in free}
        return {**settings, **self.task.facts(), "num_processes": self.accelerator.num_processes}


def _loss_columns(row: Mapping[str, Any]) -> list[str]:
    return [name for name in row if (name == "loss" or name.endswith("_loss")) and row[name] is not None]
