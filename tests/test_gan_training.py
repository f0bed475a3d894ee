"""Losses, batches and training of WGAN-GP and alpha-WGAN-GP on volumes of 16^3 with a ball on one of two sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from baseline_runs import BALLS, LATENT, SIDE, alpha_gan, alpha_networks, wgan, wgan_networks
from torch import Tensor, nn

from medsyn.errors import InputError
from medsyn.methods.gans import GanTrainConfig
from medsyn.models.gan import (
    CodeDiscriminator,
    Generator,
    alpha_discriminator,
    alpha_encoder,
    kwon_critic,
    wgan_critic,
)
from medsyn.training.gan import alpha_gan_task, count_sample_flops, gradient_penalty, wgan_task
from medsyn.training.loop import DivergedError, train

SETTINGS = GanTrainConfig(num_steps=6, checkpoint_every=2, log_every=2)
FAST = SETTINGS.model_copy(update={"learning_rate": 1e-3, "betas": (0.5, 0.9)})
FROZEN = SETTINGS.model_copy(update={"learning_rate": 1e-12})


class Sums(nn.Module):
    """A critic with the gradients w and 2 w of its two logits."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        value = (x.flatten(1) * self.weight).sum(dim=1)
        return torch.stack([value, 2 * value], dim=1)


def test_the_penalty_is_that_of_the_gradient_of_a_sample():
    weight = torch.linspace(-1, 1, 2 * 8)
    first, second = torch.zeros(3, 2, 2, 2, 2), torch.ones(3, 2, 2, 2, 2)
    share = torch.tensor([0.0, 0.3, 1.0])
    found = gradient_penalty(Sums(weight), first, second, share)
    assert found.item() == pytest.approx((3 * weight.norm().item() - 1) ** 2, rel=1e-5)
    voxels = (3 * weight.reshape(2, 8).norm(dim=0) - 1).square().mean().item()
    assert gradient_penalty(Sums(weight), first, second, share, "voxel").item() == pytest.approx(voxels, rel=1e-5)


def test_the_penalty_is_taken_between_the_two_volumes_of_a_sample():
    """C(x) = |x|^2 / 2 has the gradient x: the mixed sample itself."""

    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().flatten(1).sum(1) / 2

    first, second = torch.full((2, 1, 2, 2, 2), 3.0), torch.full((2, 1, 2, 2, 2), -1.0)
    found = gradient_penalty(Half(), first, second, torch.tensor([1.0, 0.25]))
    expected = np.mean([(3 * 8**0.5 - 1) ** 2, 0.0 + 1])  # 0.25 * 3 - 0.75 * 1 = 0
    assert found.item() == pytest.approx(expected, rel=1e-5)


