"""The training loop: exact resume, refusals, divergence, SIGTERM, the schedule of the rate, EMA, data, learning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from weakref import ref

import numpy as np
import pytest
import torch
from parity import filled_network, inputs, text_states
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.ndimage import affine_transform
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import HIDDEN, NUM_TOKENS, SIZE, make_embeddings, make_store, stage
from torch import nn

from medsyn.cli import main
from medsyn.config import TrainConfig
from medsyn.ct.store import pack_labels
from medsyn.errors import InputError
from medsyn.files import read_csv, sha256, write_json
from medsyn.models.channels import CHANNELS, from_channel
from medsyn.models.fast import blocks as fast_blocks
from medsyn.models.fast.unet import FastUNet, set_activation_checkpointing
from medsyn.models.weights import build, load
from medsyn.tensors import save_tensors
from medsyn.training.augment import random_affine
from medsyn.training.checkpoint import newest_checkpoint, save_checkpoint
from medsyn.training.cost import GIB, count_flops
from medsyn.training.data import Embeddings, Store, TrainingData, to_channels
from medsyn.training.denoiser import denoising_task
from medsyn.training.ema import Ema
from medsyn.training.loop import NO_EFFECT, DivergedError, learning_rate, train
from medsyn.training.metrics import METRIC_COLUMNS
from medsyn.training.need import Need
from medsyn.training.processes import make_accelerator, prefetch
from medsyn.training.task import Task
from medsyn.training.throughput import Throughput
from medsyn.training.watch import LossWatch

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_store(folder / "store" / "0")
    make_store(folder / "store" / "1", num_subjects=3, seed=1)
    make_embeddings(folder / "embeddings.json")
    return folder


def command(data: Path, out: Path, name: str = "low_res", **changes) -> list[str]:
    config = out.parent / f"{out.stem}.json"
    write_json(config, stage(name, **changes).model_dump(mode="json"))
    text = ["--embeddings", str(data / "embeddings.json")] if name == "low_res" else []
    stores = [str(data / "store" / "0"), str(data / "store" / "1")]
    folders = ["--state", str(out.parent / f"{out.stem}_state"), "--out", str(out)]
    return ["train", "--config", str(config), "--store", *stores, *text, *folders]


def quadratic(identity=None, poison_at=None, on_step=None):
    """A task with a known optimum: weights -> the mean of the data."""

    def batch(step, slots):
        if on_step is not None:
            on_step(step)
        value = float("nan") if step == poison_at else 1.0
        return {"x": torch.stack([torch.full((3,), value + 0.1 * ((step * 7 + slot) % 5)) for slot in slots])}

    def build():
        return nn.Linear(3, 2)

    return Task("toy", build, batch, lambda net, b: (net(b["x"]) - 1).square().mean(), identity or {"data": "d"})


SETTINGS = TrainConfig(
    num_steps=20, batch_size=4, micro_batch_size=2, learning_rate=0.05, checkpoint_every=5, log_every=4
)


def test_train_verb_writes_weights_metrics_and_preview(data_folder, tmp_path):
    for name in ("low_res", "super_res"):
        out = tmp_path / f"{name}.safetensors"
        assert main([*command(data_folder, out, name), "--quiet"]) == 0
        network, settings = load(out)
        assert settings.stage == name and (network.null_cond_emb is not None) == (name == "low_res")
        rows = read_csv(tmp_path / f"{name}_metrics.csv", ("step", "loss", "grad_norm"))
        assert [row["step"] for row in rows] == ["5", "10", "12"]
        assert (tmp_path / f"{name}_preview.png").stat().st_size > 500
        assert not (tmp_path / f"{name}_state").exists()


def test_weights_of_a_version_with_other_training_settings_open(tmp_path):
    settings = stage("super_res")
    values = settings.model_dump(mode="json")
    values["train"] |= {"gone": 1}
    weights = {name: value.detach() for name, value in build(settings, None).state_dict().items()}
    path = tmp_path / "w.safetensors"
    save_tensors(path, weights, {"config": json.dumps(values)})
    assert load(path)[1] == settings
    values["unet"] |= {"unknown": 1}
    save_tensors(path, weights, {"config": json.dumps(values)})
    with pytest.raises(InputError, match=r"unet.unknown"):
        load(path)


def test_pictures_on_the_way_and_event_files_outlive_the_state(data_folder, tmp_path, monkeypatch):
    out = tmp_path / "low_res.safetensors"
    settings = {"preview_every": 5, "tensorboard": True, "activation_checkpointing": True}
    monkeypatch.setattr("medsyn.training.throughput.peak_tflops", lambda _device, _precision: 0.1)
    assert main([*command(data_folder, out, **settings), "--quiet"]) == 0
    pictures = sorted((tmp_path / "low_res_previews").iterdir())
    assert [path.name for path in pictures] == ["step_00000005.png", "step_00000010.png"]
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    assert list((tmp_path / "low_res_tensorboard").glob("events.*")) and not (tmp_path / "low_res_state").exists()
    for row in read_csv(tmp_path / "low_res_metrics.csv", METRIC_COLUMNS):
        assert float(row["tflops_per_second"]) > 0 and 0 < float(row["flop_utilisation"]) < 10


def test_same_command_same_bytes(data_folder, tmp_path, capsys):
    outs = [tmp_path / f"{k}" / "low_res.safetensors" for k in range(2)]
    for out in outs:
        out.parent.mkdir()
        assert main([*command(data_folder, out), "--quiet"]) == 0
    assert sha256(outs[0]) == sha256(outs[1])
    assert main([*command(data_folder, outs[0]), "--quiet"]) == 2
    assert "remove the file to train it again" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["low_res", "super_res"])
def test_killed_and_resumed_equals_uninterrupted(data_folder, tmp_path, name):
    """kill -9 in the middle, then the same command: the same weights and losses to the last bit."""
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    length = {"num_steps": 24, "checkpoint_every": 3}
    assert main([*command(data_folder, whole, name, **length), "--quiet"]) == 0
    arguments = command(data_folder, broken, name, **length)
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


def test_two_processes_equal_one(data_folder, tmp_path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    size = {"num_steps": 6, "batch_size": 4, "micro_batch_size": 1}
    assert main([*command(data_folder, one, **size), "--quiet"]) == 0
    assert start(command(data_folder, two, **size), LAUNCHER).wait(timeout=600) == 0
    first, second = load_file(one), load_file(two)
    assert max((first[key] - second[key]).abs().max().item() for key in first) < 1e-4
    with safe_open(two, framework="pt") as handle:
        assert json.loads(handle.metadata()["provenance"])["num_processes"] == 2


def test_two_processes_stopped_by_sigterm_resume_exactly(data_folder, tmp_path):
    """The end of a job on a cluster: the launcher hands SIGTERM on, both processes stop after the same step."""
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    size = {"num_steps": 40, "batch_size": 4, "micro_batch_size": 1, "checkpoint_every": 1000, "log_every": 1}
    assert start(command(data_folder, whole, **size), LAUNCHER).wait(timeout=600) == 0
    arguments = command(data_folder, broken, **size)
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

from test_training import SETTINGS, quadratic
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
    run = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert sorted(path.name for path in (folder / "state").glob("step_*")) == ["step_00000004", "step_00000006"]


def test_sigterm_writes_a_checkpoint_and_exits_143(data_folder, tmp_path):
    out = tmp_path / "low_res.safetensors"
    arguments = command(data_folder, out, num_steps=4000, checkpoint_every=1000, log_every=1)
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


def test_refuses_the_state_of_other_settings_or_data(data_folder, tmp_path, capsys):
    out = tmp_path / "low_res.safetensors"
    state = tmp_path / "low_res_state"
    facts = {"identity": {"unet.dim": 16, "num_processes": 1}}
    save_checkpoint(state, 4, {"network": {"weight": torch.zeros(1)}}, facts)
    assert main([*command(data_folder, out), "--quiet"]) == 2
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


def test_nan_loss_stops_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(DivergedError, match="step 14"):
        train(quadratic(poison_at=13), SETTINGS, tmp_path / "state")
    tensors, facts = newest_checkpoint(tmp_path / "state", _identity(tmp_path / "state"))
    assert facts["step"] == 10 and torch.isfinite(tensors["network"]["weight"]).all()


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


class _NanGradient(torch.autograd.Function):
    """The identity with a gradient that is no number."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def test_weights_spoilt_by_a_gradient_are_not_kept(tmp_path):
    """The loss of step 10 is finite, its gradient is not; step 10 is also when a checkpoint is due."""
    plain = quadratic()

    def batch(step, slots):
        return {**plain.batch(step, slots), "spoil": torch.tensor(step == 9)}

    def loss(network, batch):
        value = plain.loss(network, batch)
        return _NanGradient.apply(value) if batch["spoil"] else value

    settings = SETTINGS.model_copy(update={"log_every": 5})
    with pytest.raises(DivergedError, match=r"norm nan at step 10; the checkpoint of step 5"):
        train(replace(plain, batch=batch, loss=loss), settings, tmp_path / "state")
    tensors, facts = newest_checkpoint(tmp_path / "state", _identity(tmp_path / "state"))
    assert facts["step"] == 5 and torch.isfinite(tensors["network"]["weight"]).all()


