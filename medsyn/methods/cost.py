"""What sampling a shard has cost: time per volume, peak memory, device, size of the networks; the file cost.json.

`Method.sample` alone is timed: not what `Method.prepare` loads, not the writing of files, and not volumes that a
stopped run has left. A method that only reads volumes made elsewhere has no such numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import NonNegativeFloat, NonNegativeInt

from medsyn.config import Section, validate
from medsyn.files import read_json, write_json
from medsyn.methods.base import Answer, Method, Rejected

FILE = "cost.json"
"""Name of the file in a shard's folder."""


class SamplingCost(Section):
    """Content of cost.json.

    num_volumes: sampled in the run that finished the shard; seconds_per_volume: wall-clock time, None if none was
    sampled; peak_memory_gib: allocated on a GPU, or resident memory of the process on a CPU; device: its short name;
    num_parameters: of all networks that sampling uses, None where unknown.
    """

    num_volumes: NonNegativeInt = 0
    seconds_per_volume: NonNegativeFloat | None = None
    peak_memory_gib: NonNegativeFloat | None = None
    device: str | None = None
    num_parameters: NonNegativeInt | None = None


class Stopwatch:
    """The time that a method takes for its answers, and how many volumes they are."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._num_volumes, self._seconds = 0, 0.0

    def timed(self, answers: Iterable[Answer]) -> Iterator[Answer]:
        """Yield the answers; what the caller does between them is not timed."""
        source = iter(answers)
        while True:
            started = time.monotonic()
            answer = next(source, None)
            self._seconds += time.monotonic() - started
            if answer is None:
                return
            self._num_volumes += not isinstance(answer, Rejected)
            yield answer

    def cost(self) -> SamplingCost:
        """Return what the answers have cost so far."""
        if not (self._method.generates and self._num_volumes):
            return SamplingCost(num_volumes=self._num_volumes, num_parameters=self._method.num_parameters)
        from medsyn.device import device_in_use, device_name
        from medsyn.training.cost import peak_memory_gib

        device = device_in_use()
        return SamplingCost(
            num_volumes=self._num_volumes,
            seconds_per_volume=float(f"{self._seconds / self._num_volumes:.4g}"),
            peak_memory_gib=round(peak_memory_gib(device), 3),
            device=device_name(device),
            num_parameters=self._method.num_parameters,
        )


def write_cost(folder: Path, cost: SamplingCost) -> None:
    """Write cost.json into the folder of a shard."""
    write_json(folder / FILE, cost.model_dump())


def read_cost(folder: Path) -> SamplingCost:
    """Read cost.json in the folder of a shard; a damaged one is an InputError."""
    path = folder / FILE
    return validate(SamplingCost, read_json(path), path)
