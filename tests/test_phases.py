"""The training loop with several networks: a small GAN, its phases, its checkpoint, and what ends such a run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gan import ADAM, MEAN, NUM_CRITIC_UPDATES, SETTINGS, critic_batch, gan_task, latents, weights
from safetensors.torch import load_file
from torch import nn

from medsyn.errors import InputError
from medsyn.files import read_csv
from medsyn.training.loop import DivergedError, train
from medsyn.training.task import Phase, PhasedTask

ROOT = Path(__file__).resolve().parents[1]


def run_script(*arguments: object, launcher: tuple[str, ...] = ()) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    words = [sys.executable, *launcher, str(ROOT / "tests/gan.py"), *map(str, arguments)]
    return subprocess.run(words, env=environment, timeout=600, check=False).returncode


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def losses(metrics: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k == "step" or k.startswith(("critic", "generator"))} for row in metrics]


def test_a_small_gan_learns(tmp_path):
    """The mean of the generated volumes goes from about 0 to that of the data."""
    settings = SETTINGS.model_copy(update={"num_steps": 150, "batch_size": 8, "micro_batch_size": 8, "ema_decay": 0.9})
    task = gan_task()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(settings.seed)
        before = task.build()["generator"](latents(9, 0, range(64))).mean().item()
    trained = train(task, settings, tmp_path / "state")
    with torch.no_grad():
        after = trained.networks["generator"](latents(9, 0, range(64))).mean().item()
    assert abs(before - MEAN) > 0.5
    assert abs(after - MEAN) < 0.15


def test_a_gan_killed_between_two_phases_resumes_exactly(tmp_path):
    """SIGKILL after the first update of the critic in step 7, then the same command: the same bits and rows."""
    whole = train(gan_task(), SETTINGS, tmp_path / "whole")
    assert run_script(tmp_path / "state", tmp_path, NUM_CRITIC_UPDATES * 7 + 1) == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "state").glob("step_*")] == ["step_00000005"]
    resumed = train(gan_task(), SETTINGS, tmp_path / "state")
    assert same(weights(resumed), weights(whole))
    assert losses(resumed.metrics) == losses(whole.metrics)


def test_two_processes_train_a_gan_as_one_does(tmp_path):
    """Gradients and buffers are exchanged: both processes hold the same networks, those of one process."""
    one = weights(train(gan_task(), SETTINGS.model_copy(update={"micro_batch_size": 4}), tmp_path / "one"))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert run_script(tmp_path / "two", tmp_path, launcher=launcher) == 0
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    raw = [name for name in first if name.startswith("critic") or name == "generator.seen"]
    assert all(torch.equal(first[name], second[name]) for name in raw)
    assert max((first[name] - one[name]).abs().max().item() for name in first if name != "generator.seen") < 1e-4


def test_every_phase_has_its_columns_and_its_optimiser(tmp_path):
    trained = train(gan_task(), SETTINGS, tmp_path / "state")
    rows = read_csv(tmp_path / "state/metrics.csv")
    assert [row["step"] for row in rows] == ["4", "8", "12"]
    parts = ("loss", "loss_ema", "grad_norm", "learning_rate")
    named = [f"{phase}_{part}" for phase in ("critic", "generator") for part in parts]
    assert {*named, "critic_distance", "samples_per_second"} <= set(rows[0]) and "loss" not in rows[0]
    assert (rows[0]["critic_learning_rate"], rows[0]["generator_learning_rate"]) == ("0.005", "0.01")
    assert float(rows[0]["critic_distance"]) == trained.metrics[0]["critic_distance"]
    names = [path.name for path in (tmp_path / "state").glob("step_*")]
    tensors = load_file(tmp_path / "state" / max(names) / "tensors.safetensors")
    groups = {"network.critic", "network.generator", "ema.generator", "optimizer.critic", "optimizer.generator"}
    assert {name.partition("/")[0] for name in tensors} == groups
    assert float(tensors["optimizer.critic/0.step"]) == NUM_CRITIC_UPDATES * SETTINGS.num_steps
    assert float(tensors["optimizer.generator/0.step"]) == SETTINGS.num_steps
    network, average = ("generator.stem.weight", "ema.generator/stem.weight")
    assert torch.equal(weights(trained)[network], tensors[average]), "the averaged generator is the result"
    assert torch.equal(weights(trained)["critic.last.weight"], tensors["network.critic/last.weight"])


def test_a_state_of_other_phases_is_refused(tmp_path):
    train(gan_task(), SETTINGS, tmp_path / "state")
    task = gan_task()
    for change, key in (
        ({"num_updates": 3}, "phase.critic.num_updates = 2"),
        ({"settings": {**ADAM, "learning_rate": 1e-4}}, "phase.critic.learning_rate = 0.005"),
    ):
        phases = (replace(task.phases[0], **change), task.phases[1])
        with pytest.raises(InputError, match=key):
            train(replace(task, phases=phases), SETTINGS, tmp_path / "state")
    both = replace(task.phases[0], networks=("critic", "generator"))
    for changes, key in (
        ({"phases": task.phases[::-1]}, r"phases = \['critic', 'generator'\]"),
        ({"phases": (both, task.phases[1])}, r"phase.critic.networks = \['critic'\]"),
        ({"averaged": ("generator", "critic")}, r"averaged = \['generator'\]"),
    ):
        with pytest.raises(InputError, match=key):
            train(replace(task, **changes), SETTINGS, tmp_path / "state")


def test_accumulated_micro_batches_equal_one_large_batch_in_every_phase(tmp_path):
    parts, whole = (
        weights(train(gan_task(), SETTINGS.model_copy(update={"micro_batch_size": size}), tmp_path / str(size)))
        for size in (1, 4)
    )
    names = [name for name in whole if name != "generator.seen"]
    assert max((parts[name] - whole[name]).abs().max().item() for name in names) < 1e-4


def test_weights_are_clipped_after_every_update(tmp_path):
    """WGAN without a penalty (Arjovsky 2017); the preview sees the clipped critic and the averaged generator."""
    seen = {}

    def clip(networks):
        for parameter in networks["critic"].parameters():
            parameter.clamp_(-0.01, 0.01)

    def preview(networks, step):
        assert not any(network.training for network in networks.values())
        seen[step] = networks["generator"].stem.weight.clone()

    task = gan_task(preview=preview)
    phases = (replace(task.phases[0], after_update=clip), task.phases[1])
    settings = SETTINGS.model_copy(update={"preview_every": 5})
    trained = train(replace(task, phases=phases), settings, tmp_path / "state")
    assert all(parameter.abs().max() <= 0.01 for parameter in trained.networks["critic"].parameters())
    short = train(replace(task, phases=phases), settings.model_copy(update={"num_steps": 5}), tmp_path / "short")
    assert sorted(seen) == [5, 10]
    assert torch.equal(seen[5], short.networks["generator"].stem.weight)


def test_a_phase_may_begin_later_and_leave_a_network_untouched(tmp_path):
    task = gan_task()
    late = replace(task, phases=(task.phases[0], replace(task.phases[1], first_step=6)))
    trained = train(late, SETTINGS.model_copy(update={"num_steps": 10}), tmp_path / "state")
    assert [row["generator_loss"] is None for row in trained.metrics] == [True, False, False]
    early = train(late, SETTINGS.model_copy(update={"num_steps": 6}), tmp_path / "early")
    with torch.random.fork_rng():
        torch.manual_seed(SETTINGS.seed)
        built = task.build()["generator"]
    assert torch.equal(early.networks["generator"].stem.weight, built.stem.weight)
    assert not torch.equal(trained.networks["generator"].stem.weight, built.stem.weight)


def test_a_frozen_network_stays_as_it_was_built(tmp_path):
    """No phase trains the encoder: its batch normalisation takes no statistics and its dropout none of its values."""
    task = gan_task()

    def build():
        return {**gan_task().build(), "encoder": nn.Sequential(nn.BatchNorm3d(1), nn.Dropout(0.5))}

    def loss(networks, batch, step):
        code = networks["encoder"](batch["real"])
        assert torch.equal(code, networks["encoder"](batch["real"]))
        return networks["critic"](code).mean()

    phases = (replace(task.phases[0], loss=loss), task.phases[1])
    trained = train(replace(task, build=build, phases=phases), SETTINGS, tmp_path / "state")
    assert same(trained.networks["encoder"].state_dict(), nn.Sequential(nn.BatchNorm3d(1)).state_dict())


def test_a_preview_changes_nothing(tmp_path):
    """A part of a network that is in evaluation mode, as a frozen backbone is, is so after a preview as well."""
    task = gan_task(preview=lambda networks, step: None)

    def build():
        networks = gan_task().build()
        networks["critic"].norm = nn.BatchNorm3d(1, affine=False).eval()
        return networks

    def loss(networks, batch, step):
        critic = networks["critic"]
        return critic(critic.norm(batch["real"])).mean()

    task = replace(task, build=build, phases=(replace(task.phases[0], loss=loss), task.phases[1]))
    runs = [
        train(task, SETTINGS.model_copy(update={"preview_every": every}), tmp_path / str(every)) for every in (0, 4)
    ]
    assert same(*map(weights, runs))


def test_a_network_without_parameters_is_resumed(tmp_path):
    task = replace(gan_task(), build=lambda: {**gan_task().build(), "flip": nn.Identity()})
    train(task, SETTINGS.model_copy(update={"num_steps": 7}), tmp_path / "parts")
    assert train(task, SETTINGS, tmp_path / "parts").metrics[-1]["step"] == SETTINGS.num_steps


def test_a_late_phase_warms_up_when_it_begins(tmp_path):
    task = gan_task()
    late = replace(task.phases[1], first_step=6, settings={**ADAM, "learning_rate": 0.4, "num_warmup_steps": 4})
    settings = SETTINGS.model_copy(update={"log_every": 1})
    rows = train(replace(task, phases=(task.phases[0], late)), settings, tmp_path / "state").metrics
    rates = [row["generator_learning_rate"] for row in rows]
    assert rates == pytest.approx([0.0] * 6 + [0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def falling(**changes) -> PhasedTask:
    """One phase whose loss is -1 and then nearly 0, as a critic's that has lost."""

    def loss(networks, batch, step):
        return 0 * networks["net"](batch["real"].flatten(1)).sum() - (1.0 if step < 20 else 1e-3)

    phase = Phase("critic", ("net",), critic_batch, loss, **changes)
    return PhasedTask("falling", lambda: {"net": nn.Linear(64, 1)}, (phase,))


