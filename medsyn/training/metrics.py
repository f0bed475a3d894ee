"""Losses and gradient norms of a training run: the rows of its metrics table, and whether it has diverged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from medsyn.training.task import Phase, keyed
from medsyn.training.watch import FACTOR, NUM_STEPS, LossWatch

METRIC_COLUMNS = (
    *("step", "loss", "loss_ema", "grad_norm", "learning_rate", "samples_per_second"),
    *("peak_memory_gib", "tflops_per_second", "flop_utilisation", "training_eflop", "training_hours"),
)
"""Of the main process: loss and norm are means over the steps since the last row, memory and rates as they are now.

training_eflop (1e18 operations) and training_hours (of the device) are the cost of all steps so far, over restarts and
over all processes (`medsyn.training.throughput`).

A PhasedTask has the columns loss to learning_rate once per phase, with the phase's name and `_` before them. The named
scalars of a loss get columns of their own after these, formed in the same way.
"""


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of a metrics table: METRIC_COLUMNS as far as the rows have them, and then all others."""
    found = dict.fromkeys(name for row in rows for name in row)
    return [name for name in METRIC_COLUMNS if name in found] + [name for name in found if name not in METRIC_COLUMNS]


@dataclass(frozen=True)
class Fault:
    """Why a run has to end: what the loss is or does, and from which step on the weights are bad."""

    reason: str
    bad_from: int


@dataclass(frozen=True)
class Update:
    """What an update of a phase leaves on the device until it is looked at: loss, gradient norm, named scalars."""

    step: int
    loss: Tensor
    norm: Tensor
    named: Mapping[str, Tensor] = field(default_factory=dict)


class PhaseMetrics:
    """The updates of one phase since the last row of the table, and the watch over its loss."""

    def __init__(self, phase: Phase, accelerator: Accelerator) -> None:
        self.phase, self.accelerator = phase, accelerator
        self.watch = LossWatch()
        self.pending: list[Update] = []
        self.losses: list[float] = []
        self.norms: list[float | None] = []  # None: loss scaling skipped the step
        self.named: dict[str, list[float]] = {}

    def flush(self) -> Fault | None:
        """Read the pending updates from the device; the first one that ends the run is returned as a Fault.

        Weights that took a non-finite gradient are spoilt, so no checkpoint of that step must stay; under loss scaling
        such a step was skipped.
        """
        pending, self.pending = self.pending, []
        for update in pending:
            loss, norm = float(self.accelerator.reduce(update.loss, "mean")), float(update.norm)
            at = f"at step {update.step}"
            if not math.isfinite(loss):
                return Fault(f"is {loss} {at}", update.step)
            if self.accelerator.scaler is None and not math.isfinite(norm):
                return Fault(f"has a gradient of norm {norm} {at}", update.step)
            self.watch.update(loss)
            if self.phase.watch_explosion and self.watch.exploded:
                reason = f"has been more than {FACTOR:g} times its lowest smoothed value for {NUM_STEPS} steps"
                return Fault(f"({loss:.4g}) {reason} {at}", update.step - NUM_STEPS)
            self.losses.append(loss)
            self.norms.append(norm if math.isfinite(norm) else None)
            for name, tensor in update.named.items():
                value = float(self.accelerator.reduce(tensor, "mean"))
                self.named.setdefault(name, []).extend([value] if math.isfinite(value) else [])
        return None

    @property
    def doubtful(self) -> bool:
        """Whether the last losses may be the start of an explosion, so that no checkpoint should replace a good one."""
        return self.phase.watch_explosion and self.watch.num_high > 0

    def row(self, learning_rate: float) -> dict[str, Any]:
        """Return the phase's part of a row of the table, and begin the next one."""
        values = {
            "loss": _mean(self.losses),
            "loss_ema": self.watch.smoothed,
            "grad_norm": _mean([norm for norm in self.norms if norm is not None]),
            "learning_rate": learning_rate,
            **{name: _mean(values) for name, values in self.named.items()},
        }
        self.losses, self.norms = [], []
        self.named = {name: [] for name in self.named}
        prefix = f"{self.phase.name}_" if self.phase.name else ""
        return {prefix + name: value for name, value in values.items()}

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON."""
        window = list(zip(self.losses, self.norms, strict=True))
        begun = self.watch.first is not None
        facts: dict[str, Any] = {"watch": asdict(self.watch) if begun else None, "window": window}
        if self.named:
            facts["named"] = self.named
        return {keyed(kind, self.phase.name): value for kind, value in facts.items()}

    def load(self, facts: Mapping[str, Any]) -> None:
        """Continue from the facts of a checkpoint."""
        name = self.phase.name
        self.watch = LossWatch(**(facts[keyed("watch", name)] or {}))
        window = facts[keyed("window", name)]
        self.losses, self.norms = [loss for loss, _ in window], [norm for _, norm in window]
        self.named = {name: list(values) for name, values in facts.get(keyed("named", name), {}).items()}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
