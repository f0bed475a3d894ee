"""Time and memory of preprocessing one scan at the paper's settings, on one core.

    python benchmarks/preprocess.py [--ct FILE] [--repeats 3] [--code OTHER_CHECKOUT]

Without --ct a scan is made: an embedded phantom rendered at 256^3, interpolated to 512 x 512 x 300 voxels of 0.7 x 0.7
x 1 mm, with noise and a scanner's round field of view, written as .nii.gz. Every repeat is a process of its own that
does what `medsyn preprocess --config` does with the settings of its checkout's config/paper.yaml: seconds count from
its start, imports included; the least of the repeats is printed. --code measures the same scan with another checkout as
well, for the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIZE, SPACING_MM = (300, 512, 512), (1.0, 0.7, 0.7)
NOISE_HU = 20.0
PARTS = {
    "read_scan": "reading",
    "judge": "inspection, lungs",
    "load_atlas": "the atlas",
    "register": "registration",
    "preprocess": "resampling, facts",
    "preprocess_one": "writing, preview",
    "start": "start, imports",
}
"""Functions and what a row of the table calls the time spent in each, the functions it calls left out."""


def main() -> None:
    """Make the scan, run the processes, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ct", type=Path, help="a scan of your own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--code", type=Path, help="another checkout of this program, measured first")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run_one(*args.one)
        return
    with tempfile.TemporaryDirectory() as name:
        scan = args.ct or write_scan(Path(name) / "scan.nii.gz")
        codes = [args.code.resolve(), ROOT] if args.code else [ROOT]
        print_table([measure(code, scan, args.repeats) for code in codes])


def write_scan(path: Path) -> Path:
    """The phantom as a scanner would send it: rows to the back, columns to the left, -1024 HU outside a circle."""
    import numpy as np
    import SimpleITK as sitk

    from medsyn.phantom.subject import render_subject
    from medsyn.volume import Volume, centred_origin_mm, to_sitk, write_volume

    image = to_sitk(render_subject(11, 0, 256, ()).volume)
    origin = centred_origin_mm(SIZE, SPACING_MM)
    grid = sitk.Image(list(reversed(SIZE)), sitk.sitkInt16)
    grid.SetSpacing(list(reversed(SPACING_MM)))
    grid.SetOrigin((origin[0], -origin[1], origin[2]))
    array = sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, -1000.0))
    rng = np.random.default_rng(0)
    for plane in array:
        plane += (NOISE_HU * rng.standard_normal(plane.shape, dtype=np.float32)).astype(np.int16)
    y, x = np.ogrid[: SIZE[1], : SIZE[2]]
    radius = (SIZE[1] - 1) / 2
    array[:, (y - radius) ** 2 + (x - radius) ** 2 > radius**2] = -1024
    array = array.clip(-1024, None)
    write_volume(path, Volume(array, SPACING_MM, grid.GetOrigin(), grid.GetDirection()))
    return path


def measure(code: Path, scan: Path, repeats: int) -> dict[str, list[float]]:
    """Least CPU and wall seconds of each part over `repeats` processes; "total" of the whole, "memory" in GB."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1")
    path = os.pathsep.join([str(code), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | threads | {"PYTHONPATH": path}
    best: dict[str, list[float]] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as out:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            started = time.perf_counter()
            command = [sys.executable, __file__, "--one", str(code), str(scan), out]
            result = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
            wall = time.perf_counter() - started
            if result.returncode:
                sys.exit(result.stderr)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            parts = json.loads(result.stdout)
            known = [sum(parts[name][i] for name in PARTS if name in parts) for i in (0, 1)]
            parts |= {"start": [cpu - known[0], wall - known[1]], "total": [cpu, wall]}
            best = {n: [min(a, b) for a, b in zip(v, best.get(n, v), strict=True)] for n, v in parts.items()}
    return best


def run_one(code: str, scan: str, out: str) -> None:
    """One scan in this process, with the settings of the checkout `code`; prints the seconds of the parts as JSON."""
    from medsyn.config import load_config
    from medsyn.ct import preprocess as preprocessing
    from medsyn.stages import volumes

    clock = Clock()
    for module, names in ((preprocessing, ("judge", "load_atlas", "register")), (volumes, ("read_scan", "preprocess"))):
        for name in names:
            setattr(module, name, clock.timed(name, getattr(module, name)))
    config = load_config(Path(code) / "config/paper.yaml").preprocess
    clock.timed("preprocess_one", volumes.preprocess_one)(scan, Path(out) / "prepared", config)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps(clock.seconds | {"memory": [memory, memory]}))


class Clock:
    """CPU and wall seconds of functions, without those that they call."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.inner = [[0.0, 0.0]]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its seconds kept under `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.inner.append([0.0, 0.0])
            started = time.process_time(), time.perf_counter()
            result = function(*args, **kwargs)
            spent = time.process_time() - started[0], time.perf_counter() - started[1]
            inner = self.inner.pop()
            self.seconds[name] = [spent[i] - inner[i] for i in (0, 1)]
            self.inner[-1] = [self.inner[-1][i] + spent[i] for i in (0, 1)]
            return result

        return call


def print_table(columns: list[dict[str, list[float]]]) -> None:
    """Markdown; the last checkout's numbers, before them the other's if there is one."""
    heads = ["before", "now"] if len(columns) > 1 else ["now"]
    ratio_head = " ratio |" if len(heads) > 1 else ""
    print("| part | " + " | ".join(f"{head}: CPU s | wall s" for head in heads) + " |" + ratio_head)
    print("|" + " --- |" * (1 + 2 * len(heads) + (len(heads) > 1)))
    for name, label in [*PARTS.items(), ("total", "**all**")]:
        row = [column.get(name, [0.0, 0.0]) for column in columns]
        ratio = "" if len(row) == 1 else f" | {row[0][0] / row[1][0]:.1f}" if row[1][0] > 0.05 else " | "
        print(f"| {label} | " + " | ".join(f"{cpu:.1f} | {wall:.1f}" for cpu, wall in row) + ratio + " |")
    print("peak memory: " + ", ".join(f"{column['memory'][0]:.2f} GB" for column in columns))


if __name__ == "__main__":
    main()
