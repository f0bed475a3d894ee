"""Conditions under which the fast operations may be used."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

NormForm = Literal["auto", "fused", "separate"]
"""How group norm, affine by time and SiLU are computed. "fused": as one operation, on any device
(`medsyn.models.fast.fused_norm`). "separate": one after the other, on a CPU by its own quick operations. "auto": fused
on CUDA and ROCm, else separate."""


def is_fused(form: NormForm, x: Tensor) -> bool:
    """Return whether norm, affine and SiLU of x are one operation.

    On tensors without data "auto" is not: the planner counts the separate operations, which keep more, until the fused
    one has been measured.
    """
    return form == "fused" or (form == "auto" and x.is_cuda)


def is_channels_last(x: Tensor) -> bool:
    """Return whether x [B, C, D, H, W] lies in memory with its channels last."""
    return x.is_contiguous(memory_format=torch.channels_last_3d)


def is_only_channels_last(x: Tensor) -> bool:
    """Return whether x [B, C, D, H, W] has its channels last and is not also contiguous, as one channel would be."""
    return is_channels_last(x) and not x.is_contiguous()


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
