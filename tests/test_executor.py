"""The least version of the executor's plugin: what the workflow says before it submits a job."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

from medsyn.cluster import LEAST_PLUGINS, check_executor
from medsyn.errors import InputError


@pytest.mark.parametrize("version", ["1.9.2", "2.6.1", "2.7.3.post1"])
def test_an_older_plugin_is_named_with_the_version_that_is_needed(monkeypatch, version):
    monkeypatch.setattr(metadata, "version", lambda _package: version)
    with pytest.raises(InputError, match=rf"slurm {version} is too old: expected 2\.8\.0 .*pip install"):
        check_executor("slurm")
    check_executor("local")


@pytest.mark.parametrize("version", ["2.8.0", "2.10.1", "3.0"])
def test_the_lock_and_newer_versions_are_taken(monkeypatch, version):
    monkeypatch.setattr(metadata, "version", lambda _package: version)
    check_executor("slurm")


def test_pyproject_and_lock_agree_with_the_check():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {r.name: r for r in map(Requirement, project["optional-dependencies"]["workflow"])}
    lock = dict(line.split("==") for line in (ROOT / "envs/requirements.lock").read_text().splitlines() if "==" in line)
    for executor, least in LEAST_PLUGINS.items():
        package = f"snakemake-executor-plugin-{executor}"
        assert needed[package].specifier.contains(lock[package]) and needed[package].specifier.contains(least)
        assert not needed[package].specifier.contains("2.7.99")


def test_the_workflow_stops_before_it_submits(tmp_path):
    """The metadata of an old plugin stands before the installed one's."""
    folder = tmp_path / "old/snakemake_executor_plugin_slurm-2.6.1.dist-info"
    folder.mkdir(parents=True)
    text = "Metadata-Version: 2.1\nName: snakemake-executor-plugin-slurm\nVersion: 2.6.1\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")
    path = os.pathsep.join([str(folder.parent), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile"), "--jobs", "1"]
    command += ["--configfile", str(ROOT / "config/test.yaml"), "--directory", str(tmp_path)]
    target = "results/test/config/cohort.json"
    for executor, status in (("slurm", 1), ("local", 0)):
        run = subprocess.run(
            [*command, "--executor", executor, target],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
        assert run.returncode == status, run.stderr[-3000:]
        assert ("slurm 2.6.1 is too old: expected 2.8.0 or newer" in run.stdout + run.stderr) == (executor == "slurm")
        assert (tmp_path / target).exists() == (executor == "local")
