"""Training that diverges: losses that are not finite or explode, spoilt weights, overflows of fp16."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn
from training_runs import SETTINGS, _identity, quadratic

from medsyn.training.checkpoint import newest_checkpoint
from medsyn.training.loop import DivergedError, train
from medsyn.training.task import Task
from medsyn.training.watch import LossWatch


def test_nan_loss_stops_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(DivergedError, match="step 14"):
        train(quadratic(poison_at=13), SETTINGS, tmp_path / "state")
    tensors, facts = newest_checkpoint(tmp_path / "state", _identity(tmp_path / "state"))
    assert facts["step"] == 10 and torch.isfinite(tensors["network"]["weight"]).all()


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
