# mypy: disable-error-code="no-untyped-def"
"""Triton kernels of group norm, affine and SiLU for volumes, forward and backward, in both memory layouts.

y = SiLU(z) with z = (x - mean) / deviation * gain + offset; mean and deviation are those of a sample's group of
channels, gain and offset are given per sample and channel. PyTorch's kernel computes the moments of a group in one
block of threads. Here the voxels are cut into chunks, so that thousands of programs share the work:

- `_moments`: mean and sum of squared differences from it of each channel in each chunk, by Welford's update
  (Technometrics 4, 1962) in float32;
- `_join_moments`: these of all chunks and channels of a group together (Chan, Golub and LeVeque, 1979), in float64;
- `_apply`: y. The mean is subtracted before anything is multiplied, so a mean that is large against the deviation costs
  no more digits than x has lost already.
- `_gradient_sums`, `_join_gradients`, `_gradient`: the same for the backward pass, which computes z again from x.

A program has BLOCK_V voxels of BLOCK_C channels at a time: one channel in the contiguous layout. Offsets are 64-bit.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from medsyn.models.fast.context import is_only_channels_last

_TILE = 4096
"""Values that a program has in registers at a time."""
_PROGRAMS = 2048
"""Programs that are enough to keep every multiprocessor busy; beyond, each does several tiles."""
_MOST_TILES = 64
_NUM_WARPS = 8


@triton.jit
def _program(num_chunks, num_blocks, BLOCK_C: tl.constexpr):
    """Return the sample, the chunk and the channels [BLOCK_C] of this program."""
    program = tl.program_id(0).to(tl.int64)
    channels = program % num_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    chunk = program // num_blocks % num_chunks
    return program // num_blocks // num_chunks, chunk, channels


@triton.jit
def _tile(tile, sample, c, V, C: tl.constexpr, LAST: tl.constexpr, BLOCK_V: tl.constexpr):
    """Return the offsets of a tile [BLOCK_V, BLOCK_C], which of them exist, and which voxels exist [BLOCK_V, 1]."""
    v = tile * BLOCK_V + tl.arange(0, BLOCK_V)[:, None]
    at = (sample * V + v) * C + c[None, :] if LAST else (sample * C + c[None, :]) * V + v
    return at, (v < V) & (c[None, :] < C), v < V


@triton.jit
def _channel_values(mean, rstd, gain, offset, sample, c, C: tl.constexpr, GROUPS: tl.constexpr):
    """Return what `_apply` and the backward pass need of the channels c: mean, 1 / deviation, gain, offset, [1, n]."""
    group = sample * GROUPS + c // (C // GROUPS)
    row = sample * C + c
    center = tl.load(mean + group, mask=c < C, other=0.0)[None, :]
    scale = tl.load(rstd + group, mask=c < C, other=0.0)[None, :]
    a = tl.load(gain + row, mask=c < C, other=0.0)[None, :]
    d = tl.load(offset + row, mask=c < C, other=0.0)[None, :]
    return center, scale, a, d


@triton.jit
def _moments(
    x, means, squares, V, num_chunks, num_blocks,
    TILES: tl.constexpr,
    C: tl.constexpr, LAST: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    sample, chunk, c = _program(num_chunks, num_blocks, BLOCK_C)
    count = tl.zeros((BLOCK_V, 1), tl.float32)
    mean = tl.zeros((BLOCK_V, BLOCK_C), tl.float32)
    square = tl.zeros((BLOCK_V, BLOCK_C), tl.float32)
    for i in range(TILES):
        at, inside, exists = _tile(chunk * TILES + i, sample, c, V, C, LAST, BLOCK_V)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        count += exists.to(tl.float32)
        before = tl.where(exists, value - mean, 0.0)
        mean += before * (1.0 / tl.maximum(count, 1.0))
        square += before * (value - mean)
    center = tl.sum(count * mean, 0) / tl.maximum(tl.sum(count, 0), 1.0)
    apart = mean - center[None, :]
    square = tl.sum(square + count * apart * apart, 0)
    row = (sample * num_chunks + chunk) * C + c
    tl.store(means + row, center, mask=c < C)
    tl.store(squares + row, square, mask=c < C)


@triton.jit(do_not_specialize=["V", "num_chunks", "chunk_size"])
def _join_moments(
    means, squares, mean, rstd, V, num_chunks, chunk_size, eps,
    STEPS: tl.constexpr, C: tl.constexpr, GROUPS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    width: tl.constexpr = C // GROUPS
    j = tl.arange(0, BLOCK_C)[None, :]
    c = group % GROUPS * width + j
    sample = group // GROUPS
    total = tl.zeros((BLOCK_K, BLOCK_C), tl.float64)
    for i in range(STEPS):
        k = i * BLOCK_K + tl.arange(0, BLOCK_K).to(tl.int64)[:, None]
        inside = (k < num_chunks) & (j < width)
        count = tl.minimum(V - k * chunk_size, chunk_size).to(tl.float64)
        part = tl.load(means + (sample * num_chunks + k) * C + c, mask=inside, other=0.0)
        total += tl.where(inside, count * part.to(tl.float64), 0.0)
    values = (V.to(tl.int64) * width).to(tl.float64)
    center = tl.sum(tl.sum(total, 1), 0) / values
    total = tl.zeros((BLOCK_K, BLOCK_C), tl.float64)
    for i in range(STEPS):
        k = i * BLOCK_K + tl.arange(0, BLOCK_K).to(tl.int64)[:, None]
        inside = (k < num_chunks) & (j < width)
        count = tl.minimum(V - k * chunk_size, chunk_size).to(tl.float64)
        row = (sample * num_chunks + k) * C + c
        apart = tl.load(means + row, mask=inside, other=0.0).to(tl.float64) - center
        square = tl.load(squares + row, mask=inside, other=0.0).to(tl.float64)
        total += tl.where(inside, square + count * apart * apart, 0.0)
    variance = tl.sum(tl.sum(total, 1), 0) / values
    tl.store(mean + group, center.to(tl.float32))
    tl.store(rstd + group, 1.0 / tl.sqrt((variance + eps).to(tl.float32)))


@triton.jit
def _apply(
    x, y, mean, rstd, gain, offset, V, num_chunks, num_blocks,
    GROUPS: tl.constexpr, TILES: tl.constexpr,
    C: tl.constexpr, LAST: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    sample, chunk, c = _program(num_chunks, num_blocks, BLOCK_C)
    center, scale, a, d = _channel_values(mean, rstd, gain, offset, sample, c, C, GROUPS)
    for i in range(TILES):
        at, inside, _ = _tile(chunk * TILES + i, sample, c, V, C, LAST, BLOCK_V)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        z = (value - center) * (scale * a) + d
        tl.store(y + at, (z * tl.sigmoid(z)).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_of_z(value, dy, center, scale, a, d):
    """Return the normalised value and the gradient of z."""
    normal = (value - center) * scale
    z = normal * a + d
    s = tl.sigmoid(z)
    return normal, dy * s * (1.0 + z * (1.0 - s))


@triton.jit
def _gradient_sums(
    x, dy, mean, rstd, gain, offset, of_gain, of_offset, V, num_chunks, num_blocks,
    GROUPS: tl.constexpr, TILES: tl.constexpr,
    C: tl.constexpr, LAST: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    sample, chunk, c = _program(num_chunks, num_blocks, BLOCK_C)
    center, scale, a, d = _channel_values(mean, rstd, gain, offset, sample, c, C, GROUPS)
    sum_gain = tl.zeros((BLOCK_V, BLOCK_C), tl.float32)
    sum_offset = tl.zeros((BLOCK_V, BLOCK_C), tl.float32)
    for i in range(TILES):
        at, inside, _ = _tile(chunk * TILES + i, sample, c, V, C, LAST, BLOCK_V)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        given = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)  # 0 outside, and so is the gradient
        normal, dz = _gradient_of_z(value, given, center, scale, a, d)
        sum_gain += dz * normal
        sum_offset += dz
    row = (sample * num_chunks + chunk) * C + c
    tl.store(of_gain + row, tl.sum(sum_gain, 0), mask=c < C)
    tl.store(of_offset + row, tl.sum(sum_offset, 0), mask=c < C)


@triton.jit(do_not_specialize=["V", "num_chunks"])
def _join_gradients(
    of_gain, of_offset, gain, dgain, doffset, mean_dz, mean_dz_normal, V, num_chunks,
    STEPS: tl.constexpr, C: tl.constexpr, GROUPS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add up the chunks; mean_dz, mean_dz_normal: means over a group of gain dz, and of gain dz times normal."""
    group = tl.program_id(0).to(tl.int64)
    width: tl.constexpr = C // GROUPS
    j = tl.arange(0, BLOCK_C)
    c = group % GROUPS * width + j
    sample = group // GROUPS
    total_gain = tl.zeros((BLOCK_K, BLOCK_C), tl.float64)
    total_offset = tl.zeros((BLOCK_K, BLOCK_C), tl.float64)
    for i in range(STEPS):
        k = i * BLOCK_K + tl.arange(0, BLOCK_K).to(tl.int64)[:, None]
        inside = (k < num_chunks) & (j < width)[None, :]
        row = (sample * num_chunks + k) * C + c[None, :]
        total_gain += tl.load(of_gain + row, mask=inside, other=0.0).to(tl.float64)
        total_offset += tl.load(of_offset + row, mask=inside, other=0.0).to(tl.float64)
    by_gain, by_offset = tl.sum(total_gain, 0), tl.sum(total_offset, 0)
    own = sample * C + c
    tl.store(dgain + own, by_gain.to(tl.float32), mask=j < width)
    tl.store(doffset + own, by_offset.to(tl.float32), mask=j < width)
    a = tl.load(gain + own, mask=j < width, other=0.0).to(tl.float64)
    values = (V.to(tl.int64) * width).to(tl.float64)
    tl.store(mean_dz + group, (tl.sum(a * by_offset, 0) / values).to(tl.float32))
    tl.store(mean_dz_normal + group, (tl.sum(a * by_gain, 0) / values).to(tl.float32))