def test_the_explosion_rule_is_a_choice_of_the_phase(tmp_path):
    settings = SETTINGS.model_copy(update={"num_steps": 130})
    assert train(falling(), settings, tmp_path / "a").metrics[-1]["critic_loss"] == pytest.approx(-1e-3)
    with pytest.raises(DivergedError, match=r"the critic loss \(-0.001\) has been more than 10 times"):
        train(falling(watch_explosion=True), settings, tmp_path / "b")


def test_a_collapse_ends_the_run_with_its_reason(tmp_path):
    """The rows of steps 4 and 8 are good; the checkpoint of step 10 lies in the row that is not."""

    def collapsed(row):
        return "the critic tells nothing any more" if row["step"] == 12 else None

    with pytest.raises(DivergedError, match=r"the critic tells nothing any more at step 12; the checkpoint of step 5"):
        train(gan_task(collapsed=collapsed), SETTINGS, tmp_path / "state")
    assert [path.name for path in (tmp_path / "state").glob("step_*")] == ["step_00000005"]


def test_what_networks_draw_depends_on_the_step_alone(tmp_path):
    """Dropout draws from torch's generator; a run that is stopped and continued draws what a whole one does."""

    def loss(networks, batch, step):
        return networks["net"](batch["real"].flatten(1)).square().mean()

    phase = Phase("only", ("net",), critic_batch, loss)
    task = PhasedTask("dropout", lambda: {"net": nn.Sequential(nn.Linear(64, 8), nn.Dropout(0.5))}, (phase,))
    whole = train(task, SETTINGS, tmp_path / "whole")
    train(task, SETTINGS.model_copy(update={"num_steps": 7}), tmp_path / "parts")
    torch.rand(5)
    assert same(weights(train(task, SETTINGS, tmp_path / "parts")), weights(whole))


