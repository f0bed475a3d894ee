"""Time a denoising step and a training step: this network against its plain float32 eager form, in one run.

`python benchmarks/denoiser_step.py [--device cpu|cuda] [--threads N] [--case NAME ...]` prints one row a case: seconds,
TFLOP/s (2 per multiply-add, counted by torch), the ratio to the plain form (contiguous activations, float32) and the
largest difference of the outputs. Cases are low_res and super_res at the demo's scale, and paper_low_res,
paper_super_res (full networks; for a GPU).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from medsyn.config import UNetConfig
from medsyn.diffusion.objective import denoising_loss
from medsyn.memory import keep_freed_memory
from medsyn.models.unet import UNet


@dataclass(frozen=True)
class Case:
    """One network and the shapes of its inputs; tokens (n, width) None is super-resolution."""

    unet: UNetConfig
    infer: tuple[int, ...]
    train: tuple[int, ...]
    tokens: tuple[int, int] | None


CASES = {
    "low_res": Case(
        UNetConfig(dim=8, mults=(1, 4, 8), num_heads=4, init_kernel=3, num_bottom_blocks=1, up_order="B"),
        (8, 4, 16, 16, 16),
        (8, 4, 16, 16, 16),
        (96, 96),
    ),
    "super_res": Case(
        UNetConfig(dim=8, mults=(1, 2, 4), num_heads=2, init_kernel=3, num_bottom_blocks=1, up_order="B"),
        (1, 4, 64, 64, 64),
        (4, 4, 32, 32, 32),
        None,
    ),
    "paper_low_res": Case(
        UNetConfig(dim=160, mults=(1, 2, 4, 8), num_heads=8), (1, 4, 64, 64, 64), (1, 4, 64, 64, 64), (192, 768)
    ),
    "paper_super_res": Case(
        UNetConfig(dim=56, mults=(1, 2, 4, 8), num_heads=4, num_bottom_blocks=1),
        (1, 4, 256, 256, 256),
        (1, 4, 64, 72, 72),
        None,
    ),
}


def main() -> None:
    """Measure the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", nargs="+", choices=CASES, default=["low_res", "super_res"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    print(f"{'case':16} {'step':9} {'form':7} {'seconds':>9} {'TFLOP/s':>8} {'ratio':>6} {'max diff':>9}")
    for name in args.case:
        for training in (False, True):
            measure(name, CASES[name], training, args)


def measure(name: str, case: Case, training: bool, args: argparse.Namespace) -> None:
    """Print the rows of one step of one case."""
    device = torch.device(args.device)
    shape = case.train if training else case.infer
    rows = {}
    for form in ("plain", "fast"):
        torch.manual_seed(0)
        network = build(case).to(device)
        network.channels_last = form == "fast"
        inputs = make_inputs(case, shape, device)
        reduced = args.precision == "bf16" and form == "fast"
        step = step_of(network, inputs, training, torch.autocast(device.type, torch.bfloat16, enabled=reduced))
        with FlopCounterMode(display=False) as counter:
            output = step()
        rows[form] = (best_seconds(step, args.repeats, device), counter.get_total_flops(), output)
    plain_seconds, flops, reference = rows["plain"]  # the fast form calls operators that torch does not count
    for form, (seconds, _, output) in rows.items():
        difference = (output - reference).abs().max().item()
        print(
            f"{name:16} {'training' if training else 'denoising':9} {form:7} {seconds:9.4f}"
            f" {flops / seconds / 1e12:8.3f} {plain_seconds / seconds:6.2f} {difference:9.2e}",
            flush=True,
        )


def build(case: Case) -> UNet:
    """The network of a case."""
    if case.tokens is None:
        return UNet(case.unet, condition_channels=4)
    return UNet(case.unet, num_tokens=case.tokens[0], cond_dim=case.tokens[1])


def make_inputs(case: Case, shape: tuple[int, ...], device: torch.device) -> dict[str, torch.Tensor]:
    """Random inputs of the right shapes."""
    generator = torch.Generator().manual_seed(1)
    inputs = {"x": torch.randn(shape, generator=generator), "t": torch.rand(shape[0], generator=generator)}
    if case.tokens is None:
        inputs["condition"] = torch.randn(shape, generator=generator)
    else:
        inputs["text"] = torch.randn(shape[0], *case.tokens, generator=generator)
    return {key: value.to(device) for key, value in inputs.items()}


def step_of(
    network: UNet, inputs: dict[str, torch.Tensor], training: bool, autocast: torch.autocast
) -> Callable[[], torch.Tensor]:
    """A denoising step (forward) or a training step (forward, backward, AdamW)."""
    given = {key: value for key, value in inputs.items() if key not in ("x", "t")}
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)

    @torch.no_grad()
    def denoise() -> torch.Tensor:
        with autocast:
            return network(inputs["x"], 1000 * inputs["t"], **given).float()

    def train() -> torch.Tensor:
        with autocast:
            loss = denoising_loss(network, inputs["x"].clamp(-1, 1), inputs["x"], inputs["t"], **given)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return train if training else denoise


def best_seconds(step: Callable[[], torch.Tensor], repeats: int, device: torch.device) -> float:
    """Shortest of several timed calls after one to warm up; processor time with one thread, wall time otherwise."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    step()
    best = float("inf")
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return best


if __name__ == "__main__":
    main()
