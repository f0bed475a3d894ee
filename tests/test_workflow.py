"""The workflow: lint, a matrix of dry runs on zero-byte inputs, one real run from nothing to the report, what re-runs
after a change, and a killed training that ends like an undisturbed one."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_snakemake, write_config

from medsyn.exhibits.base import EXHIBITS

RESULTS = Path("results/test")


def planned_jobs(output: str) -> dict[str, int]:
    """Rule -> number of jobs, from the job statistics of a dry run."""
    table = output.split("Job stats:", 1)[1].split("total", 1)[0] if "Job stats:" in output else ""
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, flags=re.M)}


def test_lint_is_clean():
    run = subprocess.run(
        [sys.executable, "-m", "snakemake", "--lint"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    assert run.returncode == 0, run.stderr + run.stdout


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        (
            "demo",
            {},
            {"render_phantoms": 2, "score_alignment": 1, "train_network": 10, "report": 1},
        ),
        ("one_shard", {"cohort": {"num_shards": 1}}, {"render_phantoms": 1, "segment": 1}),
        ("five_sample_shards", {"sampling": {"num_shards": 5}}, {"sample": 60}),
        ("no_ablations", {"methods": {"without_shape": None}, "compare_with": None}, {"train_network": 8}),
        (
            "own_cohort",
            {"cohort": {"source": "manifest"}},
            {"render_phantoms": 0, "preprocess": 2, "score_alignment": 1},
        ),
        (
            "own_results_by_another_name",
            {"evaluation": {"augmentation": {"real_results": "./results/"}}},
            {"classify": 2},
        ),
    ],
)
def test_dry_run(name, changes, expected, tmp_path):
    values = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    for section, update in changes.items():
        values[section] = values[section] | update if isinstance(update, dict) else update
    values["methods"] = {key: value for key, value in values["methods"].items() if value is not None}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    (tmp_path / "config").mkdir()
    (tmp_path / "config/cohort.csv").touch()
    run = run_snakemake("-n", "all", directory=tmp_path, config=path)
    assert run.returncode == 0, run.stderr
    jobs = planned_jobs(run.stdout)
    assert {rule: jobs.get(rule, 0) for rule in expected} == expected


def test_the_slurm_profile_plans_the_papers_scale(tmp_path):
    (tmp_path / "cohort.csv").write_text("one of 8,752 CTs\n" * 8752)
    (tmp_path / "reports.csv").touch()
    files = {"manifest": "cohort.csv", "reports": "reports.csv"}
    config = write_config(tmp_path / "paper.yaml", "paper", cohort=files)
    profile = str(ROOT / "slurm")
    run = run_snakemake("--profile", profile, "-n", "all", directory=tmp_path, config=config)
    assert run.returncode == 0, run.stderr
    assert "torchrun --standalone --nproc-per-node 4 -m medsyn train" in run.stdout
    assert "torchrun --standalone --nproc-per-node 2 -m medsyn train" in run.stdout, "baselines take fewer GPUs"
    assert sum(planned_jobs(run.stdout).values()) <= 900
    measured = [line for line in run.stdout.splitlines() if "medsyn measure" in line and "measures/real/" in line]
    assert measured
    assert all(" --split validation " in line for line in measured)


def test_no_job_of_the_papers_scale_asks_for_more_than_eight_hours():
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/scale.py")], capture_output=True, encoding="utf-8", check=True, cwd=ROOT
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.stdout.splitlines() if line[:2] == "| "]
    hours = {row[0]: float(row[5]) for row in rows[1:] if row[5]}
    assert {"preprocess", "segment", "sample", "train_network low_res", "train_network super_res"} <= set(hours)
    assert max(hours.values()) == 8, "what GPU partitions take and start soon"


def test_training_on_two_nodes_starts_torchrun_on_each(tmp_path):
    (tmp_path / "cohort.csv").touch()
    config = write_config(
        tmp_path / "paper.yaml",
        "paper",
        cohort={"manifest": "cohort.csv", "reports": None},
        compute={"num_nodes_training": 2},
    )
    options = ("--profile", str(ROOT / "slurm"), "-n", "results/paper/models/medsyn/low_res.safetensors")
    run = run_snakemake(*options, directory=tmp_path, config=config)
    assert run.returncode == 0, run.stderr
    assert "srun --nodes 2 --ntasks-per-node 1 --cpus-per-task 16 --kill-on-bad-exit torchrun --nnodes 2" in run.stdout


def test_every_rule_with_a_gpu_asks_for_nodes_and_has_its_partition_in_the_profile():
    profile = yaml.safe_load((ROOT / "slurm/config.yaml").read_text(encoding="utf-8"))
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow/rules").glob("*.smk"))
    rules = {block.split(":")[0]: block for block in re.split(r"^rule ", text, flags=re.M)[1:]}
    training = {name for name, block in rules.items() if "**training_devices(" in block}
    with_gpu = {name for name, block in rules.items() if " gpu=" in block}
    assert training | with_gpu == set(profile["set-resources"])
    assert with_gpu == {name for name, block in rules.items() if " nodes=1," in block}


def test_a_missing_cohort_file_says_what_to_write_where(tmp_path):
    run = run_snakemake("-n", "all", directory=tmp_path, config="paper")
    assert run.returncode != 0
    said = run.stdout + run.stderr
    assert "config/cohort.csv: no such file. Write your cohort there" in said
    assert "Traceback" not in said


def test_a_missing_reports_file_names_its_key_and_the_remedy(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config/cohort.csv").touch()
    run = run_snakemake("-n", "all", directory=tmp_path, config="paper")
    assert run.returncode != 0
    said = run.stdout + run.stderr
    for words in ("config/reports.csv: no such file", "cohort.reports", "report_id, findings, impression", "null"):
        assert words in said
    assert "Traceback" not in said


def test_an_unknown_key_stops_before_anything_runs(tmp_path):
    config = write_config(tmp_path / "typo.yaml", sampling={"guidance": 3})
    run = run_snakemake("-n", "all", directory=tmp_path, config=config)
    assert run.returncode != 0
    assert "sampling.guidance: unknown key" in run.stdout + run.stderr


def test_a_key_that_stands_twice_stops_before_anything_runs(tmp_path):
    once = (ROOT / "config/test.yaml").read_text(encoding="utf-8")
    (tmp_path / "twice.yaml").write_text(once + "sampling: {num_shards: 2}\n", encoding="utf-8")
    run = run_snakemake("-n", "all", directory=tmp_path, config=tmp_path / "twice.yaml")
    assert run.returncode != 0
    assert "twice.yaml: key 'sampling' stands twice" in run.stdout + run.stderr


def other_cohort(folder: Path) -> None:
    """The files of another cohort's run that Table VI reads, empty."""
    files = ("cohort/cohort.csv", "cohort/given_labels.csv", "labels.csv", "preprocessed/0/index.csv")
    for name in (*files, "preprocessed/1/index.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("source", ["reports", "given"])
def test_table_6_reads_the_cts_of_another_cohort(source, tmp_path):
    other_cohort(tmp_path / "other")
    evaluation = {"augmentation": {"real_results": "other"}, "label_source": source}
    (tmp_path / "c.csv").touch()
    cohort = {"source": "manifest", "manifest": "c.csv"}
    config = write_config(tmp_path / "c.yaml", evaluation=evaluation, cohort=cohort)
    run = run_snakemake("-n", "-p", "results/test/eval/table6.csv", directory=tmp_path, config=config)
    assert run.returncode == 0, run.stderr
    command = next(line for line in run.stdout.splitlines() if "medsyn classify" in line)
    assert "--volumes other/preprocessed/0 other/preprocessed/1 --split all" in command
    labels = "other/labels.csv" if source == "reports" else "other/cohort/given_labels.csv"
    assert f"--cohort other/cohort/cohort.csv --labels {labels}" in command


def test_another_cohort_that_has_not_been_run_is_named(tmp_path):
    config = write_config(tmp_path / "c.yaml", evaluation={"augmentation": {"real_results": "other"}})
    run = run_snakemake("-n", "results/test/eval/table6.csv", directory=tmp_path, config=config)
    assert run.returncode != 0
    assert (
        "other/preprocessed: no shard in it, evaluation.augmentation.real_results names it" in run.stderr + run.stdout
    )


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_every_table_is_there_with_provenance(finished):
    for number in range(1, 8):
        rows = read_table(finished / RESULTS / f"eval/table{number}.csv")
        assert rows, f"table {number} is empty"
        assert "config_hash" in json.loads(
            (finished / RESULTS / f"eval/table{number}.json").read_text(encoding="utf-8")
        )
    methods = {row["method"]: row["label"] for row in read_table(finished / RESULTS / "eval/table1.csv")}
    baselines = {"wgan": "WGAN", "alpha_gan": "α-GAN", "hagan": "HA-GAN", "medical_diffusion": "Medical Diffusion"}
    assert methods == {"medsyn": "MedSyn", "without_shape": "MedSyn without shape", **baselines, "real": "real"}


def test_the_report_shows_every_row_of_every_table(finished):
    page = (finished / RESULTS / "report.html").read_text(encoding="utf-8")
    assert 'class="absent"' not in page
    assert "The cohort consists of procedural phantoms, not patients." in page
    for number in range(1, 8):
        rows = read_table(finished / RESULTS / f"eval/table{number}.csv")
        own = page.split(f'id="table{number}"')[1].split("</table>")[0]
        assert own.count("<tr><td>") == len(rows), f"Table {number}"
        shown = re.findall("<td>([^<]*)", own)
        expected = [(row["label"], f"{float(row['fid']):.3g}") for row in rows] if number == 1 else []
        expected += [(row["n"],) for row in rows if "n" in row]
        assert all(set(cells) <= set(shown) for cells in expected), f"Table {number}"


def test_the_figures_are_there(finished):
    for name in EXHIBITS.builtin:
        if EXHIBITS[name].kind == "table":
            continue
        assert (finished / RESULTS / f"eval/figures/{name}.png").read_bytes().startswith(b"\x89PNG")


def test_snakemake_report(finished):
    run = run_snakemake("--report", "workflow_report.html", directory=finished)
    assert run.returncode == 0, run.stderr
    assert (finished / "workflow_report.html").stat().st_size > 10_000


def test_a_finished_run_has_nothing_to_do(finished):
    assert planned_jobs(run_snakemake("-n", "all", directory=finished).stdout) == {}


AFTER_TRAINING = {
    "assemble_model", "diagnose", "sample", "measure_samples", "extract_sample_features", "classify",
    "score_segmentation", "measure_sample_regions", "find_nearest", "view", "report",
    *(f"make_{name}" for name in EXHIBITS.builtin),
}  # fmt: skip


def trained_networks(output: str) -> set[str]:
    """Return the networks that a dry run plans to train."""
    return set(re.findall(r" medsyn train .* --out \S+/models/\w+/(\w+)\.safetensors", output))


@pytest.mark.parametrize(
    ("section", "change", "networks", "first", "untouched"),
    [
        ("low_res", {"train": {"num_steps": 5}}, {"low_res"}, "train_network", {"preprocess", "pretrain_text"}),
        ("super_res", {"unet": {"dim": 16}}, {"super_res"}, "train_network", {"build_store", "embed_reports"}),
        ("sampling", {"guidance_scale": 1.5}, set(), "sample", {"train_network", "assemble_model", "write_prompts"}),
    ],
)
def test_a_changed_setting_reruns_its_stage_and_what_follows(
    finished, tmp_path, section, change, networks, first, untouched
):
    config = write_config(tmp_path / "changed.yaml", **{section: change})
    output = run_snakemake("-n", "-p", "all", directory=finished, config=config).stdout
    jobs = set(planned_jobs(output))
    assert first in jobs
    assert trained_networks(output) == networks
    assert not jobs & untouched
    allowed = AFTER_TRAINING | {first, "write_config", "all"}
    assert jobs <= allowed
    assert {"make_table1", "make_table2", "report"} <= jobs


def test_another_seed_trains_again_on_the_same_data(finished):
    jobs = planned_jobs(run_snakemake("-n", "all", "--config", "seed=1", directory=finished).stdout)
    assert {"pretrain_text": 2, "train_network": 10, "train_features": 1}.items() <= jobs.items()
    assert {"write_prompts", "sample", "classify", "make_table1", "report"} <= set(jobs)
    made_from_data = {"render_phantoms", "write_text_only_reports", "validate_cohort", "preprocess", "segment"}
    made_from_data |= {"build_store", "label_reports", "score_masks", "score_alignment", "measure_cohort"}
    assert not set(jobs) & made_from_data


@pytest.mark.parametrize(
    ("given", "folder"), [((), "results"), (("SEED=0",), "results"), (("SEED=3",), "results/seed3")]
)
def test_make_demo_says_where_the_results_of_its_seed_are(given, folder):
    said = subprocess.run(
        ["make", "-n", "demo", *given], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout
    assert (f"--config seed=3 results_dir={folder}" in said) == (folder != "results")
    for path in ("report.html", "eval/table1.csv", "eval/figures/"):
        assert f" {folder}/{path}" in said


def test_forcing_a_rule_by_name(finished):
    jobs = set(planned_jobs(run_snakemake("-n", "-R", "train_network", directory=finished).stdout))
    assert jobs - {"all"} == AFTER_TRAINING | {"train_network"}


def train_command(finished: Path, state: Path, out: Path, num_steps: int) -> list[str]:
    """The training command of the low-resolution net with `num_steps`, with a state folder of its own."""
    results = finished / RESULTS
    config = json.loads((results / "config/low_res_medsyn.json").read_text(encoding="utf-8"))
    config["train"] |= {"num_steps": num_steps, "checkpoint_every": 5}
    out.parent.mkdir(parents=True, exist_ok=True)
    (out.parent / "config.json").write_text(json.dumps(config))
    return [
        *(sys.executable, "-m", "medsyn", "train", "--config", str(out.parent / "config.json")),
        *("--store", str(results / "store/0")),
        *("--embeddings", str(results / "text/biomedical/embeddings.json")),
        *("--state", str(state), "--out", str(out)),
    ]


def test_a_killed_training_ends_like_an_undisturbed_one(finished, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole/net.safetensors", tmp_path / "killed/net.safetensors"
    subprocess.run(train_command(finished, tmp_path / "state_a", whole, 40), check=True, env=environment)
    command = train_command(finished, tmp_path / "state_b", killed, 40)
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not any((tmp_path / "state_b").glob("*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() != 0, "the training finished before it could be killed"
    assert not killed.exists()
    subprocess.run(command, check=True, env=environment)
    assert killed.read_bytes() == whole.read_bytes()
