"""Layers that keep 16-bit activations under autocast, which would make float32 ones of them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medsyn.models.fast.context import autocast_off
from medsyn.models.fast.normalization import group_norm


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm whose result has the type of its input, with sums in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, D, H, W] -> the same shape and type."""
        return group_norm(self, x)


class Doubled(nn.Module):
    """Double D, H and W by nearest neighbour, in the type of the input."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, D, H, W] -> [B, C, 2D, 2H, 2W]."""
        with autocast_off(x):
            return F.interpolate(x, scale_factor=2, mode="nearest")
