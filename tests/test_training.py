"""The training loop: exact resume, refusals, divergence, SIGTERM, the schedule of the rate, EMA, data, learning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import HIDDEN, NUM_TOKENS, SIZE, make_embeddings, make_store, stage
from torch import nn

from medsyn.cli import main
from medsyn.config import TrainConfig
from medsyn.ct.store import pack_labels
from medsyn.errors import InputError
from medsyn.files import read_csv, sha256, write_json
from medsyn.models.channels import CHANNELS, from_channel
from medsyn.models.weights import load
from medsyn.training.checkpoint import load_checkpoint, save_checkpoint
from medsyn.training.data import Embeddings, Store, TrainingData, to_channels
from medsyn.training.ema import Ema
from medsyn.training.loop import DivergedError, Task, learning_rate, train

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_store(folder / "store" / "0")
    make_store(folder / "store" / "1", num_subjects=3, seed=1)
    make_embeddings(folder / "embeddings.safetensors")
    return folder


def command(data: Path, out: Path, name: str = "low_res", **changes) -> list[str]:
    config = out.parent / f"{out.stem}.json"
    write_json(config, stage(name, **changes).model_dump(mode="json"))
    text = ["--embeddings", str(data / "embeddings.safetensors")] if name == "low_res" else []
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
        assert settings.stage == name and network.takes_text == (name == "low_res")
        rows = read_csv(tmp_path / f"{name}_metrics.csv", ("step", "loss", "grad_norm"))
        assert [row["step"] for row in rows] == ["5", "10", "12"]
        assert (tmp_path / f"{name}_preview.png").stat().st_size > 500
        assert not (tmp_path / f"{name}_state").exists()


def test_same_command_same_bytes(data_folder, tmp_path):
    outs = [tmp_path / f"{k}" / "low_res.safetensors" for k in range(2)]
    for out in outs:
        out.parent.mkdir()
        assert main([*command(data_folder, out), "--quiet"]) == 0
    assert sha256(outs[0]) == sha256(outs[1])


@pytest.mark.parametrize("name", ["low_res", "super_res"])
def test_killed_and_resumed_equals_uninterrupted(data_folder, tmp_path, name):
    """kill -9 in the middle, then the same command: the same weights and losses to the last bit."""
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    length = {"num_steps": 24, "checkpoint_every": 3}
    assert main([*command(data_folder, whole, name, **length), "--quiet"]) == 0
    arguments = command(data_folder, broken, name, **length)
    process = start(arguments)
    wait_for(tmp_path / "broken_state", "step_*")
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
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "medsyn"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [*launcher, *command(data_folder, two, **size), "--quiet"]
    subprocess.run(arguments, cwd=ROOT, env=environment, check=True, timeout=300)
    first, second = load_file(one), load_file(two)
    assert max((first[key] - second[key]).abs().max().item() for key in first) < 1e-4
    with safe_open(two, framework="pt") as handle:
        assert json.loads(handle.metadata()["provenance"])["num_processes"] == 2


def test_sigterm_writes_a_checkpoint_and_exits_143(data_folder, tmp_path):
    out = tmp_path / "low_res.safetensors"
    arguments = command(data_folder, out, num_steps=4000, checkpoint_every=1000, log_every=1)
    process = start(arguments)
    wait_for(tmp_path / "low_res_state", "metrics.csv")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    steps = list((tmp_path / "low_res_state").glob("step_*"))
    assert len(steps) == 1 and json.loads((steps[0] / "facts.json").read_text(encoding="utf-8"))["step"] % 1000


def test_refuses_the_state_of_other_settings_or_data(data_folder, tmp_path, capsys):
    out = tmp_path / "low_res.safetensors"
    state = tmp_path / "low_res_state"
    facts = {"identity": {"unet.dim": 16, "num_processes": 1}, "metrics": [], "loss_ema": 1.0, "window": []}
    save_checkpoint(state, 4, {}, facts)
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


def test_nan_loss_stops_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(DivergedError, match="step 14"):
        train(quadratic(poison_at=13), SETTINGS, tmp_path / "state")
    tensors, facts = load_checkpoint(tmp_path / "state", _identity(tmp_path / "state"))
    assert facts["step"] == 10 and torch.isfinite(tensors["network"]["weight"]).all()


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    state = tmp_path / "state"
    with pytest.raises(DivergedError):
        train(quadratic(poison_at=17), SETTINGS, state)
    (state / "step_00000015" / "tensors.pt").write_bytes(b"broken")
    resumed = train(quadratic(), SETTINGS, state)
    fresh = train(quadratic(), SETTINGS, tmp_path / "fresh")
    assert torch.equal(resumed.network.weight, fresh.network.weight)


def test_gradient_accumulation_equals_one_large_batch(tmp_path):
    whole = train(quadratic(), SETTINGS.model_copy(update={"micro_batch_size": 4}), tmp_path / "a")
    parts = train(quadratic(), SETTINGS.model_copy(update={"micro_batch_size": 1}), tmp_path / "b")
    assert torch.allclose(whole.network.weight, parts.network.weight, atol=1e-5)
    with pytest.raises(InputError, match="micro_batch_size 3"):
        train(quadratic(), SETTINGS.model_copy(update={"micro_batch_size": 3}), tmp_path / "c")


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
    embeddings = Embeddings(data_folder / "embeddings.safetensors", settings.sections)
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
    embeddings = Embeddings(data_folder / "embeddings.safetensors", settings.sections)
    data = TrainingData(settings, Store([data_folder / "store" / "0"], "low"), embeddings)
    samples = [data.sample(i) for i in range(600)]
    dropped = np.mean([bool(s["drop_text"]) for s in samples])
    assert 0.19 < dropped < 0.31
    times = np.array([float(s["t"]) for s in samples])
    assert 0 <= times.min() < 0.02 and 0.98 < times.max() < 1 and abs(times.mean() - 0.5) < 0.04
    states = [embeddings.states(row, section) for row in range(5) for section in range(3)]
    which = [next(i for i, st in enumerate(states) if torch.equal(st, s["text"])) % 3 for s in samples]
    assert min(np.bincount(which, minlength=3)) > 160


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
    text = ["--embeddings", str(data_folder / "embeddings.safetensors")] if values["stage"] == "low_res" else []
    store = ["--store", str(data_folder / "store" / "0")]
    folders = ["--state", str(tmp_path / "s"), "--out", str(tmp_path / "w.safetensors")]
    assert main(["train", "--config", str(config), *store, *text, *folders, "--quiet"]) == 2
    assert words in capsys.readouterr().err


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "medsyn", *arguments, "--quiet"], cwd=ROOT, env=environment)


def wait_for(folder: Path, pattern: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        assert time.monotonic() < end, f"no {pattern} in {folder}"
        time.sleep(0.02)


def _identity(state: Path) -> dict:
    newest = max(state.glob("step_*"))
    return json.loads((newest / "facts.json").read_text(encoding="utf-8"))["identity"]
