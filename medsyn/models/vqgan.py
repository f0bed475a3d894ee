"""The compressor of Medical Diffusion: a 3-D VQ-GAN that makes a volume of codes from a volume of intensities.

Khader et al. 2023 (Scientific Reports 13:7303). Widths and layers are those of the public code
(FirasGit/medicaldiffusion on GitHub) in the setting of its run scripts: 16 channels at full resolution, 32 groups, 8
latent channels, 16,384 codes. With three levels it compresses 8 times per axis and has 5,884,201 parameters without the
codebook, with two levels 4 times and 1,391,081.

Volumes are [B, 1, D, H, W] in [-1, 1]; D, H and W must be divisible by 2^levels. The decoder ends in a convolution, so
its output is not bounded. All convolutions pad by repeating the border.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medsyn.models.codebook import Codebook
from medsyn.models.fast.sixteen_bits import GroupNorm

_EPS = 1e-6  # of the group norms, in the public code


class ResidualBlock(nn.Module):
    """Return x + conv(SiLU(norm(conv(SiLU(norm(x)))))) at the same width and grid."""

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(num_groups, channels, _EPS), _convolution(channels, channels)
        self.norm2, self.conv2 = GroupNorm(num_groups, channels, _EPS), _convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, D, H, W] -> the same shape."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


class Doubling(nn.Module):
    """Transposed convolution that doubles D, H and W exactly, with a repeated border of one voxel."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(num_in, num_out, 4, stride=2, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, Cin, D, H, W] -> [B, Cout, 2D, 2H, 2W]."""
        return self.conv(F.pad(x, (1,) * 6, mode="replicate"))


class Encoder(nn.Module):
    """Volume [B, 1, D, H, W] -> features [B, width * 2^levels, D/f, H/f, W/f], f = 2^levels."""

    activation_checkpointing = False
    """Keep only the inputs of the blocks for the backward pass and compute the rest again."""

    def __init__(self, width: int, num_levels: int, num_groups: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(num_levels + 1)]
        self.first = _convolution(1, width)
        self.levels = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.Conv3d(low, high, 4, stride=2, padding=1, padding_mode="replicate"),
                    ResidualBlock(high, num_groups),
                ]
            )
            for low, high in pairwise(widths)
        )
        self.norm = GroupNorm(num_groups, widths[-1], _EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of a volume."""
        x = self.first(x)
        for level in self.levels:
            for block in level:  # type: ignore[attr-defined]
                x = _run(block, x, self.activation_checkpointing)
        return F.silu(self.norm(x))


class Decoder(nn.Module):
    """Features [B, width * 2^levels, d, h, w] -> volume [B, 1, fd, fh, fw], f = 2^levels; the output is not bounded.

    The first doubling keeps the width, each further one halves it, so the last level has 2 * width channels.
    """

    activation_checkpointing = False
    """As that of the encoder."""

    def __init__(self, width: int, num_levels: int, num_groups: int) -> None:
        super().__init__()
        highs = [width * 2**level for level in range(num_levels, 0, -1)]
        self.norm = GroupNorm(num_groups, highs[0], _EPS)
        self.levels = nn.ModuleList(
            nn.ModuleList([Doubling(before, high), ResidualBlock(high, num_groups), ResidualBlock(high, num_groups)])
            for before, high in zip([highs[0], *highs[:-1]], highs, strict=True)
        )
        self.last = _convolution(highs[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the volume of features."""
        x = F.silu(self.norm(x))
        for level in self.levels:
            for block in level:  # type: ignore[attr-defined]
                x = _run(block, x, self.activation_checkpointing)
        return self.last(x)


@dataclass(frozen=True)
class Reconstruction:
    """What the autoencoder makes of a volume.

    volume [B, 1, D, H, W]: not bounded. commitment: the scalar loss that draws features to their codes.
    used: how many codes the batch uses.
    """

    volume: Tensor
    commitment: Tensor
    used: Tensor


class VQGAN(nn.Module):
    """The autoencoder with its codebook.

    width: channels at full resolution. num_levels: halvings per axis. latent_channels: of a code.
    num_codes should lie well below the number of voxels of the latents of a batch: rare codes are replaced by random
    latents of the batch at every training step.
    """

    def __init__(
        self,
        width: int = 16,
        num_levels: int = 3,
        num_groups: int = 32,
        latent_channels: int = 8,
        num_codes: int = 16_384,
    ) -> None:
        super().__init__()
        if num_levels < 1 or width * 2 % num_groups:
            raise ValueError(
                f"num_groups {num_groups} must divide 2 * width {width}; num_levels {num_levels} be positive"
            )
        self.factor = 2**num_levels
        self.encoder = Encoder(width, num_levels, num_groups)
        self.to_latent = nn.Conv3d(width * self.factor, latent_channels, 1)
        self.codebook = Codebook(num_codes, latent_channels)
        self.from_latent = nn.Conv3d(latent_channels, width * self.factor, 1)
        self.decoder = Decoder(width, num_levels, num_groups)

    def forward(self, x: Tensor, *, update_codebook: bool = True) -> Reconstruction:
        """Reconstruct x [B, 1, D, H, W].

        In training mode the codebook learns from the batch, unless `update_codebook` is off.
        """
        quantised = self.codebook(self.latents(x), update=update_codebook and self.training)
        volume = self.decoder(self.from_latent(quantised.values))
        return Reconstruction(volume, quantised.commitment, quantised.used)

    def latents(self, x: Tensor) -> Tensor:
        """Return the latents [B, latent_channels, D/f, H/f, W/f] of a volume, before they are quantised."""
        sides = x.shape[2:]
        if any(side % self.factor for side in sides):
            raise ValueError(f"D, H and W must be divisible by {self.factor}, got {tuple(sides)}")
        return self.to_latent(self.encoder(x))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return what the denoiser is trained on: latents that are mapped from the range of the codebook to [-1, 1].

        They are not quantised, so values may leave [-1, 1].
        """
        low, high = self.codebook.bounds()
        return (self.latents(x) - low) / (high - low) * 2 - 1

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return the volume of latents as `encode` makes them: mapped back, quantised to codes, decoded."""
        low, high = self.codebook.bounds()
        values = (latents + 1) / 2 * (high - low) + low
        return self.decoder(self.from_latent(self.codebook.nearest(values)))


def _convolution(num_in: int, num_out: int) -> nn.Conv3d:
    return nn.Conv3d(num_in, num_out, 3, padding=1, padding_mode="replicate")


def _run(block: nn.Module, x: Tensor, checkpointing: bool) -> Tensor:
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
    return block(x)
