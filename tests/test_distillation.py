"""Distillation to few calls: targets and students whose exact answers are known, resuming, refusals, a method."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from parity import tensor
from tiny_models import HIDDEN, install_text_encoder, make_embeddings, make_run, make_store, stage
from torch import Tensor, nn

from medsyn.cli import main
from medsyn.config import TrainConfig, load_config
from medsyn.diffusion.distillation import intervals, snr_weight, teacher_target, teacher_times
from medsyn.diffusion.sampling import sample
from medsyn.diffusion.schedule import alpha_bar, alpha_bar_at
from medsyn.diffusion.solvers import DDIM, ddim_step
from medsyn.errors import InputError
from medsyn.models.linear_estimate import PrincipalComponents
from medsyn.models.weights import build, load, read_stage, save
from medsyn.training.data import Embeddings, Store, TrainingData
from medsyn.training.distillation import distil, distillation_task, distilled_stage, open_teacher
from medsyn.training.loop import train
from medsyn.training.task import Task

ROOT = Path(__file__).resolve().parents[1]
POINT = 0.5


def two_points(x: Tensor, tau: Tensor | float) -> Tensor:
    """The exact denoiser of voxels that are -0.5 or 0.5."""
    alpha = alpha_bar(torch.as_tensor(tau, dtype=x.dtype) / 1000).reshape(-1, 1, 1, 1, 1)
    return POINT * torch.tanh(POINT * alpha.sqrt() / (1 - alpha) * x)


def run_calls(denoiser, x: Tensor, times) -> Tensor:
    return sample(DDIM, denoiser, x, len(times), times=list(times))


def test_one_step_with_the_target_ends_where_the_steps_of_the_teacher_end():
    times, x = [900.0, 700.0, 450.0, 300.0], tensor((2, 1, 3, 3, 3), 5, math.sqrt(3)).double()
    walked = x
    for tau, following in pairwise(times):
        walked = ddim_step(walked, two_points(walked, tau), tau / 1000, following / 1000)
    target = teacher_target(two_points, x, torch.tensor([times, times], dtype=torch.float64))
    torch.testing.assert_close(ddim_step(x, target, 0.9, 0.3), walked, atol=1e-6, rtol=0)
    last = teacher_target(two_points, x, torch.tensor([[900.0, 700.0, math.nan]] * 2, dtype=torch.float64))
    step = ddim_step(x, two_points(x, 900.0), 0.9, 0.7)
    torch.testing.assert_close(last, two_points(step, 700.0), atol=1e-6, rtol=0)  # the teacher's last prediction


def test_times_intervals_and_weights():
    times = teacher_times(8, 0.2)
    assert len(times) == 8 and (times[0], times[-1]) == (1000.0, 200.0) and all(np.diff(times) < 0)
    parts = intervals(times, 4)
    assert [part[0] for part in parts] == times[::2] and parts[0] == times[:3] and math.isnan(parts[-1][-1])
    assert len(intervals(times, 1)) == 1
    for calls in (3, 16):
        with pytest.raises(ValueError, match="not a multiple"):
            intervals(times, calls)
    with pytest.raises(ValueError, match="at least 2"):
        teacher_times(1, 0.0)
    signal = alpha_bar_at(0.2)
    torch.testing.assert_close(snr_weight(torch.tensor([900.0, 200.0])), torch.tensor([1.0, signal / (1 - signal)]))


class Pointwise(nn.Module):
    """A small network of each voxel and the time, which begins near 0."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x: Tensor, tau: Tensor | float) -> Tensor:
        time = torch.as_tensor(tau, dtype=x.dtype).reshape(-1, 1, 1, 1, 1).expand_as(x) / 1000
        return self.layers(torch.stack([x, time], dim=-1))[..., 0]