class Simple(nn.Module):
    """A function with one weight, without batch statistics, so that losses can be computed by hand."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.scale = function, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.function(x)


def simple_networks() -> dict[str, nn.Module]:
    return {
        "encoder": Simple(lambda x: x.flatten(1)[:, :LATENT]),
        "generator": Simple(lambda z: z.mean(1)[:, None, None, None, None].expand(-1, 1, SIDE, SIDE, SIDE)),
        "discriminator": Simple(lambda x: 0.01 * x.flatten(1).sum(1, keepdim=True)),
        "code_discriminator": Simple(lambda z: 0.5 * z.sum(1, keepdim=True)),
        "critic": Simple(lambda x: 0.01 * x.flatten(1).sum(1, keepdim=True)),
    }


def test_the_losses_of_a_wgan_are_those_of_the_paper():
    critic, generator = wgan().phases
    networks, batch = simple_networks(), critic.batch(5, range(4))
    made = batch["z"].mean(1)
    distance = 0.01 * (batch["x"].sum() / 4 - SIDE**3 * made.mean())
    penalty = (0.01 * SIDE**1.5 - 1) ** 2
    loss, named = critic.loss(networks, batch, 5)
    assert loss.item() == pytest.approx(-distance.item() + 10 * penalty, rel=1e-4)
    assert named["distance"].item() == pytest.approx(distance.item(), rel=1e-4)
    assert named["penalty"].item() == pytest.approx(penalty, rel=1e-4)
    z = generator.batch(5, range(4))["z"]
    assert generator.loss(networks, {"z": z}, 5).item() == pytest.approx(-0.01 * SIDE**3 * z.mean().item(), rel=1e-4)


def test_the_losses_of_an_alpha_gan_are_those_of_the_paper():
    autoencoder, discriminator, codes = alpha_gan().phases
    networks = simple_networks()
    batch = autoencoder.batch(5, range(4))
    x, code = batch["x"], batch["x"].flatten(1)[:, :LATENT]
    judged = 0.01 * SIDE**3
    rebuilt = code.mean(1)[:, None, None, None, None]
    expected = 10 * (rebuilt - x).abs().mean() - 0.5 * LATENT * code.mean() - judged * (code.mean() + batch["z"].mean())
    loss, named = autoencoder.loss(networks, batch, 5)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert named["reconstruction"].item() == pytest.approx((rebuilt - x).abs().mean().item(), rel=1e-4)

    batch = discriminator.batch(5, range(4))
    x, code, z = batch["x"], batch["x"].flatten(1)[:, :LATENT], batch["z"]
    expected = judged * (code.mean() + z.mean() - 2 * x.mean()) + 20 * (0.01 * SIDE**1.5 - 1) ** 2
    assert discriminator.loss(networks, batch, 5)[0].item() == pytest.approx(expected.item(), rel=1e-4)

    assert torch.equal(codes.batch(5, range(4))["x"], x)
    expected = 0.5 * LATENT * (code.mean() - z.mean()) + 10 * (0.5 * LATENT**0.5 - 1) ** 2
    assert codes.loss(networks, batch, 5)[0].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_discriminator_of_codes_learns_from_encoded_codes_unless_the_original_is_asked_for():
    networks, gradients = simple_networks(), []
    for learn in (True, False):
        phase = alpha_gan(learn_from_codes=learn).phases[2]
        batch = phase.batch(0, range(4))
        networks["code_discriminator"].zero_grad()
        phase.loss(networks, batch, 0)[0].backward()
        gradients.append(networks["code_discriminator"].scale.grad.item())
    code = batch["x"].flatten(1)[:, :LATENT]
    assert gradients[0] - gradients[1] == pytest.approx(0.5 * LATENT * code.mean().item(), rel=1e-4)


@pytest.mark.parametrize("task", [wgan(), alpha_gan()])
def test_a_batch_is_a_function_of_update_and_slot(task):
    for phase in task.phases:
        together, alone = phase.batch(4, range(3)), phase.batch(4, [2])
        assert all(torch.equal(value[2:], alone[name]) for name, value in together.items())
        other = phase.batch(5, [2])
        assert not any(torch.equal(value, other[name]) for name, value in alone.items() if name != "x")
    first, second = (phase.batch(4, range(3))["z"] for phase in task.phases[:2])
    assert not torch.equal(first, second)


def likeness(generator: nn.Module, count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of generated volumes with the ball that they resemble more, and which one that is."""
    z = torch.randn(count, LATENT, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        made = generator.eval()(z).flatten(1).numpy()
    correlations = np.corrcoef(made, BALLS.reshape(2, -1))[:count, count:]
    return correlations.max(axis=1), correlations.argmax(axis=1)


def joint_networks() -> dict[str, nn.Module]:
    """A WGAN whose critic sees a whole volume at once: at 16^3 the other one judges each slice by itself."""
    return {"generator": Generator(SIDE, LATENT, width=4), "critic": kwon_critic(SIDE, top_width=16)}


@pytest.mark.parametrize(
    ("build", "rate", "num_steps", "batch_size"),
    [(lambda: wgan(joint_networks), 2e-3, 80, 4), (alpha_gan, 1e-3, 60, 8)],
    ids=["wgan", "alpha_gan"],
)
def test_training_learns_a_distribution_of_two_balls(tmp_path, build, rate, num_steps, batch_size):
    """Generated volumes come to resemble one of the two balls, and both occur."""
    changes = {"learning_rate": rate, "num_steps": num_steps, "batch_size": batch_size, "micro_batch_size": batch_size}
    task = build()
    before, _ = likeness(task.build()["generator"])
    alike, side = likeness(train(task, FAST.model_copy(update=changes), tmp_path / "state").networks["generator"])
    assert before.mean() < 0.2
    assert alike.mean() > 0.5
    assert 0.1 < side.mean() < 0.9


def test_the_critic_of_slabs_learns_less_of_a_small_volume(tmp_path):
    """At 16^3 a slab is one slice, so nothing but batch normalisation tells whether the slices of a volume fit."""
    settings = FAST.model_copy(update={"num_steps": 80, "learning_rate": 2e-3})
    found = []
    for build in (wgan_networks, joint_networks):
        found.append(likeness(train(wgan(build), settings, tmp_path / build.__name__).networks["generator"])[0].mean())
    assert found == pytest.approx([0.30, 0.66], abs=0.1)


def test_a_wgan_that_trains_the_generator_five_times_is_another_run(tmp_path):
    train(wgan(), SETTINGS, tmp_path / "state")
    with pytest.raises(InputError, match="num_updates"):
        train(wgan(num_generator_updates=5), SETTINGS, tmp_path / "state")


def test_a_micro_batch_of_one_volume_is_refused_by_alpha_gan(tmp_path):
    settings = SETTINGS.model_copy(update={"micro_batch_size": 1})
    with pytest.raises(InputError, match=r"hold 1 volume, expected at least 2.*micro_batch_size"):
        train(alpha_gan(), settings, tmp_path / "state")


def test_a_critic_that_gives_every_volume_the_same_value_ends_the_run(tmp_path):
    def networks() -> dict[str, nn.Module]:
        built = wgan_networks()
        nn.init.zeros_(built["critic"].conv3.weight)
        nn.init.zeros_(built["critic"].conv2.weight)
        return built

    with pytest.raises(DivergedError, match="the critic gives every volume the same value"):
        train(wgan(networks), FROZEN, tmp_path / "state")


def volumes_of_the_paper(_number: int, slots: Sequence[int]) -> Tensor:
    return torch.empty(len(slots), 1, 128, 128, 128)


def test_operations_at_the_size_of_the_paper_are_those_of_the_specification():
    """TFLOP per update of each phase with a batch of 4 volumes of 128^3, forward and backward."""

    def wgan_128() -> dict[str, nn.Module]:
        return {"generator": Generator(128, 1024), "critic": wgan_critic()}

    def alpha_128() -> dict[str, nn.Module]:
        networks = {"encoder": alpha_encoder(), "generator": Generator(), "discriminator": alpha_discriminator()}
        return {**networks, "code_discriminator": CodeDiscriminator()}

    task = wgan_task(wgan_128, volumes_of_the_paper, latent_dim=1024, seed=0)
    counts = [4e-12 * count for count in count_sample_flops(wgan_128, task.phases).values()]
    assert counts == pytest.approx([1.66, 2.83], abs=0.006)
    task = wgan_task(wgan_128, volumes_of_the_paper, latent_dim=1024, seed=0, num_generator_updates=5)
    assert 4e-12 * task.flops(0) == pytest.approx(15.8, abs=0.06)
    task = alpha_gan_task(alpha_128, volumes_of_the_paper, latent_dim=1000, seed=0)
    counts = [4e-12 * count for count in count_sample_flops(alpha_128, task.phases).values()]
    assert counts == pytest.approx([5.87, 3.30, 0.071], abs=0.006)
    assert 4e-12 * task.flops(0) == pytest.approx(9.24, abs=0.006)


def test_the_generator_of_an_alpha_gan_makes_two_steps_with_one_gradient_where_the_original_is_asked_for(tmp_path):
    """The first step by hand; the encoder, which the same optimiser trains, makes one."""
    settings = FAST.model_copy(update={"num_steps": 1})
    task = alpha_gan(double_generator_step=True)
    phase = task.phases[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        expected = dict(task.build())
    phase.loss(expected, phase.batch(0, range(4)), 0)[0].backward()
    for name, num_steps in (("generator", 2), ("encoder", 1)):
        adam = torch.optim.Adam(expected[name].parameters(), settings.learning_rate, settings.betas)
        for _ in range(num_steps):
            adam.step()
    trained = train(task, settings, tmp_path / "state").networks
    for name in ("generator", "encoder"):
        for key, value in expected[name].named_parameters():
            torch.testing.assert_close(trained[name].get_parameter(key), value, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="two_steps"):
        train(alpha_gan(), settings, tmp_path / "state")


@pytest.mark.parametrize("task", [wgan(), alpha_gan()], ids=["wgan", "alpha_gan"])
def test_a_healthy_run_is_not_called_collapsed(tmp_path, task):
    settings = SETTINGS.model_copy(update={"num_steps": 20, "log_every": 5})
    assert [task.collapsed(row) for row in train(task, settings, tmp_path / "state").metrics] == [None] * 4


def test_a_constant_discriminator_of_an_alpha_gan_ends_the_run(tmp_path):
    def networks() -> dict[str, nn.Module]:
        built = alpha_networks()
        nn.init.zeros_(built["discriminator"].conv3.weight)
        return built

    with pytest.raises(DivergedError, match="the discriminator gives every volume the same value"):
        train(alpha_gan(networks), FROZEN, tmp_path / "state")
