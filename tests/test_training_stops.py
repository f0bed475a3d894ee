"""Training that is killed, stopped or damaged: exact resume, SIGTERM, requeue, and states that are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import stage
from training_runs import SETTINGS, _identity, command, quadratic

from medsyn.cli import main
from medsyn.errors import InputError
from medsyn.files import read_csv
from medsyn.training.checkpoint import newest_checkpoint, save_checkpoint
from medsyn.training.data import Embeddings, Store, TrainingData
from medsyn.training.denoiser import denoising_task
from medsyn.training.loop import NO_EFFECT, DivergedError, train

ROOT = Path(__file__).resolve().parents[1]


LAUNCHER = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.parametrize("name", ["low_res", "super_res"])
def test_killed_and_resumed_equals_uninterrupted(training_data, tmp_path, name):
    """kill -9 in the middle, then the same command: the same weights and losses to the last bit."""
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    length = {"num_steps": 24, "checkpoint_every": 3}
    assert main([*command(training_data, whole, name, **length), "--quiet"]) == 0
    arguments = command(training_data, broken, name, **length)
    process = start(arguments)
    wait_for(process, tmp_path / "broken_state", "step_*")
    process.kill()
    process.wait()
    assert not broken.exists()
    assert main([*arguments, "--quiet"]) == 0
    first, second = load_file(whole), load_file(broken)
    assert all(torch.equal(first[key], second[key]) for key in first)
    losses = [[row["loss"] for row in read_csv(tmp_path / f"{stem}_metrics.csv")] for stem in ("whole", "broken")]
    assert losses[0] == losses[1]


def test_two_processes_equal_one(training_data, tmp_path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    size = {"num_steps": 6, "batch_size": 4, "micro_batch_size": 1}
    assert main([*command(training_data, one, **size), "--quiet"]) == 0
    assert start(command(training_data, two, **size), LAUNCHER).wait(timeout=600) == 0
    first, second = load_file(one), load_file(two)
    assert max((first[key] - second[key]).abs().max().item() for key in first) < 1e-4
    with safe_open(two, framework="pt") as handle:
        assert json.loads(handle.metadata()["provenance"])["num_processes"] == 2


def test_two_processes_stopped_by_sigterm_resume_exactly(training_data, tmp_path):
    """The end of a job on a cluster: the launcher hands SIGTERM on, both processes stop after the same step."""
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    size = {"num_steps": 40, "batch_size": 4, "micro_batch_size": 1, "checkpoint_every": 1000, "log_every": 1}
    assert start(command(training_data, whole, **size), LAUNCHER).wait(timeout=600) == 0
    arguments = command(training_data, broken, **size)
    process = start(arguments, LAUNCHER)
    wait_for(process, tmp_path / "broken_state", "metrics.csv")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) != 0 and not broken.exists()
    assert len(list((tmp_path / "broken_state").glob("step_*"))) == 1
    assert start(arguments, LAUNCHER).wait(timeout=600) == 0
    first, second = load_file(whole), load_file(broken)
    assert all(torch.equal(first[key], second[key]) for key in first)


SLOW_MAIN_PROCESS = """
import os, sys, time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from torch.distributed import distributed_c10d

TIMEOUT_S = 4.0
distributed_c10d.default_pg_timeout = timedelta(seconds=TIMEOUT_S)  # gloo's, in place of half an hour

from training_runs import SETTINGS, quadratic
from medsyn.training import loop

here = Path(sys.argv[1])
(here / os.environ["RANK"]).touch()
while len(list(here.iterdir())) < 2:  # the start of Python does not count
    time.sleep(0.1)
save = loop.save_checkpoint
loop.save_checkpoint = lambda *arguments: (time.sleep(TIMEOUT_S + 1), save(*arguments))
slow = replace(
    quadratic(),
    preview=lambda network, step: time.sleep(TIMEOUT_S + 1),
    flops=lambda: time.sleep(TIMEOUT_S + 1) or 1,
)
changes = {"num_steps": 4, "micro_batch_size": 1, "preview_every": 3, "checkpoint_every": 9}
settings = SETTINGS.model_copy(update=changes)
first = loop.train(slow, settings, here / "state")
if first.is_main_process:
    time.sleep(TIMEOUT_S + 1)
