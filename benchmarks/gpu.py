"""Measure the networks on a CUDA GPU: every optimisation alone and together, and the settings that come out best.

    python benchmarks/gpu.py --out FOLDER [--minutes 9] [--only WORD ...]
    python benchmarks/gpu.py --out FOLDER --device cpu [--tiny]

From the repository's root (if the package is not installed, with PYTHONPATH=.); needs torch, numpy, pydantic, pyyaml,
tqdm, accelerate and safetensors. On a GPU the networks of config/paper.yaml are measured, on a CPU those of the demo
(config/config.yaml, plain and ours only, float32, one thread); --tiny takes those of config/test.yaml and runs
everything else as on a GPU. Weights are random: they change no time.

FOLDER/rows.jsonl gets a line per measurement as soon as it is made, FOLDER/gpu.md is written again each time, with the
settings that the rows so far choose. What is most valuable comes first. The run ends by itself after --minutes and may
be stopped at any moment; a measurement that fails, does not fit the memory or takes too long is a row that says so.

Columns: seconds is the shortest of the calls after the first; on a CPU the forms alternate and it is processor time.
ratio is the plain form's seconds per sample over this form's. TFLOP/s counts 2 per multiply-add of what the plain form
computes, so work that ours saves raises it; peak is the share of the GPU's dense bfloat16 peak. GiB is the peak of
allocated GPU memory, counted what the planner's rules count for it without data. diff is the largest difference from
the plain result over its largest value; the result of a training step is the loss and the norm of each gradient. For
the parts norm and convolution both are explained in the row.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from denoiser_steps import (
    PLAIN,
    ROOT,
    Case,
    Form,
    Step,
    cases,
    count_flops,
    counted_bytes,
    step_of,
    timed,
    whole_volume,
)
from flat_convolutions import WAYS
from gpu_report import LONGEST, Measurement, Report, Row, Stopped, advice, best, hardware
from layer_rows import convolution_rows, installation_rows, norm_rows

from medsyn.config import Config, load_config
from medsyn.memory import keep_freed_memory
from medsyn.training.cost import GIB, peak_tflops

WIDTH = {"paper.yaml": 768, "config.yaml": 96, "test.yaml": 32}  # of the text states
BUDGET = 3.0
"""Seconds after which a form is not called again."""
MOST_CALLS = 5
LONGEST_COMPILED = 100.0
"""Seconds after which a measurement with the compiler is given up."""
BEFORE = Form(norm="separate")
FUSED = Form(norm="fused")
LAST = Form(norm="fused", channels_last=True)
ATTENTION = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")


class Bench:
    """The measurements of one configuration on one device."""

    def __init__(
        self, config: Config, width: int, device: torch.device, report: Report, most_calls: int = MOST_CALLS
    ) -> None:
        self.config, self.device, self.report, self.most_calls = config, device, report, most_calls
        self.cases = cases(config, width)
        self.forms: dict[tuple[str, str, str], Form] = {}
        self.plain: dict[tuple[str, bool], tuple[float, torch.Tensor]] = {}

    def steps(self, network: str, training: bool, *forms: Form, count: bool = False) -> Iterator[Measurement]:
        """A measurement per form of one kind of step."""
        part = "training" if training else "denoising"
        for form in forms:
            case = self.cases[network]
            self.forms[part, network, form.name] = form
            row = Row(part, network, form.name, case.shape(training, form)[0])

            def work(case: Case = case, form: Form = form, row: Row = row) -> Iterator[Row]:
                yield from self.measured(case, training, [(form, row)], count)

            yield Measurement(row, work, LONGEST_COMPILED if form.compiled else LONGEST)

    def together(self, network: str, training: bool, forms: Sequence[Form]) -> Measurement:
        """One measurement of forms that alternate, for a CPU that others use as well."""
        part, case = "training" if training else "denoising", self.cases[network]
        rows = [Row(part, network, form.name, case.shape(training, form)[0]) for form in forms]
        return Measurement(rows[0], lambda: self.measured(case, training, list(zip(forms, rows, strict=True)), False))

    def measured(self, case: Case, training: bool, forms: Sequence[tuple[Form, Row]], count: bool) -> Iterator[Row]:
        """Time the steps of one or several forms in turns and compare them with the plain form."""
        steps = [step_of(case, training, form, self.device) for form, _ in forms]
        for (form, row), (took, gib, result) in zip(forms, self.shortest(steps), strict=True):
            key = case.name, training
            if form.plain:
                self.plain[key] = took / row.batch, result.cpu()
            each, plain = self.plain.get(key, (None, None))
            same = plain is not None and plain.shape == result.shape and (not training or row.batch == case.train[0])
            rate = count_flops(case, training, row.batch) / took / 1e12
            peak = peak_tflops(self.device, "bf16")
            yield replace(
                row,
                seconds=took,
                ratio=None if each is None else each / (took / row.batch),
                tflops=rate,
                peak=None if peak is None else rate / peak,
                gib=gib,
                counted=counted_bytes(case, training, form) / GIB if count else None,
                diff=difference(result.cpu(), plain) if same else None,
            )

    def shortest(self, steps: Sequence[Step]) -> list[tuple[float, float | None, torch.Tensor]]:
        """Seconds, GiB and result of the shortest call of each step; the first calls only warm up."""
        for step in steps:
            timed(step, self.device)
        start = time.monotonic()
        found = [timed(step, self.device) for step in steps]
        for _ in range(self.most_calls - 1):
            if time.monotonic() - start > BUDGET:
                break
            again = [timed(step, self.device) for step in steps]
            found = [min(calls, key=lambda call: call[0]) for calls in zip(found, again, strict=True)]
        return found

    def volume(self, *counts: tuple[int, int]) -> Measurement:
        """A whole volume at some numbers of steps, in the forms that the rows choose when it is measured."""

        def work() -> Iterator[Row]:
            forms = {}
            for name in self.cases:
                row = best([row for row in self.report.rows if row.batch == 1], "denoising", name)
                forms[name] = FUSED if row is None else replace(self.forms["denoising", name, row.form], batch=None)
            words = "; ".join(form.name for form in forms.values())
            volume = whole_volume(self.config, self.cases, forms, self.device)
            volume(1, 1)
            for low, high in counts:
                took, gib, _ = timed(lambda low=low, high=high: volume(low, high), self.device)
                each = {"low_res": low + 1, "super_res": high + 1}  # a solver predicts once more at its last time
                flops = sum(count_flops(self.cases[name], False, 1) * calls for name, calls in each.items())
                peak = peak_tflops(self.device, "bf16")
                share = None if peak is None else flops / took / 1e12 / peak
                yield Row("volume", f"{low}+{high}", words, 1, took, None, flops / took / 1e12, share, gib)

        return Measurement(Row("volume", "+".join(map(str, counts[-1])), "the best so far", 1), work, 2 * LONGEST)

    def all(self) -> Iterator[Measurement]:
        """Every measurement, the most valuable first."""
        core = (PLAIN, BEFORE, FUSED, LAST)
        others = ("low_res", "super_res")
        yield Measurement(Row("installation", "", "versions"), lambda: installation_rows(self.device))
        for network in reversed(others):
            yield from self.steps(network, False, *core, count=True)
        for network in reversed(others):
            yield from self.steps(network, True, *core, count=True)
        flat = [name for name in WAYS if name != "conv3d"]
        yield from self.steps("super_res", True, *(replace(LAST, flat=name) for name in flat))
        sampling = self.config.sampling
        yield self.volume((4, 2), (sampling.num_steps_low_res, sampling.num_steps_super_res))
        on_gpu = self.device.type == "cuda"  # a CPU has no graphs, and its compiler is captured only
        yield from self.steps("low_res", False, replace(LAST, compiled="reduce-overhead" if on_gpu else "default"))
        if on_gpu:
            yield from self.steps("super_res", False, replace(LAST, compiled="reduce-overhead"))
        yield from norm_rows(self.device)
        yield from convolution_rows(self.device)
        yield from self.rest(flat)
        if on_gpu:
            yield from self.steps("low_res", False, replace(LAST, compiled="default"))
            for network in others:
                yield from self.steps(network, True, replace(LAST, compiled="default"))
            yield from self.steps("super_res", False, replace(LAST, compiled="default"))
            for network in others:
                yield from self.steps(network, True, replace(LAST, compiled="reduce-overhead"))

    def rest(self, flat: Sequence[str]) -> Iterator[Measurement]:
        """What is good to know: checkpointing, batches, the way without Triton, attention, and each change alone."""
        yield from self.steps("super_res", True, *(replace(FUSED, flat=name) for name in flat))
        yield from self.steps("super_res", False, replace(LAST, flat="conv2d of slices"))
        for network in ("low_res", "super_res"):
            micro = self.cases[network].train[0]
            yield from self.steps(network, True, replace(LAST, checkpointing=True), count=True)
            yield from self.steps(network, True, replace(LAST, batch=2 * micro), replace(LAST, batch=4 * micro))
            batches = (2, 4, 8) if network == "low_res" else (2,)
            yield from self.steps(network, False, *(replace(LAST, batch=batch) for batch in batches))
        for training in (False, True):
            for network in ("low_res", "super_res"):
                yield from self.steps(network, training, *self.single(training))

    @staticmethod
    def single(training: bool) -> list[Form]:
        """Changes of the best form, and each change alone on ours in float32."""
        alone = Form(precision="fp32", norm="separate")
        changes = [Form(norm="torch"), Form(norm="torch", channels_last=True), replace(LAST, cudnn_benchmark=True)]
        if not training:
            changes += [replace(LAST, attention=name) for name in ATTENTION]
        return [
            *changes,
            alone,
            replace(alone, norm="fused"),
            replace(alone, channels_last=True),
            replace(alone, cudnn_benchmark=True),
            replace(alone, norm="fused", channels_last=True),
        ]

    def on_cpu(self) -> Iterator[Measurement]:
        """The plain form and ours, for the demo's networks on a CPU."""
        ours = Form(precision="fp32")
        for network, batches in {"low_res": (1, None), "super_res": (None,)}.items():
            for batch in batches:
                yield self.together(network, False, [replace(PLAIN, batch=batch), replace(ours, batch=batch)])
            yield self.together(network, True, [PLAIN, ours])


