"""The one training loop, for every network: accelerate, AdamW, clipping, EMA, and exact resume.

The loop knows nothing of volumes or text. A task gives it samples that are pure functions of (step, slot), so the
weights after step n depend on the settings and the data only: a run that is killed and started again with the same
command ends with the same bits on a CPU, and the processes of a distributed run share the slots of one batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from medsyn.cluster import requeue_job
from medsyn.config import TrainConfig
from medsyn.errors import InputError
from medsyn.files import write_csv
from medsyn.memory import keep_freed_memory, total_bytes
from medsyn.progress import log, track
from medsyn.training.checkpoint import drop_checkpoints, load_checkpoint, save_checkpoint
from medsyn.training.cost import GIB, peak_memory_gib, peak_tflops
from medsyn.training.ema import Ema
from medsyn.training.events import Events
from medsyn.training.need import Need
from medsyn.training.processes import (
    any_process,
    made_ahead,
    make_accelerator,
    num_data_threads,
    pinned,
    sigterm_event,
    synchronise,
    to_device,
    wait_for_main_process,
)
from medsyn.training.watch import FACTOR, NUM_STEPS, LossWatch

METRIC_COLUMNS = (
    *("step", "loss", "loss_ema", "grad_norm", "learning_rate", "samples_per_second"),
    *("peak_memory_gib", "tflops_per_second", "flop_utilisation"),
)
"""Of the main process: loss and norm are means over the steps since the last row, memory and rates as they are now."""
NO_EFFECT = ("checkpoint_every", "log_every", "preview_every", "tensorboard", "activation_checkpointing")
"""Settings of TrainConfig that the weights do not depend on: a run may be resumed with others."""
_FLUSH_EVERY = 10  # steps between looks at the loss on the device

Batch = Any


@dataclass(frozen=True)
class Task:
    """What to train.

    build() makes the network (its weights come from torch's generator, which the loop seeds for it); batch(step, slots)
    the samples `slots` of optimiser step `step` (0-based), on a GPU called in other threads ahead of time;
    loss(network, batch) a scalar, the mean over the samples; identity is everything besides the TrainConfig that the
    result depends on. preview(network, step) draws what the averaged weights make after a step; flops() counts the
    operations of one sample, forward and backward; memory(num_processes) counts what the run needs of a GPU.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[int, Sequence[int]], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    identity: Mapping[str, Any] = field(default_factory=dict)
    preview: Callable[[nn.Module, int], None] | None = None
    flops: Callable[[], int] | None = None
    memory: Callable[[int], Need] | None = None


@dataclass(frozen=True)
class Trained:
    """The network, in the main process with the averaged (EMA) weights, and the rows of the metrics table."""

    network: nn.Module
    metrics: list[dict[str, Any]]
    is_main_process: bool
    num_processes: int


class DivergedError(InputError):
    """The loss is no longer a finite number, or has exploded (medsyn.training.watch)."""


def train(task: Task, config: TrainConfig, state: Path) -> Trained:
    """Train, or continue from the newest checkpoint in `state`.

    Raises InputError for a state of another run, DivergedError for a non-finite or exploded loss (the last good
    checkpoint is kept) and SystemExit(143) after writing a checkpoint when SIGTERM arrives. SLURM is then asked to
    requeue the job, because the training run made progress.
    """
    keep_freed_memory()
    accelerator = make_accelerator(config.precision)
    wait_for_main_process(accelerator)  # which may still be busy with the result of the training run before
    run = _Run(task, config, state, accelerator)
    run.resume()
    run.start()
    with sigterm_event() as stop:
        bar = track(range(run.step, config.num_steps), description=task.name, total=config.num_steps, initial=run.step)
        for step, batches in zip(bar, run.batches(), strict=True):
            run.optimise(step, batches)
            if any_process(accelerator, stop.is_set()):
                run.save()
                log.warning("%s: stopped by SIGTERM at step %d of %d", task.name, run.step, config.num_steps)
                if accelerator.is_main_process:
                    requeue_job()
                raise SystemExit(143)
    return run.finish()


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of 0-based optimiser step `step`: linear warm-up, then constant or cosine to zero."""
    if step < config.num_warmup_steps:
        return config.learning_rate * (step + 1) / config.num_warmup_steps
    if config.learning_rate_decay == "constant":
        return config.learning_rate
    span = max(config.num_steps - config.num_warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - config.num_warmup_steps) / span))


class _Run:
    """State of one training run between two steps."""

    def __init__(self, task: Task, config: TrainConfig, state: Path, accelerator: Accelerator) -> None:
        self.task, self.config, self.state, self.accelerator = task, config, state, accelerator
        self.micro = min(config.micro_batch_size, config.batch_size)
        if config.batch_size % (self.micro * accelerator.num_processes):
            raise InputError(
                f"{task.name}: train.batch_size {config.batch_size} is not a multiple of micro_batch_size {self.micro}"
                f" times {accelerator.num_processes} processes"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = task.build()
        if config.compile:
            network.compile()  # in place: names and values of the weights stay
        self.bare = network
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        self.network, self.optimizer = accelerator.prepare(network, optimizer)
        self.ema: Ema | None = None  # the same in every process: the main process keeps it
        if accelerator.is_main_process:
            self.ema = Ema(network, decay=config.ema_decay, start_step=config.ema_start_step, every=config.ema_every)
        self.step = 0
        self.saved_step = 0
        self.metrics: list[dict[str, Any]] = []
        self.watch = LossWatch()
        self.flops: int | None = None
        self.need: Need | None = None
        self.events: Events | None = None
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.window: list[tuple[float, float | None]] = []
        self.started = (time.monotonic(), 0)
        self.logged = (time.monotonic(), 0)

    def resume(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        found = load_checkpoint(self.state, self._identity())
        if found is None:
            return
        tensors, facts = found
        if facts["step"] > self.config.num_steps:
            raise InputError(
                f"{self.state}: this state is at step {facts['step']}, beyond num_steps {self.config.num_steps};"
                " delete the folder to start anew"
            )
        self.bare.load_state_dict(tensors["network"])
        if self.ema is not None:
            self.ema.load(tensors["ema"])
        self.optimizer.load_state_dict(
            {"state": _nested(tensors["optimizer"]), "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        self.step, self.metrics, self.watch = facts["step"], facts["metrics"], LossWatch(**facts["watch"])
        self.saved_step = self.step
        self.window = [(loss, norm) for loss, norm in facts["window"]]
        log.info(
            "%s: resumes after step %d of %d from %s", self.task.name, self.step, self.config.num_steps, self.state
        )

    def start(self) -> None:
        """Get ready for the first step: count the work of a sample, open the event files, start the clocks."""
        here = torch.tensor([float(self.step), -float(self.step)], device=self.accelerator.device)
        if self.accelerator.gather(here[None]).amax(0).sum() != 0:
            raise InputError(
                f"{self.state}: the processes do not see the same checkpoints there; put it on a file system that all"
                " nodes share, then run the same command again"
            )
        if self.accelerator.is_main_process and self.step < self.config.num_steps:
            self.flops = None if self.task.flops is None else self.task.flops()
            self._count_memory()
            if self.config.tensorboard:
                self.events = Events(self.state / "tensorboard", self.step + 1)
        wait_for_main_process(self.accelerator)
        self.started = self.logged = (time.monotonic(), self.step)

    def _count_memory(self) -> None:
        """Count what the run needs of a GPU, and warn before the first step where that is more than there is."""
        accelerator = self.accelerator
        if accelerator.device.type != "cuda" or self.task.memory is None:
            return
        self.need = self.task.memory(accelerator.num_processes)
        card = total_bytes(accelerator.device)
        log.info("%s: counted memory: %s", self.task.name, self.need.in_words())
        if self.need.total > card:
            log.warning(
                "%s: that is more than the GPU's %.1f GiB; `medsyn plan` proposes settings", self.task.name, card / GIB
            )

    def batches(self) -> Iterator[Iterator[Batch]]:
        """This process's micro-batches of each step from the next one on."""
        accelerator = self.accelerator
        on_cpu = accelerator.device.type == "cpu"
        stride = self.micro * accelerator.num_processes
        firsts = range(accelerator.process_index * self.micro, self.config.batch_size, stride)

        def make(place: tuple[int, int]) -> Batch:
            step, first = place
            batch = self.task.batch(step, range(first, first + self.micro))
            return batch if on_cpu else pinned(batch)

        places = ((step, first) for step in range(self.step, self.config.num_steps) for first in firsts)
        made = made_ahead(make, places, num_data_threads(accelerator.device))
        for _ in range(self.step, self.config.num_steps):
            yield islice(made, len(firsts))

    def optimise(self, step: int, batches: Iterable[Batch]) -> None:
        """One optimiser step over batch_size samples, then log and checkpoint when they are due."""
        config, accelerator = self.config, self.accelerator
        rate = learning_rate(config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        num_micro = config.batch_size // (self.micro * accelerator.num_processes)
        total = torch.zeros((), device=accelerator.device)
        for micro, batch in enumerate(batches, start=1):
            with synchronise(accelerator, self.network, last=micro == num_micro):
                with accelerator.autocast():
                    loss = self.task.loss(self.network, to_device(batch, accelerator.device))
                accelerator.backward(loss / num_micro)
            total += loss.detach() / num_micro
        norm = accelerator.clip_grad_norm_(self.network.parameters(), config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step = step + 1
        if self.ema is not None:
            self.ema.update(self.bare, self.step)
        self.pending.append((total, torch.as_tensor(norm)))
        due = self.step % config.checkpoint_every == 0
        logs = self.step % config.log_every == 0 or self.step == config.num_steps
        if due or logs or self.step % _FLUSH_EVERY == 0:
            self._flush()
        if logs:
            self._log(rate)
        if self.step == config.num_steps:
            return
        if due and self.watch.num_high == 0:  # what may be the start of an explosion must not replace a good state
            self.save()
        if config.preview_every and self.step % config.preview_every == 0:
            self.preview()

    def preview(self) -> None:
        """Let the task draw what the averaged weights make (main process); the training is as it was afterwards."""
        if self.ema is not None and self.task.preview is not None:
            training = self.bare.training
            with _averaged(self.bare, self.ema), torch.no_grad():
                self.task.preview(self.bare.eval(), self.step)
            self.bare.train(training)
        wait_for_main_process(self.accelerator)

    def save(self) -> None:
        """Write a checkpoint (main process), after making sure that the losses so far are finite."""
        self._flush()
        if self.ema is not None and self.step > self.saved_step:
            moments = self.optimizer.state_dict()["state"]
            tensors = {
                "network": self.bare.state_dict(),
                "ema": self.ema.average,
                "optimizer": {f"{i}.{name}": value for i, state in moments.items() for name, value in state.items()},
            }
            facts = {
                "identity": self._identity(),
                "metrics": self.metrics,
                "watch": asdict(self.watch),
                "window": self.window,
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            }
            save_checkpoint(self.state, self.step, tensors, facts)
        self.saved_step = self.step
        wait_for_main_process(self.accelerator)

    def finish(self) -> Trained:
        """Write the last checkpoint and hand out the averaged weights."""
        self.save()
        if self.ema is not None:
            self.bare.load_state_dict(self.ema.average, strict=False)  # tied weights have one name there
        if self.events is not None:
            self.events.close()
        is_main, num_processes = self.accelerator.is_main_process, self.accelerator.num_processes
        return Trained(self.bare.eval(), self.metrics, is_main, num_processes)

    def _flush(self) -> None:
        """Read the losses and norms of the last steps from the device; a non-finite or exploded one stops the run.

        Weights that took a non-finite gradient are spoilt, so no checkpoint of that step must stay; under loss scaling
        such a step was skipped.
        """
        first = self.step - len(self.pending) + 1
        for step, (loss, norm) in enumerate(self.pending, start=first):
            value, size = float(self.accelerator.reduce(loss, "mean")), float(norm)
            if not math.isfinite(value):
                self._diverged(step, f"is {value} at step {step}", step)
            if self.accelerator.scaler is None and not math.isfinite(size):
                self._diverged(step, f"has a gradient of norm {size} at step {step}", step)
            self.watch.update(value)
            if self.watch.exploded:
                reason = f"has been more than {FACTOR:g} times its lowest smoothed value for {NUM_STEPS} steps"
                self._diverged(step, f"({value:.4g}) {reason} at step {step}", step - NUM_STEPS)
            self.window.append((value, size if math.isfinite(size) else None))
        self.pending.clear()

    def _diverged(self, step: int, what: str, bad_from: int) -> NoReturn:
        """Stop; a checkpoint of step `bad_from` or later, whose weights are already bad, is removed."""
        if not self.accelerator.is_main_process:
            raise SystemExit(1)  # the main process says why
        left = drop_checkpoints(self.state, bad_from)
        kept = f"the checkpoint of step {left} in {self.state} is kept" if left else "there was no good checkpoint yet"
        raise DivergedError(
            f"{self.task.name}: the loss {what}; {kept}. Lower train.learning_rate or use precision bf16 or fp32,"
            f" then delete {self.state} and start anew"
        )

    def _log(self, rate: float) -> None:
        now = time.monotonic()
        since, done = self.logged
        speed = (self.step - done) * self.config.batch_size / max(now - since, 1e-9)
        losses = [loss for loss, _ in self.window]
        norms = [norm for _, norm in self.window if norm is not None]  # without the steps that loss scaling skipped
        peak = peak_memory_gib(self.accelerator.device)
        row = {
            "step": self.step,
            "loss": sum(losses) / len(losses),
            "loss_ema": self.watch.smoothed,
            "grad_norm": sum(norms) / len(norms) if norms else None,
            "learning_rate": rate,
            "samples_per_second": round(speed, 2),
            "peak_memory_gib": round(peak, 3),
            **self._rates(speed),
        }
        self.metrics.append(row)
        self.window.clear()
        self.logged = (now, self.step)
        begun, start = self.started
        left = (self.config.num_steps - self.step) * (now - begun) / max(self.step - start, 1)
        if self.accelerator.is_main_process:
            write_csv(self.state / "metrics.csv", self.metrics, METRIC_COLUMNS)
            if self.events is not None:
                self.events.add(self.step, row)
            log.info(
                "%s: step %d of %d, loss %.4f, %.1f samples/s%s, %s, %s left",
                *(self.task.name, self.step, self.config.num_steps, row["loss"], speed, _rates_in_words(row)),
                *(self._memory_in_words(peak), _duration(left)),
            )

    def _rates(self, samples_per_second: float) -> dict[str, float | None]:
        """TFLOP/s of the model over all processes, and their share of the peak where that is known."""
        if self.flops is None:
            return {"tflops_per_second": None, "flop_utilisation": None}
        rate = self.flops * samples_per_second / 1e12
        peak = peak_tflops(self.accelerator.device, self.config.precision)
        share = None if peak is None else rate / (peak * self.accelerator.num_processes)
        return {"tflops_per_second": float(f"{rate:.4g}"), "flop_utilisation": share and float(f"{share:.4g}")}

    def _memory_in_words(self, peak_gib: float) -> str:
        """The measured peak beside the counted one; on a CPU the largest resident memory of the process."""
        if self.accelerator.device.type != "cuda":
            return f"{peak_gib:.1f} GiB resident"
        counted = "" if self.need is None else f" (counted {self.need.counted / GIB:.1f})"
        return f"{peak_gib:.1f} GiB allocated{counted}"

    def _identity(self) -> dict[str, Any]:
        """Everything that the weights after a step depend on (not how long the run is, unless the rate decays)."""
        free = set(NO_EFFECT)
        if self.config.learning_rate_decay == "constant":
            free.add("num_steps")
        settings = {f"train.{k}": v for k, v in self.config.model_dump(mode="json").items() if k not in free}
        return {**settings, **self.task.identity, "num_processes": self.accelerator.num_processes}


@contextmanager
def _averaged(network: nn.Module, ema: Ema) -> Iterator[None]:
    """Put the averaged weights into the network; both sets change places, nothing is copied."""
    _exchange(network, ema)
    try:
        yield
    finally:
        _exchange(network, ema)


def _exchange(network: nn.Module, ema: Ema) -> None:
    for name, parameter in network.named_parameters():
        parameter.data, ema.average[name] = ema.average[name], parameter.data


def _rates_in_words(row: Mapping[str, Any]) -> str:
    rate, share = row["tflops_per_second"], row["flop_utilisation"]
    if rate is None:
        return ""
    return f", {rate:.3g} TFLOP/s" + ("" if share is None else f" ({share:.1%} of the peak)")


def _nested(flat: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """State of an optimiser from names `index.name`; copies, because the file they are mapped from may be removed."""
    state: dict[int, dict[str, Tensor]] = {}
    for path, value in flat.items():
        index, _, name = path.partition(".")
        state.setdefault(int(index), {})[name] = value.clone()
    return state


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
