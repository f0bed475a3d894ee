"""Cost of the methods of Table I at the paper's sizes: counted without a GPU, or measured on one.

    python benchmarks/baselines.py --count [--out FOLDER]
    python benchmarks/baselines.py --out FOLDER [--seconds 270] [--case TEXT ...]

from the repository's root, with PYTHONPATH=. where the package is not installed; needs torch, accelerate, safetensors,
numpy, pydantic, pyyaml and tqdm. `--small` takes tiny sizes, for a test on a CPU.

--count prints tables of operations, memory and GPU hours from tensors without data. Otherwise the search of the
codebook is measured, one volume of each method is sampled, and each network makes training steps by the training loop's
own step: batch in the host's memory, all phases, clipping, AdamW, average. The first step warms up; `seconds` is the
median of the next three, or of one where they are long. float32 uses TF32 where PyTorch does by default: in
convolutions.

The tables are written anew after each row, so the run may be stopped. A row that does not fit the GPU says so, and rows
that do not fit `--seconds` are left out.

peak_gib is the peak of allocated GPU memory (on a CPU, for the search, of its tensors), counted_gib the same counted on
tensors without data. Operations are 2 per multiply-add of matrix products, convolutions and attention, without those
that activation checkpointing adds; share_of_peak is that of the GPU's dense 16-bit peak.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from baseline_cases import PAPER, SMALL, Built, Case, Sample, Sizes, sample_cases, training_cases
from baseline_costs import counted_memory, head, line, step_flops, tables
from gpu_report import hardware
from torch import Tensor

from medsyn.files import write_csv, write_text
from medsyn.live_bytes import LiveBytes
from medsyn.models.codebook import Codebook
from medsyn.training.cost import GIB, peak_tflops
from medsyn.training.loop import TrainingRun
from medsyn.training.processes import make_accelerator, pinned
from medsyn.training.task import Networks, PhasedTask

REPEATS, LONG = 3, 4.0
"""Measured calls after the first one, or one where the first took more seconds than this."""
PRECISIONS = ("fp32", "bf16")
ORIGINAL_BYTES = 4 + 8
"""Of the public code per latent and code: a float32 distance and an int64 of the one-hot matrix."""


@dataclass(frozen=True)
class Row:
    """One measurement; None where a number is not known."""

    what: str
    method: str
    part: str
    precision: str
    batch: int
    seconds: float | None = None
    tflop: float | None = None
    tflops_per_second: float | None = None
    share_of_peak: float | None = None
    peak_gib: float | None = None
    counted_gib: float | None = None
    note: str = ""


class Report:
    """The rows so far, in a CSV and a Markdown file."""

    def __init__(self, folder: Path, device: torch.device, seconds: float) -> None:
        self.folder, self.device, self.until = folder, device, time.monotonic() + seconds
        self.rows: list[dict[str, Any]] = []
        self.title = f"{hardware(device)}; torch {torch.__version__}"

    def add(self, row: Row, flops: float | None = None) -> None:
        """Write a row, with the rates that follow from its operations and seconds."""
        if flops is not None:
            rate = None if row.seconds is None else flops / row.seconds / 1e12
            peak = peak_tflops(self.device, "bf16")
            share = None if rate is None or peak is None else rate / peak
            row = replace(row, tflop=flops / 1e12, tflops_per_second=rate, share_of_peak=share)
        cells = {name: _rounded(value) for name, value in asdict(row).items()}
        self.rows.append(cells)
        names = [field.name for field in fields(Row)]
        write_csv(self.folder / "baselines.csv", self.rows, names)
        lines = [self.title, "", *head(names), *(line(list(cells.values())) for cells in self.rows)]
        write_text(self.folder / "baselines.md", "\n".join(lines) + "\n")
        print(line(list(cells.values())), flush=True)

    def measure(self, row: Row, work: Callable[[], Iterator[tuple[Row, float | None]]]) -> None:
        """Add the rows that `work` yields; `row` with a note where they do not fit the memory or the time."""
        if time.monotonic() > self.until:
            self.add(replace(row, note="no time left"))
            return
        note = ""
        try:
            for made, flops in work():
                self.add(made, flops)
        except torch.OutOfMemoryError:
            note = "does not fit the memory"
        except Exception as error:  # the other rows are worth having
            note = f"{type(error).__name__}: {error}".splitlines()[0]
        release()
        if note:
            self.add(replace(row, note=note))


def main() -> None:
    """Count or measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="count without a GPU, measure nothing")
    parser.add_argument("--out", type=Path, help="folder of the tables; created")
    parser.add_argument("--seconds", type=float, default=270.0, help="begin no row after this time")
    parser.add_argument("--case", nargs="+", default=[], help="only rows whose title contains one of these")
    parser.add_argument("--small", action="store_true", help="tiny sizes, on a CPU too")
    args = parser.parse_args()
    sizes = SMALL if args.small else PAPER
    if args.count:
        text = "\n".join(_shown(tables(sizes)))
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            write_text(args.out / "baseline_costs.md", text + "\n")
        return
    if args.out is None:
        parser.error("--out is missing: give the folder of the tables")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.small and args.case != ["codebook"]:
        parser.error("no CUDA device: the paper's sizes need one; give --small, --count or --case codebook")
    args.out.mkdir(parents=True, exist_ok=True)
    measure_all(sizes, Report(args.out, device, args.seconds), args.case)