@triton.jit
def _gradient(
    x, dy, dx, mean, rstd, gain, offset, mean_dz, mean_dz_normal, V, num_chunks, num_blocks,
    GROUPS: tl.constexpr, TILES: tl.constexpr,
    C: tl.constexpr, LAST: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    sample, chunk, c = _program(num_chunks, num_blocks, BLOCK_C)
    center, scale, a, d = _channel_values(mean, rstd, gain, offset, sample, c, C, GROUPS)
    group = sample * GROUPS + c // (C // GROUPS)
    by_offset = tl.load(mean_dz + group, mask=c < C, other=0.0)[None, :]
    by_gain = tl.load(mean_dz_normal + group, mask=c < C, other=0.0)[None, :]
    for i in range(TILES):
        at, inside, _ = _tile(chunk * TILES + i, sample, c, V, C, LAST, BLOCK_V)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        given = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        normal, dz = _gradient_of_z(value, given, center, scale, a, d)
        result = scale * (a * dz - by_offset - normal * by_gain)
        tl.store(dx + at, result.to(dx.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class _Work:
    """How the values of x [B, C, D, H, W] are shared out among the programs."""

    voxels: int
    channels: int
    last: bool
    block_v: int
    block_c: int
    num_blocks: int
    num_tiles: int
    num_chunks: int
    num_programs: int

    @classmethod
    def of(cls, x: Tensor) -> _Work:
        batch, channels = x.shape[:2]
        voxels, last = x[0, 0].numel(), is_only_channels_last(x)
        block_c = channel_block(channels) if last else 1
        block_v = max(1, _TILE // block_c)
        num_blocks, all_tiles = triton.cdiv(channels, block_c), triton.cdiv(voxels, block_v)
        share = max(1, batch * num_blocks * all_tiles // _PROGRAMS)
        num_tiles = min(_MOST_TILES, 1 << share.bit_length() - 1)  # a power of two, so that few kernels are compiled
        num_chunks = triton.cdiv(all_tiles, num_tiles)
        programs = batch * num_blocks * num_chunks
        return cls(voxels, channels, last, block_v, block_c, num_blocks, num_tiles, num_chunks, programs)

    @property
    def counts(self) -> tuple[int, int, int]:
        """V and the numbers that `_program` needs."""
        return self.voxels, self.num_chunks, self.num_blocks

    @property
    def constants(self) -> dict[str, int | bool]:
        """Constants of the kernels that read x."""
        blocks = {"TILES": self.num_tiles, "BLOCK_V": self.block_v, "BLOCK_C": self.block_c}
        return {**blocks, "C": self.channels, "LAST": self.last, "num_warps": _NUM_WARPS}

    def joining(self, num_groups: int) -> dict[str, int]:
        """Return the constants of the kernels that join the chunks of a group."""
        block_c = triton.next_power_of_2(self.channels // num_groups)
        block_k = min(triton.next_power_of_2(self.num_chunks), max(1, _TILE // block_c))
        steps = triton.next_power_of_2(triton.cdiv(self.num_chunks, block_k))
        return {"STEPS": steps, "C": self.channels, "GROUPS": num_groups, "BLOCK_K": block_k, "BLOCK_C": block_c}


def channel_block(channels: int) -> int:
    """Return how many channels a program has in the channels-last layout, a power of two.

    The largest of 256, 128, 64, 32 that leaves at most 15 % of its lanes without a channel, else the one that leaves
    the fewest.
    """
    sizes = [size for size in (256, 128, 64, 32) if size < 2 * channels] or [triton.next_power_of_2(channels)]
    padded = {size: triton.cdiv(channels, size) * size for size in sizes}
    return next((size for size in sizes if padded[size] <= 1.15 * channels), min(sizes, key=padded.__getitem__))


def forward(x: Tensor, gain: Tensor, offset: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, C, D, H, W], dense in either layout; gain, offset [B, C] float32 -> y, and mean, 1 / deviation [B, G]."""
    work, batch = _Work.of(x), len(x)
    means, squares = x.new_empty((2, batch, work.num_chunks, work.channels), dtype=torch.float32)
    mean, rstd = (x.new_empty((batch, num_groups), dtype=torch.float32) for _ in range(2))
    y = torch.empty_like(x)
    gain, offset = gain.contiguous(), offset.contiguous()
    with _on(x):
        _moments[(work.num_programs,)](x, means, squares, *work.counts, **work.constants)
        chunk = work.num_tiles * work.block_v
        _join_moments[(batch * num_groups,)](
            means, squares, mean, rstd, work.voxels, work.num_chunks, chunk, eps, **work.joining(num_groups)
        )
        _apply[(work.num_programs,)](x, y, mean, rstd, gain, offset, *work.counts, GROUPS=num_groups, **work.constants)
    return y, mean, rstd


def backward(
    dy: Tensor, x: Tensor, gain: Tensor, offset: Tensor, mean: Tensor, rstd: Tensor, num_groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """dy in the layout of x, and what `forward` was given and returned -> gradients of x, gain and offset."""
    work, batch = _Work.of(x), len(x)
    of_gain, of_offset = x.new_empty((2, batch, work.num_chunks, work.channels), dtype=torch.float32)
    dgain, doffset = (x.new_empty((batch, work.channels), dtype=torch.float32) for _ in range(2))
    mean_dz, mean_dz_normal = x.new_empty((2, batch, num_groups), dtype=torch.float32)
    dx = torch.empty_like(x)
    gain, offset = gain.contiguous(), offset.contiguous()
    given = (mean, rstd, gain, offset)
    with _on(x):
        _gradient_sums[(work.num_programs,)](
            x, dy, *given, of_gain, of_offset, *work.counts, GROUPS=num_groups, **work.constants
        )
        _join_gradients[(batch * num_groups,)](
            of_gain, of_offset, gain, dgain, doffset, mean_dz, mean_dz_normal, work.voxels, work.num_chunks,
            **work.joining(num_groups),
        )  # fmt: skip
        _gradient[(work.num_programs,)](
            x, dy, dx, *given, mean_dz, mean_dz_normal, *work.counts, GROUPS=num_groups, **work.constants
        )
    return dx, dgain, doffset


def _on(x: Tensor) -> torch.cuda.device | nullcontext[None]:
    """Make the device of x the current one, on which Triton starts kernels."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
