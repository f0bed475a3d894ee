"""How long planning the paper's cohort takes, and what the plan asks of the cluster.

    python benchmarks/scale.py
    python benchmarks/scale.py --times 10    # ten times the cohort in ten times the shards
    python benchmarks/scale.py --config config/ct_rate.yaml --cts 25692 --reports 0

Writes a manifest of 8,752 CTs and 217,411 reports without images (placeholders: a plan opens no CT), dry-runs
config/paper.yaml with the SLURM profile and prints jobs, node hours, GPU hours and storage per rule. Hours are what the
jobs ask for; a job that goes on where it was may be requeued and ask again. Storage is a sum over what each rule leaves
on disk, from MB_EACH.
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

from medsyn.config import Config, load_config
from medsyn.text.grid import cells
from medsyn.text.prompts import NUM_CONTROLLED_SEEDS
from medsyn.volume import STRUCTURES

ROOT = Path(__file__).parents[1]
NUM_CTS, NUM_REPORTS = 8_752, 217_411
PER_CT = ("preprocess", "segment", "build_store")
MANIFEST, REPORTS, PLANNED = "config/cohort.csv", "config/reports.csv", "planned.yaml"
"""Files that a plan is made from, in its folder."""
MB_EACH = {
    "validate_cohort": 0.002,
    "preprocess": 20.2,
    "segment": 0.5,
    "build_store": 17.0,
    "pretrain_text": 440.0,
    "embed_reports": 3 * 192 * 768 * 2 / 1e6,
    "train_network low_res": 2_870.0,
    "train_network super_res": 220.0,
    "train_network gan": 440.0,
    "train_network vqgan": 79.0,
    "train_network denoiser": 40.0,
    "train_features": 190.0,
    "sample": 20.7,
}
"""MB on disk per CT (preprocess, segment, build_store, embed_reports of each job), report (validate_cohort), volume
(sample) or job.

The three of a CT: two phantoms at 256^3 (docs/store.md), low resolution added. Embeddings: sections x tokens x widths x
2 bytes. Networks: 4 bytes per parameter, of GANs the mean of the three. A sample: taken to be as large as a CT and its
masks; not measured.
"""


def write_cohort(folder: Path, num_cts: int, num_reports: int) -> None:
    """Write a manifest of CTs and a file of reports without images."""
    text = {"findings": "The lungs are clear.", "impression": "No acute finding."}
    (folder / "config").mkdir(exist_ok=True)
    for name, number, columns in (
        (MANIFEST, num_cts, ["subject_id", "image", *text]),
        (REPORTS, num_reports, ["report_id", *text]),
    ):
        with (folder / name).open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, columns, extrasaction="ignore")
            writer.writeheader()
            for k in range(number):
                writer.writerow({"subject_id": f"s{k}", "image": f"ct/{k}.nii.gz", "report_id": f"r{k}"} | text)


def plan(folder: Path, config: Path, with_reports: bool, times: int) -> list[Any]:
    """The jobs that `snakemake --profile slurm -n all` describes: log records with rule_name, threads, resources."""
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    values["cohort"] |= {"manifest": MANIFEST, "reports": REPORTS if with_reports else None}
    for section in ("cohort", "sampling"):
        values[section]["num_shards"] *= times
    (folder / PLANNED).write_text(yaml.safe_dump(values), encoding="utf-8")
    command = ["--snakefile", str(ROOT / "workflow/Snakefile"), "--profile", str(ROOT / "slurm")]
    command += [
        "--configfile",
        str(folder / PLANNED),
        "--directory",
        str(folder),
        "--cores",
        "1000",
        "-n",
        "all",
    ]
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


def volumes_in(prompt_set: str, config: Config) -> int:
    """Volumes that are sampled for a set of prompts."""
    evaluation = config.evaluation
    num_sentences = evaluation.num_report_sentences if evaluation.prompt_source == "reports" else 0
    pair = 2 * evaluation.num_per_prompt * (1 + num_sentences)
    augmentation = evaluation.augmentation
    return {
        "reports": evaluation.num_fid_samples,
        "pairs": pair * len(evaluation.prompt_pairs),
        "effusion_pairs": pair,
        "segmentation": 2 * evaluation.num_segmentation_subjects,
        "augmentation": 2 * augmentation.num_reports_per_class * len(augmentation.findings),
        "faithfulness": 2 * sum(len(list(cells(*item))) for item in evaluation.faithfulness.items()),
        "controlled": len(STRUCTURES) * NUM_CONTROLLED_SEEDS,
    }[prompt_set]


def name_of(job: Any) -> str:
    """The rule of a job; that of training with the network."""
    network = job.wildcards.get("network")
    return f"{job.rule_name} {network}" if network else job.rule_name


def storage_gb(jobs: list[Any], config: Config, num_cts: int, num_reports: int) -> float:
    """GB that the jobs of one rule leave on disk."""
    rule = name_of(jobs[0])
    if rule == "sample":
        sets = {(job.wildcards["method"], job.wildcards["set"]) for job in jobs}
        return sum(volumes_in(name, config) * MB_EACH["sample"] for _, name in sets) / 1000
    number = len(jobs)
    if rule in PER_CT:
        number = num_cts
    elif rule == "validate_cohort":
        number = num_reports + num_cts
    elif rule == "embed_reports":
        number *= num_cts
    return number * MB_EACH.get(rule, 0.1) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=1, help="multiple of the paper's cohort")
    parser.add_argument("--config", type=Path, default=ROOT / "config/paper.yaml", help="configuration to plan")
    parser.add_argument("--cts", type=int, default=NUM_CTS, help="CTs of the cohort")
    parser.add_argument("--reports", type=int, default=NUM_REPORTS, help="reports without images")
    args = parser.parse_args()
    num_cts, num_reports = args.cts * args.times, args.reports * args.times
    with tempfile.TemporaryDirectory() as name:
        write_cohort(Path(name), num_cts, num_reports)
        started = time.monotonic()
        jobs = plan(Path(name), args.config, num_reports > 0, args.times)
        seconds = time.monotonic() - started
    print("| rule | jobs | threads | memory (GB) | GPUs | hours per job | node hours | GPU hours | storage (GB) |")
    print("|---|---|---|---|---|---|---|---|---|")
    total, stored, config = [0.0, 0.0], 0.0, load_config(args.config)
    for rule in dict.fromkeys(map(name_of, jobs)):
        same = [job for job in jobs if name_of(job) == rule]
        hours = [job.resources.runtime * job.resources.get("nodes", 1) / 60 for job in same]
        gpus = [job.resources.get("gpu", 0) for job in same]
        gpu_hours = sum(number * time for number, time in zip(gpus, hours, strict=True))
        total = [total[0] + sum(hours), total[1] + gpu_hours]
        storage = storage_gb(same, config, num_cts, num_reports)
        stored += storage
        numbers = ", ".join(map(str, sorted(set(gpus))))
        facts = f"{same[0].threads} | {same[0].resources.mem_mb / 1000:.1f} | {numbers} | {hours[0]:g}"
        print(f"| {rule} | {len(same)} | {facts} | {sum(hours):g} | {gpu_hours:g} | {storage:.1f} |")
    print(f"| all | {len(jobs)} | | | | | {total[0]:g} | {total[1]:g} | {stored:.0f} |")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nplanned in {seconds:.1f} s, peak {memory:.0f} MB")


if __name__ == "__main__":
    main()
