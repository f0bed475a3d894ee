"""What a training costs: floating-point operations of a sample, and the memory at its peak."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

GIB = 2**30


def count_flops(
    build: Callable[[], nn.Module],
    loss: Callable[[nn.Module, Any], Tensor],
    batch: Mapping[str, Tensor],
) -> int:
    """Operations (2 per multiply-add) of one forward and backward pass over `batch`, counted without doing them.

    Matrix products, convolutions and attention count, as is usual for model-FLOP utilisation; `build` must make the
    network without activation checkpointing, whose second forward pass is no work of the model.
    """
    with torch.device("meta"):
        network = build()
    shapes = {name: value.to("meta") for name, value in batch.items()}
    with FlopCounterMode(display=False) as counter:
        loss(network, shapes).backward()
    return int(counter.get_total_flops())


def peak_memory_gib(device: torch.device) -> float:
    """Largest memory so far in GiB: allocated on a CUDA device, or the resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB
