"""What an optimiser step changes: the networks, their averages and the phases' optimisers, to and from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from medsyn.config import TrainConfig
from medsyn.models.fast.unet import set_activation_checkpointing
from medsyn.training.checkpoint import Tensors
from medsyn.training.ema import Ema
from medsyn.training.processes import average_gradients, share_buffers, synchronise
from medsyn.training.task import Networks, Phase, PhasedTask, check_phases, keyed


class TrainingState:
    """Networks on the device, their averages (in the main process) and one optimiser per phase.

    With several processes the network of a plain Task is wrapped by DistributedDataParallel, which exchanges gradients
    while the backward pass goes on. It expects one forward call per backward pass and a gradient for every parameter.
    A gradient penalty or a frozen second network breaks this, so the gradients of a PhasedTask are averaged after the
    backward pass instead, and its losses get the networks as they are.
    """

    def __init__(self, task: PhasedTask, config: TrainConfig, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.networks: dict[str, nn.Module] = dict(task.build())
        check_phases(task, self.networks)
        for network in self.networks.values():
            set_activation_checkpointing(network, config.activation_checkpointing is True)
        learning = {name for phase in task.phases for name in phase.networks}
        for name in self.networks.keys() - learning:
            self.networks[name].eval()  # batch statistics and codebooks of a network that never learns stay too
        if config.compile:
            for network in self.networks.values():
                network.compile()  # in place: names and values of the weights stay
        self.configs = {phase.name: phase.config(config) for phase in task.phases}
        optimizers = {phase.name: self._adamw(phase) for phase in task.phases}
        self._trainable = {
            name: [p for p in net.parameters() if p.requires_grad] for name, net in self.networks.items()
        }
        self._learning: frozenset[str] | None = None
        self._plain = "" in self.configs
        self.given: Networks = {  # to the losses
            name: accelerator.prepare_model(network, evaluation_mode=not self._plain)
            for name, network in self.networks.items()
        }
        self.optimizers: dict[str, AcceleratedOptimizer] = {
            name: accelerator.prepare_optimizer(optimizer) for name, optimizer in optimizers.items()
        }
        self.averages: dict[str, Ema] = {}
        if accelerator.is_main_process:
            self.averages = {name: Ema.of(self.networks[name], config) for name in task.averaged}

    def begin(self, phase: Phase) -> None:
        """Freeze the networks that do not learn in a phase; parameters that were built frozen stay so."""
        learning = frozenset(phase.networks)
        if learning == self._learning or self._plain:
            return
        self._learning = learning
        for name, parameters in self._trainable.items():
            for parameter in parameters:
                parameter.requires_grad_(name in learning)

    def exchange(self, *, last: bool) -> AbstractContextManager[None]:
        """Return a context for one micro-batch; gradients are exchanged in the last one of an update only."""
        return synchronise(self.accelerator, next(iter(self.given.values())), last=last)

    def update(self, phase: Phase, rate: float) -> Tensor:
        """Clip the gradients of a phase and let its optimiser step; return their norm before clipping."""
        optimizer, parameters = self.optimizers[phase.name], self._parameters(phase)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if not self._plain:
            average_gradients(self.accelerator, parameters)
        self.accelerator.unscale_gradients(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, self.configs[phase.name].max_grad_norm)
        optimizer.step()
        if phase.two_steps and not optimizer.step_was_skipped:
            for name in set(phase.networks).difference(phase.two_steps):
                self.networks[name].zero_grad()  # the optimiser passes over parameters without a gradient
            optimizer.optimizer.step()  # not the wrapper, which would undo the scale of the loss again
        optimizer.zero_grad(set_to_none=True)
        if phase.after_update is not None:
            with torch.no_grad():
                phase.after_update(self.networks)
        if not self._plain:
            share_buffers(self.accelerator, self.networks.values())
        return torch.as_tensor(norm)

    def average(self, step: int) -> None:
        """Take the weights after 1-based optimiser step `step` into the averages."""
        for name, average in self.averages.items():
            average.update(self.networks[name], step)

    @contextmanager
    def evaluated(self) -> Iterator[Networks]:
        """Yield the networks in evaluation mode with their averaged weights; everything is as before afterwards."""
        modes = [(module, module.training) for network in self.networks.values() for module in network.modules()]
        with ExitStack() as stack:
            for name, average in self.averages.items():
                stack.enter_context(average.in_place_of(self.networks[name]))
            for network in self.networks.values():
                network.eval()
            with torch.no_grad():
                yield self.networks
        for module, training in modes:  # one by one: a part of a network may be in evaluation mode
            module.training = training

    def finish(self) -> Networks:
        """Return the networks in evaluation mode, with the averaged weights where there are such."""
        for name, network in self.networks.items():
            for parameter in self._trainable[name]:
                parameter.requires_grad_(True)
            if name in self.averages:
                network.load_state_dict(self.averages[name].average, strict=False)  # tied weights have one name there
            network.eval()
        return self.networks

    def tensors(self) -> Tensors:
        """Return everything that a checkpoint keeps of the main process."""
        tensors = {keyed("network", name): network.state_dict() for name, network in self.networks.items()}
        tensors |= {keyed("ema", name): average.average for name, average in self.averages.items()}
        for name, optimizer in self.optimizers.items():
            moments = optimizer.state_dict()["state"]
            tensors[keyed("optimizer", name)] = {
                f"{index}.{key}": value for index, state in moments.items() for key, value in state.items()
            }
        return tensors

    def load(self, tensors: Tensors) -> None:
        """Continue from the tensors of a checkpoint of the same task."""
        for name, network in self.networks.items():
            network.load_state_dict(tensors.get(keyed("network", name), {}))  # one without parameters has no tensors
        for name, average in self.averages.items():
            average.load(tensors[keyed("ema", name)])
        for name, optimizer in self.optimizers.items():
            [group] = optimizer.state_dict()["param_groups"]
            parameters = optimizer.param_groups[0]["params"]
            moments = _moments(tensors.get(keyed("optimizer", name), {}), parameters)
            optimizer.load_state_dict({"state": moments, "param_groups": [group]})

    def _parameters(self, phase: Phase) -> list[nn.Parameter]:
        return [parameter for name in phase.networks for parameter in self.networks[name].parameters()]

    def _adamw(self, phase: Phase) -> torch.optim.AdamW:
        config = self.configs[phase.name]
        return torch.optim.AdamW(
            self._parameters(phase), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )


def _moments(flat: Mapping[str, Tensor], parameters: list[nn.Parameter]) -> dict[int, dict[str, Tensor]]:
    """Return the state of an optimiser from names `index.name`, each moment laid out in memory as its parameter.

    The values are copies, because the file that they are mapped from may be removed.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for path, value in flat.items():
        index, _, name = path.partition(".")
        parameter = parameters[int(index)].detach()
        copy = value.clone() if name == "step" else torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[name] = copy
    return state
