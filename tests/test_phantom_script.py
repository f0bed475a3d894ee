"""The script that trains the phantom model without Snakemake: the workflow's commands, skipped where they are done."""

from __future__ import annotations

import re
import runpy
import shlex
import time
from pathlib import Path

import pytest
from conftest import ROOT, run_snakemake

from medsyn.config import load_config
from medsyn.errors import InputError

SCRIPT = runpy.run_path(str(ROOT / "benchmarks/phantom_model.py"))
CONFIG = ROOT / "config/test.yaml"
COMMAND = re.compile(r"python -m medsyn (.*?) 2>>? ")


def commands(config: Path) -> set[tuple[str, ...]]:
    """Return the commands of the script, without the last, which packages."""
    steps = [
        step for chains in SCRIPT["phantom_stages"](load_config(config), "out") for chain in chains for step in chain
    ]
    assert steps[-1].words[0] == "package-model"
    return {tuple(step.words) for step in steps[:-1]}


def test_the_commands_are_those_of_the_workflow(tmp_path):
    run = run_snakemake("results/test/models/medsyn/run.json", "-n", "-p", directory=tmp_path)
    assert run.returncode == 0, run.stderr
    assert {tuple(shlex.split(words)) for words in COMMAND.findall(run.stdout)} == commands(CONFIG)


def step(name: str, code: str, folder: Path, always: bool = False):
    """Return a step that runs the verb `weights` or fails, and whose output is a file of `folder`."""
    return SCRIPT["Step"]([name, code], str(folder / name), always)


def test_what_is_there_is_not_made_again_and_a_failure_is_one_line(tmp_path, capfd):
    (tmp_path / "weights").touch()
    done, failing = step("weights", "nonsense", tmp_path), step("label", "missing.csv", tmp_path)
    with SCRIPT["Runner"](2, {}) as runner:
        runner.stage([[done]])
        assert capfd.readouterr().out == ""
        with pytest.raises(InputError, match="label: `medsyn label` ended with status 2"):
            runner.stage([[failing, step("weights", "list", tmp_path, always=True)]])
    assert "--out" in capfd.readouterr().err


@pytest.fixture
def commands_of_another_package(tmp_path, monkeypatch) -> None:
    """Let `python -m medsyn` wait for a minute, or fail with status 3 if its first word is `fail`."""
    (tmp_path / "medsyn").mkdir()
    (tmp_path / "medsyn/__main__.py").write_text(
        "import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\n"
        "sys.exit(3) if sys.argv[1] == 'fail' else time.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("commands_of_another_package")
def test_a_failure_stops_a_chain_that_was_submitted_before(tmp_path):
    began = time.monotonic()
    with pytest.raises(InputError, match="`medsyn fail` ended with status 3"), SCRIPT["Runner"](2, {}) as runner:
        runner.stage(
            [[step("wait", "", tmp_path, always=True), step("next", "", tmp_path)], [step("fail", "", tmp_path)]]
        )
    assert time.monotonic() - began < 30
    assert not (tmp_path / "next").exists()


@pytest.mark.usefixtures("commands_of_another_package")
def test_no_step_is_started_after_the_end(tmp_path):
    with SCRIPT["Runner"](1, {}) as runner:
        pass
    runner._step(step("fail", "", tmp_path))
    assert not (tmp_path / "fail").exists()


def test_settings_of_another_run_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(CONFIG)
    SCRIPT["write_settings"](config, CONFIG)
    SCRIPT["write_settings"](config, CONFIG)
    changed = config.model_copy(update={"phantom": config.phantom.model_copy(update={"num_subjects": 7})})
    with pytest.raises(InputError, match=r"config/phantom\.json: differs from .*test\.yaml"):
        SCRIPT["write_settings"](changed, CONFIG)
