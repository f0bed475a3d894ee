"""Time of one phantom, files written included, on one core.

    OMP_NUM_THREADS=1 python benchmarks/phantom.py [--sizes 64 256] [--count 3]

Prints CPU seconds (what one core needs) and wall seconds for each size; the aims are 1 s at 64^3 and 20 s at 256^3.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from SimpleITK import ProcessObject

from medsyn.phantom.cohort import write_subject


def main() -> None:
    """Time each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--count", type=int, default=3)
    args = parser.parse_args()
    ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_subject(Path(folder), 0, seed=0, size=16)  # imports
        for size in args.sizes:
            cpu, wall = [], []
            for index in range(args.count):
                start_cpu, start_wall = time.process_time(), time.perf_counter()
                write_subject(Path(folder), index, seed=0, size=size)
                cpu.append(time.process_time() - start_cpu)
                wall.append(time.perf_counter() - start_wall)
            print(f"{size}^3: CPU {min(cpu):.2f} to {max(cpu):.2f} s, wall {min(wall):.2f} to {max(wall):.2f} s")


if __name__ == "__main__":
    main()
