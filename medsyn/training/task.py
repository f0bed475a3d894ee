"""What the training loop trains: a Task of one network, or a PhasedTask of several networks and optimisers.

The loop (`medsyn.training.loop`) knows nothing of volumes or text. A task gives it networks, losses, and batches that
are pure functions of (number of the update, slots). Everything that a loss needs at random, the latents of a generator
included, belongs into the batch, drawn from a generator that is seeded by (seed, number of the update, slot).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from medsyn.config import TrainConfig
from medsyn.errors import InputError

if TYPE_CHECKING:
    from medsyn.training.need import Need

Batch = Any
Networks = Mapping[str, nn.Module]
Loss = Tensor | tuple[Tensor, Mapping[str, Tensor]]
"""A scalar, the mean over the samples; or that and further scalars by name, which only the metrics table shows."""
PHASE_SETTINGS = (
    *("learning_rate", "num_warmup_steps", "learning_rate_decay", "betas", "weight_decay", "max_grad_norm"),
)
"""Fields of TrainConfig that a phase may set for itself."""


@dataclass(frozen=True)
class Phase:
    """One part of an optimiser step: some networks learn from one loss, all others are frozen.

    networks: names of those that learn, with one AdamW (Adam where weight_decay is 0) over all their parameters.
    batch(update, slots): the samples `slots` of the phase's update number `update`, which is
    step * num_updates + 0, 1, ...; on a GPU it is called in other threads ahead of time.
    loss(networks, batch, step): a `Loss` over all networks by name, at the 0-based optimiser step `step`.
    num_updates: updates per step.
    first_step: step from which on the phase takes part; its warm-up begins there.
    two_steps: names of those that learn of which each update makes two optimiser steps with the same gradient.
    settings: fields of TrainConfig that differ in this phase (PHASE_SETTINGS).
    watch_explosion: whether the rule of `medsyn.training.watch` ends the run. It supposes a loss that is positive and
    falls, which a critic's does not.
    after_update(networks): called without gradients after every update, to clip weights for example.
    """

    name: str
    networks: Sequence[str]
    batch: Callable[[int, Sequence[int]], Batch]
    loss: Callable[[Networks, Batch, int], Loss]
    num_updates: int = 1
    first_step: int = 0
    two_steps: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    watch_explosion: bool = False
    after_update: Callable[[Networks], None] | None = None

    def config(self, config: TrainConfig) -> TrainConfig:
        """Return the settings of this phase's optimiser: those of the run with the phase's own in their place."""
        unknown = set(self.settings) - set(PHASE_SETTINGS)
        if unknown:
            raise InputError(
                f"phase {self.name}: {min(unknown)} is not a setting of a phase; expected {', '.join(PHASE_SETTINGS)}"
            )
        return config.model_validate(config.model_dump() | dict(self.settings))

    def identity(self) -> dict[str, Any]:
        """Return what the weights depend on besides the run's settings, by dotted names."""
        if not self.name:
            return {}
        own = {"networks": list(self.networks), "num_updates": self.num_updates, "first_step": self.first_step}
        own["two_steps"] = list(self.two_steps)
        facts = {**self.settings, **own}
        return {f"phase.{self.name}.{key}": value for key, value in facts.items()}


