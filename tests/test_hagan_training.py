"""Training of HA-GAN: what each phase changes, operations, starts of slabs, exact resume, and a toy distribution."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from parity import tensor
from torch import Tensor

from medsyn.methods.hagan import HaganSettings, HaganTrainConfig
from medsyn.models.hagan import build_hagan
from medsyn.models.hagan_sizes import HaganSizes
from medsyn.training.cost import count_phase_flops
from medsyn.training.hagan import HaganBatches, hagan_task
from medsyn.training.loop import train

SIZES = HaganSizes(size=64, width=16, latent_dim=8, discriminator_width=32)
SETTINGS = HaganTrainConfig(num_steps=2, batch_size=1, micro_batch_size=1, checkpoint_every=1000, log_every=1)


def toy_volumes(update: int, slots: Sequence[int]) -> Tensor:
    """Volumes [B, 1, 64, 64, 64]: -0.8 in the front half of the slices, 0.6 behind, and a little noise."""
    volumes = torch.stack([0.05 * tensor((1, 64, 64, 64), 1000 * update + slot) for slot in slots])
    volumes[:, :, :32] -= 0.8
    volumes[:, :, 32:] += 0.6
    return volumes


def trained(state, settings: HaganTrainConfig = SETTINGS, **options):
    return train(hagan_task(SIZES, toy_volumes, 3, discriminator_learning_rate=4e-4, **options), settings, state)


def states(result, names: Sequence[str]) -> dict[str, Tensor]:
    return {f"{name}.{key}": v for name in names for key, v in result.networks[name].state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two steps with all four phases."""
    return trained(tmp_path_factory.mktemp("whole"))


def test_the_encoders_change_neither_generator_nor_discriminator(whole, tmp_path):
    without = trained(tmp_path, encoders=False)
    assert set(without.networks) == {"generator", "discriminator"}
    assert same(states(whole, ["generator", "discriminator"]), states(without, ["generator", "discriminator"]))


def test_a_run_that_is_stopped_resumes_exactly(whole, tmp_path):
    """The left vectors of the spectral normalisation are part of the checkpoint."""
    trained(tmp_path, SETTINGS.model_copy(update={"num_steps": 1}))
    assert same(states(trained(tmp_path), list(whole.networks)), states(whole, list(whole.networks)))


def test_every_network_learns_and_the_metrics_name_its_loss(whole):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SETTINGS.seed)
        before = build_hagan(SIZES)
    for name, network in whole.networks.items():
        changed = [not torch.equal(a, b) for a, b in zip(network.parameters(), before[name].parameters(), strict=True)]
        assert all(changed), name
        assert all(row[f"{name}_loss"] > 0 for row in whole.metrics)
    assert {"discriminator_real_logit", "discriminator_generated_logit"} <= set(whole.metrics[0])


def test_operations_are_those_of_the_specification():
    """TFLOP of a phase per batch of 4 (an independent count), which tells which parts each phase runs and learns."""
    sizes = HaganSizes(size=256)

    def volumes(update: int, slots: Sequence[int]) -> Tensor:
        return torch.zeros(len(slots), 1, 256, 256, 256, device="meta")

    task = hagan_task(sizes, volumes, 0, discriminator_learning_rate=4e-4)
    counts = [4 * count / 1e12 for count in count_phase_flops(task.build, task.phases).values()]
    assert counts == pytest.approx([1.27, 3.41, 0.547, 3.11], rel=5e-3)


def test_the_optimisers_have_the_settings_of_the_run_but_the_discriminator_its_own_rate():
    settings = HaganTrainConfig(learning_rate=3e-3, betas=(0.5, 0.6), weight_decay=0.1, max_grad_norm=2.0)
    task = hagan_task(SIZES, toy_volumes, 3, discriminator_learning_rate=7e-3)
    judging, *others = (phase.config(settings) for phase in task.phases)
    assert others == [settings] * 3
    assert judging == settings.model_copy(update={"learning_rate": 7e-3})


def test_the_defaults_are_the_recipe_of_the_authors():
    train_defaults, settings = HaganTrainConfig(), HaganSettings()
    assert (train_defaults.learning_rate, settings.discriminator_learning_rate) == (1e-4, 4e-4)
    assert (train_defaults.betas, train_defaults.weight_decay) == ((0.0, 0.999), 0.0)
    assert (train_defaults.batch_size, train_defaults.num_steps) == (4, 80_000)
    assert train_defaults.max_grad_norm >= 1e9
    assert (settings.encoders, settings.any_start) == (True, False)


def test_starts_of_slabs():
    aligned, any_start = (HaganBatches(SIZES, toy_volumes, 0, any_start=choice) for choice in (False, True))
    assert {aligned.start(step) for step in range(400)} == set(range(0, 57, 4))
    assert {any_start.start(step) for step in range(2000)} == set(range(57))


def test_a_batch_holds_the_slab_and_every_fourth_voxel_of_its_volumes():
    batches = HaganBatches(SIZES, toy_volumes, 0)
    step = next(step for step in range(100) if batches.start(step) == 28)
    slots = [0, 1]
    volume, batch = toy_volumes(step, slots), batches.global_encoder(step, slots)
    assert torch.equal(batch["volume"], volume)
    assert torch.equal(batch["slab"], volume[:, :, 28:36])
    assert torch.equal(batch["low"][0, 0, 3, 2, 1], volume[0, 0, 12, 8, 4])
    assert batch["low"].shape == (2, 1, 16, 16, 16)
    others = [batches.discriminator(step, slots), batches.slab_encoder(step, slots), batches.generator(step, slots)]
    assert all(torch.equal(other["slab"], batch["slab"]) for other in others[:2])
    assert others[0]["start"] == others[2]["start"] == batch["start"] == 28
    assert not torch.equal(others[0]["z"], others[2]["z"])
    assert torch.equal(batches.generator(step, [1])["z"], others[2]["z"][1:])


def test_the_generator_learns_the_mean_of_a_toy_distribution(tmp_path):
    """From about 0 towards that of dark volumes, -0.7."""

    def dark_volumes(update: int, slots: Sequence[int]) -> Tensor:
        return torch.stack([0.1 * tensor((1, 64, 64, 64), 1000 * update + slot) - 0.7 for slot in slots])

    task = hagan_task(SIZES, dark_volumes, 3, discriminator_learning_rate=2e-3, encoders=False)
    z = torch.stack([tensor((8,), tag, 1.7) for tag in range(4)])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SETTINGS.seed)
        before = task.build()["generator"](z).mean().item()
    result = train(task, SETTINGS.model_copy(update={"num_steps": 12, "learning_rate": 2e-3}), tmp_path)
    with torch.no_grad():
        after = result.networks["generator"].eval()(z).mean().item()
    assert abs(before + 0.7) > 0.5
    assert abs(after + 0.7) < 0.25
