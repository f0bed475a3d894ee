"""The one denoiser: a U-Net over 4-channel volumes that predicts the clean volume x0 from a noisy one.

With `cond_dim` it is the low-resolution network (text cross-attention at the bottom), without it and with
`condition_channels` the super-resolution network. At dim 160, mults 1-2-4-8, 8 heads, 4 bottom blocks, 768-wide text it
has the 716,215,684 parameters of the authors' low-resolution network; at dim 56, 4 heads, 1 bottom block, 4 condition
channels the 54,307,908 of their super-resolution network (names of their state dict: medsyn.models.medsyn_keys).

Shapes: x [B, C, D, H, W] in [-1, 1] plus noise, tau [B] in 0..1000, text [B, num_tokens, cond_dim],
condition [B, condition_channels, D, H, W]. H and W must be divisible by 2^(levels - 1); D is never resampled.

Three options are ours, off by default, and let small networks learn in minutes: `patch_size` p works on p^3 voxels at
a time (space to depth, Shi et al. 2016; D, H and W must then be divisible by p as well), `sigma_data` leaves the
network what the noise hides (after the preconditioning of Karras et al. 2022, table 1, here for x0 prediction under a
variance-preserving schedule), `add_condition` makes it predict the difference from its condition.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from medsyn.config import UNetConfig
from medsyn.diffusion.schedule import TAU_PER_T, alpha_bar
from medsyn.models.blocks import (
    ChannelNorm,
    Conv3d,
    KeysValues,
    ResBlock,
    SpatialAttention,
    TextCrossAttention,
    TimeEmbedding,
    TimeMlp,
    downsample,
    repeated,
    upsample,
)

FLAT = (1, 3, 3)
SOLID = (3, 3, 3)

TextKeys = tuple[KeysValues, ...]  # one pair for each bottom block


@dataclass(frozen=True)
class PreparedCondition:
    """A condition [B, C, D, H, W] with its share of the first convolution, which all steps of a volume reuse."""

    volume: Tensor
    features: Tensor


@dataclass(frozen=True)
class Trunk:
    """What the network knows before it reads the text: the state at the bottom, time, skips, first features."""

    bottom: Tensor
    time: Tensor
    skips: list[Tensor]
    first: Tensor


class Level(nn.Module):
    """One resolution of the down or up path: two in-plane blocks, a 3-D block, a resampling (absent at the end)."""

    def __init__(self, dim_in: int, dim_out: int, num_groups: int, time_dim: int, resample: nn.Module | None) -> None:
        super().__init__()
        self.first = ResBlock(dim_in, dim_out, FLAT, num_groups, time_dim)
        self.second = ResBlock(dim_out, dim_out, FLAT, num_groups, time_dim)
        self.solid = ResBlock(dim_out, dim_out, SOLID, num_groups, time_dim)
        self.resample = resample if resample is not None else nn.Identity()

    def down(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """The result and the skip, which is taken before the resampling and before the 3-D block."""
        skip = self.second(self.first(x, time), time)
        return self.solid(self.resample(skip), time), skip

    def up(self, x: Tensor, skip: Tensor, time: Tensor, order: str) -> Tensor:
        """Order A upsamples early (the authors' training scripts), B late (their inference scripts)."""
        x = self.first(x, time, skip)
        if order == "A":
            return self.solid(self.second(self.resample(x), time), time)
        return self.resample(self.solid(self.second(x, time), time))


class BottomBlock(nn.Module):
    """Self-attention in each slice (matrices shared between the blocks), text cross-attention, 3-D block."""

    def __init__(self, dim: int, config: UNetConfig, time_dim: int, cond_dim: int | None) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim)
        heads, mask = config.num_heads, config.mask_padding
        self.cross_attention = TextCrossAttention(dim, cond_dim, heads, mask_padding=mask) if cond_dim else None
        self.solid = ResBlock(dim, dim, SOLID, config.num_groups, time_dim)

    def forward(self, x: Tensor, time: Tensor, keys: KeysValues | None) -> Tensor:
        """What follows the self-attention, which the U-Net calls because its matrices are shared."""
        if self.cross_attention is not None and keys is not None:
            x = self.cross_attention(x, keys)
        return self.solid(x, time)


