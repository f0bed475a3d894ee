"""The denoiser in plain form: a U-Net that predicts the clean volume x0 from a noisy one, to be read beside the paper.

With `cond_dim` it is the low-resolution network (text cross-attention at the bottom), without it and with
`condition_channels` the super-resolution network. At dim 160, mults 1-2-4-8, 8 heads, 4 bottom blocks, 768-wide text it
has the 716,215,684 parameters of the authors' low-resolution network; at dim 56, 4 heads, 1 bottom block, 4 condition
channels the 54,307,908 of their super-resolution network (names of their state dict: medsyn.models.medsyn_keys).

Shapes: x [B, C, D, H, W] in [-1, 1] plus noise, tau [B] in 0..1000, text [B, num_tokens, cond_dim],
condition [B, condition_channels, D, H, W]. H and W must be divisible by 2^(levels - 1); D is never resampled.

Training and sampling run `medsyn.models.fast.unet.FastUNet`, the same network with the same weights by faster
operations. The tests prove that both agree.

Some options are ours, off by default, and let small networks learn in minutes: `patch_size` p works on p^3 voxels at
a time (space to depth, Shi et al. 2016; D, H and W must then be divisible by p as well), `sigma_data` leaves the
network what the noise hides (after the preconditioning of Karras et al. 2022, table 1, here for x0 prediction under a
variance-preserving schedule), `add_condition` makes it predict the difference from its condition, `standardize` the
difference from the mean training volume in standard deviations, and `pooled_text` adds the mean state of the text to
the time embedding (Saharia et al. 2022, section 2.3) of all blocks after the first attention to the text.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from medsyn.config import UNetConfig
from medsyn.diffusion.schedule import TAU_PER_T, alpha_bar
from medsyn.models.blocks import (
    ChannelNorm,
    ResBlock,
    SpatialAttention,
    TextCrossAttention,
    TimeEmbedding,
    downsample,
    upsample,
)

KERNEL_2D = (1, 3, 3)
KERNEL_3D = (3, 3, 3)


class Level(nn.Module):
    """One resolution of the down or up path: two in-plane blocks, a 3-D block, a resampling (absent at the end)."""

    def __init__(self, dim_in: int, dim_out: int, num_groups: int, time_dim: int, resample: nn.Module | None) -> None:
        super().__init__()
        self.first = ResBlock(dim_in, dim_out, KERNEL_2D, num_groups, time_dim)
        self.second = ResBlock(dim_out, dim_out, KERNEL_2D, num_groups, time_dim)
        self.solid = ResBlock(dim_out, dim_out, KERNEL_3D, num_groups, time_dim)
        self.resample = resample if resample is not None else nn.Identity()

    def down(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result and the skip, which is taken before the resampling and before the 3-D block."""
        skip = self.second(self.first(x, time), time)
        return self.solid(self.resample(skip), time), skip

    def up(self, x: Tensor, time: Tensor, order: str) -> Tensor:
        """Return the result of x above its skip. Order A upsamples early (the authors' training scripts), B late."""
        x = self.first(x, time)
        if order == "A":
            return self.solid(self.second(self.resample(x), time), time)
        return self.resample(self.solid(self.second(x, time), time))


class BottomBlock(nn.Module):
    """Norm of the self-attention (whose matrices all blocks share), text cross-attention, 3-D block."""

    def __init__(self, dim: int, config: UNetConfig, time_dim: int, cond_dim: int | None) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim)
        heads, mask = config.num_heads, config.mask_padding
        self.cross_attention = TextCrossAttention(dim, cond_dim, heads, mask_padding=mask) if cond_dim else None
        self.solid = ResBlock(dim, dim, KERNEL_3D, config.num_groups, time_dim)

    def forward(self, x: Tensor, time: Tensor, attention: SpatialAttention, text: Tensor | None) -> Tensor:
        """x [B, C, D, H, W], text [B, num_tokens, cond_dim] or None without cross-attention -> [B, C, D, H, W]."""
        x = attention(x, self.norm)
        if self.cross_attention is not None:
            x = self.cross_attention(x, text)
        return self.solid(x, time)


