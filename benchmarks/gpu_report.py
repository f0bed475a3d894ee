"""Rows of `benchmarks/gpu.py`, the files that they are written to as they come, and what they choose."""

from __future__ import annotations

import gc
import json
import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from medsyn.device import device_name
from medsyn.files import write_text
from medsyn.training.cost import GIB

TOLERANCE = 0.05
"""Largest difference of a form that may be chosen: above the rounding of bfloat16, below a fault."""
LONGEST = 60.0
"""Seconds after which a measurement is given up."""


@dataclass(frozen=True)
class Row:
    """One measurement; None where a number is not known, note where something went wrong or needs words."""

    part: str
    network: str
    form: str
    batch: int | None = None
    seconds: float | None = None
    ratio: float | None = None
    tflops: float | None = None
    peak: float | None = None
    gib: float | None = None
    counted: float | None = None
    diff: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Measurement:
    """Rows that belong together, found within `limit` seconds; `row` names them if they are not found."""

    row: Row
    work: Callable[[], Iterator[Row]]
    limit: float = LONGEST

    @property
    def title(self) -> str:
        """Part, network and form."""
        return " ".join(word for word in (self.row.part, self.row.network, self.row.form) if word)


class Stopped(BaseException):
    """The run was told to end."""


class Report:
    """The rows so far and their files."""

    def __init__(self, folder: Path, device: torch.device, title: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.device, self.title, self.start = folder, device, title, time.monotonic()
        self.rows: list[Row] = []
        (folder / "rows.jsonl").write_text("", encoding="utf-8")

    def add(self, row: Row) -> None:
        """Write a row to both files and print it."""
        self.rows.append(row)
        facts = {**asdict(row), "seconds_since_start": round(time.monotonic() - self.start, 1)}
        with (self.folder / "rows.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(facts) + "\n")
        write_text(
            self.folder / "gpu.md", "\n".join([self.title, "", *table(self.rows), "", *advice(self.rows)]) + "\n"
        )
        print(line(row), flush=True)

    def run(self, measurements: Sequence[Measurement], seconds: float) -> None:
        """Add the rows of all measurements, as far as the seconds go, and a last row that says how far that was."""
        end = self.start + seconds
        for done, measurement in enumerate(measurements):
            left = end - time.monotonic()
            if left < 1:
                rest = len(measurements) - done
                self.add(
                    Row("end", "", "", note=f"out of time: {rest} measurements not made ({measurement.title}, ...)")
                )
                return
            self.measure(measurement, left)
        self.add(Row("end", "", "", note="complete"))

    def measure(self, measurement: Measurement, left: float) -> None:
        """Add the rows of a measurement, or its row with a note that says why there are none."""
        note = ""
        try:
            with limited(min(measurement.limit, left)):
                for row in measurement.work():
                    self.add(row)
        except torch.OutOfMemoryError:
            note = "does not fit the memory"
        except Exception as error:  # the other rows are worth having
            note = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        release()
        if note:
            self.add(replace(measurement.row, note=note))


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after some seconds."""

    def late(_signal: int, _frame: Any) -> None:
        raise TimeoutError(f"given up after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def release() -> None:
    """Give back the memory of what was measured, that of compiled graphs too."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def line(row: Row) -> str:
    """A row of the Markdown table."""
    cells = asdict(row) | {"peak": None if row.peak is None else f"{row.peak:.1%}"}
    for name in ("seconds", "ratio", "tflops", "gib", "counted", "diff"):
        value = cells[name]
        cells[name] = None if value is None else f"{value:.1e}" if name == "diff" else f"{value:.4g}"
    return "| " + " | ".join("" if value is None else str(value).replace("|", "/") for value in cells.values()) + " |"


def table(rows: Sequence[Row]) -> list[str]:
    """All rows in Markdown."""
    names = [field.name for field in fields(Row)]
    names[names.index("tflops")] = "TFLOP/s"
    return [f"| {' | '.join(names)} |", "| --- " * len(names) + "|", *map(line, rows)]


def best(rows: Sequence[Row], part: str, network: str, base: str = "") -> Row | None:
    """The quickest form per sample, of those whose name contains `base` and whose result was wrong in no row."""
    here = [row for row in rows if (row.part, row.network) == (part, network)]
    wrong = {row.form for row in here if row.diff is not None and not row.diff <= TOLERANCE}
    right = [row for row in here if row.seconds is not None and row.form not in {"plain", *wrong} and base in row.form]
    return min(right, key=lambda row: row.seconds / (row.batch or 1), default=None)


def advice(rows: Sequence[Row]) -> list[str]:
    """The settings that the rows choose, one line per network and kind of step."""
    lines = ["Quickest form per sample whose difference is at most " + f"{TOLERANCE}:", ""]
    for part in ("denoising", "training"):
        for network in ("low_res", "super_res"):
            if row := best(rows, part, network):
                ratio = "" if row.ratio is None else f", {row.ratio:.1f} times the plain form"
                same = [other for other in rows if (other.part, other.network, other.form) == (part, network, row.form)]
                compared = any(other.diff is not None for other in same)
                ratio += "" if compared else "; its difference was not measured"
                lines.append(f"- {network}, {part}: {row.form}, batch {row.batch}: {row.seconds:.4g} s{ratio}")
    for row in rows:
        if row.part == "volume" and row.seconds is not None:
            lines.append(f"- one volume at {row.network} steps: {row.seconds:.4g} s ({row.form})")
    return lines


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[1] / GIB
        return f"{torch.cuda.get_device_name(device)}, {memory:.0f} GiB, {platform.platform(terse=True)}"
    return device_name(device)
