"""Run the paper's cohort through a real scheduler, with a short sleep in the place of what every job does.

    eval "$(python tests/cluster/cluster.py start /tmp/cluster --cpus 32 --memory-mb 256000 --gpus 4)"
    python benchmarks/simulate.py --jobs 20 --seconds 10
    python tests/cluster/cluster.py stop /tmp/cluster

This is `snakemake --profile slurm all` with config/paper.yaml, the workflow and the executor as they are: every job is
submitted with its own threads, memory, minutes, GPUs, nodes and partition. Only the command that sbatch wraps is
replaced, by a sleep and empty outputs, by an `sbatch` that stands before SLURM's. Afterwards the scheduler's record of
the jobs is read (it must keep ended jobs long enough: MinJobAge) and checked: each job completed once, none began
before the jobs that make its inputs had ended, never more than --jobs were submitted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from scale import NUM_CTS, NUM_REPORTS, PLANNED, ROOT, plan, write_cohort

PATH = os.environ["PATH"]  # as it is before the workflow, planned in this process, puts its own commands first
SBATCH = r"""#!{python}
import json, os, pathlib, re, sys
commands = json.loads(pathlib.Path({commands!r}).read_text())
wrapped = next(word for word in sys.argv if word.startswith("--wrap="))
job = re.search(r"--target-jobs \W*([\w:=,.-]+)", wrapped)[1]
arguments = [word for word in sys.argv[1:] if word is not wrapped]
os.execv({sbatch!r}, ["sbatch", *arguments, f"--comment={{job}}", f"--wrap={{commands[job]}}"])
"""


def target(job: Any) -> str:
    """The job's name as Snakemake hands it to a job on a node: rule:wildcard=value,..."""
    return f"{job.rule_name}:{','.join(f'{key}={value}' for key, value in job.wildcards.items())}"


def sleep_command(job: Any, seconds: float) -> str:
    """Sleep, then make the job's outputs: those without a suffix are folders."""
    lines = [f"sleep {seconds}"]
    for path in job.output:
        make = "touch" if Path(path).suffix else "mkdir -p"
        lines += [f"mkdir -p {shlex.quote(str(Path(path).parent))}", f"{make} {shlex.quote(path)}"]
    return " && ".join(lines)


def run(folder: Path, jobs: list[Any], limit: int, seconds: float) -> float:
    """Run everything in `folder`; seconds that it took."""
    commands = folder / "commands.json"
    commands.write_text(json.dumps({target(job): sleep_command(job, seconds) for job in jobs}), encoding="utf-8")
    sbatch = folder / "bin/sbatch"
    sbatch.parent.mkdir()
    words = {"python": sys.executable, "commands": str(commands), "sbatch": shutil.which("sbatch", path=PATH)}
    sbatch.write_text(SBATCH.format(**words), encoding="utf-8")
    sbatch.chmod(0o755)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile")]
    command += ["--profile", str(ROOT / "slurm"), "--configfile", str(folder / PLANNED)]
    command += ["--directory", str(folder), "--jobs", str(limit), "all"]
    environment = os.environ | {"PATH": f"{sbatch.parent}{os.pathsep}{PATH}"}
    started = time.monotonic()
    with (folder / "snakemake.log").open("w", encoding="utf-8") as log:
        end = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    if end.returncode:
        sys.exit((folder / "snakemake.log").read_text(encoding="utf-8")[-4000:])
    return time.monotonic() - started


def records(log: Path) -> list[dict[str, str]]:
    """What the scheduler knows of the run's jobs."""
    name = re.search(r"SLURM run ID: (\S+)", log.read_text(encoding="utf-8"))
    if name is None:
        sys.exit("no SLURM run ID in Snakemake's log")
    listed = subprocess.run(
        ["scontrol", "show", "jobs", "--oneliner"], capture_output=True, encoding="utf-8", check=True
    )
    found = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in listed.stdout.splitlines()]
    return [job for job in found if job["JobName"] == name[1]]


def when(job: dict[str, str], column: str) -> float:
    """Seconds since 1970."""
    return datetime.fromisoformat(job[column]).timestamp()


def most(jobs: list[dict[str, str]], since: str, what: str = "") -> int:
    """Largest number of jobs between `since` and their end at one moment, or of what a pattern finds that they have."""
    events = []
    for job in jobs:
        found = re.search(what, f"{job['TRES']} {job.get('TresPerJob', '')}")
        number = int(found[1]) if found and what else int(not what)
        events += [(when(job, since), number), (when(job, "EndTime"), -number)]
    total = largest = 0
    for _, number in sorted(events):  # at the same second, ends come first
        total += number
        largest = max(largest, total)
    return largest


def check(jobs: list[Any], seen: list[dict[str, str]], limit: int) -> list[str]:
    """What is wrong with the run; nothing, if the scheduler did what the plan says."""
    wrong = [f"{job['Comment']}: {job['JobState']}" for job in seen if job["JobState"] != "COMPLETED"]
    record = {job["Comment"]: job for job in seen}
    if len(seen) != len(jobs) or set(record) != set(map(target, jobs)):
        return [*wrong, f"{len(seen)} jobs ran, {len(jobs)} were planned"]
    maker = {path: target(job) for job in jobs for path in job.output}
    for job in jobs:
        for earlier in {maker[path] for path in job.input if path in maker}:
            if when(record[target(job)], "StartTime") < when(record[earlier], "EndTime"):
                wrong.append(f"{target(job)} began before {earlier} had ended")
    if most(seen, "SubmitTime") > limit:
        wrong.append(f"{most(seen, 'SubmitTime')} jobs were submitted at a time, --jobs is {limit}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20, help="submitted at a time")
    parser.add_argument("--seconds", type=float, default=10, help="that each job sleeps")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder, NUM_CTS, NUM_REPORTS)
        jobs = plan(folder, ROOT / "config/paper.yaml", with_reports=True, times=1)
        seconds = run(folder, jobs, arguments.jobs, arguments.seconds)
        seen = records(folder / "snakemake.log")
    waited = sum(when(job, "StartTime") - when(job, "SubmitTime") for job in seen) / len(seen)
    print(f"{len(jobs)} jobs in {seconds:.0f} s, {waited:.1f} s in the queue on average")
    print(f"at most {most(seen, 'SubmitTime')} submitted and {most(seen, 'StartTime')} running at a time,")
    cpus, gpus = (most(seen, "StartTime", pattern) for pattern in (r"cpu=(\d+)", r"gpu:(?:\w+:)?(\d+)"))
    print(f"with {cpus} CPUs and {gpus} GPUs")
    wrong = check(jobs, seen, arguments.jobs)
    print("\n".join(wrong) or "each job completed once, after the jobs that make its inputs, throttled as asked")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
