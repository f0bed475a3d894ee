"""The training loop: weights and metrics, the same bytes again, AdamW by hand, accumulation, schedule, EMA."""

from __future__ import annotations

import json
from weakref import ref

import pytest
import torch
from parity import filled_network, inputs, text_states
from tiny_models import stage
from torch import nn
from training_runs import SETTINGS, command, quadratic

from medsyn.cli import main
from medsyn.config import TrainConfig
from medsyn.errors import InputError
from medsyn.files import read_csv, sha256
from medsyn.models.fast import blocks as fast_blocks
from medsyn.models.fast.unet import FastUNet, set_activation_checkpointing
from medsyn.models.weights import build, load
from medsyn.tensors import save_tensors
from medsyn.training.ema import Ema
from medsyn.training.loop import learning_rate, train


def test_train_verb_writes_weights_metrics_and_preview(training_data, tmp_path):
    for name in ("low_res", "super_res"):
        out = tmp_path / f"{name}.safetensors"
        assert main([*command(training_data, out, name), "--quiet"]) == 0
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


def test_same_command_same_bytes(training_data, tmp_path, capsys):
    outs = [tmp_path / f"{k}" / "low_res.safetensors" for k in range(2)]
    for out in outs:
        out.parent.mkdir()
        assert main([*command(training_data, out), "--quiet"]) == 0
    assert sha256(outs[0]) == sha256(outs[1])
    assert main([*command(training_data, outs[0]), "--quiet"]) == 2
    assert "remove the file to train it again" in capsys.readouterr().err


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

        def note(unit, *given, watched=watched, alive=alive, **options):
            output = conv_unit(unit, *given, **options)
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
