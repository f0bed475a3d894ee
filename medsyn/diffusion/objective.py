"""The training objective: mean squared error of the predicted clean volume, and the super-resolution condition.

Volumes are [B, C, D, H, W] in [-1, 1], t is [B] in [0, 1). Randomness is given by the caller, so a loss is a pure
function of its arguments.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from medsyn.diffusion.schedule import TAU_PER_T, add_noise

Interpolation = Literal["nearest", "linear"]


def denoising_loss(network: nn.Module, x0: Tensor, epsilon: Tensor, t: Tensor, **conditions: Tensor | None) -> Tensor:
    """Return E || network(x_t, tau) - x0 ||^2 over all channels and voxels; `conditions` go to the network."""
    prediction = network(add_noise(x0, epsilon, t), TAU_PER_T * t, **conditions)
    return F.mse_loss(prediction.float(), x0)


def channel_errors(prediction: Tensor, x0: Tensor) -> Tensor:
    """Return the mean squared error of each sample and channel [B, C] of predicted clean volumes."""
    return (prediction.float() - x0).square().mean(dim=(2, 3, 4))


def reduce_resolution(volume: Tensor, factor: int) -> Tensor:
    """Reduce by nearest neighbour: take indices 0, factor, 2 factor, ... of the last three axes."""
    return volume[..., ::factor, ::factor, ::factor]


def enlarge(volume: Tensor, factor: int, interpolation: Interpolation = "nearest") -> Tensor:
    """Enlarge the last three axes of [B, C, D, H, W]: the inverse of `reduce_resolution` on the voxels that it keeps.

    "nearest" is the authors'. "linear" puts each value where `reduce_resolution` took it (index 0, factor, ...),
    interpolates in between and repeats the last value beyond.
    """
    if interpolation == "nearest":
        return F.interpolate(volume, scale_factor=factor, mode="nearest")
    size = [(count - 1) * factor + 1 for count in volume.shape[2:]]
    between = F.interpolate(volume, size=size, mode="trilinear", align_corners=True)
    return F.pad(between, (0, factor - 1) * 3, mode="replicate")


def super_res_condition(
    x0: Tensor, factor: int, noise: Tensor, level: Tensor, interpolation: Interpolation = "nearest"
) -> Tensor:
    """Return the low-resolution condition of a clean crop: nearest x1/factor, enlarged, then (1-a) lr + a noise.

    noise has the shape of x0, level (a) is [B]; the network is not told a.
    """
    amount = level[:, None, None, None, None]
    low = enlarge(reduce_resolution(x0, factor), factor, interpolation)
    return (1 - amount) * low + amount * noise
