"""What training and sampling of each method cost at the paper's scale, counted on tensors without data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from baseline_cases import Case, Sample, Sizes, sample_cases, training_cases
from gpu_hours import PEAK_TFLOPS, SHARE, hours

from medsyn.progress import log
from medsyn.training.cost import GIB, count_phase_flops
from medsyn.training.gan import count_sample_flops
from medsyn.training.need import Need, count_phased_training
from medsyn.training.task import PhasedTask

COUNTED_PRECISIONS = ("fp32", "bf16")


def counted_memory(case: Case, precision: str, *, accumulates: bool = False) -> Need:
    """Count what a training step of one micro-batch needs, or one of several that accumulate gradients."""
    task, settings = case.task(True), case.settings(precision)
    if accumulates:
        settings = settings.model_copy(update={"batch_size": case.batch})
    return count_phased_training(task.build, task.phases, settings, averaged=task.averaged)


@cache
def step_flops(case: Case) -> int:
    """Count the operations per sample of a step with all phases, without those that activation checkpointing adds."""
    task = case.task(True)
    if task.flops is None:
        return sum(sample_flops(task).values())
    return task.flops(max(phase.first_step for phase in task.phases))


def sample_flops(task: PhasedTask) -> dict[str, int]:
    """Count the operations per sample in each phase of a step; `task` has no activation checkpointing."""
    count = count_sample_flops if any(phase.name for phase in task.phases) else count_phase_flops
    return count(task.build, task.phases)


def num_parameters(task: PhasedTask) -> int:
    """Count the parameters of all networks that are trained."""
    with torch.device("meta"):
        networks = task.build()
    return sum(p.numel() for name in networks for p in networks[name].parameters())


def tables(sizes: Sizes, share: float = SHARE) -> Iterator[str]:
    """Yield the lines of three Markdown tables: operations of training, memory of training, operations of a sample."""
    cases = training_cases(sizes)
    yield f"Hours of one GPU at {share:.0%} of its dense 16-bit peak, from counted operations; nothing is measured."
    yield ""
    gpus = [f"{name} (h)" for name in PEAK_TFLOPS]
    header = ["method", "network", "parameters (M)", "TFLOP per sample by phase", "samples per step", "TFLOP per step"]
    yield from head([*header, "steps", "EFLOP", *gpus])
    seen: set[tuple[str, str]] = set()
    for case in cases:
        if (case.method, case.network) not in seen:
            seen.add((case.method, case.network))
            yield line(operations(case, share))
    yield ""
    yield "Memory in GiB: what is counted, and in brackets with the allowance for what is not counted."
    yield ""
    yield from head(["method", "network", "micro-batch", "of", *COUNTED_PRECISIONS])
    for case in cases:
        needs = [counted_memory(case, precision, accumulates=True) for precision in COUNTED_PRECISIONS]
        cells = [f"{need.counted / GIB:.1f} ({need.total / GIB:.1f})" for need in needs]
        name = case.network + (", activation checkpointing" if case.checkpointing else "")
        yield line([case.method, name, case.micro, case.batch, *cells])
        log.info("counted the memory of %s", case.title)
    yield ""
    yield from head(["method", "TFLOP per volume", "parts"])
    for sample in sample_cases(sizes):
        yield line(sampling(sample))


def operations(case: Case, share: float) -> list[object]:
    """Return the cells of one training: parameters, operations per sample and step and of the run, hours."""
    task = case.task(True)
    phases = {name or "all": count / 1e12 for name, count in sample_flops(task).items()}
    step = case.batch * sum(phases.values())
    run = step * case.num_steps * 1e12
    by_phase = ", ".join(f"{name} {count:.3g}" for name, count in phases.items())
    log.info("counted the operations of %s", case.title)
    numbers = [f"{step:.3g}", f"{case.num_steps:,}", f"{run / 1e18:.2g}"]
    times = [f"{number:.1f}" if number < 10 else str(math.ceil(number)) for number in hours(run, share).values()]
    parameters = f"{num_parameters(task) / 1e6:.2f}"
    return [case.method, case.network, parameters, by_phase, case.batch, *numbers, *times]


def sampling(sample: Sample) -> list[object]:
    """Return the cells of one method's sampling."""
    parts = ", ".join(f"{part.times} x {part.name}" for part in sample.parts)
    return [sample.method, f"{sample.flops() / 1e12:.3g}", parts]


def head(names: Sequence[str]) -> Iterator[str]:
    """Yield the first two lines of a Markdown table."""
    yield line(names)
    yield "|---" * len(names) + "|"


def line(cells: Sequence[object]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"
