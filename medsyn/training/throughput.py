"""How fast a training run is and what memory it takes, beside what was counted before its first step."""

from __future__ import annotations

import time
from typing import Any

from accelerate import Accelerator

from medsyn.config import TrainConfig
from medsyn.memory import total_bytes
from medsyn.progress import log
from medsyn.training.cost import GIB, peak_memory_gib, peak_tflops
from medsyn.training.need import Need
from medsyn.training.task import PhasedTask


class Throughput:
    """Clocks of a run, the operations of a sample and the memory that it should need."""

    def __init__(self, task: PhasedTask, config: TrainConfig, accelerator: Accelerator) -> None:
        self.task, self.config, self.accelerator = task, config, accelerator
        self.flops: int | None = None
        self.need: Need | None = None
        self.start(0)

    def count(self) -> None:
        """Count the operations of a sample and the memory, and warn where a GPU has less than the run needs."""
        self.flops = None if self.task.flops is None else self.task.flops()
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

    def start(self, step: int) -> None:
        """Start the clocks after `step` optimiser steps."""
        self._started = self._logged = (time.monotonic(), step)

    def row(self, step: int) -> dict[str, Any]:
        """Return rates since the last row, and the peak of the memory so far.

        TFLOP/s are of the model over all processes; their share of the peak is None where that is not known.
        """
        now = time.monotonic()
        since, done = self._logged
        self._logged = (now, step)
        speed = (step - done) * self.config.batch_size / max(now - since, 1e-9)
        row: dict[str, Any] = {
            "samples_per_second": round(speed, 2),
            "peak_memory_gib": round(peak_memory_gib(self.accelerator.device), 3),
            "tflops_per_second": None,
            "flop_utilisation": None,
        }
        if self.flops is not None:
            rate = self.flops * speed / 1e12
            peak = peak_tflops(self.accelerator.device, self.config.precision)
            share = None if peak is None else rate / (peak * self.accelerator.num_processes)
            row["tflops_per_second"] = float(f"{rate:.4g}")
            row["flop_utilisation"] = share and float(f"{share:.4g}")
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