def test_loss_scaling_serves_all_phases(tmp_path):
    """fp16 resumed after 7 steps ends as the whole run; the scale of the loss is one for all optimisers."""
    settings = SETTINGS.model_copy(update={"precision": "fp16"})
    whole = train(gan_task(), settings, tmp_path / "whole")
    train(gan_task(), settings.model_copy(update={"num_steps": 7}), tmp_path / "parts")
    assert same(weights(train(gan_task(), settings, tmp_path / "parts")), weights(whole))
    scalers = [
        json.loads((max((tmp_path / name).glob("step_*")) / "facts.json").read_text(encoding="utf-8"))["scaler"]
        for name in ("whole", "parts")
    ]
    assert scalers[0] == scalers[1]
    assert scalers[0]["_growth_tracker"] > 2 * SETTINGS.num_steps, "good updates of both phases since an overflow"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_may_make_two_steps_with_one_gradient(tmp_path, precision):
    """With loss scaling the gradients of both steps are those of the loss itself."""
    task = gan_task()
    task = replace(task, phases=(task.phases[0], replace(task.phases[1], two_steps=("generator",))))
    settings = SETTINGS.model_copy(update={"precision": precision, "num_steps": 1})
    train(task, settings, tmp_path / "state")
    tensors = load_file(tmp_path / "state/step_00000001/tensors.safetensors")
    assert float(tensors["optimizer.generator/0.step"]) == 2
    second, first = (tensors["optimizer.generator/0." + name] for name in ("exp_avg_sq", "exp_avg"))
    # betas are 0 and 0.9: g, and (0.1 + 0.09) g^2 after two steps
    assert torch.allclose(second, 0.19 * first.square(), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"networks": ("criticc",)}, "critic names the network criticc, expected one of"),
        ({"settings": {"num_steps": 3}}, "num_steps is not a setting of a phase"),
        ({"name": "generator"}, "each with another name"),
        ({"two_steps": ("generator",)}, "critic makes two steps of generator, which does not learn in it"),
    ],
)
def test_phases_that_do_not_fit_are_told(tmp_path, change, words):
    task = gan_task()
    phases = (replace(task.phases[0], **change), task.phases[1])
    with pytest.raises(InputError, match=words):
        train(replace(task, phases=phases), SETTINGS, tmp_path / "state")


def test_the_examples_of_the_page_run(tmp_path):
    """docs/training.md as a reader would paste it: both trainings, and the columns that the page names."""
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names = {"state": tmp_path}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 2 and names["network"](torch.zeros(2, 4)).shape == (2, 1, 4, 4, 4)
    rows = read_csv(
        tmp_path / "wgan/metrics.csv", ("critic_loss", "critic_grad_norm", "generator_loss", "critic_distance")
    )
    assert [row["step"] for row in rows] == ["10", "20"]
    assert max(parameter.abs().max() for parameter in names["result"].networks["critic"].parameters()) <= 0.1
