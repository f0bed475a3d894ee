"""ConvUnit and ResBlock of medsyn.models.blocks by faster operations, with a skip that several batches share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsyn.models.blocks import ConvUnit, ResBlock, per_channel
from medsyn.models.fast.context import NormForm, is_channels_last, is_fused, is_plain_cpu
from medsyn.models.fast.convolution import convolve, convolve_shared
from medsyn.models.fast.fused_norm import norm_silu
from medsyn.models.fast.normalization import SMALL_GRID, exact_group_norm_, group_norm, small_group_norm


def res_block(
    block: ResBlock, x: Tensor, time: Tensor | None = None, skip: Tensor | None = None, norm: NormForm = "auto"
) -> Tensor:
    """x [B, C, D, H, W], time [B or 1, T], skip [b, Cin - C, D, H, W] -> [B, Cout, D, H, W].

    The block sees skip below x on the channels. b may be B / n: the skip of n equal batches, whose share of the
    convolutions is then computed once.
    """
    if skip is not None and (len(skip) == len(x) or isinstance(block.res_conv, nn.Identity)):
        x, skip = torch.cat([x, repeated(skip, len(x) // len(skip))], dim=1), None
    scale, shift = (None, None) if block.mlp is None else block.mlp(time).chunk(2, dim=1)
    hidden = conv_unit(block.block2, conv_unit(block.block1, x, scale, shift, skip, norm), norm=norm)
    if isinstance(block.res_conv, nn.Conv3d):
        x = convolve(block.res_conv, x) if skip is None else convolve_shared(block.res_conv, x, skip)
    return hidden + x if torch.is_grad_enabled() else hidden.add_(x)


def conv_unit(
    unit: ConvUnit,
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    skip: Tensor | None = None,
    norm: NormForm = "auto",
) -> Tensor:
    """x [B, Cin, D, H, W]; scale, shift [B or 1, Cout]; skip as in `res_block` -> [B, Cout, D, H, W]."""
    x = convolve(unit.proj, x) if skip is None else convolve_shared(unit.proj, x, skip)
    if is_fused(norm, x):
        return norm_silu(unit.norm, x, scale, shift)
    if is_plain_cpu(x) and is_channels_last(x):
        if x[0, 0].numel() <= SMALL_GRID:
            return F.silu(small_group_norm(unit.norm, x, scale, shift), inplace=True)
        x = exact_group_norm_(unit.norm, x, scale, shift)
    else:
        x = group_norm(unit.norm, x)
        if scale is not None and shift is not None:
            x = torch.addcmul(per_channel(shift), x, per_channel(1 + scale))
    return F.silu(x, inplace=not torch.is_grad_enabled())


def repeated(x: Tensor, count: int) -> Tensor:
    """Return count copies of a batch, one after the other, in the memory layout of x."""
    return x if count == 1 else torch.cat([x] * count)
