"""Count the floating-point operations of a sample, and measure the peak of the memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from medsyn.live_bytes import WithoutData
from medsyn.training.processes import to_device

if TYPE_CHECKING:
    from medsyn.training.task import Phase

GIB = 2**30
_PEAK_TFLOPS = {"H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "V100": 125.0}
"""Dense TFLOP/s in bfloat16 (V100: float16) of the makers' data sheets; the first name found in the device's counts."""


def count_flops(
    build: Callable[[], nn.Module],
    loss: Callable[[nn.Module, Any], Tensor],
    batch: Mapping[str, Tensor],
    device: str = "meta",
) -> int:
    """Count the operations (2 per multiply-add) of one forward and backward pass over `batch`.

    Matrix products, convolutions and attention count, as is usual for model-FLOP utilisation; `build` must make the
    network without activation checkpointing, whose second forward pass is not work of the model. device: "meta" does
    none of the operations; a loss whose shapes depend on values needs "cpu", which does them.
    """
    with torch.device(device):
        network = build()
    shapes = {name: value.to(device) for name, value in batch.items()}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # others' kernels are not counted
        loss(network, shapes).backward()
    return int(counter.get_total_flops())


def count_phase_flops(
    build: Callable[[], Mapping[str, nn.Module]], phases: Sequence[Phase], step: int | None = None
) -> dict[str, int]:
    """Count the operations of one sample in each phase of a step, over its updates, as `count_flops` does.

    step: 0-based; by default one in which all phases take part. The first sample's batch gives the shapes. As in
    training, gradients pass through frozen networks to those that learn, but not to the weights of the frozen ones.
    """
    if step is None:
        step = max(phase.first_step for phase in phases)
    with torch.device("meta"):
        networks = build()
    counts = {}
    for phase in (phase for phase in phases if phase.first_step <= step):
        for name, network in networks.items():
            network.requires_grad_(name in phase.networks)
        batch = to_device(phase.batch(0, [0]), torch.device("meta"))
        with WithoutData(), FlopCounterMode(display=False) as counter:
            result = phase.loss(networks, batch, step)
            (result[0] if isinstance(result, tuple) else result).backward()
        counts[phase.name] = phase.num_updates * int(counter.get_total_flops())
    return counts


def peak_memory_gib(device: torch.device) -> float:
    """Return the largest memory so far in GiB: allocated on a CUDA device, or the resident memory of this process."""
    return (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_resident_bytes()) / GIB


def _peak_resident_bytes() -> int:
    """Return the peak resident memory of this program alone.

    Linux carries ru_maxrss over exec, so it holds the memory of the parent too, of Snakemake for example.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Return the TFLOP/s that the device could do at 16 bits, where that is known; float32 has no such peak here."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in _PEAK_TFLOPS.items() if all(word in name for word in key.split())), None)
