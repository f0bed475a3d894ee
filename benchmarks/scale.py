"""How long planning the paper's cohort takes, and what the plan asks of the cluster.

    python benchmarks/scale.py
    python benchmarks/scale.py --times 10    # ten times the cohort in ten times the shards

Writes a manifest of 8,752 CTs and 217,411 reports without images (placeholders: a plan opens no CT), dry-runs
config/paper.yaml with the SLURM profile and prints jobs, node hours and GPU hours per rule. Hours are what the jobs ask
for, an upper bound.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import logging
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from snakemake.cli import main as snakemake
from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

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


def plan(folder: Path, times: int) -> list[Any]:
    """The jobs that `snakemake --profile slurm -n all` describes: log records with rule_name, threads, resources."""
    values = yaml.safe_load((ROOT / "config/paper.yaml").read_text(encoding="utf-8"))
    values["cohort"] |= {"manifest": "cohort.csv", "reports": "reports.csv"}
    for section in ("cohort", "sampling"):
        values[section]["num_shards"] *= times
    (folder / "paper.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command = ["--snakefile", str(ROOT / "workflow/Snakefile"), "--profile", str(ROOT / "slurm")]
    command += ["--configfile", str(folder / "paper.yaml"), "--directory", str(folder), "--cores", "1000", "-n", "all"]
    jobs: list[Any] = []

    def collect(record: logging.LogRecord) -> bool:
        if getattr(record, "event", None) == LogEvent.JOB_INFO:
            jobs.append(record)
        return True

    logger.addFilter(collect)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            snakemake(command)
    except SystemExit as end:
        if end.code:
            raise
    return [job for job in jobs if job.rule_name not in ("all", "write_config")]  # these run where Snakemake runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=1, help="multiple of the paper's cohort")
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as name:
        write_cohort(Path(name), times)
        started = time.monotonic()
        jobs = plan(Path(name), times)
        seconds = time.monotonic() - started
    print("| rule | jobs | threads | memory (GB) | GPUs | hours a job | node hours | GPU hours |")
    print("|---|---|---|---|---|---|---|---|")
    total = [0.0, 0.0]
    for rule in dict.fromkeys(job.rule_name for job in jobs):
        same = [job for job in jobs if job.rule_name == rule]
        hours = [job.resources.runtime * job.resources.get("nodes", 1) / 60 for job in same]
        gpus = same[0].resources.get("gpu", 0)
        total = [total[0] + sum(hours), total[1] + gpus * sum(hours)]
        facts = f"{same[0].threads} | {same[0].resources.mem_mb / 1000:.1f} | {gpus} | {hours[0]:g}"
        print(f"| {rule} | {len(same)} | {facts} | {sum(hours):g} | {gpus * sum(hours):g} |")
    print(f"| all | {len(jobs)} | | | | | {total[0]:g} | {total[1]:g} |")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nplanned in {seconds:.1f} s, peak {memory:.0f} MB")


if __name__ == "__main__":
    main()
