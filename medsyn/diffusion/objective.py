"""The training objective: mean squared error of the predicted clean volume, and the super-resolution condition.

Volumes are [B, C, D, H, W] in [-1, 1], t is [B] in [0, 1). Randomness is given by the caller, so a loss is a pure
function of its arguments.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medsyn.diffusion.schedule import TAU_PER_T, add_noise


def denoising_loss(network: nn.Module, x0: Tensor, epsilon: Tensor, t: Tensor, **conditions: Tensor | None) -> Tensor:
    """E || network(x_t, tau) - x0 ||^2 over all channels and voxels, unweighted; `conditions` go to the network."""
    prediction = network(add_noise(x0, epsilon, t), TAU_PER_T * t, **conditions)
    return F.mse_loss(prediction.float(), x0)


def reduce_resolution(volume: Tensor, factor: int) -> Tensor:
    """Nearest-neighbour reduction: indices 0, factor, 2 factor, ... of the last three axes."""
    return volume[..., ::factor, ::factor, ::factor]


def enlarge(volume: Tensor, factor: int) -> Tensor:
    """Nearest-neighbour enlargement of the last three axes of [B, C, D, H, W]."""
    return F.interpolate(volume, scale_factor=factor, mode="nearest")


def super_res_condition(x0: Tensor, factor: int, noise: Tensor, level: Tensor) -> Tensor:
    """Low-resolution condition of a clean crop: nearest x1/factor, nearest x factor, then (1-a) lr + a noise.

    noise has the shape of x0, level (a) is [B]; the network is not told a.
    """
    amount = level[:, None, None, None, None]
    low = enlarge(reduce_resolution(x0, factor), factor)
    return (1 - amount) * low + amount * noise
