"""The denoiser of Medical Diffusion: a U-Net over latents that predicts the noise, with the axis D as "frames".

Khader et al. 2023 took the network of video diffusion (Ho et al. 2022) from a public code base: convolutions and
attention act within a slice, and only temporal attention mixes slices. Facts from FirasGit/medicaldiffusion on GitHub.
Blocks are those of our own denoiser (`medsyn.models.blocks`). At dim 32 and 8 channels it has 9,981,512 parameters.

Shapes: x [B, channels, D, H, W], step [B] in 0..num_steps - 1. H and W must be divisible by 2^(levels - 1); D is never
resampled. Every attention has heads of 32 channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsyn.models.blocks import (
    HEAD_DIM,
    ChannelNorm,
    ResBlock,
    SpatialAttention,
    TimeEmbedding,
    downsample,
    upsample,
)

KERNEL = (1, 3, 3)
NUM_GROUPS = 8
_THETA = 10_000.0  # of the rotary embedding
_NUM_BUCKETS = 32
_MAX_DISTANCE = 32


class LinearAttention(nn.Module):
    """Self-attention within each slice at a cost that is linear in its positions (Shen et al. 2021), as a residual.

    Queries are normalised over the channels of a head, keys over the positions.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = ChannelNorm(dim)
        self.to_qkv = nn.Conv2d(dim, 3 * HEAD_DIM * num_heads, 1, bias=False)
        self.to_out = nn.Conv2d(HEAD_DIM * num_heads, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, D, H, W] -> x + attention(norm(x))."""
        batch, channels, depth, height, width = x.shape
        tokens = self.norm(x.permute(0, 2, 3, 4, 1)).reshape(batch * depth, height * width, channels)
        projected = F.linear(tokens, self.to_qkv.weight.flatten(1))  # [B D, H W, 3 heads 32]
        parts = projected.unflatten(-1, (3, self.num_heads, HEAD_DIM))
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # each [B D, heads, H W, 32]
        q, k = q.softmax(dim=-1) * HEAD_DIM**-0.5, k.softmax(dim=-2)
        joined = (q @ (k.transpose(-1, -2) @ v)).transpose(1, 2).flatten(2)
        out = F.linear(joined, self.to_out.weight.flatten(1), self.to_out.bias)
        return x + out.reshape(batch, depth, height, width, channels).permute(0, 4, 1, 2, 3)


class TemporalAttention(nn.Module):
    """Self-attention among the slices at each position (h, w), as a residual, with a rotary embedding of the slice."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = ChannelNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * HEAD_DIM * num_heads, bias=False)
        self.to_out = nn.Linear(HEAD_DIM * num_heads, dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, C, D, H, W], bias [heads, D, D] of query and key slice -> x + attention(norm(x))."""
        batch, channels, depth, height, width = x.shape
        tokens = self.norm(x.permute(0, 3, 4, 2, 1)).reshape(-1, depth, channels)  # [B H W, D, C]
        parts = self.to_qkv(tokens).unflatten(-1, (3, self.num_heads, HEAD_DIM))
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # each [B H W, heads, D, 32]
        mask = bias.to(q.dtype)[None]
        attended = F.scaled_dot_product_attention(rotated(q), rotated(k), v, attn_mask=mask)
        out = self.to_out(attended.transpose(1, 2).flatten(2))
        return x + out.reshape(batch, height, width, depth, channels).permute(0, 4, 3, 1, 2)


class RelativeBias(nn.Module):
    """A learned number per head and distance of two slices (Raffel et al. 2020), which all temporal layers share."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(_NUM_BUCKETS, num_heads)

    def forward(self, depth: int) -> Tensor:
        """Return the bias [heads, depth, depth] of query slice and key slice."""
        place = torch.arange(depth, device=self.table.weight.device)
        return self.table(buckets(place[:, None] - place[None])).permute(2, 0, 1)