def difference(result: torch.Tensor, plain: torch.Tensor) -> float:
    """The largest difference over the largest value."""
    return float((result.float() - plain.float()).abs().max() / plain.abs().max())


def main() -> int:
    """Measure; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; rows.jsonl and gpu.md are new")
    parser.add_argument("--minutes", type=float, default=9.0, help="no measurement goes on after this time")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="measurements whose part, network or form has a word")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small networks, with --device cpu: to test this program")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device; expected one, or --device cpu")
    torch.set_num_threads(1 if args.device == "cpu" else torch.get_num_threads())
    keep_freed_memory()
    device = torch.device(args.device)
    name = "test.yaml" if args.tiny else "paper.yaml" if device.type == "cuda" else "config.yaml"
    report = Report(args.out, device, f"{hardware(device)}; torch {torch.__version__}; config/{name}")
    config = load_config(ROOT / "config" / name)
    bench = Bench(tiny(config) if args.tiny else config, WIDTH[name], device, report, 1 if args.tiny else MOST_CALLS)
    chosen = [
        measurement
        for measurement in (bench.on_cpu() if device.type == "cpu" and not args.tiny else bench.all())
        if not args.only or any(word in measurement.title for word in args.only)
    ]

    def stop(number: int, _frame: Any) -> None:
        raise Stopped(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        report.run(chosen, 60 * args.minutes)
    except Stopped as reason:
        report.add(Row("end", "", "", note=f"stopped by {reason}"))
        return 1
    print("\n".join(["", *advice(report.rows)]))
    return 0


def tiny(config: Config) -> Config:
    """The configuration with volumes of 32^3 and one sample at a time."""
    one = {"batch_size": 1, "micro_batch_size": 1}
    changed: dict[str, Any] = {
        "preprocess": config.preprocess.model_copy(update={"size": (32, 32, 32)}),
        "sampling": config.sampling.model_copy(update={"batch_size": 1}),
    }
    for network in ("low_res", "super_res"):
        stage = getattr(config, network)
        changed[network] = stage.model_copy(update={"train": stage.train.model_copy(update=one)})
    return config.model_copy(update=changed)


if __name__ == "__main__":
    raise SystemExit(main())
