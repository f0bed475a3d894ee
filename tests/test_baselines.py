"""The trainings of the four baselines: killed anywhere they end with the same bits, two processes train as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import baseline_runs
import pytest
import torch
from baseline_runs import TASKS
from conftest import ROOT
from safetensors.torch import load_file
from torch import Tensor

from medsyn.training.loop import train

ROUNDING = 1e-6
"""Largest difference of a number in float64; a step of Adam is 2e-4 to 2e-3. 2e-8 was found, see below."""


def run(mode: str, folder: Path, *launcher: str) -> Path:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    words = [sys.executable, *launcher, str(ROOT / "tests/baseline_runs.py"), mode, str(folder)]
    ended = subprocess.run(words, env=environment, capture_output=True, encoding="utf-8", timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    return run("kill", tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return run("train", tmp_path_factory.mktemp("two"), *launcher)


def last_checkpoint(state: Path) -> dict[str, Tensor]:
    """Networks, averages, moments of the optimisers, statistics, vectors of the spectral norm, and the codebook."""
    return load_file(max(state.glob("step_*")) / "tensors.safetensors")


@pytest.mark.parametrize("name", TASKS)
def test_a_training_that_is_killed_everywhere_ends_with_the_same_bits(killed, tmp_path, name):
    places = (killed / f"{name}.places").read_text(encoding="utf-8").splitlines()
    task, settings = baseline_runs.phased(name), TASKS[name][1]
    steps = range(1, settings.num_steps)
    expected = {f"{phase.name} {step}" for step in steps for phase in task.phases}
    expected |= {
        f"step_{n:08d}" for n in (*range(settings.checkpoint_every, settings.num_steps + 1), settings.num_steps)
    }
    assert len(places) == len(set(places)) and set(places) == expected
    train(task, settings, tmp_path / "state")
    whole, resumed = last_checkpoint(tmp_path / "state"), last_checkpoint(killed / name)
    assert whole.keys() == resumed.keys()
    assert [key for key, value in whole.items() if not torch.equal(resumed[key], value)] == []


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_train_a_baseline_as_one_does(two_processes, tmp_path, name):
    """Batch normalisation, the codebook and its restarts use the samples of both processes.

    In float64: a bias before a batch normalisation has no gradient but rounding, and Adam divides that by its size. In
    float32 such a bias moves by up to the learning rate, to no effect. In float64 the rounding is far below Adam's
    epsilon of 1e-8. Beside these biases, and the running means that follow them, the largest difference was 1e-11.
    """
    baseline_runs.train_double(name, tmp_path)
    one, two = last_checkpoint(tmp_path / name), last_checkpoint(two_processes / name)
    first, second = (load_file(two_processes / f"{name}.{rank}.safetensors") for rank in (0, 1))
    if name != "latent_denoiser":  # the main process returns its average
        assert [key for key, value in first.items() if not torch.equal(second[key], value)] == []
    assert one.keys() == two.keys()
    differences = {key: (value.double() - two[key].double()).abs().max().item() for key, value in one.items()}
    assert max(differences.values()) < ROUNDING, max(differences, key=lambda key: differences[key])
