"""How long planning the paper's cohort takes, and what the plan asks of the cluster.

    python benchmarks/scale.py
    python benchmarks/scale.py --times 10    # ten times the cohort in ten times the shards

Writes a manifest of 8,752 CTs and 217,411 reports without images (placeholders: a plan opens no CT), dry-runs config/paper.yaml
with the SLURM profile and prints jobs, node hours and GPU hours per rule. Hours are what the jobs ask for, an upper bound.
"""

from __future__ import annotations

import argparse
import csv
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
NUM_CTS, NUM_REPORTS = 8_752, 217_411


def write_cohort(folder: Path, times: int) -> None:
    """A manifest and a file of reports of the paper's size."""
    text = {"findings": "The lungs are clear.", "impression": "No acute finding."}
    for name, number, columns in (
        ("cohort.csv", NUM_CTS, ["subject_id", "image", *text]),
        ("reports.csv", NUM_REPORTS, ["report_id", *text]),
    ):
        with (folder / name).open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, columns, extrasaction="ignore")
            writer.writeheader()
            for k in range(number * times):
                writer.writerow({"subject_id": f"s{k}", "image": f"ct/{k}.nii.gz", "report_id": f"r{k}"} | text)


def plan(folder: Path, times: int) -> str:
    """What `snakemake --profile slurm -n all` prints."""
    values = yaml.safe_load((ROOT / "config/paper.yaml").read_text(encoding="utf-8"))
    values["cohort"] |= {"manifest": "cohort.csv", "reports": "reports.csv"}
    for section in ("cohort", "sampling"):
        values[section]["num_shards"] *= times
    (folder / "paper.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile")]
    command += ["--profile", str(ROOT / "slurm"), "--configfile", "paper.yaml", "-n", "all"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(run.stdout[-2000:] + run.stderr[-2000:])
    return run.stdout


def requests(output: str) -> dict[str, list[dict[str, float]]]:
    """Rule -> the resources of each of its jobs, from the job descriptions of a dry run."""
    jobs: dict[str, list[dict[str, float]]] = defaultdict(list)
    for block in re.split(r"^(?=(?:local)?rule )", output, flags=re.M):
        name = re.match(r"rule (\w+):", block)
        resources = re.search(r"^    resources: (.*)$", block, flags=re.M)
        if name and resources:
            facts = dict(re.findall(r"(\w+)=(\d+)", resources[1]))
            threads = re.search(r"^    threads: (\d+)$", block, flags=re.M)
            facts["threads"] = threads[1] if threads else "1"
            jobs[name[1]].append({key: float(value) for key, value in facts.items()})
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=1, help="multiple of the paper's cohort")
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as name:
        write_cohort(Path(name), times)
        started = time.monotonic()
        output = plan(Path(name), times)
        seconds = time.monotonic() - started
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print("| rule | jobs | threads | memory (GB) | GPUs | hours a job | node hours | GPU hours |")
    print("|---|---|---|---|---|---|---|---|")
    totals = [0.0, 0.0, 0.0]
    for rule, jobs in sorted(requests(output).items()):
        one = jobs[0]
        hours = sum(job["runtime"] * job.get("nodes", 1) / 60 for job in jobs)
        gpu_hours = sum(job["runtime"] * job.get("gpu", 0) / 60 for job in jobs)
        totals = [totals[0] + len(jobs), totals[1] + hours, totals[2] + gpu_hours]
        facts = f"{one['threads']:.0f} | {one['mem_mb'] / 1000:.1f} | {one.get('gpu', 0):.0f} | {one['runtime'] / 60:g}"
        print(f"| {rule} | {len(jobs)} | {facts} | {hours:g} | {gpu_hours:g} |")
    print(f"| all | {totals[0]:.0f} | | | | | {totals[1]:g} | {totals[2]:g} |")
    print(
        f"\nplanned in {seconds:.1f} s ({usage.ru_utime + usage.ru_stime:.1f} s of CPU), {usage.ru_maxrss / 1024:.0f} MB"
    )


if __name__ == "__main__":
    main()