class UNet(nn.Module):
    """Denoiser of both resolutions; see the module's docstring.

    channels: of the volume. condition_channels: of the low-resolution condition, which is concatenated before the
    volume. cond_dim, num_tokens: shape of the text states; cond_dim None builds no text module.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        channels: int = 4,
        condition_channels: int = 0,
        cond_dim: int | None = None,
        num_tokens: int = 192,
    ) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        self.condition_channels = condition_channels
        dim, groups, time_dim = config.dim, config.num_groups, 4 * config.dim
        widths = [dim, *(dim * mult for mult in config.mults)]
        pairs = list(pairwise(widths))
        last = len(pairs) - 1
        kernel = config.init_kernel

        self.null_cond_emb = nn.Parameter(torch.randn(1, num_tokens, cond_dim)) if cond_dim else None
        self.text_mlp = nn.Linear(cond_dim, time_dim) if cond_dim and config.pooled_text else None
        statistics = (torch.zeros(channels, 1, 1, 1), torch.ones(channels)) if config.standardize else (None, None)
        self.register_buffer("data_mean", statistics[0])  # [C, 1, 1, 1], or [C, D, H, W] after `set_statistics`
        self.register_buffer("data_std", statistics[1])  # [C]
        voxels = config.patch_size**3
        self.init_conv = nn.Conv3d((channels + condition_channels) * voxels, dim, kernel, padding=kernel // 2)
        self.time_mlp = nn.Sequential(
            TimeEmbedding(dim), nn.Linear(dim, time_dim), nn.GELU(), nn.Linear(time_dim, time_dim)
        )
        self.downs = nn.ModuleList(
            Level(low, high, groups, time_dim, downsample(high) if i < last else None)
            for i, (low, high) in enumerate(pairs)
        )
        bottom = widths[-1]
        self.bottom_in = ResBlock(bottom, bottom, KERNEL_2D, groups, time_dim)
        self.attention = SpatialAttention(bottom, config.num_heads)
        self.bottom = nn.ModuleList(
            BottomBlock(bottom, config, time_dim, cond_dim) for _ in range(config.num_bottom_blocks)
        )
        self.bottom_out = ResBlock(bottom, bottom, KERNEL_2D, groups, time_dim)
        self.ups = nn.ModuleList(
            Level(2 * high, low, groups, time_dim, upsample(low) if i < last else None)
            for i, (low, high) in enumerate(reversed(pairs))
        )
        self.head = ResBlock(2 * dim, dim, KERNEL_2D, groups, None)
        self.to_volume = nn.Conv3d(dim, channels * voxels, 1)
        if config.add_condition:  # training starts from the condition itself
            nn.init.zeros_(self.to_volume.weight)
            nn.init.zeros_(self.to_volume.bias)  # type: ignore[arg-type]

    def forward(
        self,
        x: Tensor,
        tau: Tensor,
        text: Tensor | None = None,
        drop_text: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Predict x0 [B, C, D, H, W].

        Samples with drop_text [B] (bool), or all if text is None, get the learned null text.
        """
        self.check_condition(condition)
        text = self.text_of_samples(len(x), text, drop_text)
        time = self.time_mlp(tau)
        pooled = self.pooled_text(text)
        first = self.init_conv(to_patches(join_condition(condition, x), self.config.patch_size))
        hidden, skips = first, []
        for level in self.downs:
            hidden, skip = level.down(hidden, time)  # type: ignore[operator]
            skips.append(skip)
        hidden = self.bottom_in(hidden, time)
        if pooled is not None:
            time = time + pooled
        for block in self.bottom:
            hidden = block(hidden, time, self.attention, text)
        hidden = self.bottom_out(hidden, time)
        for level in self.ups:
            hidden = level.up(torch.cat([hidden, skips.pop()], dim=1), time, self.config.up_order)  # type: ignore[operator]
        hidden = self.to_volume(self.head(torch.cat([hidden, first], dim=1)))
        return self.precondition(x, tau, condition, from_patches(hidden, self.config.patch_size))

    def check_condition(self, condition: object | None) -> None:
        """Raise a ValueError unless a condition is given to a network that takes one, and to no other."""
        if (condition is not None) != bool(self.condition_channels):
            raise ValueError(f"this network takes {self.condition_channels} condition channels")

    def text_of_samples(self, batch: int, text: Tensor | None, drop_text: Tensor | None) -> Tensor | None:
        """Return the text states of each sample, with the learned null text where it is dropped or not given."""
        if self.null_cond_emb is None:
            return None
        null = self.null_cond_emb.expand(batch, -1, -1)
        if text is None:
            return null
        if text.shape[1:] != null.shape[1:]:
            raise ValueError(
                f"text states have shape {tuple(text.shape[1:])}, expected {tuple(null.shape[1:])} (tokens, width)"
            )
        return text if drop_text is None else torch.where(drop_text[:, None, None], null, text)

    def pooled_text(self, text: Tensor | None) -> Tensor | None:
        """Return what `pooled_text` adds to the time embedding, [B, time_dim], for text [B, num_tokens, cond_dim].

        Tokens whose states are all zero, which mark padding, are left out of the mean. None without the option.
        """
        if self.text_mlp is None or text is None:
            return None
        num_tokens = text.any(dim=-1).sum(dim=1, keepdim=True).clamp(min=1)
        return self.text_mlp(text.sum(dim=1) / num_tokens)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set what `standardize` knows of the training volumes: their mean [C, D, H, W], deviations from it [C]."""
        self.data_mean, self.data_std = mean, std

    def precondition(self, x: Tensor, tau: Tensor, condition: Tensor | None, output: Tensor) -> Tensor:
        """Return x0, given the network's output, by the options `add_condition`, `sigma_data` and `standardize`.

        With x = a x0 + b noise and x0 = known + rest, rest of standard deviation s, the best linear guess of the rest
        is a s^2 / (a^2 s^2 + b^2) (x - a known), and its error over s is e = b / (a^2 s^2 + b^2)^(1/2): 1 where the
        noise hides everything, 0 where nothing is hidden. The output is weighted with e. With `standardize` known is
        the mean training volume, s belongs to a channel, and the output is weighted with s e.
        """
        known = condition if self.config.add_condition else None
        std, unit = self.config.sigma_data, 1.0
        if self.data_mean is not None:
            known = self.data_mean.float()
            std = unit = self.data_std.float()[:, None, None, None]  # type: ignore[assignment]
        if std is not None:
            signal = alpha_bar(tau / TAU_PER_T)[:, None, None, None, None]
            total = signal * std**2 + 1 - signal
            rest = x if known is None else x - signal.sqrt() * known
            output = signal.sqrt() * std**2 / total * rest + unit * ((1 - signal) / total).sqrt() * output
        return output if known is None else known + output


def join_condition(condition: Tensor | None, x: Tensor) -> Tensor:
    """Return the condition and the noisy volume on the channel axis, in this order."""
    return x if condition is None else torch.cat([condition, x], dim=1)


def to_patches(x: Tensor, size: int) -> Tensor:
    """Rearrange space to depth: [B, C, D, H, W] -> [B, C size^3, D / size, H / size, W / size]."""
    if size == 1:
        return x
    batch, channels, depth, height, width = x.shape
    x = x.reshape(batch, channels, depth // size, size, height // size, size, width // size, size)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, -1, depth // size, height // size, width // size)


def from_patches(x: Tensor, size: int) -> Tensor:
    """Rearrange depth to space, the inverse of `to_patches`."""
    if size == 1:
        return x
    batch, _, depth, height, width = x.shape
    x = x.reshape(batch, -1, size, size, size, depth, height, width).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, -1, depth * size, height * size, width * size)