def measure_all(sizes: Sizes, report: Report, wanted: list[str]) -> None:
    """Measure the codebook's search, then training steps and samples; of those that `wanted` names, if any."""

    precisions = PRECISIONS if report.device.type == "cuda" else PRECISIONS[:1]  # a CPU convolves slowly in 16 bits

    def asked(title: str) -> bool:
        return not wanted or any(text in title for text in wanted)

    side = sizes.latent_side
    places = {("cpu", side), (report.device.type, side), (report.device.type, 2 * side)}
    for device, side in sorted(places) if asked("codebook search") else []:
        measure_search(sizes, side, torch.device(device), report)
    for sample in sample_cases(sizes):
        for precision in precisions[-1:] if sample.half_weights else precisions:
            if asked(f"sample {sample.method}"):
                row = Row("sample", sample.method, "volume", precision, 1)
                report.measure(row, partial(sample_rows, row, sample, report.device))
    for case in training_cases(sizes):
        for precision in precisions:
            if asked(case.title):
                form = ", activation checkpointing" if case.checkpointing else ""
                row = Row("training step", case.method, case.network + form, precision, case.micro)
                report.measure(row, partial(training_rows, row, case, report.device))


def training_rows(row: Row, case: Case, device: torch.device) -> Iterator[tuple[Row, float | None]]:
    """Make the steps of one training, and yield its row."""
    counted, before = counted_memory(case, row.precision).counted, _allocated(device)
    task = _built_on(case.task(False), device)
    batches = [phase.batch(0, range(case.micro)) for phase in task.phases for _ in range(phase.num_updates)]
    if device.type == "cuda":
        batches = [pinned(batch) for batch in batches]
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(task, case.settings(row.precision), Path(folder), make_accelerator(row.precision))
        given, steps = cycle(batches), iter(range(1 + REPEATS))
        seconds, peak = _timed(lambda: run.optimise(next(steps), given), device)
    flops = case.micro * step_flops(case)
    yield replace(row, seconds=seconds, peak_gib=_gib(peak, before), counted_gib=counted / GIB), flops


def sample_rows(row: Row, sample: Sample, device: torch.device) -> Iterator[tuple[Row, float | None]]:
    """Sample one volume and yield its row, after those of its parts where it has several."""
    half = row.precision == "bf16"
    before = _allocated(device)
    with device:
        networks = {name: network.eval() for name, network in sample.build().items()}
    if half and sample.half_weights:
        networks = {name: network.to(torch.bfloat16) for name, network in networks.items()}

    def call(work: Callable[[Built, torch.device], Tensor]) -> None:
        autocast = half and not sample.half_weights
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext():
            work(networks, device)

    several = len(sample.parts) > 1
    for part in sample.parts if several else []:
        seconds, peak = _timed(partial(call, part.call), device)
        yield replace(row, part=part.name, seconds=seconds, peak_gib=_gib(peak, before)), None
    seconds, peak = _timed(lambda: call(sample.volume), device, 1 if several else REPEATS, warm=not several)
    yield replace(row, seconds=seconds, peak_gib=_gib(peak, before)), float(sample.flops())


def measure_search(sizes: Sizes, side: int, device: torch.device, report: Report) -> None:
    """Add the row of the search for the nearest codes of side^3 latents, beside what the public code holds for it."""
    num_codes, channels = sizes.vqgan[4], sizes.vqgan[3]
    original = side**3 * num_codes * ORIGINAL_BYTES / GIB
    part = f"{side}^3 latents, {num_codes:,} codes, {device.type}"
    row = Row("codebook search", "Medical Diffusion", part, "fp32", 1)

    def work() -> Iterator[tuple[Row, float | None]]:
        before = _allocated(device)
        with device:
            book, tokens = Codebook(num_codes, channels), torch.randn(side**3, channels)
        seconds, peak = _timed(lambda: book.indices(tokens), device, 1)
        if device.type == "cpu":
            with LiveBytes(device) as live:
                live.hold([tokens, *book.buffers()])
                book.indices(tokens)
            peak = live.peak
        note = f"all distances and the one-hot matrix: {original:.3g} GiB"
        yield replace(row, seconds=seconds, peak_gib=_gib(peak, before), note=note), None

    report.measure(row, work)


def release() -> None:
    """Give back the memory of what was measured."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _timed(
    work: Callable[[], object], device: torch.device, repeats: int = REPEATS, *, warm: bool = True
) -> tuple[float, int]:
    """Return the median of the seconds, and the peak bytes of the GPU's memory (0 on a CPU)."""
    start = time.perf_counter()
    if warm:
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if time.perf_counter() - start > LONG:
        repeats = 1
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _built_on(task: PhasedTask, device: torch.device) -> PhasedTask:
    """Return the task with networks that are built on the device, which takes no time there."""

    def build() -> Networks:
        with device:
            return task.build()

    return replace(task, build=build)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _gib(peak: int, before: int) -> float | None:
    return (peak - before) / GIB if peak else None


def _rounded(value: object) -> object:
    if value is None:
        return ""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _shown(lines: Iterator[str]) -> Iterator[str]:
    for text in lines:
        print(text, flush=True)
        yield text


if __name__ == "__main__":
    main()
