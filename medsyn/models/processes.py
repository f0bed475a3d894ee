"""Use the samples of all processes of a training run in a layer, not only those of its own process.

All processes must call these functions equally often, in the same order and with tensors of one shape. A single process
gets its argument back, and so does a count on tensors without data, which the main process makes alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def num_processes() -> int:
    """Return the number of processes of the training run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


class _Mean(torch.autograd.Function):
    """The mean over the processes, which can be differentiated more than once."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total / num_processes()

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return process_mean(gradients[0])


def process_mean(values: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes.

    The gradient is that of the sum of all processes' losses: averaged over the processes, as the training loop does, it
    is the gradient of the mean loss.
    """
    return values if _alone(values) else _Mean.apply(values)


def from_all_processes(values: Tensor) -> Tensor:
    """Return the values [n, ...] of all processes, in their order, as [n * processes, ...]; without gradient."""
    if _alone(values):
        return values
    parts = [torch.empty_like(values) for _ in range(num_processes())]
    torch.distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def from_main_process(values: Tensor) -> Tensor:
    """Replace the values by those of the main process, in place."""
    if not _alone(values):
        torch.distributed.broadcast(values, src=0)
    return values


def _alone(values: Tensor) -> bool:
    return values.is_meta or num_processes() == 1
