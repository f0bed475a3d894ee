"""The training objective: mean squared error of the predicted clean volume, and the super-resolution condition.

Volumes are [B, C, D, H, W] in [-1, 1], t is [B] in [0, 1). Randomness is given by the caller, so a loss is a pure
function of its arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from medsyn.config import Interpolation, ModelStage, Reduction
from medsyn.diffusion.schedule import TAU_PER_T, add_noise


def denoising_loss(
    network: nn.Module,
    x0: Tensor,
    epsilon: Tensor,
    t: Tensor,
    *,
    weights: Tensor | None = None,
    **conditions: Tensor | None,
) -> Tensor:
    """Return E || network(x_t, tau) - x0 ||^2 over all channels and voxels; `conditions` go to the network.

    weights [B, C] multiply the squared error of each sample's channels; None: all are 1, as in the paper.
    """
    prediction = network(add_noise(x0, epsilon, t), TAU_PER_T * t, **conditions).float()
    if weights is None:
        return F.mse_loss(prediction, x0)
    return (weights[:, :, None, None, None] * (prediction - x0).square()).mean()


def channel_errors(prediction: Tensor, x0: Tensor) -> Tensor:
    """Return the mean squared error of each sample and channel [B, C] of predicted clean volumes."""
    return (prediction.float() - x0).square().mean(dim=(2, 3, 4))


@dataclass(frozen=True)
class LowResolution:
    """How a volume is reduced by a factor along each axis, and enlarged again.

    reduction "nearest" (the authors') keeps the voxels at indices 0, factor, 2 factor, ... and "mean" takes the mean of
    each cube of factor^3 voxels. interpolation "nearest" (the authors') repeats every value, and "linear" puts it where
    the reduction took it (at the kept voxel, or at the centre of the cube), interpolates in between and repeats the
    outermost values beyond.
    """

    factor: int
    reduction: Reduction = "nearest"
    interpolation: Interpolation = "nearest"

    @classmethod
    def of(cls, stage: ModelStage) -> LowResolution:
        """Return how a network with these settings is trained."""
        return cls(stage.low_res_factor, stage.low_res_reduction, stage.train.condition_interpolation)

    def reduce(self, volume: Tensor) -> Tensor:
        """Reduce the last three axes of [..., C, D, H, W]."""
        if self.reduction == "mean":
            return F.avg_pool3d(volume, self.factor)
        return volume[..., :: self.factor, :: self.factor, :: self.factor]

    def enlarge(self, volume: Tensor) -> Tensor:
        """Enlarge the last three axes of [B, C, D, H, W]."""
        factor = self.factor
        if self.interpolation == "nearest":
            return F.interpolate(volume, scale_factor=factor, mode="nearest")
        if self.reduction == "mean":
            return F.interpolate(volume, scale_factor=factor, mode="trilinear", align_corners=False)
        size = [(count - 1) * factor + 1 for count in volume.shape[2:]]
        between = F.interpolate(volume, size=size, mode="trilinear", align_corners=True)
        return F.pad(between, (0, factor - 1) * 3, mode="replicate")


def super_res_condition(x0: Tensor, low_resolution: LowResolution, noise: Tensor, level: Tensor) -> Tensor:
    """Return the condition of a clean crop: reduced and enlarged to lr, then (1 - a) lr + a noise.

    noise has the shape of x0, level (a) is [B]; the network is not told a.
    """
    amount = level[:, None, None, None, None]
    low = low_resolution.enlarge(low_resolution.reduce(x0))
    return (1 - amount) * low + amount * noise
