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
variance-preserving schedule; `sigma_share` sets it for each channel), `add_condition` makes it predict the difference
from its condition, `mean_volume` the difference from the mean training volume, which it is given, `num_components` the
difference from a linear estimate by the principal components of the training volumes and the text (which
`num_text_kinds` reads by kinds of token states), and `pooled_text` adds the mean state of the text to the
time embedding (Saharia et al. 2022, section 2.3) of all blocks after the first attention to the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
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
from medsyn.models.fast.context import autocast_off
from medsyn.models.linear_estimate import Flow, PrincipalComponents, linear_estimate
from medsyn.models.text_features import TokenKinds, mean_state, text_features

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
        if config.mean_volume and condition_channels:
            raise ValueError("mean_volume is of a network without a condition")
        self.config = config
        self.channels = channels
        self.condition_channels = condition_channels
        self.flow: Flow | None = None
        dim, groups, time_dim = config.dim, config.num_groups, 4 * config.dim
        widths = [dim, *(dim * mult for mult in config.mults)]
        pairs = list(pairwise(widths))
        last = len(pairs) - 1
        kernel = config.init_kernel

        self.null_cond_emb = nn.Parameter(torch.randn(1, num_tokens, cond_dim)) if cond_dim else None
        self.text_mlp = nn.Linear(cond_dim, time_dim) if cond_dim and config.pooled_text else None
        self.register_buffer("data_mean", torch.zeros(channels, 1, 1, 1) if config.mean_volume else None)
        self.register_buffer("data_sigma", torch.ones(channels) if config.sigma_share is not None else None)
        count = config.num_components
        self.register_buffer("data_components", torch.zeros(count, channels, 1, 1, 1) if count else None)
        self.register_buffer("data_variances", torch.ones(count) if count else None)
        self.register_buffer("data_residual_variance", torch.ones(channels) if count else None)
        reads = cond_dim if count else None
        kinds = config.num_text_kinds
        self.register_buffer("data_kinds_weight", torch.zeros(kinds, reads) if reads and kinds else None)
        self.register_buffer("data_kinds_bias", torch.zeros(kinds) if reads and kinds else None)
        self.data_text_weight: Tensor | None
        self.data_text_offset: Tensor | None
        self.register_buffer("data_text_weight", torch.zeros(count, kinds or reads) if reads else None)
        self.register_buffer("data_text_offset", torch.zeros(count) if reads else None)
        voxels = config.patch_size**3
        self.init_conv = nn.Conv3d((channels + self.known_channels) * voxels, dim, kernel, padding=kernel // 2)
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
        if config.add_condition or config.mean_volume:  # training starts from what is known
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
        known, scale = self.estimate(x, tau, condition)
        given = join_condition(condition if condition is not None else self.given_volume(known), x)
        first = self.init_conv(to_patches(given, self.config.patch_size))
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
        shift = self.text_shift(self.text_coefficients(text), tau)
        return add(known, add(shift, from_patches(hidden, self.config.patch_size), scale))

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

        None without the option.
        """
        return None if self.text_mlp is None or text is None else self.text_mlp(mean_state(text))

    def text_coefficients(self, text: Tensor | None) -> Tensor | None:
        """Return how far a text [B, num_tokens, cond_dim] moves the mean along each component [B, K].

        With `num_text_kinds` the null text moves nothing. None without components.
        """
        if self.data_text_weight is None or text is None:
            return None
        with autocast_off(text):
            features = text_features(text.to(self.data_text_weight.dtype), self._kinds)
            moved = F.linear(features, self.data_text_weight, self.data_text_offset)
        if self._kinds is None:
            return moved
        assert self.null_cond_emb is not None
        return moved * text.ne(self.null_cond_emb).flatten(start_dim=1).any(dim=1, keepdim=True)

    @property
    def _kinds(self) -> TokenKinds | None:
        if self.data_kinds_weight is None:
            return None
        return TokenKinds(self.data_kinds_weight, self.data_kinds_bias)

    def text_shift(self, coefficients: Tensor | None, tau: Tensor) -> Tensor | None:
        """Return how far such a shift of the mean moves the linear estimate [B, C, D, H, W] at times tau [B] or [1]."""
        if coefficients is None:
            return None
        signal = alpha_bar(tau / TAU_PER_T)[:, None]
        hidden = (1 - signal) / (signal * self.data_variances + 1 - signal)
        if self.flow is not None:
            hidden = 1 - self.flow.share(self.data_variances, signal[:, 0])
        with autocast_off(self.data_components):
            return torch.einsum("bk,kcdhw->bcdhw", hidden * coefficients, self.data_components)

    @property
    def known_channels(self) -> int:
        """Number of channels before those of the volume: of the mean volume, or of the condition."""
        return self.channels if self.config.mean_volume else self.condition_channels

    def given_volume(self, known: Tensor | None) -> Tensor | None:
        """Return what the network is given of the known [B, C, D, H, W] where there is no condition, or None."""
        if self.data_mean is None or known is None:
            return None
        return known if self.data_components is not None else self.data_mean.to(known.dtype).expand_as(known)

    def reserve_statistics(self, size: Sequence[int]) -> None:
        """Give mean volume and components, where there are any, the grid [D, H, W] of the volumes; values undefined."""
        for name in ("data_mean", "data_components"):
            if (buffer := getattr(self, name)) is not None:
                setattr(self, name, buffer.new_empty(*buffer.shape[:-3], *size))

    def set_calls(self, times: Sequence[float], end_time: float) -> None:
        """Let the linear estimate stand for all that happens until the next of few calls, at falling times tau.

        end_time: t at which the teacher ends. A network without `num_components` stays as it is.
        """
        if self.config.num_components:
            signals = alpha_bar(torch.tensor(times, dtype=torch.float64) / TAU_PER_T)
            end = alpha_bar(torch.tensor(end_time, dtype=torch.float64))
            self.flow = Flow(signals, float(end))

    def fold_guidance(self, scale: float) -> None:
        """Let the linear estimate move by a text as it does under guidance with this scale."""
        weight, offset = self.data_text_weight, self.data_text_offset
        if weight is None or offset is None or scale == 1.0:
            return
        null = torch.zeros_like(offset)
        if self._kinds is None:  # else the null text moves nothing
            assert self.null_cond_emb is not None
            null = self.text_coefficients(self.null_cond_emb.detach())[0]  # type: ignore[index]
        self.data_text_weight, self.data_text_offset = scale * weight, scale * offset + (1 - scale) * null

    def set_statistics(
        self,
        mean: Tensor | None = None,
        deviations: Tensor | None = None,
        components: PrincipalComponents | None = None,
    ) -> None:
        """Set what the options need of the training volumes; None keeps what there is.

        mean [C, D, H, W] for `mean_volume`; deviations [C] from what is known, for `sigma_share`; components of the
        differences from the mean, for `num_components`.
        """
        if mean is not None and self.config.mean_volume:
            self.data_mean = mean
        if deviations is not None and self.config.sigma_share is not None:
            self.data_sigma = self.config.sigma_share * deviations
        if components is not None and self.config.num_components:
            self.data_components = components.vectors
            self.data_variances, self.data_residual_variance = components.variances, components.residual_variance
            if components.text is not None:
                self.data_text_weight, self.data_text_offset = components.text.weight, components.text.offset
            if components.kinds is not None:
                self.data_kinds_weight, self.data_kinds_bias = components.kinds.weight, components.kinds.bias

    def estimate(self, x: Tensor, tau: Tensor, condition: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the estimate of x0 before the network [B, C, D, H, W] and the factor of the network's output.

        An estimate of None stands for 0, a factor of None for 1. The factor is [B or 1, C or 1, 1, 1, 1].
        With x = a x0 + b noise and x0 = known + rest, rest of standard deviation s, the linear estimate of the rest is
        a s^2 / (a^2 s^2 + b^2) (x - a known); the output is weighted with the error of that estimate over s: 1 where
        the noise hides everything, 0 where nothing is hidden. Known is the condition with `add_condition`, the mean
        volume with `mean_volume`; s is given by `sigma_data`, or by `sigma_share` for each channel, or is a covariance
        matrix with `num_components` (medsyn.models.linear_estimate).
        """
        signal = alpha_bar(tau / TAU_PER_T)
        if self.data_components is not None:
            components = PrincipalComponents(self.data_components, self.data_variances, self.data_residual_variance)
            with autocast_off(x):
                return linear_estimate(x, signal, self.data_mean, components, self.flow)
        known = condition if self.config.add_condition else self.data_mean
        if known is not None:
            known = known.to(x.dtype).expand_as(x)
        sigma = self.config.sigma_data if self.data_sigma is None else self.data_sigma[:, None, None, None]
        if sigma is None:
            return known, None
        signal = signal[:, None, None, None, None]
        total = signal * sigma**2 + 1 - signal
        rest = x if known is None else x - signal.sqrt() * known
        guess = signal.sqrt() * sigma**2 / total * rest
        return guess if known is None else known + guess, ((1 - signal) / total).sqrt()


def add(known: Tensor | None, output: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return known + scale output, without what is None."""
    output = output if scale is None else scale * output
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
