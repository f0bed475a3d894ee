"""3-D convolutions of stride 1: quick on a CPU, in parts of their input channels, or in float32.

PyTorch sends small single-volume and 1x1x1 convolutions on a CPU to a slow fallback. As a batch of slices, or called by
name, they run in oneDNN. Both ways need an input in the channels-last layout.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsyn.models.fast.context import autocast_off, is_channels_last, is_plain_cpu

_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


def convolve(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Return conv(x) for x [B, C, D, H, W]."""
    return _convolve(conv, x, conv.weight, conv.bias)


def convolve_first(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Return the share of the first x.shape[1] input channels, bias included."""
    return _convolve(conv, x, conv.weight[:, : x.shape[1]], conv.bias)


def convolve_last(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Return the share of the last x.shape[1] input channels, without the bias."""
    return _convolve(conv, x, conv.weight[:, -x.shape[1] :], None)


def convolve_shared(conv: nn.Conv3d, x: Tensor, skip: Tensor) -> Tensor:
    """Return conv of x [n b, C, D, H, W] above skip [b, C', D, H, W], which serves each of the n batches."""
    out = convolve_first(conv, x)
    out.unflatten(0, (-1, len(skip))).add_(convolve_last(conv, skip))
    return out


def convolve_in_float32(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Return conv(x) in float32 whatever the types of x and the weights, under autocast too."""
    with autocast_off(x):
        bias = None if conv.bias is None else conv.bias.float()
        return _convolve(conv, x.float(), conv.weight.float(), bias)


def _convolve(conv: nn.Conv3d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.device.type != "cpu" or not is_channels_last(x):
        return conv._conv_forward(x, weight, bias)
    padding = [k // 2 for k in conv.kernel_size]
    if _ONEDNN and is_plain_cpu(x):
        ones = (1, 1, 1)
        return torch.mkldnn_convolution(x, weight, bias, padding, ones, ones, 1)
    if conv.kernel_size[0] > 1:
        return conv._conv_forward(x, weight, bias)
    slices = x.transpose(1, 2).flatten(0, 1)  # [B, C, D, H, W] -> [B * D, C, H, W], a view
    out = F.conv2d(slices, weight[:, :, 0], bias, padding=padding[1:])
    return out.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
