"""Building blocks of the denoiser (facts: the authors' release): tensors are [B, C, D, H, W].

D counts axial slices, H and W lie in the slice. Convolutions are "same"; nothing mixes or resamples the depth D except
the 3x3x3 blocks. Heads of every attention are 32 wide. All modules accept any memory format; on a CPU channels-last-3d
inputs stay channels-last, which is about twice as fast there.
"""

from __future__ import annotations

import math
import platform
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Network = TypeVar("Network", bound=nn.Module)
HEAD_DIM = 32
KeysValues = tuple[Tensor, Tensor, Tensor | None]  # of a cross-attention: k, v [B, heads, n, 32], tokens [B, 1, 1, n]
_SMALL_GRID = 16**3  # voxels
_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


class TimeMlp(nn.Sequential):
    """A TimeEmbedding and what follows it; the sinusoids are float32, the rest has the type of its weights."""

    def forward(self, tau: Tensor) -> Tensor:
        sinusoids, first, *rest = self
        x = first(sinusoids(tau).to(first.weight.dtype))
        for module in rest:
            x = module(x)
        return x


class TimeEmbedding(nn.Module):
    """tau [B] in 0..1000 -> sinusoids [B, dim]: all sines first, frequencies exp(-i ln(10000) / (dim/2 - 1))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"dim must be even and at least 4, got {dim}")
        self.dim = dim

    def forward(self, tau: Tensor) -> Tensor:
        half = self.dim // 2
        exponent = torch.arange(half, device=tau.device, dtype=torch.float32) * (-math.log(10000.0) / (half - 1))
        angle = tau.float()[:, None] * exponent.exp()
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class Conv3d(nn.Conv3d):
    """nn.Conv3d with stride 1 and the same result, by a faster way on a CPU when the input is channels-last.

    PyTorch sends small single-volume and 1x1x1 convolutions to a slow fallback; as a batch of slices, or called by
    name, they run in oneDNN.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.weight, self.bias)

    def first_part(self, x: Tensor) -> Tensor:
        """The share of the first x.shape[1] input channels, bias included."""
        return self._convolve(x, self.weight[:, : x.shape[1]], self.bias)

    def last_part(self, x: Tensor) -> Tensor:
        """The share of the last x.shape[1] input channels, without the bias."""
        return self._convolve(x, self.weight[:, -x.shape[1] :], None)

    def in_float32(self, x: Tensor) -> Tensor:
        """The convolution in float32 whatever the types of x and the weights, under autocast too."""
        with _autocast_off(x):
            bias = None if self.bias is None else self.bias.float()
            return self._convolve(x.float(), self.weight.float(), bias)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last_3d):
            return self._conv_forward(x, weight, bias)
        if _ONEDNN and _plain_cpu(x):
            ones, padding = (1, 1, 1), [k // 2 for k in self.kernel_size]
            return torch.mkldnn_convolution(x, weight, bias, padding, ones, ones, 1)
        if self.kernel_size[0] > 1:
            return self._conv_forward(x, weight, bias)
        slices = x.transpose(1, 2).flatten(0, 1)  # [B, C, D, H, W] -> [B * D, C, H, W], a view
        out = F.conv2d(slices, weight[:, :, 0], bias, padding=self.padding[1:])
        return out.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class ConvUnit(nn.Module):
    """Convolution, GroupNorm, optional affine by time, SiLU."""

    def __init__(self, dim_in: int, dim_out: int, kernel: tuple[int, int, int], num_groups: int) -> None:
        super().__init__()
        padding = tuple(k // 2 for k in kernel)
        self.proj = Conv3d(dim_in, dim_out, kernel, padding=padding)  # type: ignore[arg-type]
        self.norm = nn.GroupNorm(num_groups, dim_out)

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, skip: Tensor | None = None
    ) -> Tensor:
        """x [B, Cin, D, H, W]; scale, shift [B or 1, Cout]: SiLU(norm(conv(x)) * (1 + scale) + shift)."""
        x = self.proj(x) if skip is None else _joint(self.proj, x, skip)
        if _plain_cpu(x) and x.is_contiguous(memory_format=torch.channels_last_3d):
            if x[0, 0].numel() <= _SMALL_GRID:
                return F.silu(_small_group_norm(x, self.norm, scale, shift), inplace=True)
            x = _group_norm_(x, self.norm, scale, shift)
        else:
            x = self._normalise(x)
            if scale is not None and shift is not None:
                x = torch.addcmul(_per_channel(shift), x, _per_channel(1 + scale))
        return F.silu(x, inplace=not torch.is_grad_enabled())

    def _normalise(self, x: Tensor) -> Tensor:
        """The norm in the type of x, with sums in float32: autocast would make a float32 activation of it.

        On a CPU it is more exact and its gradient several times faster in the contiguous layout.
        """
        norm = self.norm
        with _autocast_off(x):
            weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
            if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last_3d):
                y = F.group_norm(x.contiguous(), norm.num_groups, weight, bias, norm.eps)
                return y.contiguous(memory_format=torch.channels_last_3d)
            return F.group_norm(x, norm.num_groups, weight, bias, norm.eps)


