"""A tiny VQ-GAN that learns volumes of 8^3 voxels with one bright cube, as a PhasedTask.

`python tests/vqgan_training.py STATE OUT START STEPS [STOP_AT]` trains it; the discriminators begin at step START. With
STOP_AT the process kills itself when it makes that batch. The networks of every process go to OUT/<rank>.safetensors.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gan import weights
from torch import Tensor

from medsyn.config import TrainConfig
from medsyn.models.vqgan import VQGAN
from medsyn.tensors import save_tensors
from medsyn.training.loop import train
from medsyn.training.task import PhasedTask
from medsyn.training.vqgan import VQGANLoss, vqgan_task

SIDE = 8
SETTINGS = TrainConfig(
    num_steps=6, batch_size=4, micro_batch_size=4, learning_rate=2e-3, betas=(0.5, 0.9), checkpoint_every=2, log_every=2
)


def cube(update: int, slot: int) -> tuple[Tensor, int]:
    """A volume of -1 with a cube of 4^3 voxels of 1, and a slice number: functions of the arguments."""
    generator = np.random.default_rng([7, update, slot])
    volume = torch.full((1, SIDE, SIDE, SIDE), -1.0)
    z, y, x = generator.integers(0, SIDE // 2 + 1, 3)
    volume[:, z : z + 4, y : y + 4, x : x + 4] = 1
    return volume, int(generator.integers(SIDE))


def cubes(update: int, slots: Sequence[int]) -> dict[str, Tensor]:
    volumes, slices = zip(*(cube(update, slot) for slot in slots), strict=True)
    return {"volume": torch.stack(volumes), "slice": torch.tensor(slices)}


def tiny() -> VQGAN:
    return VQGAN(width=4, num_levels=1, num_groups=4, latent_channels=4, num_codes=64)


def tiny_task(start: int, stop_at: int | None = None, **fields: Any) -> PhasedTask:
    def batch(update: int, slots: Sequence[int]) -> dict[str, Tensor]:
        if update == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return cubes(update, slots)

    return vqgan_task(tiny, batch, VQGANLoss(adversarial_start=start), discriminator_width=4, **fields)


if __name__ == "__main__":
    state, out, start, steps, *stop_at = sys.argv[1:]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    settings = SETTINGS.model_copy(update={"num_steps": int(steps), "micro_batch_size": SETTINGS.batch_size // world})
    trained = train(tiny_task(int(start), *map(int, stop_at)), settings, Path(state))
    save_tensors(Path(out) / f"{os.environ.get('RANK', '0')}.safetensors", weights(trained), {})