def test_batches_prefetch_are_the_same_in_the_same_order(tmp_path, monkeypatch):
    def slow(key):
        time.sleep(0.01 * (key % 3))
        return key

    assert list(prefetch(slow, range(20), 4)) == list(range(20))
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda key: 1 // key, range(3), 2))
    plain = train(quadratic(), SETTINGS, tmp_path / "a")
    monkeypatch.setattr("medsyn.training.loop.num_data_threads", lambda _device: 3)
    ahead = train(quadratic(), SETTINGS, tmp_path / "b")
    assert torch.equal(plain.network.weight, ahead.network.weight)


def test_gradient_accumulation_equals_one_large_batch(tmp_path):
    whole = train(quadratic(), SETTINGS.model_copy(update={"micro_batch_size": 4}), tmp_path / "a")
    parts = train(quadratic(), SETTINGS.model_copy(update={"micro_batch_size": 1}), tmp_path / "b")
    assert torch.allclose(whole.network.weight, parts.network.weight, atol=1e-5)
    with pytest.raises(InputError, match="micro_batch_size 3"):
        train(quadratic(), SETTINGS.model_copy(update={"micro_batch_size": 3}), tmp_path / "c")


def test_one_step_is_adamw_by_hand(tmp_path):
    """Warm-up, clipping, weight decay and the EMA of the first step, in double precision (Loshchilov and Hutter)."""
    settings = TrainConfig(
        num_steps=1, batch_size=4, micro_batch_size=2, learning_rate=0.05, num_warmup_steps=2, max_grad_norm=0.3
    )
    settings = settings.model_copy(update={"weight_decay": 0.2, "ema_decay": 0.75})
    task = quadratic()
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = task.build()
    trained = train(task, settings, tmp_path / "state")
    x = task.batch(0, range(4))["x"].double()
    weight, bias = network.weight.detach().double(), network.bias.detach().double()
    error = 2 * (x @ weight.T + bias - 1) / 8
    gradients = {"weight": error.T @ x, "bias": error.sum(0)}
    norm = sum(g.square().sum() for g in gradients.values()).sqrt()
    assert norm > 0.3 and trained.metrics[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    for name, before in (("weight", weight), ("bias", bias)):
        g = gradients[name] * (0.3 / (norm + 1e-6))
        after = before * (1 - 0.025 * 0.2) - 0.025 * g / (g.abs() + 1e-8)  # bias-corrected moments of one step: g, g^2
        averaged = 0.75 * before + 0.25 * after
        assert torch.allclose(getattr(trained.network, name).double(), averaged, atol=1e-6)


def test_activation_checkpointing_keeps_loss_and_gradients_and_frees_activations(monkeypatch):
    kept, gradients, conv_unit = [], [], fast_blocks.conv_unit
    for enabled in (False, True):
        network = set_activation_checkpointing(filled_network("low", "A", FastUNet).train(), enabled)
        alive = []
        watched = network.downs[0].first.block1  # the second unit keeps its output for the backward pass

        def note(unit, *given, watched=watched, alive=alive):
            output = conv_unit(unit, *given)
            if unit is watched:
                alive.append(ref(output))
            return output

        monkeypatch.setattr(fast_blocks, "conv_unit", note)
        drop = torch.tensor([True, False])
        loss = network(**inputs("low"), text=text_states(), drop_text=drop).square().mean()
        kept.append(alive[0]() is not None)
        loss.backward()
        assert len(alive) == (2 if enabled else 1)
        gradients.append([loss.detach(), *(p.grad for p in network.parameters())])
    assert kept == [True, False]
    for plain, again in zip(*gradients, strict=True):
        assert torch.allclose(plain, again, rtol=1e-5, atol=1e-6 * float(plain.abs().max()))


def test_settings_that_do_not_change_the_weights_are_no_other_run(data_folder, tmp_path):
    """Resume a denoiser's training with every such setting changed: not refused, and the same weights."""
    settings = stage(num_steps=9, checkpoint_every=3)
    embeddings = Embeddings(data_folder / "embeddings.json", settings.sections)
    data = TrainingData(settings, Store([data_folder / "store" / "0"], "low"), embeddings)

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


def test_previews_show_the_average_and_leave_the_training_alone(tmp_path):
    seen = {}

    def preview(network, step):
        assert not network.training and not torch.is_grad_enabled()
        seen[step] = network.weight.detach().clone()

    task = replace(quadratic(), preview=preview)
    shown = train(task, SETTINGS.model_copy(update={"preview_every": 8}), tmp_path / "a")
    assert sorted(seen) == [8, 16]
    plain = train(quadratic(), SETTINGS, tmp_path / "b")
    assert torch.equal(shown.network.weight, plain.network.weight)
    short = train(quadratic(), SETTINGS.model_copy(update={"num_steps": 8}), tmp_path / "c")
    assert torch.equal(seen[8], short.network.weight)  # the average after step 8


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


def test_loss_watch_tells_explosions_from_scatter():
    rng = np.random.default_rng(0)
    watch = LossWatch()
    for _ in range(3000):  # the heavy tail of single samples at random times
        watch.update(float(0.02 * rng.lognormal(0, 1.5)))
        assert not watch.exploded
    watch.update(1e9)
    for _ in range(300):
        watch.update(0.02)
        assert not watch.exploded
    for k in range(100):
        assert not watch.exploded, k
        watch.update(2.0 + k)
    assert watch.exploded and LossWatch(**json.loads(json.dumps(asdict(watch)))).exploded
    fit = LossWatch()
    for k in range(4000):  # a perfect fit jitters
        fit.update(max(0.98**k, 1e-9) * (1 if k % 500 < 250 else 50))
        assert not fit.exploded


def test_exploding_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    """From step 41 on the data have other targets, a hundred times as large: finite, and ever so bad."""

    def batch(step, slots):
        return {"x": torch.ones(len(slots), 3), "y": torch.full((len(slots), 2), 1.0 if step < 40 else 300.0)}

    task = Task("toy", lambda: nn.Linear(3, 2), batch, lambda net, b: (net(b["x"]) - b["y"]).square().mean())
    settings = SETTINGS.model_copy(update={"num_steps": 400, "checkpoint_every": 8, "learning_rate": 1e-3})
    with pytest.raises(DivergedError, match=r"at step 140; the checkpoint of step 32 in .* is kept") as caught:
        train(task, settings, tmp_path / "state")
    assert "100 steps" in str(caught.value)
    assert [path.name for path in sorted((tmp_path / "state").glob("step_*"))] == ["step_00000032"]


def test_fp16_scales_the_loss_skips_overflows_and_resumes_exactly(tmp_path):
    def task(overflow_at=None, poison_at=None):
        def batch(step, slots):
            value = 3e5 if step == overflow_at else float("nan") if step == poison_at else 1.0
            return {"x": torch.ones(len(slots), 3), "scale": torch.full((len(slots), 1), value)}

        def loss(network, batch):  # the factor makes gradients overflow float16, the loss stays finite
            return ((network(batch["x"]).float() - 1) * batch["scale"]).square().mean()

        return Task("toy", lambda: nn.Linear(3, 2), batch, loss)

    settings = SETTINGS.model_copy(update={"precision": "fp16", "weight_decay": 0.0})
    half = train(task(), settings, tmp_path / "half")
    single = train(task(), settings.model_copy(update={"precision": "fp32"}), tmp_path / "single")
    assert torch.allclose(half.network.weight, single.network.weight, atol=0.02)
    train(task(overflow_at=8), settings, tmp_path / "whole")  # after a row of the log, before the checkpoint of step 10
    tensors, facts = newest_checkpoint(tmp_path / "whole", _identity(tmp_path / "whole"))
    assert facts["scaler"]["scale"] == 32768.0  # halved once
    assert torch.isfinite(tensors["network"]["weight"]).all()
    assert float(tensors["optimizer"]["0.step"]) == settings.num_steps - 1
    with pytest.raises(DivergedError):
        train(task(overflow_at=8, poison_at=17), settings, tmp_path / "broken")
    train(task(overflow_at=8), settings, tmp_path / "broken")
    again, other = newest_checkpoint(tmp_path / "broken", _identity(tmp_path / "broken"))
    assert torch.equal(tensors["network"]["weight"], again["network"]["weight"])
    assert facts["scaler"] == other["scaler"] and facts["metrics"][2]["grad_norm"] is not None


def test_metrics_tell_memory_and_the_share_of_the_peak(tmp_path, monkeypatch):
    task = replace(quadratic(), flops=lambda: 2_000_000)
    monkeypatch.setattr("medsyn.training.throughput.peak_tflops", lambda _device, _precision: 0.5)
    rows = train(task, SETTINGS, tmp_path / "a").metrics
    for row in rows:
        assert row["tflops_per_second"] == pytest.approx(row["samples_per_second"] * 2e-6, rel=0.01)
        assert row["flop_utilisation"] == pytest.approx(row["tflops_per_second"] / 0.5, rel=0.01)
        assert 0.05 < row["peak_memory_gib"] < 100
    unknown = train(quadratic(), SETTINGS, tmp_path / "b").metrics[0]
    assert unknown["tflops_per_second"] is None and unknown["flop_utilisation"] is None


def test_the_log_says_counted_beside_measured_memory(tmp_path, monkeypatch, caplog):
    """On a GPU allocated and counted, and before the first step a warning where the card is too small."""
    settings = SETTINGS.model_copy(update={"num_steps": 1})
    accelerator = make_accelerator("fp32")
    task = replace(quadratic(), memory=lambda processes: Need({"weights": processes * 2 * GIB}))
    run = Throughput(task.phased(), settings, accelerator)
    run.count()
    assert run.need is None and run.describe_memory(1.5) == "1.5 GiB resident"
    on_gpu = SimpleNamespace(device=torch.device("cuda"), num_processes=2)
    run.accelerator = on_gpu
    monkeypatch.setattr("medsyn.training.throughput.total_bytes", lambda _device: 4 * GIB)
    run.count()
    assert run.describe_memory(1.5) == "1.5 GiB allocated (counted 4.0)"
    assert "more than the GPU's 4.0 GiB" in caplog.text and "medsyn plan" in caplog.text


def test_operations_are_counted_by_hand():
    def loss(network, batch):
        return network(batch["x"]).square().mean()

    # forward 2 * 5 * 3 * 2; backward the same for the weights (the input needs no gradient)
    assert count_flops(lambda: nn.Linear(3, 2), loss, {"x": torch.zeros(5, 3)}) == 2 * 60
    # a hidden layer's input needs one: forward 2 * 5 * (3 * 4 + 4 * 2), weights the same, hidden 2 * 5 * 4 * 2
    deep = count_flops(lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), loss, {"x": torch.zeros(5, 3)})
    assert deep == 2 * 200 + 80


