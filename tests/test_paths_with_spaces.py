"""Every path has a space: working directory, results folder, manifest, images, reports and configuration.

The mask tools' weights lie in a folder with a space in `test_mask_tools.py`.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from chests import write_chest, write_manifest
from conftest import run_snakemake, write_config

from medsyn.cli import build_parser
from medsyn.files import read_csv

RESULTS = "my results/first run"
WHOLE = (RESULTS, "my scans/my ", "0/1")
"""How every word with a slash begins: the results folder, the user's files, the shard."""


@pytest.fixture
def project(tmp_path) -> Path:
    """A working directory with a CT, a manifest, further reports and a configuration."""
    folder = tmp_path / "my project"
    write_chest(folder / "my scans/first subject")
    write_manifest(folder / "my scans/my cohort.csv", [{"subject_id": "a", "image": "first subject/volume.nii.gz"}])
    (folder / "my scans/my reports.csv").write_text("report_id,findings,impression\nb,Large effusion.,Effusion.\n")
    cohort = {"source": "manifest", "manifest": "my scans/my cohort.csv", "reports": "my scans/my reports.csv"}
    config = write_config(folder / "my config.yaml", cohort=cohort)
    config.write_text(
        config.read_text(encoding="utf-8").replace("results_dir: results/test", f"results_dir: {RESULTS}")
    )
    return folder


def commands(output: str) -> list[list[str]]:
    """Return the words of every command of ours that a dry run prints."""
    lines = [line.split(" -m medsyn ")[1] for line in output.splitlines() if " -m medsyn " in line]
    return [shlex.split(line) for line in lines]


def test_every_command_of_the_workflow_keeps_its_paths_whole(project):
    run = run_snakemake("-n", "-p", "all", directory=project, config=project / "my config.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    planned = commands(run.stdout)
    assert {"cohort", "train", "sample", "table", "figure", "report"} <= {words[0] for words in planned}
    for *words, redirect, log in planned:
        assert redirect in ("2>", "2>>"), words
        assert log.startswith(f"{RESULTS}/logs/"), words
        build_parser().parse_args(words)  # a path in two parts would be an argument too many
        assert all("/" not in word or word.startswith(WHOLE) for word in words), words


def test_the_data_stages_run(project):
    run = run_snakemake(
        f"{RESULTS}/store/0", "--show-failed-logs", directory=project, config=project / "my config.yaml"
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert [row["report_id"] for row in read_csv(project / RESULTS / "cohort/reports.csv")] == ["a", "b"]
    assert [row["status"] for row in read_csv(project / RESULTS / "masks/0/index.csv")] == ["ok"]
    assert sorted(path.name for path in project.iterdir()) == [".snakemake", "my config.yaml", "my results", "my scans"]
