"""What the scheduler's path costs a job, against local execution: the time of eight jobs that do nothing.

    python benchmarks/overhead.py    # as root, where SLURM is installed: starts a cluster on this machine and stops it

Processor time is that of Snakemake, SLURM's daemons and everything that the jobs start, so other users of the machine
matter little; wall time is that of all eight, most of it Snakemake's start inside each job.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/cluster"))

from cluster import Cluster, missing, wait_until  # noqa: E402

NUM_JOBS = 8
SNAKEFILE = f"""\
from pathlib import Path
from medsyn.cluster import prefer_commands
prefer_commands(Path({str(ROOT / "workflow/profiles/slurm/bin")!r}), scheduler="sbatch")
rule all:
    input: expand("{{number}}", number=range({NUM_JOBS}))
rule nothing:
    output: "{{number}}"
    shell: "touch {{output}}"
"""
SLURM = ["--profile", str(ROOT / "slurm"), "--latency-wait", "5"]
WAYS = {
    "local, 2 cores": ["--cores", "2"],
    "SLURM": SLURM,
    "SLURM, 4 jobs to a group": [*SLURM, "--groups", "nothing=four", "--group-components", "four=4"],
}
SET_CHILD_SUBREAPER = 36  # prctl(2): orphans of this process become its children, so that their times are counted


def processor_seconds() -> float:
    """Of all descendants that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(cluster: Cluster, options: list[str]) -> tuple[float, float]:
    """Processor and wall seconds of a run."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
        (Path(name) / "config.yaml").write_text("{}", encoding="utf-8")
        command = [
            sys.executable,
            str(ROOT / "tests/cluster/snakemake_often.py"),
            "--configfile",
            "config.yaml",
            *options,
        ]
        before, started = processor_seconds(), time.monotonic()
        run = subprocess.run(
            command, cwd=name, env=cluster.environment, capture_output=True, encoding="utf-8", check=False
        )
        wall = time.monotonic() - started
        if run.returncode:
            sys.exit(run.stderr[-4000:])
        wait_until(lambda: not cluster.call("squeue", "--noheader"), 60, "the end of the jobs")
        time.sleep(3)  # the processes that watch over a job's steps end last
        return processor_seconds() - before, wall


def main() -> None:
    if reason := missing():
        sys.exit(reason)
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    print("| executor | processor time a job (s) | wall time of all (s) |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        cluster = Cluster(Path(name))
        try:
            cluster.start()
            for way, options in WAYS.items():
                processor, wall = measure(cluster, options)
                print(f"| {way} | {processor / NUM_JOBS:.1f} | {wall:.0f} |", flush=True)
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
