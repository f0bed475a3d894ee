"""Choose and name the device that networks run on, and test that its 3-D convolutions are right.

Some versions of PyTorch and cuDNN convolve volumes wrongly or slowly in 16 bits:

- cuDNN 9.8 to 9.14 gives wrong results for large volumes (pytorch/pytorch issue 163539, pull request 166480).
- PyTorch 2.9.0 avoids cuDNN for them, and later versions do so with such a cuDNN: 4 to 20 times slower, with up to 17
  times the memory (issues 166122, 166643 and 174051).

The large volumes of these reports are too large for a test at the start of a job, so the versions are looked at too.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
from packaging.version import Version
from torch import Tensor
from torch.nn import functional

from medsyn.errors import InputError
from medsyn.progress import log

REMEDY = "install torch 2.11 or newer, whose wheels bring cuDNN 9.15 or newer"
TOLERANCE = 0.02
"""Root mean square error over that of the result; bfloat16 keeps 8 bits, which makes 0.002."""
_SIZE, _CHANNELS = (16, 32, 32), 16
_BROKEN_CUDNN = range(90800, 91500)


def network_device() -> torch.device:
    """Return the GPU, after `check_convolutions`, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda")
    check_convolutions(device)
    return device


def device_in_use() -> torch.device:
    """Return the GPU if this process has had memory on it, else the CPU."""
    used = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
    return torch.device("cuda" if used else "cpu")


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or that of the CPU with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device).removeprefix("NVIDIA ")
    threads = torch.get_num_threads()
    return f"{_cpu_model()}, {threads} thread{'s' if threads > 1 else ''}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    name = next(names, platform.processor() or platform.machine())
    return " ".join(name.replace("(R)", "").replace("(TM)", "").replace(" CPU", "").split()) or "CPU"


@cache
def check_convolutions(device: torch.device) -> None:
    """Compare one 3-D convolution in bfloat16 and in float16 with float32 on a GPU, once per process.

    A wrong result, or versions that are known for one, is an InputError. Versions known to be slow are a warning.
    """
    if device.type != "cuda":
        return
    versions = f"torch {torch.__version__} with cuDNN {torch.backends.cudnn.version()}"
    fault = known_fault(torch.__version__, torch.backends.cudnn.version())
    if fault == "wrong":
        raise InputError(f"{versions} convolves large volumes wrongly in 16 bits; {REMEDY}")
    if fault == "slow":
        log.warning("%s convolves volumes up to 20 times slower, with up to 17 times the memory; %s", versions, REMEDY)
    for dtype in (torch.bfloat16, torch.float16):
        error = convolution_error(device, dtype)
        if not error <= TOLERANCE:
            raise InputError(
                f"{versions} convolves volumes wrongly on this {torch.cuda.get_device_name(device)}: the relative error"
                f" in {dtype} is {error:.2g}, at most {TOLERANCE} is expected; {REMEDY}"
            )


def known_fault(torch_version: str, cudnn_version: int | None) -> str | None:
    """Return what is known of the 16-bit 3-D convolutions of these versions: "wrong", "slow" or None."""
    release = Version(torch_version).release
    if release == (2, 9, 0):
        return "slow"
    if cudnn_version not in _BROKEN_CUDNN:
        return None
    return "slow" if release >= (2, 9) else "wrong"


@torch.no_grad()
def convolution_error(device: torch.device, dtype: torch.dtype) -> float:
    """Return the relative root mean square error of a 3-D convolution in `dtype`, against float32 without cuDNN."""
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    volume, kernel = values(1, _CHANNELS, *_SIZE), values(_CHANNELS, _CHANNELS, 3, 3, 3)
    result = functional.conv3d(volume, kernel, padding=1).float()
    with torch.backends.cudnn.flags(enabled=False):
        expected = functional.conv3d(volume.float(), kernel.float(), padding=1)
    return float((result - expected).norm() / expected.norm())
