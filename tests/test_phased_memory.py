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
from medsyn.models.hagan import HaganSizes
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
    return hagan_task(HaganSizes(64, 16, 8, 32), partial(volumes, 64), 0)


def vqgan(checkpointing: bool = False) -> PhasedTask:
    def batch(update: int, slots: Sequence[int]) -> dict[str, Tensor]:
        return {"volume": volumes(32, update, slots), "slice": torch.full((len(slots),), 3)}

    def network() -> VQGAN:
        return VQGAN(8, 2, 8, 4, 64, checkpointing=checkpointing)

    return vqgan_task(network, batch, VQGANLoss(adversarial_start=0), discriminator_width=4)


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


@pytest.mark.parametrize("make", [wgan, alpha_gan, hagan, vqgan, partial(vqgan, True)])
def test_the_count_is_what_the_loop_keeps(make: Callable[[], PhasedTask], tmp_path):
    """Within 3 %: random numbers and the losses' scalars lie on the CPU only."""
    task, config = make(), settings()
    peak, left = tracked(task, config, tmp_path)
    assert task.memory is not None
    assert task.memory(config, 1).counted == pytest.approx(peak, rel=0.03)
    assert left < 10_000, "a phase keeps what the next ones do not need"
