"""The convolutional networks of WGAN and alpha-GAN, two baselines of Table I; volumes are [B, 1, R, R, R] in [-1, 1].

R is a power of two: 128 in the paper's comparison, whose samples are enlarged to 256 by nearest neighbour
(`medsyn.diffusion.objective.enlarge`); 64 in the code of alpha-GAN; 32 in the demo. n = log2(R / 4) counts how often
a network doubles or halves the grid between 4^3 and R^3.

Sources: alpha-GAN is Kwon et al., MICCAI 2019 (code: github.com/cyclomon/3dbraingen, which also holds a WGAN at 64^3).
Both at 128^3 are the baselines of HA-GAN, Sun et al., JBHI 2022 (code: github.com/batmanlab/HA-GAN, history before May
2022). Names and shapes of the parameters of Generator with its default stem, of `alpha_discriminator`, `alpha_encoder`
and CodeDiscriminator are theirs. The weights start from PyTorch's defaults, as there.

Batch normalisation: in training mode a volume depends on the others of its batch, critics included. Sample in
evaluation mode, where a volume depends on its latent alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medsyn.models.fast.sixteen_bits import Doubled

Size3 = tuple[int, int, int]
Geometry = tuple[Size3, Size3, Size3]
"""Kernel, stride and padding (D, H, W) of a convolution."""
HALVE_ALL: Geometry = ((4, 4, 4), (2, 2, 2), (1, 1, 1))
HALVE_SLICE: Geometry = ((1, 4, 4), (1, 2, 2), (0, 1, 1))
WHOLE: Geometry = ((4, 4, 4), (1, 1, 1), (0, 0, 0))
WHOLE_SLICE: Geometry = ((1, 4, 4), (1, 1, 1), (0, 0, 0))
SMALLEST = 4
SLOPE = 0.2


def num_levels(size: int) -> int:
    """Return n = log2(size / 4) of a cube; raise ValueError unless `size` is a power of two of at least 16."""
    if size < 4 * SMALLEST or size & (size - 1):
        raise ValueError(f"size must be a power of two and at least {4 * SMALLEST}, got {size}")
    return (size // SMALLEST).bit_length() - 1


class Generator(nn.Module):
    """The generator of both methods: [B, latent_dim] -> [B, 1, R, R, R] in (-1, 1).

    A stem makes width * 2^(n-1) channels on 4^3. Each of n upsamplings doubles the grid by nearest neighbour and
    convolves 3^3 without bias, to half the channels, the last one to one channel and tanh. `width` (64 in both) is the
    number of channels on (R/2)^3. The stem is a transposed convolution without bias; `linear_stem` takes the linear
    layer with bias that Kwon's WGAN has instead.
    """

    def __init__(self, size: int = 128, latent_dim: int = 1000, width: int = 64, *, linear_stem: bool = False) -> None:
        super().__init__()
        self.size, self.latent_dim = size, latent_dim
        self._num_levels = num_levels(size)
        self._widths = [width * 2**level for level in reversed(range(self._num_levels))]
        self.linear_stem = linear_stem
        self.tp_conv1: nn.Module
        if linear_stem:
            self.tp_conv1 = nn.Linear(latent_dim, self._widths[0] * SMALLEST**3)
        else:
            self.tp_conv1 = nn.ConvTranspose3d(latent_dim, self._widths[0], SMALLEST, bias=False)
        for level, num_out in enumerate([*self._widths[1:], 1], start=1):
            setattr(self, f"bn{level}", nn.BatchNorm3d(self._widths[level - 1]))
            convolution = nn.Conv3d(self._widths[level - 1], num_out, 3, padding=1, bias=False)
            setattr(self, f"tp_conv{level + 1}", convolution)
        self.relu, self.up = nn.ReLU(), Doubled()

    def forward(self, z: Tensor) -> Tensor:
        """z [B, latent_dim], standard normal -> volumes [B, 1, R, R, R]."""
        stem = self.tp_conv1(z if self.linear_stem else z[:, :, None, None, None])
        x = stem.reshape(len(z), self._widths[0], SMALLEST, SMALLEST, SMALLEST)
        for level in range(1, self._num_levels + 1):
            x = self.relu(getattr(self, f"bn{level}")(x))
            x = getattr(self, f"tp_conv{level + 1}")(self.up(x))
        return x.tanh()


class Encoder(nn.Module):
    """Strided convolutions with bias, as critic or as encoder: [B, 1, R, R, R] -> [B, num_out * positions].

    The convolutions have the geometries `halvings` and double the channels up to `top_width`. Batch normalisation
    follows all but the first, leaky ReLU (0.2) each. `head` maps to num_out channels, without activation, on one or
    several positions.
    """

    def __init__(self, halvings: Sequence[Geometry], head: Geometry, num_out: int = 1, top_width: int = 512) -> None:
        super().__init__()
        self._num_halvings = len(halvings)
        if top_width % 2 ** (self._num_halvings - 1):
            raise ValueError(f"top_width must be a multiple of {2 ** (self._num_halvings - 1)}, got {top_width}")
        widths = [1, *(top_width // 2**level for level in reversed(range(self._num_halvings)))]
        for level, (kernel, stride, padding) in enumerate(halvings, start=1):
            convolution = nn.Conv3d(widths[level - 1], widths[level], kernel, stride, padding)
            setattr(self, f"conv{level}", convolution)
            if level > 1:
                setattr(self, f"bn{level}", nn.BatchNorm3d(widths[level]))
        kernel, stride, padding = head
        setattr(self, f"conv{self._num_halvings + 1}", nn.Conv3d(top_width, num_out, kernel, stride, padding))
        self.activation = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 1, R, R, R] in [-1, 1] -> [B, num_out * positions]: logits of a critic, or a code."""
        for level in range(1, self._num_halvings + 1):
            x = getattr(self, f"conv{level}")(x)
            if level > 1:
                x = getattr(self, f"bn{level}")(x)
            x = self.activation(x)
        return getattr(self, f"conv{self._num_halvings + 1}")(x).flatten(1)