def test_operations_of_a_crop_are_those_of_the_release():
    """Super-resolution, order B, crop 256 x 72 x 72: 5.090 TFLOP forward (the release, counted on meta tensors)."""
    settings = stage(
        "super_res", unet={"dim": 56, "mults": (1, 2, 4, 8), "num_heads": 4, "init_kernel": 7, "up_order": "B"}
    )
    x = torch.zeros(1, 4, 256, 72, 72, device="meta")
    flops = count_flops(
        lambda: build(settings, None),
        lambda net, b: net(b["x"], b["t"], condition=b["x"]).sum(),
        {"x": x, "t": torch.zeros(1)},
    )
    first_convolution = 2 * 8 * 56 * 7**3 * 256 * 72**2  # its input needs no gradient
    assert flops == pytest.approx(3 * 5.090e12 - first_convolution, rel=5e-4)


def test_tensorboard_gets_the_metrics(tmp_path):
    """Read by TensorBoard itself: a resumed run goes on in the same curves."""
    settings = SETTINGS.model_copy(update={"tensorboard": True})
    with pytest.raises(DivergedError):
        train(quadratic(poison_at=12), settings, tmp_path / "state")
    rows = train(quadratic(), settings, tmp_path / "state").metrics
    events = EventAccumulator(str(tmp_path / "state" / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {name for name in METRIC_COLUMNS[1:] if rows[0][name] is not None}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (row["step"], pytest.approx(row["loss"])) for row in rows
    ]


def test_without_tensorboard_training_says_so_and_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level("INFO", logger="medsyn"):
        train(quadratic(), SETTINGS.model_copy(update={"tensorboard": True}), tmp_path / "state")
    assert sum("tensorboard is not installed" in message for message in caplog.messages) == 1
    assert not (tmp_path / "state" / "tensorboard").exists()


def test_learning_rate_schedule():
    config = TrainConfig(num_steps=100, learning_rate=1.0, num_warmup_steps=10, learning_rate_decay="cosine")
    assert [learning_rate(config, step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(config, 10) == pytest.approx(1.0)
    assert learning_rate(config, 55) == pytest.approx(0.5)
    assert learning_rate(config, 99) == pytest.approx(0.0003, abs=1e-4)
    constant = TrainConfig(num_steps=100, learning_rate=0.3)
    assert learning_rate(constant, 99) == 0.3


def test_ema_by_hand():
    net = nn.Linear(1, 1, bias=False)
    ema = Ema(net, decay=0.9, start_step=2, every=2)
    history = []
    for step in range(1, 7):
        nn.init.constant_(net.weight, float(step))
        ema.update(net, step)
        history.append(float(ema.average["weight"]))
    # copies at 1 and 2, then every second step: 0.9 * 2 + 0.1 * 4 = 2.2, 0.9 * 2.2 + 0.1 * 6 = 2.58
    assert history == pytest.approx([1, 2, 2, 2.2, 2.2, 2.58])


def test_channels_round_trip():
    rng = np.random.default_rng(0)
    lobes, airway, vessels = rng.integers(0, 6, SIZE), rng.integers(0, 2, SIZE), rng.integers(0, 2, SIZE)
    hu = rng.integers(-1024, 601, SIZE).astype(np.int16)
    values = to_channels(CHANNELS, hu, pack_labels(lobes, airway, vessels), (-1024.0, 600.0))
    assert values.dtype == np.float32 and values.min() >= -1 and values.max() <= 1
    for name, expected, array in zip(CHANNELS, (hu, lobes, airway, vessels), values, strict=True):
        assert np.array_equal(from_channel(name, array, (-1024.0, 600.0)), expected)
    assert to_channels(
        ("image",), np.array([[[3000, -2000]]]), np.zeros((1, 1, 2), np.uint8), (-1024, 600)
    ).tolist() == [[[[1.0, -1.0]]]]


def test_batches_are_functions_of_step_and_slot(data_folder):
    settings = stage(batch_size=3, micro_batch_size=3)
    shards = [data_folder / "store" / "0", data_folder / "store" / "1"]
    embeddings = Embeddings(data_folder / "embeddings.json", settings.sections)
    data = TrainingData(settings, Store(shards, "low"), embeddings)
    assert len(data.store) == 6 and "s4" not in data.store.subject_ids[:4]
    whole, slot = data.batch(5, range(3)), data.batch(5, [2])
    assert all(torch.equal(whole[key][2:], slot[key]) for key in whole)
    assert whole["x0"].shape == (3, 4, 4, 4, 4) and whole["text"].shape == (3, NUM_TOKENS, HIDDEN)
    clean = torch.stack([data.clean(i) for i in range(6)])
    seen = [data.batch(step, range(3))["x0"] for step in (0, 1)]  # one epoch: every volume once
    found = [int((clean == x).flatten(1).all(1).nonzero()[0, 0]) for x in torch.cat(seen)]
    assert sorted(found) == list(range(6))


def test_text_is_dropped_and_sections_are_drawn_evenly(data_folder):
    settings = stage(text_dropout=0.25)
    embeddings = Embeddings(data_folder / "embeddings.json", settings.sections)
    data = TrainingData(settings, Store([data_folder / "store" / "0"], "low"), embeddings)
    samples = [data.sample(i) for i in range(600)]
    dropped = np.mean([bool(s["drop_text"]) for s in samples])
    assert 0.19 < dropped < 0.31
    times = np.array([float(s["t"]) for s in samples])
    assert 0 <= times.min() < 0.02 and 0.98 < times.max() < 1 and abs(times.mean() - 0.5) < 0.04
    states = [embeddings.states(row, section) for row in range(5) for section in range(3)]
    which = [next(i for i, st in enumerate(states) if torch.equal(st, s["text"])) % 3 for s in samples]
    assert min(np.bincount(which, minlength=3)) > 160


def test_only_sections_that_a_report_has_are_drawn(data_folder, tmp_path):
    settings = stage(text_dropout=0.0)
    path = make_embeddings(tmp_path / "embeddings.json")
    index = json.loads(path.read_text(encoding="utf-8"))
    for keys in index["texts"].values():
        keys[1] = None  # no Findings
    path.write_text(json.dumps(index), encoding="utf-8")
    embeddings = Embeddings(path, settings.sections)
    data = TrainingData(settings, Store([data_folder / "store" / "0"], "low"), embeddings)
    states = [embeddings.states(row, section) for row in range(5) for section in range(2)]
    texts = [data.sample(i)["text"] for i in range(400)]
    which = [next(i for i, state in enumerate(states) if torch.equal(state, text)) % 2 for text in texts]
    assert min(np.bincount(which, minlength=2)) > 160


def test_super_res_crops(data_folder):
    settings = stage("super_res", max_low_res_noise=0.4)
    data = TrainingData(settings, Store([data_folder / "store" / "0"], "high"), None)
    batch = data.batch(0, range(4))
    assert batch["x0"].shape == (4, 4, 8, 8, 8)
    levels = torch.stack([data.sample(i)["condition_level"] for i in range(200)])
    assert levels.min() >= 0 and 0.35 < levels.max() < 0.4
    volume = data.clean(0, (0.0, 0.5, 0.999))
    data.crop = None
    assert torch.equal(volume, data.clean(0)[:, :8, 4:12, 8:])


def test_augmentation_moves_image_and_masks_together(data_folder):
    """A crop of the augmented volume, read from a part of the source, against the whole volume moved by scipy."""
    settings = stage("super_res", augment=True)
    data = TrainingData(settings, Store([data_folder / "store" / "0"], "high"), None)
    affine = random_affine([0.3, 0.9, 0.2, 0.9, 0.1, 0.7])
    assert torch.linalg.det(affine).item() == pytest.approx((1 / 1.08) ** 3)  # a zoom by 1.08 and a rotation
    place = (0.4, 0.7, 0.2)
    moved = data.clean(1, place, affine)
    data.crop = None
    whole, centre = data.clean(1), (np.array(SIZE) - 1) / 2
    offset = centre - affine.numpy() @ centre
    z, y, x = (int(u * (s - 8 + 1)) for u, s in zip(place, SIZE, strict=True))
    for channel, ours in zip(whole.numpy(), moved.numpy(), strict=True):
        theirs = affine_transform(channel.astype(float), affine.numpy(), offset, order=1, mode="grid-constant", cval=-1)
        assert np.abs(theirs[z : z + 8, y : y + 8, x : x + 8] - ours).max() < 1e-5
    assert random_affine([0.5, 0.1, 0.5, 0, 0, 0]) is None
    plain = TrainingData(stage("super_res"), data.store, None)
    data.crop = plain.crop
    same = [torch.equal(data.sample(k)["x0"], plain.sample(k)["x0"]) for k in range(40)]
    assert 3 < sum(same) < 20  # a quarter is left alone


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": ("image",), "num_tokens": 7}, "tokens"),
        ({"train": {"crop_size": (6, 8, 8)}, "stage": "super_res"}, "crop_size"),
        ({"unet": {"mults": (1, 1, 1, 1)}}, "divisible by 8"),
    ],
)
def test_settings_that_do_not_fit_the_data(data_folder, tmp_path, capsys, change, words):
    values = stage(change.pop("stage", "low_res")).model_dump(mode="json")
    for key, value in change.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    config = tmp_path / "c.json"
    write_json(config, values)
    text = ["--embeddings", str(data_folder / "embeddings.json")] if values["stage"] == "low_res" else []
    store = ["--store", str(data_folder / "store" / "0")]
    folders = ["--state", str(tmp_path / "s"), "--out", str(tmp_path / "w.safetensors")]
    assert main(["train", "--config", str(config), *store, *text, *folders, "--quiet"]) == 2
    assert words in capsys.readouterr().err


def start(arguments: list[str], launcher: tuple[str, ...] = ()) -> subprocess.Popen:
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


def _identity(state: Path) -> dict:
    newest = max(state.glob("step_*"))
    return json.loads((newest / "facts.json").read_text(encoding="utf-8"))["identity"]