def test_a_trained_student_ends_where_its_teacher_ends_in_half_the_calls(tmp_path):
    """Data of two points, whose exact denoiser is the teacher: 4 calls distilled to 2, by the one training loop."""
    times = teacher_times(4, 0.3)
    parts = torch.tensor(intervals(times, 2))

    def batch(step, slots):
        generator = torch.Generator().manual_seed(step)
        shape = (len(slots), 1, 6, 6, 6)
        sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        return {"x0": POINT * sign, "noise": torch.randn(shape, generator=generator)}

    def loss(network, given):
        chosen = parts[torch.arange(len(given["x0"])) % len(parts)]
        alpha = alpha_bar(chosen[:, 0] / 1000)[:, None, None, None, None]
        x = alpha.sqrt() * given["x0"] + (1 - alpha).sqrt() * given["noise"]
        return (network(x, chosen[:, 0]) - teacher_target(two_points, x, chosen)).square().mean()

    settings = TrainConfig(num_steps=400, batch_size=8, micro_batch_size=8, learning_rate=1e-2, ema_decay=0.9)
    student = train(Task("toy", Pointwise, batch, loss), settings, tmp_path / "state").network
    noise = torch.randn(8, 1, 6, 6, 6, generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        wanted = run_calls(two_points, noise, times)
        distilled = (run_calls(student, noise, times[::2]) - wanted).square().mean().sqrt()
    plain = (run_calls(two_points, noise, times[::2]) - wanted).square().mean().sqrt()  # the same calls, undistilled
    assert distilled < 0.03 < 0.06 < plain, (distilled, plain)


def gaussian_teacher(folder: Path) -> Path:
    """A network whose linear estimate is exact for its data: one component, and its own output 0."""
    settings = stage("low_res", ("image",), {"mean_volume": True, "num_components": 1})
    network = build(settings, HIDDEN)
    size = (4, 4, 4)
    vector = torch.ones(1, 1, *size) / 8
    network.reserve_statistics(size)
    network.set_statistics(
        torch.full((1, *size), 0.1), None, PrincipalComponents(vector, torch.tensor([4.0]), torch.tensor([0.01]))
    )
    generator = torch.Generator().manual_seed(1)
    network.data_text_weight = 0.3 * torch.randn(1, HIDDEN, generator=generator)
    network.data_text_offset = torch.tensor([0.2])
    save(folder / "low_res.safetensors", network.state_dict(), settings, {})
    return folder / "low_res.safetensors"


@pytest.mark.parametrize("calls", [1, 2])
def test_a_student_of_a_linear_teacher_is_exact_before_it_is_trained(tmp_path, calls):
    """Gaussian volumes under guidance: 64 calls, twice each, in one or two of one network call each."""
    teacher = open_teacher(gaussian_teacher(tmp_path), "low_res", num_calls=64, guidance_scale=3.0, end_time=0.2)
    student_stage = distilled_stage(teacher, calls, TrainConfig())
    data = TrainingData(stage("low_res", ("image",)), Store([make_store(tmp_path / "store")], "low"), None)
    student = distillation_task(teacher, student_stage, data).build().eval()
    text = tensor((4, 5, HIDDEN), 3)
    noise = torch.randn(4, 1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    conditions = {"text": text, "drop_text": torch.tensor([False, False, False, True])}

    def at(network):
        return lambda x, tau: network(x, torch.full((len(x),), tau), conditions)

    with torch.no_grad():
        wanted = run_calls(at(teacher.predict), noise, teacher.times)
        times = student_stage.distillation.times
        found = run_calls(at(lambda x, tau, given: student(x, tau, **given)), noise, times)
        plain = run_calls(at(teacher.predict), noise, [*times, teacher.times[-1]])  # even with one call more
    error, undistilled = ((made - wanted).square().mean().sqrt() for made in (found, plain))
    assert error < 0.01 < 0.03 < undistilled, (error, undistilled)


@pytest.fixture
def tiny(tmp_path):
    """A tiny teacher with its store and embeddings."""
    run = make_run(tmp_path / "model")
    data = {"shards": [make_store(tmp_path / "store")], "embeddings": make_embeddings(tmp_path / "embeddings.json")}
    return run, data


def test_a_stopped_distillation_goes_on_with_the_same_bits(tiny, tmp_path):
    run, given = tiny
    teacher = open_teacher(run / "low_res.safetensors", "low_res", num_calls=4, guidance_scale=2.0, end_time=0.1)
    data = TrainingData(
        teacher.stage, Store(given["shards"], "low"), Embeddings(given["embeddings"], teacher.stage.sections)
    )

    def trained(num_steps, state):
        settings = TrainConfig(num_steps=num_steps, batch_size=2, micro_batch_size=1, checkpoint_every=1)
        student = distilled_stage(teacher, 2, settings)
        return train(distillation_task(teacher, student, data), settings, tmp_path / state).network.state_dict()

    whole = trained(4, "whole")
    first = trained(2, "parts")
    resumed = trained(4, "parts")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(not torch.equal(first[name], resumed[name]) for name in first)


def test_weights_record_how_they_are_sampled_and_a_chain_of_teachers_must_agree(tiny, tmp_path):
    run, given = tiny
    path = run / "low_res.safetensors"
    teacher = open_teacher(path, "low_res", num_calls=4, guidance_scale=2.0, end_time=0.1)
    settings = TrainConfig(num_steps=1, batch_size=2, micro_batch_size=2)
    out = tmp_path / "low_res.safetensors"
    student = distilled_stage(teacher, 2, settings)
    distil(teacher, student, given["shards"], given["embeddings"], tmp_path / "state", out)
    record = read_stage(out).distillation
    assert record.times == teacher.times[::2] and (record.guidance_scale, record.end_time) == (2.0, 0.1)
    assert record.teacher == teacher.sha256 and load(out)[1].train.num_steps == 1
    again = open_teacher(out, "low_res", num_calls=2, guidance_scale=2.0, end_time=0.1)
    assert again.distilled and distilled_stage(again, 1, settings).distillation.times == (1000.0,)
    for change in ({"num_calls": 4}, {"guidance_scale": 1.0}, {"end_time": 0.0}):
        with pytest.raises(InputError, match=r"was distilled with .* expected"):
            open_teacher(out, "low_res", **{"num_calls": 2, "guidance_scale": 2.0, "end_time": 0.1, **change})
    with pytest.raises(InputError, match="a low_res network, expected super_res"):
        open_teacher(path, "super_res", num_calls=4, guidance_scale=1.0, end_time=0.0)
    with pytest.raises(InputError, match="not a multiple of 3"):
        distilled_stage(teacher, 3, settings)
    with pytest.raises(InputError, match="text states of width None, expected 12"):
        distil(teacher, student, given["shards"], None, tmp_path / "other", tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


def distilled_config(folder: Path, **entry) -> Path:
    """Write config/test.yaml with two distilled methods, the second of which learns from the first."""
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    values["methods"] = {name: values["methods"][name] for name in ("medsyn", "without_shape")}
    few = {"kind": "distilled", "label": "4 calls", "teacher": "medsyn", "num_steps_super_res": 2, **entry}
    one = {"kind": "distilled", "label": "1 call", "teacher": "few", "num_steps_low_res": 1, "num_steps_super_res": 1}
    values["methods"] |= {"few": few, "one": one}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_the_kind_names_its_networks_teachers_and_files(tmp_path):
    from medsyn.methods.distilled import KIND

    config = load_config(distilled_config(tmp_path))
    few, one = KIND.networks(config, "few"), KIND.networks(config, "one")
    assert (few["low_res"].after, few["low_res"].after_method, one["super_res"].after_method) == (
        ("low_res",),
        "medsyn",
        "few",
    )
    assert few["low_res"].settings.teacher_calls == 32 and one["low_res"].settings.teacher_calls == 4
    assert KIND.parts(config, "one")["text_encoder"].endswith("text/biomedical/model")
    assert [Path(path).parent.name for path in KIND.training_tables(config, "one")][:4] == ["one", "one", "few", "few"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"teacher": "one"}, "must be another method of kind medsyn or distilled"),
        ({"teacher": "nobody"}, "'nobody' must be another method"),
        ({"num_steps_low_res": 5}, "5 calls for 32 of the teacher, expected a divisor"),
        ({"teacher_steps_super_res": 1, "num_steps_super_res": 1}, "1 calls for 1 of the teacher"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line(tmp_path, entry, said):
    with pytest.raises(InputError, match=said):
        load_config(distilled_config(tmp_path, **entry))


def test_train_assemble_and_generate_from_the_command_line(tiny, tmp_path, monkeypatch, capsys):
    install_text_encoder(monkeypatch)
    run, given = tiny
    train_settings = {"num_steps": 1, "batch_size": 2, "micro_batch_size": 2}
    models = tmp_path / "few"
    for network, calls, guidance in (("low_res", 2, 2.0), ("super_res", 1, 1.0)):
        settings = {"kind": "distilled", "network": network, "num_calls": calls, "teacher_calls": 4}
        settings |= {"guidance_scale": guidance, "end_time": 0.0, "train": train_settings}
        config = tmp_path / f"{network}.json"
        config.write_text(json.dumps(settings), encoding="utf-8")
        command = ["train", "--config", config, "--store", *given["shards"], "--state", tmp_path / "state"]
        command += ["--out", models / f"{network}.safetensors"]
        text = ["--embeddings", given["embeddings"]] if network == "low_res" else []
        assert main([str(word) for word in [*command, *text, "--quiet"]]) == 2  # without its teacher
        assert "learns from" in capsys.readouterr().err
        command += ["--networks", run / f"{network}.safetensors"]
        assert main([str(word) for word in [*command, *text, "--quiet"]]) == 0
    parts = ["--low-res", models / "low_res.safetensors", "--super-res", models / "super_res.safetensors"]
    parts += ["--text-encoder", run / "text", "--sampling", run / "sampling.json", "--out", models / "run.json"]
    assert main([str(word) for word in ["assemble", "--label", "few", *parts]]) == 0
    calls = []
    from medsyn.models.fast.unet import FastUNet

    forward = FastUNet.forward
    monkeypatch.setattr(
        FastUNet, "forward", lambda self, x, tau, **k: (calls.append(tau.item()), forward(self, x, tau, **k))[1]
    )
    out = tmp_path / "one.nii.gz"
    assert main(["generate", "--weights", str(models), "--text", "Effusion.", "--out", str(out), "--quiet"]) == 0
    times = [read_stage(models / f"{name}.safetensors").distillation.times for name in ("low_res", "super_res")]
    assert calls == pytest.approx([*times[0], *times[1]], rel=1e-6)
