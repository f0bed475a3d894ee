"""A small adversarial training as a PhasedTask: volumes of 4^3 voxels with mean 0.7, a generator, a critic.

`python tests/gan.py STATE OUT [STOP_AT]` trains it; with STOP_AT the process kills itself when it makes that update of
the critic. The networks of every process go to OUT/<rank>.safetensors.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from medsyn.config import TrainConfig
from medsyn.tensors import save_tensors
from medsyn.training.loop import TrainingResult, train
from medsyn.training.task import Networks, Phase, PhasedTask

MEAN, LATENT, NUM_CRITIC_UPDATES = 0.7, 4, 2
SETTINGS = TrainConfig(num_steps=12, batch_size=4, micro_batch_size=2, checkpoint_every=5, log_every=4, ema_decay=0.5)
ADAM = {"learning_rate": 5e-3, "betas": (0.0, 0.9), "weight_decay": 0.0, "max_grad_norm": 1e9}


class Generator(nn.Module):
    """(B, LATENT) -> (B, 1, 4, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(LATENT, 4 * 8), nn.Conv3d(4, 1, 3, padding=1)
        self.register_buffer("seen", torch.zeros(LATENT))  # a statistic of the data, as of a batch normalisation

    def forward(self, z: Tensor) -> Tensor:
        if self.training:
            self.seen.lerp_(z.detach().mean(0), 0.1)
        x = self.stem(z).reshape(-1, 4, 2, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
        return self.out(leaky_relu(x, 0.2))


class Critic(nn.Module):
    """(B, 1, 4, 4, 4) -> (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv3d(1, 4, 3), nn.Linear(4 * 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(leaky_relu(self.first(x), 0.2).flatten(1)).squeeze(1)


def draw(kind: int, update: int, slot: int, *shape: int) -> Tensor:
    """Standard normal numbers, a pure function of the arguments."""
    return torch.from_numpy(np.random.default_rng([kind, update, slot]).standard_normal(shape)).float()


def latents(kind: int, update: int, slots: Sequence[int]) -> Tensor:
    return torch.stack([draw(kind, update, slot, LATENT) for slot in slots])


def critic_batch(update: int, slots: Sequence[int]) -> dict[str, Tensor]:
    real = torch.stack([MEAN + 0.1 * draw(0, update, slot, 1, 4, 4, 4) for slot in slots])
    share = torch.stack([torch.sigmoid(draw(1, update, slot, 1, 1, 1, 1)) for slot in slots])
    return {"real": real, "z": latents(2, update, slots), "share": share}


def critic_loss(networks: Networks, batch: Mapping[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """WGAN-GP (Gulrajani 2017, equation 3)."""
    generator, critic = networks["generator"], networks["critic"]
    assert [p.requires_grad for p in generator.parameters()] == [False] * 4
    fake = generator(batch["z"])
    mixed = (batch["share"] * batch["real"] + (1 - batch["share"]) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    distance = critic(batch["real"]).mean() - critic(fake).mean()
    return 10 * penalty - distance, {"distance": distance}


def generator_batch(update: int, slots: Sequence[int]) -> dict[str, Tensor]:
    return {"z": latents(3, update, slots)}


def generator_loss(networks: Networks, batch: Mapping[str, Tensor], step: int) -> Tensor:
    assert [p.requires_grad for p in networks["critic"].parameters()] == [False] * 4
    return -networks["critic"](networks["generator"](batch["z"])).mean()


def gan_task(stop_at: int | None = None, **changes: Any) -> PhasedTask:
    """Two updates of the critic and one of the generator per step; the generator is averaged."""

    def batch(update: int, slots: Sequence[int]) -> dict[str, Tensor]:
        if update == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return critic_batch(update, slots)

    critic = Phase("critic", ("critic",), batch, critic_loss, num_updates=NUM_CRITIC_UPDATES, settings=ADAM)
    learn = {**ADAM, "learning_rate": 1e-2}
    generator = Phase("generator", ("generator",), generator_batch, generator_loss, settings=learn)
    fields = {"phases": (critic, generator), "averaged": ("generator",), "identity": {"data": "toy"}, **changes}
    return PhasedTask("gan", lambda: {"generator": Generator(), "critic": Critic()}, **fields)


def weights(result: TrainingResult) -> dict[str, Tensor]:
    return {f"{k}.{name}": v for k, network in result.networks.items() for name, v in network.state_dict().items()}


if __name__ == "__main__":
    trained = train(gan_task(int(sys.argv[3]) if len(sys.argv) > 3 else None), SETTINGS, Path(sys.argv[1]))
    save_tensors(Path(sys.argv[2]) / f"{os.environ.get('RANK', '0')}.safetensors", weights(trained), {})
