"""Exponential moving average of a network's parameters, kept in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medsyn.config import TrainConfig


class Ema:
    """average <- decay * average + (1 - decay) * parameters, every `every` steps; a plain copy before `start_step`."""

    def __init__(self, network: nn.Module, *, decay: float, start_step: int = 0, every: int = 1) -> None:
        self.decay, self.start_step, self.every = decay, start_step, every
        self.average = {name: p.detach().float().clone() for name, p in network.named_parameters()}

    @classmethod
    def of(cls, network: nn.Module, config: TrainConfig) -> Ema:
        """Begin the average of a network with the settings of a run."""
        return cls(network, decay=config.ema_decay, start_step=config.ema_start_step, every=config.ema_every)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the parameters after optimiser step number `step` (1-based)."""
        if step > self.start_step and step % self.every:
            return
        weight = 1.0 if step <= self.start_step else 1.0 - self.decay
        parameters = [p.detach().float() for p in network.parameters()]
        torch._foreach_lerp_(list(self.average.values()), parameters, weight)

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Continue from a saved average of the same network."""
        for name, value in self.average.items():
            value.copy_(average[name])

    @contextmanager
    def in_place_of(self, network: nn.Module) -> Iterator[None]:
        """Put the averaged weights into the network; both sets change places, nothing is copied."""
        self._exchange(network)
        try:
            yield
        finally:
            self._exchange(network)

    def _exchange(self, network: nn.Module) -> None:
        for name, parameter in network.named_parameters():
            parameter.data, self.average[name] = self.average[name], parameter.data
