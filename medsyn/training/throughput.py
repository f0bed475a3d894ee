"""How fast a training run is, what memory it takes, and what it has cost so far.

The cost is that of all steps that the weights hold, over restarts, because it is part of every checkpoint: operations
of the model, and time of the device. On a GPU that is wall-clock time times the number of processes, on a CPU the
processor time of all processes. Steps that a kill has undone are not counted, nor is what comes before the first step
or after the last one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from operator import mul
from typing import Any

import torch
from accelerate import Accelerator

from medsyn.config import TrainConfig
from medsyn.memory import total_bytes
from medsyn.progress import log
from medsyn.training.cost import GIB, peak_memory_gib, peak_tflops
from medsyn.training.need import Need
from medsyn.training.task import PhasedTask


class Throughput:
    """Clocks of a run, the operations of a sample, the memory that it should need, and the cost so far.

    flops: first step from which a sample has other operations -> these; the steps rise. flop: operations of all steps
    so far, None where the task cannot count them; device_seconds: time of the device.
    """

    def __init__(self, task: PhasedTask, config: TrainConfig, accelerator: Accelerator) -> None:
        self.task, self.config, self.accelerator = task, config, accelerator
        self.flops: dict[int, int] | None = None
        self.need: Need | None = None
        self.flop: int | None = 0
        self.device_seconds = 0.0
        self.start(0)

    def count(self) -> None:
        """Count the operations of a sample and the memory, and warn where a GPU has less than the run needs."""
        flops = self.task.flops
        if flops is not None:
            self.flops = {step: flops(step) for step in sorted({0, *(phase.first_step for phase in self.task.phases)})}
        device = self.accelerator.device
        if device.type != "cuda" or self.task.memory is None:
            return
        self.need = self.task.memory(self.config, self.accelerator.num_processes)
        card = total_bytes(device)
        log.info("%s: counted memory: %s", self.task.name, self.need.in_words())
        if self.need.total > card:
            log.warning(
                "%s: that is more than the GPU's %.1f GiB; `medsyn plan` proposes settings", self.task.name, card / GIB
            )

    def resume(self, cost: Mapping[str, Any]) -> None:
        """Continue from the cost in a checkpoint."""
        self.flop, self.device_seconds = cost["flop"], cost["device_seconds"]

    def start(self, step: int) -> None:
        """Start the clocks after `step` optimiser steps."""
        self._started = self._logged = (time.monotonic(), step)
        self._charged = (self._device_clock(), step)

    def cost(self, step: int) -> dict[str, Any]:
        """Return the cost of the run up to `step`, as JSON for a checkpoint; all processes must call this together."""
        now, (since, done) = self._device_clock(), self._charged
        self._charged = (now, step)
        spent = now - since
        if self.accelerator.device.type == "cuda":
            spent *= self.accelerator.num_processes
        else:
            spent = float(self.accelerator.reduce(torch.tensor(spent, dtype=torch.float64), "sum"))
        self.device_seconds += spent
        if self.flop is not None and step > done:
            new = self._flop(done, step)
            self.flop = None if new is None else self.flop + new
        return {"flop": self.flop, "device_seconds": self.device_seconds}

    def _flop(self, done: int, step: int) -> int | None:
        """Return the operations of the steps after the first `done` ones, up to the `step`-th."""
        if self.flops is None:
            return None
        ends = [*list(self.flops)[1:], step]
        spans = (max(min(end, step) - max(start, done), 0) for start, end in zip(self.flops, ends, strict=True))
        return self.config.batch_size * sum(map(mul, self.flops.values(), spans))

    def _device_clock(self) -> float:
        return time.monotonic() if self.accelerator.device.type == "cuda" else time.process_time()

    def row(self, step: int) -> dict[str, Any]:
        """Return rates since the last row, the peak of the memory so far and the cost so far.

        TFLOP/s are of the model over all processes; their share of the peak is None where that is not known.
        """
        now = time.monotonic()
        since, done = self._logged
        self._logged = (now, step)
        seconds = max(now - since, 1e-9)
        row: dict[str, Any] = {
            "samples_per_second": round((step - done) * self.config.batch_size / seconds, 2),
            "peak_memory_gib": round(peak_memory_gib(self.accelerator.device), 3),
            "tflops_per_second": None,
            "flop_utilisation": None,
        }
        flop = self._flop(done, step)
        if flop is not None:
            rate = flop / seconds / 1e12
            peak = peak_tflops(self.accelerator.device, self.config.precision)
            share = None if peak is None else rate / (peak * self.accelerator.num_processes)
            row["tflops_per_second"] = float(f"{rate:.4g}")
            row["flop_utilisation"] = share and float(f"{share:.4g}")
        cost = self.cost(step)
        row["training_eflop"] = None if cost["flop"] is None else cost["flop"] / 1e18
        row["training_hours"] = float(f"{cost['device_seconds'] / 3600:.6g}")
        return row

    def describe(self, row: dict[str, Any], step: int) -> str:
        """Return the row, and the time that is left after `step` steps, in words."""
        parts = [f"{row['samples_per_second']:.1f} samples/s"]
        if row["tflops_per_second"] is not None:
            share = row["flop_utilisation"]
            of_peak = "" if share is None else f" ({share:.1%} of the peak)"
            parts.append(f"{row['tflops_per_second']:.3g} TFLOP/s{of_peak}")
        began, first = self._started
        left = (self.config.num_steps - step) * (time.monotonic() - began) / max(step - first, 1)
        return ", ".join([*parts, self.describe_memory(row["peak_memory_gib"]), f"{_duration(left)} left"])

    def describe_memory(self, peak_gib: float) -> str:
        """Return the measured peak beside the counted one; on a CPU the largest resident memory of the process."""
        if self.accelerator.device.type != "cuda":
            return f"{peak_gib:.1f} GiB resident"
        counted = "" if self.need is None else f" (counted {self.need.counted / GIB:.1f})"
        return f"{peak_gib:.1f} GiB allocated{counted}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