def buckets(difference: Tensor) -> Tensor:
    """Return the bucket 0..31 of query index minus key index (any shape): exact below 8, then logarithmic, per sign."""
    half = _NUM_BUCKETS // 2
    exact = half // 2
    distance = difference.abs()
    ratio = (distance.clamp(min=1).double() / exact).log() / math.log(_MAX_DISTANCE / exact)
    far = (exact + (ratio * (half - exact)).floor().long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (difference < 0)


def rotated(x: Tensor) -> Tensor:
    """Turn the pairs of neighbours in x [..., n, 32] by angles that grow with the place in n (Su et al. 2021)."""
    count, channels = x.shape[-2:]
    frequency = _THETA ** -(torch.arange(0, channels, 2, device=x.device, dtype=torch.float32) / channels)
    angle = torch.arange(count, device=x.device, dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


class LatentLevel(nn.Module):
    """One resolution of the down or up path: two blocks, two attentions, and a resampling (absent at the end)."""

    def __init__(self, dim_in: int, dim_out: int, time_dim: int, num_heads: int, resample: nn.Module | None) -> None:
        super().__init__()
        self.first = ResBlock(dim_in, dim_out, KERNEL, NUM_GROUPS, time_dim)
        self.second = ResBlock(dim_out, dim_out, KERNEL, NUM_GROUPS, time_dim)
        self.spatial = LinearAttention(dim_out, num_heads)
        self.temporal = TemporalAttention(dim_out, num_heads)
        self.resample = resample if resample is not None else nn.Identity()

    def forward(self, x: Tensor, time: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, Cin, D, H, W], time [B, T], bias [heads, D, D] -> the result, and what it was before the resampling."""
        x = self.second(self.first(x, time), time)
        x = self.temporal(self.spatial(x), bias)
        return self.resample(x), x


class LatentUNet(nn.Module):
    """The denoiser; see the module's docstring. dim must be divisible by 8."""

    def __init__(
        self, dim: int = 32, mults: Sequence[int] = (1, 2, 4, 8), *, channels: int = 8, num_heads: int = 8
    ) -> None:
        super().__init__()
        if dim % NUM_GROUPS or not mults:
            raise ValueError(f"dim must be divisible by {NUM_GROUPS} and mults not empty, got {dim} and {mults}")
        widths = [dim, *(dim * mult for mult in mults)]
        pairs = list(pairwise(widths))
        last, bottom, time_dim = len(pairs) - 1, widths[-1], 4 * dim
        self.init_conv = nn.Conv3d(channels, dim, (1, 7, 7), padding=(0, 3, 3))
        self.init_temporal = TemporalAttention(dim, num_heads)
        self.bias = RelativeBias(num_heads)
        self.time_mlp = nn.Sequential(
            TimeEmbedding(dim), nn.Linear(dim, time_dim), nn.GELU(), nn.Linear(time_dim, time_dim)
        )
        self.downs = nn.ModuleList(
            LatentLevel(low, high, time_dim, num_heads, downsample(high) if i < last else None)
            for i, (low, high) in enumerate(pairs)
        )
        self.bottom_in = ResBlock(bottom, bottom, KERNEL, NUM_GROUPS, time_dim)
        self.bottom_norm = ChannelNorm(bottom)
        self.bottom_spatial = SpatialAttention(bottom, num_heads)
        self.bottom_temporal = TemporalAttention(bottom, num_heads)
        self.bottom_out = ResBlock(bottom, bottom, KERNEL, NUM_GROUPS, time_dim)
        self.ups = nn.ModuleList(
            LatentLevel(2 * high, low, time_dim, num_heads, upsample(low) if i < last else None)
            for i, (low, high) in enumerate(reversed(pairs))
        )
        self.head = ResBlock(2 * dim, dim, KERNEL, NUM_GROUPS, None)
        self.to_noise = nn.Conv3d(dim, channels, 1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """Predict the noise in x [B, channels, D, H, W] at the diffusion steps `step` [B]."""
        bias = self.bias(x.shape[2])
        time = self.time_mlp(step.to(self.init_conv.weight.dtype))
        first = self.init_conv(x)
        hidden, skips = self.init_temporal(first, bias), []
        for level in self.downs:
            hidden, skip = level(hidden, time, bias)
            skips.append(skip)
        hidden = self.bottom_spatial(self.bottom_in(hidden, time), self.bottom_norm)
        hidden = self.bottom_out(self.bottom_temporal(hidden, bias), time)
        for level in self.ups:
            hidden, _ = level(torch.cat([hidden, skips.pop()], dim=1), time, bias)
        return self.to_noise(self.head(torch.cat([hidden, first], dim=1)))