class ResBlock(nn.Module):
    """Two ConvUnits and a residual; the time enters the first unit. kernel (1,3,3) is the 2D kind, (3,3,3) the 3D.

    With `activation_checkpointing` (Chen et al. 2016) training keeps only the input and computes the rest again in the
    backward pass: the same gradients in less memory.
    """

    activation_checkpointing = False

    def __init__(
        self, dim_in: int, dim_out: int, kernel: tuple[int, int, int], num_groups: int, time_dim: int | None
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * dim_out)) if time_dim else None
        self.block1 = ConvUnit(dim_in, dim_out, kernel, num_groups)
        self.block2 = ConvUnit(dim_out, dim_out, kernel, num_groups)
        self.res_conv = Conv3d(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        """x [B, C, D, H, W], time [B or 1, T], skip [b, Cin - C, D, H, W] -> [B, Cout, D, H, W].

        The block sees skip below x on the channels. b may be B / n: the skip of n equal batches, whose share of the
        convolutions is then computed once.
        """
        if self.activation_checkpointing and torch.is_grad_enabled():
            result: Tensor = checkpoint(self._blocks, x, time, skip, use_reentrant=False, preserve_rng_state=False)
            return result
        return self._blocks(x, time, skip)

    def _blocks(self, x: Tensor, time: Tensor | None, skip: Tensor | None) -> Tensor:
        if skip is not None and (len(skip) == len(x) or isinstance(self.res_conv, nn.Identity)):
            x, skip = torch.cat([x, repeated(skip, len(x) // len(skip))], dim=1), None
        if self.mlp is None:
            hidden = self.block1(x, skip=skip)
        else:
            scale, shift = self.mlp(time).chunk(2, dim=1)
            hidden = self.block1(x, scale, shift, skip)
        hidden = self.block2(hidden)
        residual = self.res_conv(x) if skip is None else _joint(self.res_conv, x, skip)  # type: ignore[arg-type]
        return hidden + residual if torch.is_grad_enabled() else hidden.add_(residual)


def set_activation_checkpointing(network: Network, enabled: bool) -> Network:
    """The same network, with or without activation checkpointing in each of its ResBlocks."""
    for module in network.modules():
        if isinstance(module, ResBlock):
            module.activation_checkpointing = enabled
    return network


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each voxel, with a gain and no bias."""

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
        tokens = norm(x.permute(0, 2, 3, 4, 1).reshape(batch * depth, height * width, -1))
        q, k, v = (_split_heads(part, self.num_heads) for part in self.to_qkv(tokens).chunk(3, dim=-1))
        out = self.to_out(_join_heads(F.scaled_dot_product_attention(q, k, v)))
        return x + out.reshape(batch, depth, height, width, -1).permute(0, 4, 1, 2, 3)


class TextCrossAttention(nn.Module):
    """Every voxel attends to the text tokens of its sample.

    All of them, padding too, as in the authors' code; with `mask_padding` not to those whose states are all zero,
    which is how `text.mask_padding` marks padding.
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

    def keys_values(self, text: Tensor) -> KeysValues:
        """Keys and values of text [B, n, cond_dim]; they do not depend on the volume, so one pair serves all steps."""
        k, v = self.to_kv(text.to(self.to_kv.weight.dtype)).chunk(2, dim=-1)
        tokens = text.any(dim=-1)[:, None, None] if self.mask_padding else None
        return _split_heads(k, self.num_heads), _split_heads(v, self.num_heads), tokens

    def forward(self, x: Tensor, text: KeysValues) -> Tensor:
        """x [B, C, D, H, W], text: `keys_values` -> x + attention(norm(x), text)."""
        batch, _, depth, height, width = x.shape
        tokens = self.norm(x.permute(0, 2, 3, 4, 1).reshape(batch, depth * height * width, -1))
        q = _split_heads(F.linear(tokens, self.to_q.weight.flatten(1)), self.num_heads)
        k, v, kept = text
        joined = _join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=kept))
        out = F.linear(joined, self.to_out.weight.flatten(1), self.to_out.bias)
        return x + out.reshape(batch, depth, height, width, -1).permute(0, 4, 1, 2, 3)


def downsample(dim: int) -> nn.Conv3d:
    """Halve H and W; D stays."""
    return nn.Conv3d(dim, dim, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))


def upsample(dim: int) -> nn.ConvTranspose3d:
    """Double H and W; D stays."""
    return nn.ConvTranspose3d(dim, dim, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))


