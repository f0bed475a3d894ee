"""Rows of `benchmarks/gpu.py` about the installation, single norms and single 1x3x3 and 3x3x3 convolutions."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F
from denoiser_steps import timed
from flat_convolutions import KERNEL, WAYS
from gpu_report import Measurement, Row
from torch import Tensor, nn

from medsyn.device import check_convolutions, convolution_error
from medsyn.models.fast.fused_norm import kernel_error, norm_silu, triton_kernels, without_triton

LAYOUTS = {"": torch.contiguous_format, ", channels last": torch.channels_last_3d}
NORMS = [
    (1, 56, 256, 256, 256),
    (1, 112, 256, 128, 128),
    (1, 448, 256, 32, 32),
    (1, 160, 64, 64, 64),
    (2, 56, 256, 72, 72),
]
CONVOLUTIONS = [(2, 56, 256, 72, 72), (1, 56, 256, 256, 256), (2, 224, 256, 18, 18), (1, 160, 64, 64, 64)]
SMALL = [(2, 24, 4, 8, 8)]
CALLS = 3


def installation_rows(device: torch.device) -> Iterator[Row]:
    """Versions, the self-test of the convolutions and that of the kernels; each is a row, whatever the others do."""
    yield Row("installation", "", "versions", note=versions(device))
    for dtype in (torch.bfloat16, torch.float16):
        yield Row("installation", "", f"conv3d in {name_of(dtype)}", diff=convolution_error(device, dtype))
    try:
        check_convolutions(device)
        note = "right"
    except Exception as error:
        note = str(error)
    yield Row("installation", "", "self-test of the convolutions", note=note)
    kernels = triton_kernels(device) if device.type == "cuda" else None
    if kernels is None:
        yield Row("installation", "", "Triton kernels of the norm", note="not used: see the warning, if there is one")
        return
    for dtype, (words, layout) in product((torch.float32, torch.bfloat16, torch.float16), LAYOUTS.items()):
        error = kernel_error(kernels, device, layout == torch.channels_last_3d, dtype)
        yield Row("installation", "", f"norm kernels, {name_of(dtype)}{words}", diff=error)


def versions(device: torch.device) -> str:
    """Versions of what computes, as far as it is there."""
    words = [f"torch {torch.__version__}"]
    if device.type == "cuda":
        words += [f"CUDA {torch.version.cuda or torch.version.hip}", f"cuDNN {torch.backends.cudnn.version()}"]
        words += [f"compute capability {'.'.join(map(str, torch.cuda.get_device_capability(device)))}", driver()]
    try:
        import triton
    except ImportError:
        return ", ".join([*words, "no Triton"])
    return ", ".join([*words, f"Triton {triton.__version__}"])


def driver() -> str:
    """The driver as nvidia-smi names it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "driver unknown"
    return f"driver {done.stdout.split()[0]}"


def norm_rows(device: torch.device) -> Iterator[Measurement]:
    """Norm, affine and SiLU of one layer, forward, and forward and backward."""
    ways = {"separate": separate, "torch": norm_silu, "fused": norm_silu}
    shapes = NORMS if device.type == "cuda" else SMALL
    for shape, way, (words, layout) in product(shapes, ways, LAYOUTS.items()):
        name = Row("norm", shape_name(shape), f"{way}{words}", shape[0])

        def work(shape=shape, way=way, layout=layout, name=name) -> Iterator[Row]:
            x = random(shape, device, layout)
            norm = nn.GroupNorm(8, shape[1]).to(device, x.dtype)

            def call(given: Tensor) -> Tensor:
                if way == "torch":
                    with without_triton():
                        return ways[way](norm, given)
                return ways[way](norm, given)

            forward = seconds(lambda: no_gradient(call, x), device)
            rate = 2 * x.nbytes / forward / 1e9
            yield with_times(name, forward, f"forward, {rate:.0f} GB/s of reading and writing each value once")
            yield with_times(name, seconds(lambda: with_gradient(call, x), device), "forward and backward")

        yield Measurement(name, work)


def convolution_rows(device: torch.device) -> Iterator[Measurement]:
    """One convolution of equally many channels in bfloat16: every way of 1x3x3, and 3x3x3."""
    shapes = CONVOLUTIONS if device.type == "cuda" else SMALL
    for shape, way, (words, layout) in product(shapes, [*WAYS, "3x3x3"], LAYOUTS.items()):
        name = Row("convolution", shape_name(shape), f"{way}{words}", shape[0])

        def work(shape=shape, way=way, layout=layout, name=name) -> Iterator[Row]:
            x = random(shape, device, layout)
            kernel = (3, 3, 3) if way == "3x3x3" else KERNEL
            layer = WAYS.get(way, nn.Conv3d)(shape[1], shape[1], kernel, padding=tuple(k // 2 for k in kernel))
            layer = layer.to(device, x.dtype)
            layer.weight.data = layer.weight.data.contiguous(memory_format=layout)
            flops = 2 * x.numel() * layer.weight[0].numel() / 1e12
            forward = seconds(lambda: no_gradient(layer, x), device)
            yield with_times(name, forward, "forward", flops / forward)
            both = seconds(lambda: with_gradient(layer, x), device)
            yield with_times(name, both, "forward and backward", 3 * flops / both)

        yield Measurement(name, work)


def with_times(row: Row, took: float, note: str, tflops: float | None = None) -> Row:
    """The row with its seconds."""
    return replace(row, seconds=took, tflops=tflops, note=note)


def separate(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """PyTorch's operations, one after the other."""
    return F.silu(F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))


def no_gradient(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The result alone."""
    with torch.no_grad():
        return call(x)


def with_gradient(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of x, and with it those of the weights."""
    given = x.detach().requires_grad_()
    y = call(given)
    y.backward(torch.ones_like(y))
    return given.grad


def seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """The shortest of a few calls after the first."""
    timed(call, device)
    return min(timed(call, device)[0] for _ in range(CALLS))


def random(shape: tuple[int, ...], device: torch.device, layout: torch.memory_format) -> Tensor:
    """bfloat16 values."""
    return torch.randn(shape, device=device, dtype=torch.bfloat16).contiguous(memory_format=layout)


def shape_name(shape: tuple[int, ...]) -> str:
    """The shape in words."""
    return " x ".join(map(str, shape))


def name_of(dtype: torch.dtype) -> str:
    """The type without its module."""
    return str(dtype).removeprefix("torch.")
