"""Memory of trainings in phases: counted without data, against the tensors that the training loop keeps on a CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

from medsyn.config import TrainConfig
from medsyn.live_bytes import META, LiveBytes
from medsyn.models.fast.sixteen_bits import Doubled, GroupNorm
from medsyn.models.gan import CodeDiscriminator, Generator, alpha_discriminator, alpha_encoder, wgan_critic
from medsyn.models.hagan_sizes import HaganSizes
from medsyn.models.latent_unet import LatentUNet
from medsyn.models.vqgan import VQGAN
from medsyn.training.cost import count_phase_flops
from medsyn.training.gan import alpha_gan_task, wgan_task
from medsyn.training.hagan import hagan_task
from medsyn.training.loop import TrainingRun
from medsyn.training.need import count_phased_training
from medsyn.training.processes import make_accelerator
from medsyn.training.task import Batch, Networks, Phase, PhasedTask
from medsyn.training.vqgan import VQGANLoss, denoiser_task, vqgan_task

FLOAT = 4
CPU = torch.device("cpu")


def settings(micro: int = 2, batch: int = 2, **changes) -> TrainConfig:
    never = 10**9
    sizes = {"batch_size": batch, "micro_batch_size": micro, "num_steps": never}
    return TrainConfig(**sizes, checkpoint_every=never, log_every=never, **changes)


def volumes(side: int, _update: int, slots: Sequence[int]) -> Tensor:
    return torch.zeros(len(slots), 1, side, side, side)


def wgan() -> PhasedTask:
    def networks() -> dict[str, nn.Module]:
        return {"generator": Generator(32, 8, 8), "critic": wgan_critic(32, 32)}

    return wgan_task(networks, partial(volumes, 32), latent_dim=8, seed=0)


def alpha_gan() -> PhasedTask:
    def networks() -> dict[str, nn.Module]:
        return {
            "encoder": alpha_encoder(32, 8, 32),
            "generator": Generator(32, 8, 8),
            "discriminator": alpha_discriminator(32, 32),
            "code_discriminator": CodeDiscriminator(8, 16),
        }

    return alpha_gan_task(networks, partial(volumes, 32), latent_dim=8, seed=0)


def hagan() -> PhasedTask:
    sizes = HaganSizes(size=64, width=16, latent_dim=8, discriminator_width=32)
    return hagan_task(sizes, partial(volumes, 64), 0, discriminator_learning_rate=4e-4)


def vqgan(start: int = 0) -> PhasedTask:
    def batch(update: int, slots: Sequence[int]) -> dict[str, Tensor]:
        return {"volume": volumes(32, update, slots), "slice": torch.full((len(slots),), 3)}

    def network() -> VQGAN:
        return VQGAN(8, 2, 8, 4, 64)

    return vqgan_task(network, batch, VQGANLoss(adversarial_start=start), discriminator_width=4)


def batches(task: PhasedTask, config: TrainConfig) -> Iterator[Batch]:
    """Micro-batches as the loop asks for them, each made when it is asked for."""
    while True:
        for phase in task.phases:
            for number in range(phase.num_updates):
                for first in range(0, config.batch_size, config.micro_batch_size):
                    yield phase.batch(number, range(first, first + config.micro_batch_size))


def tracked(task: PhasedTask, config: TrainConfig, folder: Path) -> tuple[int, int]:
    """Peak bytes of the CPU's tensors in the second step of the loop, and what is alive after it beyond before."""
    run, live = TrainingRun(task, config, folder, make_accelerator("fp32")), LiveBytes(CPU)
    given = batches(task, config)
    for network in run.state.networks.values():
        live.hold([*network.parameters(), *network.buffers()])
    live.hold(tensor for average in run.state.averages.values() for tensor in average.average.values())
    with live:
        run.optimise(0, given)
        run.phases = {name: type(metrics)(metrics.phase, run.accelerator) for name, metrics in run.phases.items()}
        before = live.restart()
        run.optimise(1, given)
    return live.peak, live.live - before


@pytest.mark.parametrize(
    ("make", "checkpointing"), [(wgan, False), (alpha_gan, False), (hagan, False), (vqgan, False), (vqgan, True)]
)
def test_the_count_is_what_the_loop_keeps(make: Callable[[], PhasedTask], checkpointing: bool, tmp_path):
    """Within 3 %: random numbers and the losses' scalars lie on the CPU only."""
    task, config = make(), settings(activation_checkpointing=checkpointing)
    peak, left = tracked(task, config, tmp_path)
    assert task.memory is not None
    assert task.memory(config, 1).counted == pytest.approx(peak, rel=0.03)
    assert left < 10_000, "a phase keeps what the next ones do not need"


def phases_of_two() -> tuple[Callable[[], Networks], list[Phase]]:
    """A and B, linear 256 -> 256 without bias, on (n, 256): B learns in both phases, A in the second."""

    def build() -> Networks:
        return {name: nn.Linear(256, 256, bias=False) for name in ("a", "b", "never")}

    def batch(_update: int, slots: Sequence[int]) -> dict[str, Tensor]:
        return {"x": torch.empty(len(slots), 256, device=META)}

    def loss(networks: Networks, batch: Batch, _step: int) -> Tensor:
        return networks["b"](networks["a"](batch["x"])).square().mean()

    return build, [Phase("b", ("b",), batch, loss), Phase("both", ("a", "b"), batch, loss)]


