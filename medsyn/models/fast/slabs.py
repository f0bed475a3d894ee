"""Layers of the U-Net computed in slabs of slices, so that only whole activations that later layers read are held.

The result is that of the whole volume up to rounding. The network never resamples the depth, self-attention and
resampling are per slice, cross-attention is per voxel. Two kinds of layers reach beyond a slab. A convolution of depth
k is given k // 2 more slices on both sides, whose own results are dropped: at the ends of the volume its zero padding
is the right one. A group norm takes its statistics from the whole volume: a first pass, together with the convolution,
joins those of the slabs (Chan et al. 1979), and a second one normalises in place.

A processor without 16-bit instructions convolves in bfloat16 up to 300 times slower than in float32. With
`Slabs.stored` the weights stay float32, a slab is computed in float32, and only whole activations are held in 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsyn.models.blocks import ConvUnit, ResBlock, per_channel
from medsyn.models.fast.context import autocast_off, is_only_channels_last
from medsyn.models.fast.convolution import convolve


@dataclass(frozen=True)
class Slabs:
    """How layers are computed: `slices` of a slab, and the type in which their whole results are held.

    stored: None is the type of the weights; with another one slabs are computed in float32.
    """

    slices: int
    stored: torch.dtype | None = None

    def ranges(self, depth: int) -> Iterator[tuple[int, int]]:
        """Yield the first slice of every slab and the first after it."""
        for start in range(0, depth, self.slices):
            yield start, min(start + self.slices, depth)

    def part(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Return slices of x in the memory layout of x and the type of the computation."""
        part = x[:, :, start:stop]
        part = part if self.stored is None else part.float()
        return part.contiguous(memory_format=torch.channels_last_3d) if is_only_channels_last(x) else part

    def whole(self, part: Tensor, depth: int) -> Tensor:
        """Return an empty tensor for the slices of all slabs, in the layout of the result `part` of one."""
        layout = torch.channels_last_3d if is_only_channels_last(part) else torch.contiguous_format
        shape = (*part.shape[:2], depth, *part.shape[3:])
        return torch.empty(shape, dtype=self.stored or part.dtype, device=part.device, memory_format=layout)

    def joined(self, x: Tensor, skip: Tensor | None, start: int, stop: int) -> Tensor:
        """Return slices of x above those of skip on the channels; a skip of fewer samples serves each batch of them."""
        part = self.part(x, start, stop)
        if skip is None:
            return part
        return torch.cat([part, torch.cat([self.part(skip, start, stop)] * (len(x) // len(skip)))], dim=1)


def in_slabs(layer: Callable[[Tensor], Tensor], x: Tensor, slabs: Slabs) -> Tensor:
    """Return layer(x) for a layer that treats the slices of x [B, C, D, H, W] independently and keeps D."""
    out: Tensor | None = None
    for start, stop in slabs.ranges(x.shape[2]):
        part = layer(slabs.part(x, start, stop))
        out = slabs.whole(part, x.shape[2]) if out is None else out
        out[:, :, start:stop] = part
    assert out is not None
    return out


def convolve_in_slabs(conv: nn.Conv3d, x: Tensor, slabs: Slabs) -> Tensor:
    """Return conv(x) of stride 1 for x [B, C, D, H, W]."""
    return _convolved(conv, x, None, slabs)[0]


def res_block_in_slabs(block: ResBlock, x: Tensor, time: Tensor | None, skip: Tensor | None, slabs: Slabs) -> Tensor:
    """Return `medsyn.models.fast.blocks.res_block` of the same arguments, holding its input and one hidden state."""
    scale, shift = (None, None) if block.mlp is None else block.mlp(time).chunk(2, dim=1)
    hidden = _unit(block.block1, x, scale, shift, skip, slabs)
    hidden = _unit(block.block2, hidden, None, None, None, slabs, in_place=True)
    for start, stop in slabs.ranges(x.shape[2]):
        given = slabs.joined(x, skip, start, stop)
        hidden[:, :, start:stop] += convolve(block.res_conv, given) if isinstance(block.res_conv, nn.Conv3d) else given
    return hidden


def _unit(
    unit: ConvUnit,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    skip: Tensor | None,
    slabs: Slabs,
    in_place: bool = False,
) -> Tensor:
    """Return SiLU(norm(conv(x above skip)) * (1 + scale) + shift), with in_place in the memory of x."""
    norm = unit.norm
    x, mean, square = _convolved(unit.proj, x, skip, slabs, norm.num_groups, in_place)
    each = norm.num_channels // norm.num_groups
    inverse = torch.rsqrt(square + norm.eps).repeat_interleave(each, 1)
    gain = inverse * norm.weight.double()
    offset = norm.bias.double() - mean.repeat_interleave(each, 1) * gain
    if scale is not None and shift is not None:
        factor = 1 + scale.double()
        gain, offset = gain * factor, offset * factor + shift
    gain, offset = per_channel(gain.float()), per_channel(offset.float())
    with autocast_off(x):
        for start, stop in slabs.ranges(x.shape[2]):
            part = torch.addcmul(offset, x[:, :, start:stop].float(), gain)
            x[:, :, start:stop] = F.silu(part, inplace=True)
    return x


def _convolved(
    conv: nn.Conv3d, x: Tensor, skip: Tensor | None, slabs: Slabs, groups: int = 1, in_place: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return conv of x above skip, and mean and variance of its groups of channels over the volume [B, groups].

    in_place: the result takes the memory of x, which must have as many channels.
    """
    depth, reach = x.shape[2], conv.kernel_size[0] // 2
    out = x if in_place else None
    before: Tensor | None = None  # the slices of x below the slab, which the result has overwritten
    count, mean, square = 0, x.new_zeros((), dtype=torch.double), x.new_zeros((), dtype=torch.double)
    for start, stop in slabs.ranges(depth):
        first, last = max(start - reach, 0), min(stop + reach, depth)
        if in_place and before is not None:
            given = torch.cat([before, slabs.part(x, start, last)], dim=2)
        else:
            given = slabs.joined(x, skip, first, last)
        if in_place and reach:
            before = given[:, :, max(stop - reach, first) - first : stop - first].clone()
        part = convolve(conv, given)[:, :, start - first : stop - first]
        del given
        out = slabs.whole(part, depth) if out is None else out
        out[:, :, start:stop] = part
        own, here = _moments(part, groups)
        share = (stop - start) / (count := count + stop - start)
        square = square + share * (here - square) + share * (1 - share) * (own - mean) ** 2
        mean = mean + share * (own - mean)
    assert out is not None
    return out, mean, square


def _moments(part: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance [B, groups] of part [B, C, d, H, W], in double precision from those of each slice."""
    by_slice = part.float().unflatten(1, (groups, -1))  # [B, groups, C / groups, d, H, W]
    variance, mean = torch.var_mean(by_slice, dim=(2, 4, 5), correction=0)
    mean, variance = mean.double(), variance.double()
    return mean.mean(2), variance.mean(2) + mean.var(2, correction=0)
