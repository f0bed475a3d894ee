"""Building blocks of the denoiser, as the authors' release has them; tensors are [B, C, D, H, W].

D counts axial slices, H and W lie in the slice. Convolutions keep the grid. Only the 3x3x3 convolutions mix slices, and
nothing resamples the depth D. Every attention head is 32 wide.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_DIM = 32
KeysValues = tuple[Tensor, Tensor, Tensor | None]
"""Of a cross-attention: keys and values [B, heads, n, 32], and which tokens are attended to, [B, 1, 1, n] or all."""


class TimeEmbedding(nn.Module):
    """tau [B] in 0..1000 -> sinusoids [B, dim]: all sines first, frequencies exp(-i ln(10000) / (dim/2 - 1))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"dim must be even and at least 4, got {dim}")
        self.dim = dim

    def forward(self, tau: Tensor) -> Tensor:
        half = self.dim // 2
        exponent = torch.arange(half, device=tau.device, dtype=tau.dtype) * (-math.log(10000.0) / (half - 1))
        angle = tau[:, None] * exponent.exp()
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class ConvUnit(nn.Module):
    """Convolution, GroupNorm, optional affine by time, SiLU."""

    def __init__(self, dim_in: int, dim_out: int, kernel: tuple[int, int, int], num_groups: int) -> None:
        super().__init__()
        padding = tuple(k // 2 for k in kernel)
        self.proj = nn.Conv3d(dim_in, dim_out, kernel, padding=padding)  # type: ignore[arg-type]
        self.norm = nn.GroupNorm(num_groups, dim_out)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """x [B, Cin, D, H, W]; scale, shift [B, Cout]: SiLU(norm(conv(x)) * (1 + scale) + shift)."""
        x = self.norm(self.proj(x))
        if scale is not None and shift is not None:
            x = x * per_channel(1 + scale) + per_channel(shift)
        return F.silu(x)


class ResBlock(nn.Module):
    """Two ConvUnits and a residual; time enters the first unit. kernel (1,3,3) is the 2D kind, (3,3,3) the 3D kind."""

    def __init__(
        self, dim_in: int, dim_out: int, kernel: tuple[int, int, int], num_groups: int, time_dim: int | None
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * dim_out)) if time_dim else None
        self.block1 = ConvUnit(dim_in, dim_out, kernel, num_groups)
        self.block2 = ConvUnit(dim_out, dim_out, kernel, num_groups)
        self.res_conv = nn.Conv3d(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x [B, Cin, D, H, W], time [B, T] (None: a block without time) -> [B, Cout, D, H, W]."""
        scale, shift = (None, None) if self.mlp is None else self.mlp(time).chunk(2, dim=1)
        hidden = self.block2(self.block1(x, scale, shift))
        return hidden + self.res_conv(x)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each voxel, with a gain and without a bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, dim, 1, 1, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [..., C] (channels last)."""
        return F.layer_norm(tokens, tokens.shape[-1:], self.gamma.flatten(), eps=1e-5)


class SpatialAttention(nn.Module):
    """Self-attention among the H*W positions of each slice; slices are independent, no positional encoding."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * HEAD_DIM * num_heads, bias=False)
        self.to_out = nn.Linear(HEAD_DIM * num_heads, dim, bias=False)

    def forward(self, x: Tensor, norm: ChannelNorm) -> Tensor:
        """x [B, C, D, H, W] -> x + attention(norm(x)); `norm` is given because the blocks share these matrices."""
        batch, _, depth, height, width = x.shape
        tokens = norm(x.permute(0, 2, 3, 4, 1).reshape(batch * depth, height * width, -1))  # [B D, H W, C]
        q, k, v = (_split_heads(part, self.num_heads) for part in self.to_qkv(tokens).chunk(3, dim=-1))
        out = self.to_out(_join_heads(F.scaled_dot_product_attention(q, k, v)))
        return x + out.reshape(batch, depth, height, width, -1).permute(0, 4, 1, 2, 3)


class TextCrossAttention(nn.Module):
    """Every voxel attends to the text tokens of its sample.

    It attends to all of them, padding too, as in the authors' code. With `mask_padding` it leaves out those whose
    states are all zero, which is how `text.mask_padding` marks padding.
    """

    def __init__(self, dim: int, cond_dim: int, num_heads: int, *, mask_padding: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.mask_padding = mask_padding
        inner = HEAD_DIM * num_heads
        self.norm = ChannelNorm(dim)
        self.to_q = nn.Conv2d(dim, inner, 1, bias=False)
        self.to_kv = nn.Linear(cond_dim, 2 * inner, bias=False)
        self.to_out = nn.Conv2d(inner, dim, 1)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x [B, C, D, H, W], text [B, n, cond_dim] -> x + attention(norm(x), text)."""
        return self.attend(x, self.keys_values(text))

    def keys_values(self, text: Tensor) -> KeysValues:
        """Return the keys and values of text [B, n, cond_dim], which do not depend on the volume."""
        k, v = self.to_kv(text).chunk(2, dim=-1)
        attended = text.any(dim=-1)[:, None, None] if self.mask_padding else None
        return _split_heads(k, self.num_heads), _split_heads(v, self.num_heads), attended

    def attend(self, x: Tensor, text: KeysValues) -> Tensor:
        """x [B, C, D, H, W], text: `keys_values` -> x + attention(norm(x), text)."""
        batch, _, depth, height, width = x.shape
        tokens = self.norm(x.permute(0, 2, 3, 4, 1).reshape(batch, depth * height * width, -1))  # [B, D H W, C]
        q = _split_heads(F.linear(tokens, self.to_q.weight.flatten(1)), self.num_heads)
        k, v, attended = text
        joined = _join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=attended))
        out = F.linear(joined, self.to_out.weight.flatten(1), self.to_out.bias)
        return x + out.reshape(batch, depth, height, width, -1).permute(0, 4, 1, 2, 3)


def downsample(dim: int) -> nn.Conv3d:
    """Return a convolution that halves H and W; D stays."""
    return nn.Conv3d(dim, dim, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))


def upsample(dim: int) -> nn.ConvTranspose3d:
    """Return a transposed convolution that doubles H and W; D stays."""
    return nn.ConvTranspose3d(dim, dim, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))


def per_channel(values: Tensor) -> Tensor:
    """Return values [B, C] as [B, C, 1, 1, 1]."""
    return values[:, :, None, None, None]


def _split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    batch, count, _ = tokens.shape
    return tokens.reshape(batch, count, num_heads, HEAD_DIM).transpose(1, 2)  # [B, heads, n, 32], head-major channels


def _join_heads(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).flatten(2)  # [B, heads, n, 32] -> [B, n, heads * 32]