def to_patches(x: Tensor, size: int) -> Tensor:
    """Space to depth: [B, C, D, H, W] -> [B, C size^3, D / size, H / size, W / size]."""
    if size == 1:
        return x
    batch, channels, depth, height, width = x.shape
    x = x.reshape(batch, channels, depth // size, size, height // size, size, width // size, size)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, -1, depth // size, height // size, width // size)


def from_patches(x: Tensor, size: int) -> Tensor:
    """Depth to space, the inverse of `to_patches`."""
    if size == 1:
        return x
    batch, _, depth, height, width = x.shape
    x = x.reshape(batch, -1, size, size, size, depth, height, width).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, -1, depth * size, height * size, width * size)


class UNet(nn.Module):
    """Denoiser of both resolutions; see the module's docstring.

    channels: of the volume; condition_channels: of the low-resolution condition, concatenated before the volume;
    cond_dim, num_tokens: shape of the text states, cond_dim None builds no text module.
    `channels_last` chooses the memory layout of the activations on a CPU, not the result. (On a GPU every group norm
    returns a contiguous tensor, so that the layout would change back and forth.)

    The weights may be float32, with or without autocast, or for drawing bfloat16 or float16 (`network.to(dtype)`): the
    activations then take half the memory. Sinusoids, statistics of the norms and the last convolution stay float32,
    and so does the result.
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
        self.channels_last = True
        dim, groups, time_dim = config.dim, config.num_groups, 4 * config.dim
        widths = [dim, *(dim * mult for mult in config.mults)]
        pairs = list(pairwise(widths))
        last = len(pairs) - 1
        kernel = config.init_kernel

        self.null_cond_emb = nn.Parameter(torch.randn(1, num_tokens, cond_dim)) if cond_dim else None
        voxels = config.patch_size**3
        self.init_conv = Conv3d((channels + condition_channels) * voxels, dim, kernel, padding=kernel // 2)
        self.time_mlp = TimeMlp(TimeEmbedding(dim), nn.Linear(dim, time_dim), nn.GELU(), nn.Linear(time_dim, time_dim))
        self.downs = nn.ModuleList(
            Level(low, high, groups, time_dim, downsample(high) if i < last else None)
            for i, (low, high) in enumerate(pairs)
        )
        bottom = widths[-1]
        self.bottom_in = ResBlock(bottom, bottom, FLAT, groups, time_dim)
        self.attention = SpatialAttention(bottom, config.num_heads)
        self.bottom = nn.ModuleList(
            BottomBlock(bottom, config, time_dim, cond_dim) for _ in range(config.num_bottom_blocks)
        )
        self.bottom_out = ResBlock(bottom, bottom, FLAT, groups, time_dim)
        self.ups = nn.ModuleList(
            Level(2 * high, low, groups, time_dim, upsample(low) if i < last else None)
            for i, (low, high) in enumerate(reversed(pairs))
        )
        self.head = ResBlock(2 * dim, dim, FLAT, groups, None)
        self.to_volume = Conv3d(dim, channels * voxels, 1)
        if config.add_condition:  # training starts from the condition itself
            nn.init.zeros_(self.to_volume.weight)
            nn.init.zeros_(self.to_volume.bias)  # type: ignore[arg-type]

    @property
    def takes_text(self) -> bool:
        """Whether the network has text cross-attention."""
        return self.null_cond_emb is not None

    def forward(
        self,
        x: Tensor,
        tau: Tensor,
        text: Tensor | TextKeys | None = None,
        drop_text: Tensor | None = None,
        condition: Tensor | PreparedCondition | None = None,
        guidance_scale: float | None = None,
        one_batch: bool = True,
    ) -> Tensor:
        """Predict x0 [B, C, D, H, W]. Samples with drop_text [B] (bool), or all if text is None, see the null text.

        For drawing: tau may be [1] (the same for all samples), text the result of `text_keys`, condition that of
        `prepare_condition`. With a guidance_scale w, text holds the keys of 2 B samples, first with text and then
        null, and the result is x0_null + w (x0_text - x0_null); what precedes the text is computed once, the rest as
        one batch of 2 B or, to save memory, as two batches of B.
        """
        if (condition is not None) != bool(self.condition_channels):
            raise ValueError(f"this network takes {self.condition_channels} condition channels")
        keys = text if isinstance(text, tuple) else self.text_keys(self._tokens(len(x), text, drop_text))
        trunk = self._read(x, tau, condition)
        if guidance_scale is None:
            output = self._write(trunk, keys)
        else:
            if one_batch:
                with_text, null = self._write(trunk, keys, copies=2).chunk(2)
            else:
                with_text = self._write(trunk, _rows(keys, slice(len(x))), keep=True)
                null = self._write(trunk, _rows(keys, slice(len(x), None)))
            output = null + guidance_scale * (with_text - null)
        volume = condition.volume if isinstance(condition, PreparedCondition) else condition
        return self._join(x, tau, volume if self.config.add_condition else None, output)

    def text_keys(self, text: Tensor | None) -> TextKeys:
        """Keys and values of text [B, num_tokens, cond_dim] for `forward`; empty without text modules."""
        if text is None:
            return ()
        return tuple(block.cross_attention.keys_values(text) for block in self.bottom)  # type: ignore[operator, union-attr]

    def prepare_condition(self, condition: Tensor) -> PreparedCondition:
        """What `forward` needs of a condition [B, condition_channels, D, H, W]."""
        return PreparedCondition(condition, self.init_conv.first_part(self._patches(condition)))

    def _patches(self, x: Tensor) -> Tensor:
        x = to_patches(x, self.config.patch_size).to(self.to_volume.weight.dtype)
        on_cpu = x.device.type == "cpu"
        return x.contiguous(memory_format=torch.channels_last_3d) if self.channels_last and on_cpu else x

    def _read(self, x: Tensor, tau: Tensor, condition: Tensor | PreparedCondition | None) -> Trunk:
        """The down path and the bottom as far as the first self-attention."""
        time = self.time_mlp(tau)
        if isinstance(condition, PreparedCondition):
            x = self.init_conv.last_part(self._patches(x)) + condition.features
        else:
            x = self.init_conv(self._patches(x if condition is None else torch.cat([condition, x], dim=1)))
        first, skips = x, []
        for level in self.downs:
            x, skip = level.down(x, time)  # type: ignore[operator]
            skips.append(skip)
        x = self.attention(self.bottom_in(x, time), self.bottom[0].norm)
        return Trunk(x, time, skips, first)

    def _write(self, trunk: Trunk, keys: TextKeys, copies: int = 1, keep: bool = False) -> Tensor:
        """The rest of the bottom and the up path for `copies` batches that differ in their text only.

        The skips are dropped as they are read, which lowers the peak of memory, unless `keep`.
        """
        skips = list(trunk.skips) if keep else trunk.skips
        x = repeated(trunk.bottom, copies)
        time = trunk.time if len(trunk.time) == 1 else repeated(trunk.time, copies)
        for i, block in enumerate(self.bottom):
            if i > 0:
                x = self.attention(x, block.norm)
            x = block(x, time, keys[i] if keys else None)
        x = self.bottom_out(x, time)
        for level in self.ups:
            x = level.up(x, skips.pop(), time, self.config.up_order)  # type: ignore[operator]
        x = self.to_volume.in_float32(self.head(x, skip=trunk.first))
        return from_patches(x, self.config.patch_size)

    def _join(self, x: Tensor, tau: Tensor, known: Tensor | None, output: Tensor) -> Tensor:
        """x0 from the network's output, the known part of x0 and, with sigma_data, the noisy volume.

        With x = a x0 + b noise and x0 = known + rest, rest of standard deviation s, the best linear guess of the rest
        is a s^2 / (a^2 s^2 + b^2) (x - a known); the output is weighted with the error of that guess over s: 1 where
        the noise hides everything, 0 where nothing is hidden.
        """
        if self.config.sigma_data is not None:
            variance = self.config.sigma_data**2
            signal = alpha_bar(tau / TAU_PER_T)[:, None, None, None, None]
            total = signal * variance + 1 - signal
            rest = x if known is None else x - signal.sqrt() * known
            output = signal.sqrt() * variance / total * rest + ((1 - signal) / total).sqrt() * output
        return output if known is None else known + output

    def _tokens(self, batch: int, text: Tensor | None, drop_text: Tensor | None) -> Tensor | None:
        """Text states of each sample with the learned null text where it is dropped."""
        if self.null_cond_emb is None:
            return None
        null = self.null_cond_emb.expand(batch, -1, -1)
        if text is None:
            return null
        if text.shape[1:] != null.shape[1:]:
            raise ValueError(
                f"text states have shape {tuple(text.shape[1:])}, the network wants {tuple(null.shape[1:])}"
            )
        return text if drop_text is None else torch.where(drop_text[:, None, None], null, text)


def _rows(keys: TextKeys, part: slice) -> TextKeys:
    """The samples `part` of a batch."""
    return tuple((k[part], v[part], None if tokens is None else tokens[part]) for k, v, tokens in keys)
