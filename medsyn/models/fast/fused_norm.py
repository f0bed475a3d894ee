"""Group norm, affine by time and SiLU as one operation with its own gradient, for volumes on a GPU.

Two implementations: Triton's kernels (`medsyn.models.fast.norm_kernels`) where Triton works, and PyTorch's reductions
over slabs of the volume elsewhere. Both keep only x and small tensors for the backward pass, compute in float32 at
least, return the type and the memory layout of x, and are one operator for the compiler.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsyn.models.fast.context import autocast_off, is_only_channels_last
from medsyn.progress import log

_SLAB = 2**25
"""Values that PyTorch's reductions convert to float32 at a time (128 MiB)."""
_KERNEL_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_triton_allowed = True


def norm_silu(norm: nn.GroupNorm, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """Return SiLU(norm(x) * (1 + scale) + shift) in the type and the layout of x [B, C, D, H, W].

    scale, shift [B or 1, C] or None. Gradients reach x, scale, shift and the weights of the norm.
    """
    with autocast_off(x):
        wide = _wide(x)
        gain, offset = norm.weight.to(wide)[None], norm.bias.to(wide)[None]
        if scale is not None and shift is not None:
            factor = 1 + scale.to(wide)
            gain, offset = gain * factor, torch.addcmul(shift.to(wide), offset, factor)
        if not is_only_channels_last(x):
            x = x.contiguous()
        shape = (len(x), x.shape[1])
        y, _, _ = _forward(x, gain.expand(shape), offset.expand(shape), norm.num_groups, norm.eps)
    return y


@contextmanager
def without_triton() -> Iterator[None]:
    """Use PyTorch's reductions on every device, to compare them with the kernels."""
    global _triton_allowed
    before, _triton_allowed = _triton_allowed, False
    try:
        yield
    finally:
        _triton_allowed = before


@cache
def triton_kernels(device: torch.device) -> ModuleType | None:
    """Return the Triton kernels if they work on a device: they are compiled, run, and compared once per process.

    Without Triton, None; where it is installed and fails (it needs a C compiler, for example) also a warning.
    """
    try:
        from medsyn.models.fast import norm_kernels
    except ImportError:
        return None
    try:
        error = max(kernel_error(norm_kernels, device, last) for last in (False, True))
    except Exception as problem:  # whatever Triton, its compiler or the driver raise
        log.warning("group norms are computed without Triton, which fails: %s", str(problem).partition("\n")[0])
        return None
    if not error < 1e-4:
        log.warning("group norms are computed without Triton, whose result is wrong by %.2g", error)
        return None
    return norm_kernels


def kernel_error(kernels: ModuleType, device: torch.device, last: bool, dtype: torch.dtype = torch.float32) -> float:
    """Return the largest difference of the kernels' result and gradients from PyTorch's, over the largest value."""
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last_3d if last else torch.contiguous_format

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    x, dy = (values(2, 24, 5, 9, 7).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    gain, offset = values(2, 24), values(2, 24)
    theirs = _torch_forward(x, gain, offset, 4, 1e-5)
    moments = theirs[1:]
    ours = kernels.forward(x, gain, offset, 4, 1e-5)
    pairs = [
        *zip(ours, theirs, strict=True),
        *zip(
            kernels.backward(dy, x, gain, offset, *moments, 4),
            _torch_backward(dy, x, gain, offset, *moments, 4),
            strict=True,
        ),
    ]
    errors = [(a.float() - b.float()).abs().max() / b.float().abs().max() for a, b in pairs]
    return float(torch.stack(errors).max())


def _kernels(x: Tensor) -> ModuleType | None:
    usable = _triton_allowed and x.is_cuda and x.dtype in _KERNEL_TYPES
    return triton_kernels(x.device) if usable else None


@torch.library.custom_op(
    "medsyn::norm_silu",
    mutates_args=(),
    schema="(Tensor x, Tensor gain, Tensor offset, int num_groups, float eps) -> (Tensor, Tensor, Tensor)",
)
def _forward(x: Tensor, gain: Tensor, offset: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x contiguous or channels-last; gain, offset [B, C] -> y, and mean and 1 / deviation [B, groups]."""
    kernels = _kernels(x)
    result: tuple[Tensor, Tensor, Tensor] = (kernels.forward if kernels else _torch_forward)(
        x, gain, offset, num_groups, eps
    )
    return result


@torch.library.custom_op(
    "medsyn::norm_silu_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor x, Tensor gain, Tensor offset, Tensor mean, Tensor rstd, int num_groups)"
    " -> (Tensor, Tensor, Tensor)",
)
def _backward(
    dy: Tensor, x: Tensor, gain: Tensor, offset: Tensor, mean: Tensor, rstd: Tensor, num_groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """dy in the layout of x -> the gradients of x, gain and offset."""
    kernels = _kernels(x)
    result: tuple[Tensor, Tensor, Tensor] = (kernels.backward if kernels else _torch_backward)(
        dy, x, gain, offset, mean, rstd, num_groups
    )
    return result


@_forward.register_fake
def _forward_shapes(x: Tensor, gain: Tensor, offset: Tensor, num_groups: int, eps: float) -> tuple[Tensor, ...]:
    mean = x.new_empty((x.shape[0], num_groups), dtype=_wide(x))
    return torch.empty_like(x), mean, torch.empty_like(mean)


@_backward.register_fake
def _backward_shapes(
    dy: Tensor, x: Tensor, gain: Tensor, offset: Tensor, mean: Tensor, rstd: Tensor, num_groups: int
) -> tuple[Tensor, ...]:
    dgain = x.new_empty(x.shape[:2], dtype=_wide(x))
    return torch.empty_like(x), dgain, torch.empty_like(dgain)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, gain, offset, ctx.num_groups, _ = inputs
    ctx.save_for_backward(x, gain, offset, *output[1:])


def _gradients(ctx: Any, dy: Tensor, *_of_moments: Tensor) -> tuple[Tensor | None, ...]:
    x, gain, offset, mean, rstd = ctx.saved_tensors
    layout = torch.channels_last_3d if is_only_channels_last(x) else torch.contiguous_format
    dy = dy.contiguous(memory_format=layout)
    return *_backward(dy, x, gain, offset, mean, rstd, ctx.num_groups), None, None


_forward.register_autograd(_gradients, setup_context=_keep)


def _torch_forward(
    x: Tensor, gain: Tensor, offset: Tensor, num_groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = _torch_moments(x, num_groups, eps)
    center, scale, gain, offset = _per_voxel(x, mean, rstd, gain, offset)
    factor, y = scale * gain, torch.empty_like(x)
    for part, result in zip(_slabs(x), _slabs(y), strict=True):
        result.copy_(F.silu(torch.addcmul(offset, part - center, factor), inplace=True))
    return y, mean, rstd


def _torch_moments(x: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return the mean and 1 / deviation [B, groups] of x.

    The moments of each slab and channel are joined in double precision (Chan, Golub and LeVeque, 1979).
    """
    wide, dim = _wide(x), 1 if is_only_channels_last(x) else 2
    parts = []
    for part in _slabs(x):
        moments = torch.var_mean(part.to(wide), dim=dim, correction=0)
        variance, mean = (moment.double().view(len(x), num_groups, -1) for moment in moments)
        parts.append((part.shape[dim], variance, mean))
    number = x[0].numel() / num_groups
    mean = torch.stack([(count * means).sum(2) for count, _, means in parts]).sum(0) / number
    apart = [count * (variances + (means - mean[..., None]).square()) for count, variances, means in parts]
    variance = torch.stack(apart).sum((0, 3)) / number
    return mean.to(wide), torch.rsqrt(variance + eps).to(wide)


def _torch_backward(
    dy: Tensor, x: Tensor, gain: Tensor, offset: Tensor, mean: Tensor, rstd: Tensor, num_groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    center, scale, by_voxel, shift = _per_voxel(x, mean, rstd, gain, offset)
    dim = 1 if is_only_channels_last(x) else 2

    def slabs() -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the normalised values and the gradient before SiLU."""
        for part, given in zip(_slabs(x), _slabs(dy), strict=True):
            normal = (part - center) * scale
            z = torch.addcmul(shift, normal, by_voxel)
            yield normal, torch.ops.aten.silu_backward(given.to(z.dtype), z)

    dgain, doffset = torch.zeros_like(gain, dtype=_wide(x)), torch.zeros_like(offset, dtype=_wide(x))
    for normal, dz in slabs():
        doffset += dz.sum(dim)
        dgain += (dz * normal).sum(dim)
    number = x[0].numel() / num_groups
    of_group = [
        ((gain * sums).double().unflatten(1, (num_groups, -1)).sum(2) / number).to(mean) for sums in (doffset, dgain)
    ]
    by_offset, by_gain, _, _ = _per_voxel(x, of_group[0], of_group[1], gain, offset)
    dx = torch.empty_like(x)
    for (normal, dz), result in zip(slabs(), _slabs(dx), strict=True):
        result.copy_(scale * (by_voxel * dz - by_offset - normal * by_gain))
    return dx, dgain, doffset


def _wide(x: Tensor) -> torch.dtype:
    """Return the type to compute in: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def _slabs(x: Tensor) -> tuple[Tensor, ...]:
    """Return views of the voxels of x, at most _SLAB values each: [B, v, C] if channels-last, else [B, C, v]."""
    voxels = max(1, _SLAB // (x.shape[0] * x.shape[1]))
    if is_only_channels_last(x):
        return x.permute(0, 2, 3, 4, 1).flatten(1, 3).split(voxels, dim=1)
    return x.flatten(2).split(voxels, dim=2)


def _per_voxel(x: Tensor, mean: Tensor, rstd: Tensor, gain: Tensor, offset: Tensor) -> tuple[Tensor, ...]:
    """Return [B, G], [B, G], [B, C], [B, C] each with one value per channel, shaped to be combined with `_slabs`."""
    width = x.shape[1] // mean.shape[1]
    dim = 1 if is_only_channels_last(x) else 2
    values = (mean.repeat_interleave(width, 1), rstd.repeat_interleave(width, 1), gain, offset)
    return tuple(value.unsqueeze(dim) for value in values)