loop.train(quadratic(), settings.model_copy(update={"num_steps": 6}), here / "state")
"""


def test_the_others_wait_for_the_main_process_beyond_the_time_out_of_a_collective(tmp_path):
    """The main process counts operations, draws a preview, writes checkpoints and works between two training runs."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW_MAIN_PROCESS, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    folder = tmp_path / "run"
    folder.mkdir()
    words = [sys.executable, "-m", *LAUNCHER, str(script), str(folder)]
    run = subprocess.run(words, env=environment, capture_output=True, encoding="utf-8", timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert sorted(path.name for path in (folder / "state").glob("step_*")) == ["step_00000004", "step_00000006"]


def test_sigterm_writes_a_checkpoint_and_exits_143(training_data, tmp_path):
    out = tmp_path / "low_res.safetensors"
    arguments = command(training_data, out, num_steps=4000, checkpoint_every=1000, log_every=1)
    process = start(arguments)
    wait_for(process, tmp_path / "low_res_state", "metrics.csv")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) == 143
    steps = list((tmp_path / "low_res_state").glob("step_*"))
    assert len(steps) == 1 and json.loads((steps[0] / "facts.json").read_text(encoding="utf-8"))["step"] % 1000


SCONTROL = """#!/bin/sh
echo "$@" >> {log}
[ "$1" = show ] && echo "JobId=7 JobName=x JobState={state} Reason=None" && exit 0
echo "Requested operation is presently disabled" >&2
exit {status}
"""