@dataclass(frozen=True)
class PhasedTask:
    """Several networks that are trained in alternating phases, with one checkpoint.

    build() makes the networks by name; their weights come from torch's generator, which the loop seeds for it.
    phases: the parts of every optimiser step, in order. A network of no phase stays as it was built, in evaluation
    mode.
    averaged: networks of which an average (EMA) of the parameters is kept; the result and the previews hold it, beside
    the buffers (statistics of a batch normalisation) as the last step left them.
    identity: everything besides the TrainConfig and the phases that the result depends on.
    preview(networks, step): draws what the networks make after a step, in evaluation mode and without gradients.
    collapsed(row): what is wrong with the training according to a row of the metrics table, None if nothing is; the
    run then ends with this text and keeps the checkpoints of before the row.
    flops(step): operations of one sample of a step, forward and backward, over the phases that take part in it; they
    change only where a phase begins.
    memory(config, num_processes): what a run with these settings needs of a GPU.
    smaller: settings with which a run needs less memory, for the message that nothing fits (`medsyn.training.fitting`),
    largest first.
    """

    name: str
    build: Callable[[], Networks]
    phases: Sequence[Phase]
    averaged: Sequence[str] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)
    preview: Callable[[Networks, int], None] | None = None
    collapsed: Callable[[Mapping[str, Any]], str | None] | None = None
    flops: Callable[[int], int] | None = None
    memory: Callable[[TrainConfig, int], Need] | None = None
    smaller: Sequence[Mapping[str, Any]] = ()

    def facts(self) -> dict[str, Any]:
        """Return what the weights depend on besides the run's settings, by dotted names."""
        facts: dict[str, Any] = {}
        if any(phase.name for phase in self.phases):
            facts = {"phases": [phase.name for phase in self.phases], "averaged": sorted(self.averaged)}
        for phase in self.phases:
            facts |= phase.identity()
        return {**facts, **self.identity}


@dataclass(frozen=True)
class Task:
    """One network that is trained with one loss: a PhasedTask with one phase.

    build() makes the network; batch(step, slots) the samples `slots` of the 0-based optimiser step `step`;
    loss(network, batch) a `Loss`. averaged: whether an average (EMA) of the weights is kept, which is then the result.
    flops(): operations of one sample. identity, preview, memory and smaller are as in
    PhasedTask.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[int, Sequence[int]], Batch]
    loss: Callable[[nn.Module, Batch], Loss]
    identity: Mapping[str, Any] = field(default_factory=dict)
    preview: Callable[[nn.Module, int], None] | None = None
    flops: Callable[[], int] | None = None
    memory: Callable[[TrainConfig, int], Need] | None = None
    smaller: Sequence[Mapping[str, Any]] = ()
    averaged: bool = True

    def phased(self) -> PhasedTask:
        """Return the same training as a PhasedTask. Network and phase have the empty name: see `keyed`."""
        preview, flops = self.preview, self.flops

        def loss(networks: Networks, batch: Batch, _step: int) -> Loss:
            return self.loss(networks[""], batch)

        def show(networks: Networks, step: int) -> None:
            if preview is not None:
                preview(networks[""], step)

        return PhasedTask(
            self.name,
            lambda: {"": self.build()},
            (Phase("", ("",), self.batch, loss, watch_explosion=True),),
            averaged=("",) if self.averaged else (),
            identity=self.identity,
            preview=None if preview is None else show,
            flops=None if flops is None else lambda _step: flops(),
            memory=self.memory,
            smaller=self.smaller,
        )


def keyed(kind: str, name: str) -> str:
    """Return the key of a network's or a phase's value in a checkpoint; that of a plain Task is `kind` alone."""
    return f"{kind}.{name}" if name else kind


def check_phases(task: PhasedTask, networks: Networks) -> None:
    """Raise InputError if the phases or the averages of a task name networks that it does not build."""
    names = [phase.name for phase in task.phases]
    if not names or len(set(names)) < len(names):
        raise InputError(f"{task.name}: its phases are {names}, expected at least one, each with another name")
    for phase in task.phases:
        extra = [name for name in phase.two_steps if name not in phase.networks]
        if extra:
            raise InputError(f"{task.name}: {phase.name} makes two steps of {extra[0]}, which does not learn in it")
    for owner, wanted in [*((phase.name, phase.networks) for phase in task.phases), ("averaged", task.averaged)]:
        unknown = [name for name in wanted if name not in networks]
        if unknown:
            raise InputError(f"{task.name}: {owner} names the network {unknown[0]}, expected one of {list(networks)}")
