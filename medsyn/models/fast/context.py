"""Conditions under which the fast operations may be used."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Return whether x [B, C, D, H, W] lies in memory with its channels last."""
    return x.is_contiguous(memory_format=torch.channels_last_3d)


def is_plain_cpu(x: Tensor) -> bool:
    """Return whether x is a float32 CPU tensor outside autograd, autocast and compiler, so that it may be changed."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def autocast_off(x: Tensor) -> torch.autocast:
    """Return the context in which operations on x keep its type."""
    return torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False)
