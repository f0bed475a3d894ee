"""HA-GAN (Sun et al., IEEE JBHI 2022, arXiv:2008.01910), unconditional: one of the four methods of Table I.

The generator makes features A at a quarter of the volume's resolution. In training it makes two things from A: a
low-resolution volume, and from a few slices of A a slab of the volume at full resolution, which saves memory. In
sampling it makes the whole volume from all of A.

R is the side of the volume (64, 128 or 256), L = R/4 that of the low-resolution volume and of A, S = R/8 the number of
slices of a slab, c = `width`. Volumes are [B, 1, D, H, W] in [-1, 1], D counts axial slices.

Facts from the authors' repository (batmanlab/HA-GAN on GitHub, commits of 2022 to 2025); it has no licence file, and
no line of it was used. The form at 64^3 is this project's own: it leaves out one stage more. Mended defects of the
original: any width c works, the discriminator takes a batch of one, and its low-resolution part follows its width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medsyn.models.fast.sixteen_bits import Doubled, GroupNorm
from medsyn.models.hagan_sizes import NUM_SLABS, HaganSizes
from medsyn.models.spectral_norm import SpectralConv3d, SpectralLinear

NUM_GROUPS = 8
NUM_STAGES = {64: 1, 128: 2, 256: 3}
"""Number of stages at side R that keep their strided convolution in the discriminators and encoders."""
_SLOPE = 0.2


class HaganGenerator(nn.Module):
    """z [B, latent_dim] -> a volume [B, 1, R, R, R] in (-1, 1)."""

    def __init__(self, sizes: HaganSizes) -> None:
        super().__init__()
        c, self.sizes, self.latent_dim = sizes.width, sizes, sizes.latent_dim
        self.stem = nn.Linear(sizes.latent_dim, 64 * 16 * c)
        dims = (16 * c, 16 * c, 16 * c, 8 * c, 4 * c, 2 * c)
        num_ups = NUM_STAGES[sizes.size] + 1  # from 4^3 to L^3
        units = [_unit(_convolution(dims[i], dims[i + 1]), up=1 <= i <= num_ups) for i in range(len(dims) - 1)]
        self.common = nn.Sequential(*units)
        self.low = nn.Sequential(
            _unit(_convolution(2 * c, c)), _unit(_convolution(c, c // 2)), _convolution(c // 2, 1), nn.Tanh()
        )
        self.high = nn.Sequential(_unit(_convolution(2 * c, c), up=True), Doubled(), _convolution(c, 1), nn.Tanh())

    def features(self, z: Tensor) -> Tensor:
        """z [B, latent_dim] -> A [B, 2c, L, L, L]."""
        return self.common(self.stem(z).reshape(len(z), -1, 4, 4, 4))

    def forward(self, z: Tensor) -> Tensor:
        """z [B, latent_dim] -> whole volumes [B, 1, R, R, R], as they are sampled.

        They differ from the slabs of training, above all at the slabs' ends: there the convolutions see zeros, and the
        last group normalisation takes its statistics from the slab. The authors' networks have the same difference.
        """
        return self.high(self.features(z))

    def slab_and_low(self, z: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """z -> slab [B, 1, S, R, R] and low-resolution volume [B, 1, L, L, L].

        start: the slab's first slice, 0 to 7R/8. The features are cut at floor(start / 4), so the slab begins at the
        multiple of 4 below `start`.
        """
        features = self.features(z)
        first = start // 4
        slab = features[:, :, first : first + self.sizes.slab_slices // 4]
        return self.high(slab), self.low(features)


class HaganDiscriminator(nn.Module):
    """Judge a slab with its place, and a low-resolution volume; the logit is the mean of both."""

    def __init__(self, sizes: HaganSizes) -> None:
        super().__init__()
        width, num_stages = sizes.discriminator_width, NUM_STAGES[sizes.size]
        self.sizes = sizes
        dims = [1, *(width >> shift for shift in range(num_stages + 2, -1, -1))]
        # the slices S = R/8 are halved to one: by stages of kernel 4, then by two of kernel 2; H and W end at 4
        kernels = [(4, 4, 4)] * num_stages + [(2, 4, 4)] * 2 + [(1, 4, 4)]
        strides = [(2, 2, 2)] * (num_stages + 2) + [(1, 2, 2)]
        paddings = [(1, 1, 1)] * num_stages + [(0, 1, 1)] * 3
        layers = zip(dims[:-1], dims[1:], kernels, strides, paddings, strict=True)
        self.slab = nn.Sequential(
            *(_judging_unit(SpectralConv3d(*layer)) for layer in layers),
            _judging_unit(SpectralConv3d(width, width // 4, (1, 4, 4), (1, 1, 1), (0, 0, 0))),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            _judging_unit(SpectralLinear(width // 4 + 1, width // 8)), SpectralLinear(width // 8, 1)
        )
        dims = [1, *(width // 2 >> shift for shift in range(num_stages, -1, -1))]
        self.low = nn.Sequential(
            *(
                _judging_unit(SpectralConv3d(dims[i], dims[i + 1], (4, 4, 4), (2, 2, 2), (1, 1, 1)))
                for i in range(num_stages + 1)
            ),
            SpectralConv3d(width // 2, 1, (4, 4, 4), (1, 1, 1), (0, 0, 0)),
            nn.Flatten(),
        )

    def forward(self, slab: Tensor, low: Tensor, start: int) -> Tensor:
        """slab [B, 1, S, R, R] from slice `start` on (0 to 7R/8), low [B, 1, L, L, L] -> logits [B].

        In training mode every call advances the vectors of the spectral normalisation.
        """
        seen = self.slab(slab)
        place = seen.new_full((len(seen), 1), start / self.sizes.last_start)
        logits = self.head(torch.cat([seen, place], dim=1))
        return (logits + self.low(low)).squeeze(1) / 2


class HaganSlabEncoder(nn.Module):
    """Encode a slab as the generator's features of its place: [B, 1, S, R, R] -> [B, 2c, S/4, R/4, R/4]."""

    def __init__(self, sizes: HaganSizes) -> None:
        super().__init__()
        c = sizes.width
        self.layers = nn.Sequential(
            _unit(nn.Conv3d(1, c, 4, stride=2, padding=1)),
            _unit(_convolution(c, c)),
            _unit(nn.Conv3d(c, 2 * c, 4, stride=2, padding=1)),
        )

    def forward(self, slab: Tensor) -> Tensor:
        """slab [B, 1, S, R, R] in [-1, 1] -> features [B, 2c, S/4, R/4, R/4], not negative."""
        return self.layers(slab)

    def volume(self, volume: Tensor) -> Tensor:
        """Encode the NUM_SLABS disjoint slabs of a volume [B, 1, R, R, R] one by one -> [B, 2c, R/4, R/4, R/4]."""
        return torch.cat([self(slab) for slab in volume.chunk(NUM_SLABS, dim=2)], dim=2)


