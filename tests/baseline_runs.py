"""Tiny trainings of the four baselines, and a script that runs them in other processes.

`python tests/baseline_runs.py train FOLDER` trains each of TASKS in double precision; the state goes to FOLDER/<name>,
the networks of every process to FOLDER/<name>.<rank>.safetensors. `python tests/baseline_runs.py kill FOLDER` trains
them in float32, but every training process kills itself at the first place of the run at which no process before it has
done so: before the batch of each phase of each step but the first, and while it writes each checkpoint. The places are
the lines of FOLDER/<name>.places.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # optimisers import it; here once for all processes that are forked
from torch import Tensor, nn

from medsyn.config import TrainConfig
from medsyn.methods.gans import GanTrainConfig
from medsyn.methods.hagan import HaganTrainConfig
from medsyn.models.gan import CodeDiscriminator, Generator, alpha_discriminator, alpha_encoder, wgan_critic
from medsyn.models.hagan_sizes import HaganSizes
from medsyn.models.latent_unet import LatentUNet
from medsyn.models.vqgan import VQGAN
from medsyn.tensors import save_tensors
from medsyn.training import checkpoint
from medsyn.training.gan import alpha_gan_task, wgan_task
from medsyn.training.hagan import hagan_task
from medsyn.training.loop import TrainingResult, train
from medsyn.training.task import Phase, PhasedTask, Task
from medsyn.training.vqgan import denoiser_task, vqgan_task
from medsyn.training.vqgan_loss import VQGANLoss

SIDE, LATENT = 16, 8
CUBE_SIDE = 8
SETTINGS = TrainConfig(
    num_steps=3, batch_size=4, micro_batch_size=4, learning_rate=2e-3, betas=(0.5, 0.9), checkpoint_every=2, log_every=2
)
GAN_SETTINGS = GanTrainConfig(num_steps=3, checkpoint_every=2, log_every=2)
AVERAGED = SETTINGS.model_copy(update={"ema_decay": 0.5})
HAGAN_SIZES = HaganSizes(size=32, width=16, latent_dim=8, discriminator_width=32)


def ball(side: int) -> np.ndarray:
    """A ball of 0.8 in air of -1, on the left (0) or on the right (1)."""
    z, y, x = np.indices((SIDE, SIDE, SIDE)) - (SIDE - 1) / 2
    inside = z**2 + y**2 + (x - (4 if side else -4)) ** 2 < 4**2
    return np.where(inside, 0.8, -1).astype(np.float32)


BALLS = np.stack([ball(0), ball(1)])


def balls(number: int, slots: Sequence[int]) -> Tensor:
    """Balls [B, 1, 16, 16, 16], the side a function of batch number and slot."""
    sides = [np.random.default_rng([7, number, slot]).integers(2) for slot in slots]
    return torch.from_numpy(BALLS[sides][:, None])


def wgan_networks() -> dict[str, nn.Module]:
    return {"generator": Generator(SIDE, LATENT, width=4), "critic": wgan_critic(SIDE, top_width=16)}


def alpha_networks() -> dict[str, nn.Module]:
    return {
        "encoder": alpha_encoder(SIDE, LATENT, top_width=16),
        "generator": Generator(SIDE, LATENT, width=4),
        "discriminator": alpha_discriminator(SIDE, top_width=16),
        "code_discriminator": CodeDiscriminator(LATENT, 32),
    }


def wgan(build=wgan_networks, volumes=balls, **options) -> PhasedTask:
    return wgan_task(build, volumes, latent_dim=LATENT, seed=3, **options)


def alpha_gan(build=alpha_networks, volumes=balls, **options) -> PhasedTask:
    return alpha_gan_task(build, volumes, latent_dim=LATENT, seed=3, **options)


def halves(number: int, slots: Sequence[int]) -> Tensor:
    """Noisy volumes [B, 1, 32, 32, 32], in front -0.8 and behind between 0.2 and 0.8."""
    made = []
    for slot in slots:
        generator = torch.Generator().manual_seed(1000 * number + slot)
        volume = 0.05 * torch.randn(1, 32, 32, 32, generator=generator)
        volume[:, :16] -= 0.8
        volume[:, 16:] += 0.2 + 0.6 * torch.rand((), generator=generator)
        made.append(volume)
    return torch.stack(made)


def hagan(**options) -> PhasedTask:
    return hagan_task(HAGAN_SIZES, halves, 3, discriminator_learning_rate=4e-4, **options)


def cube(update: int, slot: int) -> tuple[Tensor, int]:
    """A volume of -1 with a cube of 4^3 voxels of 1, and a slice number: functions of the arguments."""
    generator = np.random.default_rng([7, update, slot])
    volume = torch.full((1, CUBE_SIDE, CUBE_SIDE, CUBE_SIDE), -1.0)
    z, y, x = generator.integers(0, CUBE_SIDE // 2 + 1, 3)
    volume[:, z : z + 4, y : y + 4, x : x + 4] = 1
    return volume, int(generator.integers(CUBE_SIDE))


def cubes(update: int, slots: Sequence[int]) -> dict[str, Tensor]:
    volumes, slices = zip(*(cube(update, slot) for slot in slots), strict=True)
    return {"volume": torch.stack(volumes), "slice": torch.tensor(slices)}


def tiny_vqgan() -> VQGAN:
    return VQGAN(width=4, num_levels=1, num_groups=4, latent_channels=4, num_codes=64)


def vqgan(adversarial_start: int = 1, **fields) -> PhasedTask:
    loss = VQGANLoss(adversarial_start=adversarial_start)
    return vqgan_task(tiny_vqgan, cubes, loss, discriminator_width=4, **fields)


def latent_batch(step: int, slots: Sequence[int]) -> dict[str, Tensor]:
    """Latents [B, 1, 2, 4, 4] of 0.5, noise, and diffusion steps."""
    generators = [torch.Generator().manual_seed(1000 * step + slot) for slot in slots]
    noise = torch.stack([torch.randn(1, 2, 4, 4, generator=generator) for generator in generators])
    steps = torch.cat([torch.randint(300, (1,), generator=generator) for generator in generators])
    return {"latents": torch.full_like(noise, 0.5), "noise": noise, "step": steps}


def latent_denoiser() -> Task:
    return denoiser_task(lambda: LatentUNet(8, (1,), channels=1, num_heads=1), latent_batch, num_diffusion_steps=300)


TASKS: Mapping[str, tuple[Callable[[], PhasedTask | Task], TrainConfig]] = {
    "wgan": (wgan, GAN_SETTINGS),
    "alpha_gan": (alpha_gan, GAN_SETTINGS),
    "hagan": (hagan, HaganTrainConfig(num_steps=2, batch_size=2, micro_batch_size=2, checkpoint_every=1, log_every=1)),
    "vqgan": (vqgan, SETTINGS),
    "latent_denoiser": (latent_denoiser, AVERAGED),
}


def phased(name: str) -> PhasedTask:
    built = TASKS[name][0]()
    return built.phased() if isinstance(built, Task) else built


def in_double_precision(task: PhasedTask) -> PhasedTask:
    """The same training with weights and batches in float64; codes stay in float32, as under mixed precision."""

    def build() -> dict[str, nn.Module]:
        networks = {name: network.double() for name, network in task.build().items()}
        for network in networks.values():
            if isinstance(network, VQGAN):
                network.codebook.float()
        return networks

    def batch(phase: Phase, update: int, slots: Sequence[int]) -> dict[str, Any]:
        values = phase.batch(update, slots)
        floats = {name: x.double() for name, x in values.items() if isinstance(x, Tensor) and x.is_floating_point()}
        return values | floats

    return replace(task, build=build, phases=[replace(phase, batch=partial(batch, phase)) for phase in task.phases])


def train_double(name: str, folder: Path, num_processes: int = 1) -> TrainingResult:
    """Train one of TASKS in double precision, on the same samples whatever the number of processes is."""
    settings = TASKS[name][1]
    shares = settings.model_copy(update={"micro_batch_size": settings.batch_size // num_processes})
    return train(in_double_precision(phased(name)), shares, folder / name)


def weights(result: TrainingResult) -> dict[str, Tensor]:
    return {f"{k}.{name}": v for k, network in result.networks.items() for name, v in network.state_dict().items()}


def deadly(name: str, folder: Path) -> None:
    """Train one of TASKS until a place at which no process has died yet."""
    places = folder / f"{name}.places"

    def pass_or_die(place: str) -> None:
        places.touch()
        if place not in places.read_text(encoding="utf-8").splitlines():
            with places.open("a", encoding="utf-8") as file:
                file.write(f"{place}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def guarded(phase):
        def batch(update: int, slots: Sequence[int]):
            if update:
                pass_or_die(f"{phase.name} {update}")
            return phase.batch(update, slots)

        return replace(phase, batch=batch)

    def to_disk(unfinished: Path) -> None:
        pass_or_die(unfinished.name)
        flush(unfinished)

    flush, checkpoint.to_disk = checkpoint.to_disk, to_disk
    task = phased(name)
    train(replace(task, phases=[guarded(phase) for phase in task.phases]), TASKS[name][1], folder / name)


def main(mode: str, folder: Path) -> None:
    """Do what the docstring of the module says."""
    for name in TASKS:
        if mode == "train":
            rank = os.environ.get("RANK", "0")
            result = train_double(name, folder, int(os.environ.get("WORLD_SIZE", "1")))
            save_tensors(folder / f"{name}.{rank}.safetensors", weights(result), {})
            continue
        end = -signal.SIGKILL
        while end == -signal.SIGKILL:
            process = multiprocessing.get_context("fork").Process(target=deadly, args=(name, folder))
            process.start()
            process.join()
            end = process.exitcode
        if end != 0:
            sys.exit(f"{name}: exit status {end}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
