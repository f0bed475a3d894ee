"""Other ways to compute the 1x3x3 convolutions of the networks, whose backward pass cuDNN does slowly in bfloat16.

`use(network, name)` changes the convolutions of a network in place; weights and results stay the same up to rounding.
They are variants for `benchmarks/gpu.py` to measure. Nothing in the package uses them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = (1, 3, 3)
PADDING = [0, 1, 1]
_ONES = [1, 1, 1]


class Slices(nn.Conv3d):
    """A 2-D convolution of all slices as one batch; a view in the channels-last layout, a copy in the other."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        slices = x.transpose(1, 2).flatten(0, 1)
        out = F.conv2d(slices, weight[:, :, 0], bias, padding=1)
        return out.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class Solid(nn.Conv3d):
    """A 3x3x3 convolution whose outer planes are zero: three times the operations, by another kernel."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv3d(x, F.pad(weight, (0, 0, 0, 0, 1, 1)), bias, padding=1)


class _OwnBackward(torch.autograd.Function):
    """conv3d whose gradient of x is found in another way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, way: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.way, ctx.has_bias = way, bias is not None
        return F.conv3d(x, weight, bias, padding=PADDING)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), (x, weight) = gradients, ctx.saved_tensors
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _by_convolution(dy, weight) if ctx.way == "convolution" else _in_float32(dy, x, weight)
        _, dw, db = _convolution_backward(dy, x, weight, [False, True, ctx.has_bias])
        return dx, dw, db, None


def _by_convolution(dy: Tensor, weight: Tensor) -> Tensor:
    """The gradient of x as a convolution of dy with the mirrored and transposed weights (stride 1, same padding)."""
    return F.conv3d(dy, weight.flip(3, 4).transpose(0, 1), padding=PADDING)


def _in_float32(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of x in float32 (TF32 where it is allowed)."""
    dx, _, _ = _convolution_backward(dy.float(), x.float(), weight.float(), [True, False, False])
    return dx.to(x.dtype)


def _convolution_backward(dy: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    bias_sizes = [weight.shape[0]] if wanted[2] else None
    return torch.ops.aten.convolution_backward(
        dy, x, weight, bias_sizes, _ONES, PADDING, _ONES, False, [0, 0, 0], 1, wanted
    )


class _WithOwnBackward(nn.Conv3d):
    way = ""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, weight, bias = (None if value is None else value.to(dtype) for value in (x, weight, bias))
        with torch.autocast(kind, enabled=False):
            return _OwnBackward.apply(x, weight, bias, self.way)


class Mirrored(_WithOwnBackward):
    """The gradient of x as a forward convolution."""

    way = "convolution"


class WideGradient(_WithOwnBackward):
    """The gradient of x in float32."""

    way = "float32"


WAYS: dict[str, type[nn.Conv3d]] = {
    "conv3d": nn.Conv3d,
    "conv2d of slices": Slices,
    "gradient as a convolution": Mirrored,
    "gradient in float32": WideGradient,
    "as 3x3x3": Solid,
}


def use(network: nn.Module, name: str) -> None:
    """Compute every 1x3x3 convolution of a network in the way `name`."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and tuple(module.kernel_size) == KERNEL:
            module.__class__ = WAYS[name]