def repeated(x: Tensor, count: int) -> Tensor:
    """count copies of a batch, one after the other, in the memory layout of x."""
    return x if count == 1 else torch.cat([x] * count)


def _joint(conv: Conv3d, x: Tensor, skip: Tensor) -> Tensor:
    """conv of x [n b, C, D, H, W] above skip [b, C', D, H, W], which serves each of the n batches."""
    out = conv.first_part(x)
    out.unflatten(0, (-1, len(skip))).add_(conv.last_part(skip))
    return out


def _autocast_off(x: Tensor) -> torch.autocast:
    return torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False)


def _plain_cpu(x: Tensor) -> bool:
    """Whether x is a float32 CPU tensor outside autograd, autocast and compiler: inference that may work in place."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _group_norm_(x: Tensor, norm: nn.GroupNorm, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """GroupNorm of a channels-last x [B, C, D, H, W] in place, with the affine by time [B, C] in the same pass.

    PyTorch's channels-last kernel adds up all voxels one after the other in single precision, which is wrong by 3e-4 at
    64^3 and worse beyond; here the sums of the slices are joined in double precision.
    """
    batch, channels, depth, height, width = x.shape
    slices = x.permute(0, 2, 3, 4, 1).reshape(batch, depth, height * width, channels)
    grouped = (batch, norm.num_groups, channels // norm.num_groups)
    mean = slices.mean(2).double().mean(1).view(grouped).mean(2, keepdim=True)
    mean_square = slices.square().mean(2).double().mean(1).view(grouped).mean(2, keepdim=True)
    gain = torch.rsqrt((mean_square - mean.square()).clamp(min=0) + norm.eps) * norm.weight.view(1, *grouped[1:])
    offset = norm.bias.view(1, *grouped[1:]) - mean * gain
    gain, offset = gain.view(batch, channels), offset.view(batch, channels)
    if scale is not None and shift is not None:
        gain, offset = gain * (1 + scale), offset * (1 + scale) + shift
    return torch.addcmul(_per_channel(offset.float()), x, _per_channel(gain.float()), out=x)


def _small_group_norm(x: Tensor, norm: nn.GroupNorm, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """The same by PyTorch's channels-last kernel, for few voxels, where it is exact to 1e-5 and several times faster.

    One scale for the whole batch joins the norm's own.
    """
    if scale is None or shift is None:
        return norm(x)
    if len(scale) > 1:
        return torch.addcmul(_per_channel(shift), norm(x), _per_channel(1 + scale))
    gain, offset = norm.weight * (1 + scale[0]), torch.addcmul(shift[0], norm.bias, 1 + scale[0])
    return F.group_norm(x, norm.num_groups, gain, offset, norm.eps)


def _per_channel(values: Tensor) -> Tensor:
    return values[:, :, None, None, None]  # [B, C] -> [B, C, 1, 1, 1]


def _split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    batch, count, _ = tokens.shape
    return tokens.reshape(batch, count, num_heads, HEAD_DIM).transpose(1, 2)  # [B, heads, n, 32], head-major channels


def _join_heads(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).flatten(2)  # [B, heads, n, 32] -> [B, n, heads * 32]