@pytest.mark.parametrize(
    ("state", "status", "asked", "said"),
    [
        ("RUNNING", 0, True, "job 7 is requeued"),
        ("RUNNING", 1, True, "SLURM does not requeue job 7 (Requested operation is presently disabled)"),
        ("CANCELLED", 0, False, None),
        ("TIMEOUT", 0, False, None),
        ("PENDING", 0, False, None),
    ],
)
def test_a_training_that_sigterm_stops_asks_slurm_to_requeue_it_once(
    tmp_path, monkeypatch, caplog, state, status, asked, said
):
    """Only a running job: one that was cancelled must not come back, one that is requeued already is left alone."""
    log = tmp_path / "scontrol.log"
    command = tmp_path / "bin/scontrol"
    command.parent.mkdir()
    command.write_text(SCONTROL.format(log=log, state=state, status=status), encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    task = quadratic(on_step=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None)
    with pytest.raises(SystemExit):
        train(task, SETTINGS, tmp_path / "state")
    calls = log.read_text(encoding="utf-8").splitlines()
    assert calls == ["show job --oneliner 7", "requeue 7"][: 1 + asked]
    assert said is None or said in caplog.text
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(SystemExit):
        train(task, SETTINGS.model_copy(update={"num_steps": 18}), tmp_path / "outside")
    assert log.read_text(encoding="utf-8").splitlines() == calls, "outside of SLURM nothing is asked"


def test_refuses_the_state_of_other_settings_or_data(training_data, tmp_path, capsys):
    out = tmp_path / "low_res.safetensors"
    state = tmp_path / "low_res_state"
    facts = {"identity": {"unet.dim": 16, "num_processes": 1}}
    save_checkpoint(state, 4, {"network": {"weight": torch.zeros(1)}}, facts)
    assert main([*command(training_data, out), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert "delete the folder" in message and message.count("\n") == 1
    train(quadratic(), SETTINGS, tmp_path / "toy")
    for task, settings, key in (
        (quadratic(), SETTINGS.model_copy(update={"learning_rate": 0.1}), "train.learning_rate = 0.05"),
        (quadratic({"data": "other"}), SETTINGS, "data = d"),
        (quadratic(), SETTINGS.model_copy(update={"num_steps": 10}), "num_steps 10"),
    ):
        with pytest.raises(InputError, match=key):
            train(task, settings, tmp_path / "toy")


def test_refuses_the_state_of_a_version_that_recorded_no_cost(tmp_path):
    train(quadratic(), SETTINGS, tmp_path / "state")
    for path in (tmp_path / "state").glob("step_*/facts.json"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        del facts["cost"]
        path.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(InputError, match="this state holds no cost, expected one"):
        train(quadratic(), SETTINGS.model_copy(update={"num_steps": 24}), tmp_path / "state")


def test_longer_run_continues_a_finished_one_exactly(tmp_path):
    longer = SETTINGS.model_copy(update={"num_steps": 33})
    train(quadratic(), SETTINGS, tmp_path / "a")
    continued = train(quadratic(), longer, tmp_path / "a")
    fresh = train(quadratic(), longer, tmp_path / "b")
    assert torch.equal(continued.network.weight, fresh.network.weight)
    assert len(list((tmp_path / "a").glob("step_*"))) == 2


def test_run_stopped_by_sigterm_resumes_exactly(tmp_path):
    def stop(step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit, match="143"):
        train(quadratic(on_step=stop), SETTINGS, tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").glob("step_*")) == ["step_00000005", "step_00000008"]
    resumed = train(quadratic(), SETTINGS, tmp_path / "a")
    fresh = train(quadratic(), SETTINGS, tmp_path / "b")
    assert torch.equal(resumed.network.weight, fresh.network.weight)
    columns = ("step", "loss", "loss_ema", "grad_norm")
    assert [[row[key] for key in columns] for row in resumed.metrics] == [
        [row[key] for key in columns] for row in fresh.metrics
    ]


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, caplog):
    """The damaged one is newer than those that follow, which must not be taken for older ones and removed."""
    state = tmp_path / "state"
    with pytest.raises(DivergedError):
        train(quadratic(poison_at=17), SETTINGS, state)
    (state / "step_00000015" / "tensors.safetensors").write_bytes(b"broken")
    (state / ".step_00000016.abcdefgh").mkdir()
    with pytest.raises(DivergedError):
        train(quadratic(poison_at=13), SETTINGS.model_copy(update={"checkpoint_every": 2}), state)
    assert sum("damaged checkpoint ignored" in message for message in caplog.messages) == 1
    assert sorted(path.name for path in state.glob("*step_*")) == ["step_00000010", "step_00000012"]
    resumed = train(quadratic(), SETTINGS, state)
    fresh = train(quadratic(), SETTINGS, tmp_path / "fresh")
    assert torch.equal(resumed.network.weight, fresh.network.weight)


def test_a_state_of_which_nothing_can_be_read_is_not_trained_over(tmp_path):
    train(quadratic(), SETTINGS, tmp_path / "state")
    for path in (tmp_path / "state").glob("step_*"):
        (path / "facts.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="delete the folder to start again"):
        train(quadratic(), SETTINGS, tmp_path / "state")


def test_settings_that_do_not_change_the_weights_are_no_other_run(training_data, tmp_path):
    """Resume a denoiser's training with every such setting changed: not refused, and the same weights."""
    settings = stage(num_steps=9, checkpoint_every=3)
    embeddings = Embeddings(training_data / "embeddings.json", settings.sections)
    data = TrainingData(settings, Store([training_data / "store" / "0"], "low"), embeddings)

    def stop(step, slots):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return data.batch(step, slots)

    with pytest.raises(SystemExit):
        train(replace(denoising_task(settings, data), batch=stop), settings.train, tmp_path / "state")
    others = {"checkpoint_every": 2, "log_every": 3, "preview_every": 2, "tensorboard": True}
    changed = settings.train.model_copy(update={**others, "activation_checkpointing": True})
    assert {name for name in NO_EFFECT if getattr(changed, name) != getattr(settings.train, name)} == set(NO_EFFECT)
    task = denoising_task(settings.model_copy(update={"train": changed}), data, tmp_path / "previews")
    resumed = train(task, changed, tmp_path / "state").network.state_dict()
    fresh = train(denoising_task(settings, data), settings.train, tmp_path / "fresh").network.state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in fresh.items())


def test_sigterm_during_a_preview_keeps_the_raw_weights(tmp_path):
    """The signal arrives while the network holds the averaged weights; the checkpoint must hold the raw ones."""

    def preview(network, step):
        if step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    settings = SETTINGS.model_copy(update={"preview_every": 8, "ema_decay": 0.5})
    with pytest.raises(SystemExit, match="143"):
        train(replace(quadratic(), preview=preview), settings, tmp_path / "a")
    stopped, _ = newest_checkpoint(tmp_path / "a", _identity(tmp_path / "a"))
    with pytest.raises(SystemExit, match="143"):
        task = quadratic(on_step=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 7 else None)
        train(task, settings, tmp_path / "b")
    undisturbed, _ = newest_checkpoint(tmp_path / "b", _identity(tmp_path / "b"))
    assert not torch.equal(stopped["network"]["weight"], stopped["ema"]["weight"])
    for group, tensors in undisturbed.items():
        assert all(torch.equal(stopped[group][name], value) for name, value in tensors.items()), group
    resumed, fresh = (train(quadratic(), settings, tmp_path / name) for name in ("a", "c"))
    assert torch.equal(resumed.network.weight, fresh.network.weight)


def start(arguments: list[str], launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """Start a verb as a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", *launcher, *(("-m",) if launcher else ()), "medsyn", *arguments, "--quiet"]
    return subprocess.Popen(words, cwd=ROOT, env=environment)


def wait_for(process: subprocess.Popen, folder: Path, pattern: str, seconds: float = 600) -> None:
    """Until the started training has written `pattern`; one that ends or takes too long fails the test."""
    end = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        if process.poll() is not None or time.monotonic() > end:
            process.terminate()
            pytest.fail(f"no {pattern} in {folder}, exit status {process.poll()}")
        time.sleep(0.02)
