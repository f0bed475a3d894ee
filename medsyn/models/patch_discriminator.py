"""The discriminators of Medical Diffusion's VQ-GAN: one of slices, one of volumes, with one logit per patch.

The layers are those of PatchGAN (Isola et al. 2017) with a padding of 2, as in the public code
(FirasGit/medicaldiffusion on GitHub). At width 64 there are 2,764,481 parameters in two dimensions and 11,049,665 in
three.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medsyn.models.batch_norm import BatchNorm

_SLOPE = 0.2


class PatchDiscriminator(nn.Module):
    """Five convolutions of edge 4, the first three of stride 2; batch normalisation in the middle three.

    num_dims: 2 for slices [B, 1, H, W], 3 for volumes [B, 1, D, H, W].
    """

    def __init__(self, num_dims: int, width: int = 64) -> None:
        super().__init__()
        if num_dims not in (2, 3):
            raise ValueError(f"num_dims must be 2 or 3, got {num_dims}")
        conv = nn.Conv2d if num_dims == 2 else nn.Conv3d
        layers: list[nn.Module] = [conv(1, width, 4, stride=2, padding=2)]
        for low, stride in ((1, 2), (2, 2), (4, 1)):
            middle = conv(low * width, 2 * low * width, 4, stride=stride, padding=2)
            layers.append(nn.Sequential(middle, BatchNorm(2 * low * width)))
        self.layers = nn.ModuleList(layers)
        self.last = conv(8 * width, 1, 4, padding=2)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits, one per patch (11 per axis for 64 voxels), and the four layers' outputs before them."""
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), _SLOPE)
            features.append(x)
        return self.last(x), features
