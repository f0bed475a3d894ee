"""Layers whose weight is divided by an estimate of its largest singular value (spectral normalisation).

Miyato et al. 2018 (arXiv:1802.05957), in the form of BigGAN-PyTorch (MIT licence), which HA-GAN uses: one left vector
is stored per layer, and every forward pass makes one power iteration from it. PyTorch's
`torch.nn.utils.parametrizations.spectral_norm` gives other numbers: it updates the two vectors in the other order,
makes 15 iterations at the start, and none in evaluation mode.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsyn.models.fast.context import autocast_off

_EPS = 1e-12


class SpectralConv3d(nn.Conv3d):
    """nn.Conv3d with zero padding and a spectrally normalised weight; the buffer `left` [1, out] is its left vector."""

    left: Tensor

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        kernel: tuple[int, int, int],
        stride: tuple[int, int, int],
        padding: tuple[int, int, int],
    ) -> None:
        super().__init__(dim_in, dim_out, kernel, stride=stride, padding=padding)
        self.register_buffer("left", torch.randn(1, dim_out))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, dim_in, D, H, W] -> [B, dim_out, D', H', W']."""
        weight = spectrally_normalised(self.weight, self.left, store=self.training)
        return F.conv3d(x, weight, self.bias, self.stride, self.padding)


class SpectralLinear(nn.Linear):
    """nn.Linear with a spectrally normalised weight; the buffer `left` [1, out] is its left vector."""

    left: Tensor

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out)
        self.register_buffer("left", torch.randn(1, dim_out))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., dim_in] -> [..., dim_out]."""
        return F.linear(x, spectrally_normalised(self.weight, self.left, store=self.training), self.bias)


def spectrally_normalised(weight: Tensor, left: Tensor, *, store: bool) -> Tensor:
    """Return `weight` [out, ...] divided by sigma, which one power iteration from `left` [1, out] estimates.

    No gradient passes through the two vectors. With `store` the new left vector is written into `left`, as in training
    mode. It is float32 under autocast too.
    """
    with autocast_off(weight):
        matrix = weight.flatten(1)
        with torch.no_grad():
            right = F.normalize(left @ matrix, eps=_EPS)
            new_left = F.normalize(right @ matrix.T, eps=_EPS)
            if store:
                left.copy_(new_left)
        return weight / (right @ matrix.T @ new_left.T).squeeze()