def test_every_part_of_two_phases_is_the_one_computed_by_hand():
    """Kept in the second phase: the input, both results, the loss. A small batch peaks in the update."""
    build, phases = phases_of_two()
    weights, n = FLOAT * 256 * 256, 4096
    parts = count_phased_training(build, phases, settings(n, 2 * n), averaged=["a"]).parts
    assert (parts["weights"], parts["ema"], parts["moments"]) == (3 * weights, weights, 2 * 3 * weights)
    assert parts["gradients"] == 2 * weights
    assert parts["activations"] == FLOAT * n * 3 * 256 + 512
    once = count_phased_training(build, phases, settings(n, n)).parts
    assert (once["gradients"], once["ema"]) == (0, 0)
    update = count_phased_training(build, phases, settings(1, 1)).parts
    assert update["gradients"] == 2 * weights <= update["temporaries"] < 2.1 * weights
    shared = count_phased_training(build, phases, settings(1, 2), num_processes=2).parts
    assert shared["temporaries"] == 4 * weights, "two copies of the gradients are exchanged"


def test_the_largest_phase_counts():
    build, phases = phases_of_two()
    needs = [count_phased_training(build, chosen, settings(4096, 4096)) for chosen in ([phases[0]], phases)]
    moving = [need.parts["activations"] + need.parts["temporaries"] for need in needs]
    assert moving[0] < moving[1]


def test_frozen_discriminators_count_in_the_phase_of_the_autoencoder():
    """They begin at step 5,000 in the public code; memory and operations are those of a step after it."""
    base = vqgan()
    late = [Phase(p.name, p.networks, p.batch, p.loss, first_step=k * 5000) for k, p in enumerate(base.phases)]
    counted = [count_phased_training(base.build, phases, settings()).counted for phases in (base.phases, late)]
    assert counted[0] == counted[1]
    assert count_phase_flops(base.build, base.phases) == count_phase_flops(base.build, late)


def test_operations_before_the_discriminators_begin_are_those_of_the_autoencoder_alone():
    task = vqgan(start=5)
    assert task.flops is not None
    both = count_phase_flops(task.build, task.phases)
    assert task.flops(5) == sum(both.values()) and both.keys() == {"autoencoder", "discriminators"}
    assert 0 < task.flops(4) < both["autoencoder"], "nor do they pass gradients on"


def test_checkpointing_is_counted():
    task = vqgan()
    assert task.memory is not None
    plain, saving = (task.memory(settings(activation_checkpointing=on), 1) for on in (False, True))
    assert saving.counted < 0.6 * plain.counted


def test_the_denoiser_of_latents_states_its_cost():
    def batch(_update: int, slots: Sequence[int]) -> dict[str, Tensor]:
        made = torch.zeros(len(slots), 4, 4, 4, 4)
        return {"latents": made, "noise": made, "step": torch.ones(len(slots), dtype=torch.long)}

    task = denoiser_task(lambda: LatentUNet(8, (1, 2), channels=4, num_heads=1), batch, num_diffusion_steps=300)
    assert task.flops is not None and task.flops() > 0 and task.memory is not None
    few, many = (task.memory(settings(n, n), 1).parts["activations"] for n in (2, 8))
    assert 3 < many / few < 4.1


@pytest.mark.parametrize("layer", [GroupNorm(2, 4), Doubled()])
def test_layers_keep_sixteen_bits(layer: nn.Module):
    """Beside PyTorch's own in float32, and of the same type as their input under autocast."""
    x = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = nn.GroupNorm(2, 4) if isinstance(layer, GroupNorm) else nn.Upsample(scale_factor=2)
    assert torch.equal(layer(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        made = layer(x.bfloat16())
    assert made.dtype == torch.bfloat16
    assert torch.allclose(made.float(), plain(x), atol=0.05)


@pytest.fixture
def benchmark(monkeypatch):
    """The modules of benchmarks/ can be imported."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_the_benchmark_measures_every_kind_of_row(benchmark, tmp_path, monkeypatch):
    import baselines

    cases = ["codebook", "sample WGAN", "sample MedSyn", "WGAN, 16", "denoiser"]
    monkeypatch.setattr(sys, "argv", ["baselines.py", "--small", "--out", str(tmp_path), "--case", *cases])
    baselines.main()
    rows = (tmp_path / "baselines.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 + 1 + 3 + 2
    assert all(line.split(",")[-1] == "" or "one-hot" in line for line in rows[1:]), "no row ends in a note on a fault"
    assert len((tmp_path / "baselines.md").read_text().splitlines()) == len(rows) + 3


def test_counted_operations_are_those_of_the_specification(benchmark):
    """Operations per step and EFLOP of the whole run that others counted for the same networks."""
    import baseline_cases
    import baseline_costs

    cases = {case.title: case for case in baseline_cases.training_cases(baseline_cases.PAPER) if case.micro != 2}
    rows = [baseline_costs.operations(cases[name], 0.3) for name in ("WGAN, 128^3", "HA-GAN, 256^3")]
    assert [row[5:8] for row in rows] == [["4.49", "80,000", "0.36"], ["8.33", "80,000", "0.67"]]