def wgan_critic(size: int = 128, top_width: int = 512) -> Encoder:
    """Return the critic of HA-GAN's WGAN: [B, 1, R, R, R] -> [B, 16], one logit per slab of the depth.

    All but the last two halvings act on every axis, so that 16 slices are left. The last two and the head act within
    slices.
    """
    levels = num_levels(size)
    return Encoder([HALVE_ALL] * (levels - 2) + [HALVE_SLICE] * 2, WHOLE_SLICE, 1, top_width)


def kwon_critic(size: int = 64, top_width: int = 512) -> Encoder:
    """Return the critic of Kwon's WGAN: [B, 1, R, R, R] -> [B, 8], from a head that halves 4^3 once more."""
    return Encoder([HALVE_ALL] * num_levels(size), HALVE_ALL, 1, top_width)


def alpha_discriminator(size: int = 128, top_width: int = 512) -> Encoder:
    """Return alpha-GAN's discriminator of volumes: [B, 1, R, R, R] -> [B, 1], a logit without sigmoid."""
    return Encoder([HALVE_ALL] * num_levels(size), WHOLE, 1, top_width)


def alpha_encoder(size: int = 128, latent_dim: int = 1000, top_width: int = 512) -> Encoder:
    """Return alpha-GAN's encoder: [B, 1, R, R, R] -> codes [B, latent_dim], deterministic."""
    return Encoder([HALVE_ALL] * num_levels(size), WHOLE, latent_dim, top_width)


class CodeDiscriminator(nn.Module):
    """Alpha-GAN's discriminator of codes: [B, latent_dim] -> [B, 1], a logit without sigmoid.

    Its training code has `num_units` 4096; the default of its module, 750, is not used there.
    """

    def __init__(self, latent_dim: int = 1000, num_units: int = 4096) -> None:
        super().__init__()
        self.l1 = _dense(latent_dim, num_units)
        self.l2 = _dense(num_units, num_units)
        self.l3 = nn.Linear(num_units, 1)

    def forward(self, code: Tensor) -> Tensor:
        """Code [B, latent_dim], an encoder's or standard normal -> [B, 1]."""
        return self.l3(self.l2(self.l1(code)))


def _dense(num_in: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_in, num_out), nn.BatchNorm1d(num_out), nn.LeakyReLU(SLOPE))