class HaganGlobalEncoder(nn.Module):
    """Encode the features of a whole volume as a latent: [B, 2c, R/4, R/4, R/4] -> [B, latent_dim]."""

    def __init__(self, sizes: HaganSizes) -> None:
        super().__init__()
        c, num_stages = sizes.width, NUM_STAGES[sizes.size]
        dims = [2 * c, *(8 * c >> shift for shift in range(num_stages, -1, -1))]
        self.layers = nn.Sequential(
            *(_unit(nn.Conv3d(dims[i], dims[i + 1], 4, stride=2, padding=1)) for i in range(num_stages + 1)),
            nn.Conv3d(8 * c, sizes.latent_dim, 4),
            nn.Flatten(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """features [B, 2c, R/4, R/4, R/4] -> z [B, latent_dim]."""
        return self.layers(features)


def build_hagan(sizes: HaganSizes, *, encoders: bool = True) -> dict[str, nn.Module]:
    """Return the networks by name, with new weights (PyTorch's defaults); sampling needs the generator alone."""
    networks: dict[str, nn.Module] = {"generator": HaganGenerator(sizes), "discriminator": HaganDiscriminator(sizes)}
    if encoders:
        networks |= {"slab_encoder": HaganSlabEncoder(sizes), "global_encoder": HaganGlobalEncoder(sizes)}
    return networks


def _convolution(dim_in: int, dim_out: int) -> nn.Conv3d:
    return nn.Conv3d(dim_in, dim_out, 3, padding=1)


def _unit(convolution: nn.Conv3d, *, up: bool = False) -> nn.Sequential:
    """Return a convolution, group normalisation and ReLU, after enlargement by 2 (nearest neighbour) if `up`."""
    enlarge = [Doubled()] if up else []
    norm = GroupNorm(NUM_GROUPS, convolution.out_channels)
    return nn.Sequential(*enlarge, convolution, norm, nn.ReLU(inplace=True))


def _judging_unit(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(layer, nn.LeakyReLU(_SLOPE, inplace=True))
