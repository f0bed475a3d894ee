"""Time a denoising and a training step, the fast network against the plain one, in one run; print a table.

`python benchmarks/denoiser_step.py [--device cpu|cuda] [--case NAME ...] [--compile]`, from the repository's root (if
the package is not installed, with PYTHONPATH=.; needs torch, numpy, pydantic, pyyaml, tqdm).

On a CPU: the demo's networks (config/config.yaml), float32, one thread; `low_res_1` samples one volume at a time. On a
GPU, which is taken when there is one: the paper's networks (config/paper.yaml), sampling with bfloat16 weights,
training under bfloat16 autocast on batches that are already there, and a whole volume with the paper's 50 and 20 steps.
The plain form is medsyn.models.unet: float32 (no TF32), eager, the text and the condition read again in every step,
guidance as two calls. Weights are random: they change no time.

Columns: seconds is the shortest of the repeats, which alternate between the forms; on a CPU it is processor time, so
other users of the machine matter less. ratio is the plain form's seconds over ours. TFLOP/s counts 2 per multiply-add
of what the plain form computes (torch's counter on tensors without data), so work that ours saves raises it; peak is
the share of the GPU's dense bfloat16 peak. GiB is the peak of allocated GPU memory. diff is the largest difference from
the plain result over the largest of its values.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from medsyn.config import Config, load_config
from medsyn.diffusion.base import SOLVERS, Denoiser
from medsyn.diffusion.objective import LowResolution, denoising_loss
from medsyn.diffusion.sampling import guided_denoiser, sample
from medsyn.diffusion.seeds import volume_noise
from medsyn.memory import keep_freed_memory
from medsyn.models.fast.denoiser import prepared_denoiser
from medsyn.models.fast.unet import FastUNet
from medsyn.models.unet import UNet
from medsyn.training.cost import GIB, peak_tflops

ROOT = Path(__file__).resolve().parents[1]
TIME = 0.4  # of a step, in [0, 1]
WIDTH = {True: 768, False: 96}  # of the text states: BERT's, and the demo's own encoder
HEADER = (
    f"{'case':10} {'step':9} {'form':6} {'seconds':>9} {'ratio':>6} {'TFLOP/s':>8} {'peak':>6} {'GiB':>6} {'diff':>8}"
)
Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """One network, the shapes of its inputs [B, C, D, H, W] and how it is sampled; tokens None: super-resolution."""

    name: str
    plain: UNet
    fast: FastUNet
    infer: tuple[int, ...]
    train: tuple[int, ...]
    tokens: tuple[int, int] | None
    guidance_scale: float

    def on(self, device: torch.device, dtype: torch.dtype = torch.float32, plain: bool = False) -> Any:
        """Build the plain or the fast network with random weights on a device, the same in every call."""
        network = deepcopy(self.plain if plain else self.fast).to_empty(device="cpu")
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                fan = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 1
                parameter.normal_(std=fan**-0.5, generator=generator)
        return network.to(device, dtype)

    def given(self, shape: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
        """Random volume x, time t in [0, 1] and conditions for a step of `shape`."""
        generator = torch.Generator().manual_seed(1)
        made = {"x": torch.randn(shape, generator=generator), "t": torch.full((shape[0],), TIME)}
        if self.tokens is None:
            made["condition"] = torch.randn(shape, generator=generator)
        else:
            made["text"] = torch.randn(shape[0], *self.tokens, generator=generator)
        return {key: value.to(device) for key, value in made.items()}


def cases(config: Config, full: bool) -> dict[str, Case]:
    """Both networks of a configuration, without data. full: the paper's, sampling one volume at a time."""
    size, factor, sampling = config.preprocess.size, config.preprocess.low_res_factor, config.sampling
    low = tuple(side // factor for side in size)
    batch = 1 if full or sampling.batch_size == "auto" else sampling.batch_size
    trained = config.low_res.train.micro_batch_size
    crop = config.super_res.train.crop_size or size
    high_batch = config.super_res.train.micro_batch_size
    tokens = (config.text.num_tokens, WIDTH[full])
    high = config.super_res.unet.model_copy(update={"num_bottom_blocks": 1})
    with torch.device("meta"):
        low_nets = [build(config.low_res.unet, num_tokens=tokens[0], cond_dim=tokens[1]) for build in (UNet, FastUNet)]
        high_nets = [build(high, condition_channels=4) for build in (UNet, FastUNet)]
    scale = sampling.guidance_scale
    one = Case("low_res_1", *low_nets, (1, 4, *low), (trained, 4, *low), tokens, scale)
    return ({} if full else {"low_res_1": one}) | {
        "low_res": Case("low_res", *low_nets, (batch, 4, *low), (trained, 4, *low), tokens, scale),
        "super_res": Case("super_res", *high_nets, (1, 4, *size), (high_batch, 4, *crop), None, 1.0),
    }


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    choices = ("low_res_1", "low_res", "super_res")
    parser.add_argument("--case", nargs="+", choices=choices, default=choices)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; with more than one, wall time is taken")
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile, on a GPU with CUDA graphs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    device = torch.device(args.device)
    full = device.type == "cuda"
    config = load_config(ROOT / "config" / ("paper.yaml" if full else "config.yaml"))
    print(f"{hardware(device)}; torch {torch.__version__}; {'bfloat16' if full else 'float32'}; {args.repeats} repeats")
    print(HEADER, flush=True)
    for name, case in cases(config, full).items():
        if name in args.case:
            for training in (False,) if name == "low_res_1" else (False, True):
                measure(case, training, device, args)
    if full:
        whole_volume(config, device, args.compile)


def measure(case: Case, training: bool, device: torch.device, args: argparse.Namespace) -> None:
    """Print the two rows of one kind of step, or that it does not fit the memory.

    On a GPU the forms are measured one after the other, so that each has the memory for itself.
    """
    flops = count_flops(case, case.train if training else case.infer, training)
    step_name = "training" if training else "denoising"
    seconds: dict[str, float] = {}
    memory: dict[str, float] = {}
    results: dict[str, Tensor] = {}
    for names in [("plain", "ours")] if device.type == "cpu" else [("plain",), ("ours",)]:
        fits = True
        steps = {name: step_of(case, training, name == "plain", device, args.compile) for name in names}
        for repeat in range(args.repeats + 1):  # the first round warms up
            for name, step in steps.items():
                try:
                    took, memory[name], results[name] = timed(step, device)
                except torch.cuda.OutOfMemoryError:
                    fits = False
                    break
                seconds[name] = took if repeat <= 1 else min(seconds[name], took)
            if not fits:
                print(f"{case.name:10} {step_name:9} {names[0]:6} does not fit the memory", flush=True)
                seconds.pop(names[0], None)
                break
        del steps
        release()
    for name, took in seconds.items():
        difference = None
        if "plain" in seconds:
            plain = results["plain"]
            difference = ((results[name] - plain).abs().max() / plain.abs().max()).item()
        ratio = seconds["plain"] / took if "plain" in seconds else None
        print_row(case.name, step_name, name, took, ratio, flops, memory[name], difference, device)


def release() -> None:
    """Give back the memory of what was measured, that of compiled graphs too."""
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def step_of(case: Case, training: bool, plain: bool, device: torch.device, compiled: bool) -> Step:
    """A denoising step (what a volume needs once is made in the first call), or a training step."""
    half = device.type == "cuda" and not plain
    network = case.on(device, torch.bfloat16 if half and not training else torch.float32, plain)
    if compiled and not plain:
        network.compile(mode="reduce-overhead" if device.type == "cuda" and not training else None)
    given = case.given(case.train if training else case.infer, device)
    conditions = {key: value for key, value in given.items() if key in ("text", "condition")}
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=0.0) if training else None
    denoiser: Denoiser | None = None

    def denoise() -> Tensor:
        nonlocal denoiser
        with torch.no_grad(), tensor_cores(not plain):
            if denoiser is None:
                make = guided_denoiser if plain else prepared_denoiser
                scale = {"guidance_scale": case.guidance_scale} if "text" in conditions else {}
                denoiser = make(network, **conditions, **scale)
            return denoiser(given["x"], 1000 * TIME)

    def train() -> Tensor:
        assert optimizer is not None
        with tensor_cores(not plain):
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = denoising_loss(network, given["x"].clamp(-1, 1), given["x"], given["t"], **conditions)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return train if training else denoise


@contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Whether float32 products may be rounded to TF32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    yield


def timed(step: Step, device: torch.device) -> tuple[float, float, Tensor]:
    """Seconds, peak GiB of GPU memory (0 on a CPU) and the result of one call."""
    if device.type == "cpu":
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        result = step()
        return clock() - start, 0.0, result
    torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = step().clone()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start, torch.cuda.max_memory_allocated(device) / GIB, result


def count_flops(case: Case, shape: tuple[int, ...], training: bool) -> int:
    """Floating-point operations of the plain step, counted without computing it."""
    given = case.given(shape, torch.device("meta"))
    conditions = {key: value for key, value in given.items() if key in ("text", "condition")}
    with FlopCounterMode(display=False) as counter:
        if training:
            denoising_loss(case.plain, given["x"], given["x"], given["t"], **conditions).backward()
            case.plain.zero_grad()
        else:
            scale = {"guidance_scale": case.guidance_scale} if case.tokens else {}
            guided_denoiser(case.plain, **conditions, **scale)(given["x"], 1000 * TIME)
    return counter.get_total_flops()


def whole_volume(config: Config, device: torch.device, compiled: bool) -> None:
    """Sample one volume at the paper's size with the settings of the configuration, and print what it took.

    As `medsyn generate` does, without reading the text and writing files: the noise is made on the CPU.
    """
    sampling, both = config.sampling, cases(config, True)
    low, high = both["low_res"], both["super_res"]
    steps = (sampling.num_steps_low_res, sampling.num_steps_super_res)
    flops = sum(count_flops(case, case.infer, False) * (n + 1) for case, n in zip((low, high), steps, strict=True))
    networks = [case.on(device, torch.bfloat16) for case in (low, high)]
    if compiled:
        for network in networks:
            network.compile(mode="reduce-overhead")
    text = low.given(low.infer, device)["text"]
    solver = SOLVERS[sampling.solver]

    def volume() -> Tensor:
        with torch.no_grad():
            denoiser = prepared_denoiser(networks[0], text=text, guidance_scale=sampling.guidance_scale)
            noise = volume_noise([0], low.infer[1:], "low_res").to(device)
            small = sample(solver, denoiser, noise, steps[0])
            condition = LowResolution(config.preprocess.low_res_factor).enlarge(small)
            noise = volume_noise([0], high.infer[1:], "super_res").to(device)
            return sample(solver, prepared_denoiser(networks[1], condition=condition), noise, steps[1])

    try:
        timed(volume, device)  # warms up
        took, peak, _ = timed(volume, device)
    except torch.cuda.OutOfMemoryError:
        print("volume     does not fit the memory")
        return
    print_row("volume", f"{steps[0]}+{steps[1]}", "ours", took, None, flops, peak, None, device)


def print_row(
    case: str,
    step: str,
    form: str,
    seconds: float,
    ratio: float | None,
    flops: int,
    gib: float,
    difference: float | None,
    device: torch.device,
) -> None:
    """One line under HEADER; what is not known stays blank."""
    rate = flops / seconds / 1e12
    peak = peak_tflops(device, "bf16")
    cells = [
        f"{case:10} {step:9} {form:6} {seconds:9.4f}",
        "" if ratio is None else f"{ratio:.2f}",
        f"{rate:.3f}",
        "" if peak is None else f"{rate / peak:.1%}",
        f"{gib:.1f}" if gib else "",
        "" if difference is None else f"{difference:.1e}",
    ]
    widths = (0, 6, 8, 6, 6, 8)
    print(" ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)).rstrip(), flush=True)


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {torch.cuda.mem_get_info(device)[1] / GIB:.0f} GiB"
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} thread(s)"


if __name__ == "__main__":
    main()
