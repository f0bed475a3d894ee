"""Adversarial training of WGAN-GP and alpha-WGAN-GP, two baselines of Table I, as tasks of the one training loop.

Volumes x and G(z) are [B, 1, R, R, R] in [-1, 1], latents and codes [B, latent_dim], z standard normal. C is a critic,
G the generator, E the encoder. A batch is a pure function of (number of the update, slots), see `medsyn.training.task`.

Losses and recipe are those of Kwon et al., MICCAI 2019 (code: github.com/cyclomon/3dbraingen), where these are mended:

- WGAN: the gradient penalty takes the norm of the gradient of each sample (Gulrajani et al. 2017, equation 3). The
  code takes it per voxel; `penalty_norm="voxel"` restores that.
- WGAN: the generator makes one update per update of the critic. The code makes five; `num_generator_updates=5` restores
  that. Gulrajani et al. make five of the critic instead: `num_critic_updates=5`, with Adam at 1e-4 and betas 0 and 0.9.
- alpha-GAN: the discriminator of codes learns from encoded codes too. In the code they add nothing to its gradient,
  because their logits are reused from a phase in which it was frozen; `learn_from_codes=False` restores that.
- alpha-GAN: the generator's optimiser makes one step per phase. The code makes two with the same gradient;
  `double_generator_step=True` restores that.

Settings of the optimisers are those of the run (`medsyn.methods.gans.GanTrainConfig` has the recipe's), no average of
the weights is kept. The code's augmentation (random flips, intensities times 0.7 to 1) has no place in CT in HU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medsyn.diffusion.seeds import seeded
from medsyn.errors import InputError
from medsyn.models.processes import num_processes
from medsyn.training.cost import count_phase_flops
from medsyn.training.need import count_phased_training
from medsyn.training.task import Loss, Networks, Phase, PhasedTask

Volumes = Callable[[int, Sequence[int]], Tensor]
"""(number of the batch, slots) -> training volumes [len(slots), 1, R, R, R] in [-1, 1], a pure function."""
PenaltyNorm = Literal["sample", "voxel"]
PENALTY_WEIGHT = 10.0
RECONSTRUCTION_WEIGHT = 10.0
_KEY_GAN = 2  # first part of the seeds of this module, apart from those of medsyn.training.data
_FLAT_PENALTY, _FLAT_DISTANCE = 1e-3, 1e-4


def gradient_penalty(
    critic: nn.Module, first: Tensor, second: Tensor, share: Tensor, norm: PenaltyNorm = "sample"
) -> Tensor:
    """Return the mean over samples of (||gradient of C at share * first + (1 - share) * second|| - 1)^2, unweighted.

    first, second: [B, ...]; share: [B] in [0, 1]. The gradient is that of the sum of a sample's logits. With norm
    "voxel" the norm is taken over the channels of each voxel, and the mean goes over voxels too.
    """
    weight = share.reshape(-1, *[1] * (first.ndim - 1))
    leaf = (weight * first + (1 - weight) * second).detach().requires_grad_()
    mixed = leaf.view_as(leaf)  # FlopCounterMode cannot count gradients with respect to a leaf
    (gradient,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    squares = gradient.float().square()
    squares = squares.flatten(1).sum(dim=1) if norm == "sample" else squares.sum(dim=1)
    return ((squares + 1e-15).sqrt() - 1).square().mean()


def wgan_task(
    build: Callable[[], Networks],
    volumes: Volumes,
    *,
    latent_dim: int,
    seed: int,
    num_critic_updates: int = 1,
    num_generator_updates: int = 1,
    penalty_norm: PenaltyNorm = "sample",
    identity: Mapping[str, Any] | None = None,
) -> PhasedTask:
    """Return the training of a WGAN-GP: in every step the critic's updates, then the generator's.

    build() makes the networks "generator" and "critic" (`medsyn.models.gan`). identity: what tells data and networks
    from others. The critic's update number k takes batch k of `volumes`. Its metrics: `critic_distance`, the estimated
    distance mean C(x) - mean C(G(z)), and `critic_penalty`, without its weight.
    """

    def critic_batch(update: int, slots: Sequence[int]) -> dict[str, Tensor]:
        return {"x": volumes(update, slots), **_random_numbers(seed, 0, update, slots, latent_dim)}

    def generator_batch(update: int, slots: Sequence[int]) -> dict[str, Tensor]:
        return _random_numbers(seed, 1, update, slots, latent_dim)

    def critic_loss(networks: Networks, batch: Mapping[str, Tensor], _step: int) -> Loss:
        critic, x = networks["critic"], batch["x"]
        made = networks["generator"](batch["z"])
        distance = critic(x).mean() - critic(made).mean()
        penalty = gradient_penalty(critic, x, made, batch["share"], penalty_norm)
        return PENALTY_WEIGHT * penalty - distance, {"distance": distance, "penalty": penalty}

    def generator_loss(networks: Networks, batch: Mapping[str, Tensor], _step: int) -> Loss:
        return -networks["critic"](networks["generator"](batch["z"])).mean()

    phases = (
        Phase("critic", ("critic",), critic_batch, critic_loss, num_critic_updates),
        Phase("generator", ("generator",), generator_batch, generator_loss, num_generator_updates),
    )
    facts = {"latent_dim": latent_dim, "seed": seed, "penalty_norm": penalty_norm, **(identity or {})}
    return PhasedTask(
        "wgan",
        build,
        phases,
        identity=facts,
        collapsed=_flat_critic("critic"),
        flops=lambda _step: sum(count_sample_flops(build, phases).values()),
        memory=lambda config, processes: count_phased_training(build, phases, config, num_processes=processes),
    )


def alpha_gan_task(
    build: Callable[[], Networks],
    volumes: Volumes,
    *,
    latent_dim: int,
    seed: int,
    learn_from_codes: bool = True,
    double_generator_step: bool = False,
    identity: Mapping[str, Any] | None = None,
) -> PhasedTask:
    """Return the training of an alpha-WGAN-GP: in every step one update each of E with G, of D and of the code's C.

    build() makes the networks "encoder", "generator", "discriminator" (D, of volumes) and "code_discriminator" (C, of
    codes). With xr = G(z) and xh = G(E(x)) the losses are

    - autoencoder: 10 mean|xh - x| - mean C(E(x)) - mean D(xh) - mean D(xr)
    - discriminator: mean D(xh) + mean D(xr) - 2 mean D(x) + 10 penalty(x, xr) + 10 penalty(x, xh)
    - code_discriminator: mean C(E(x)) - mean C(z) + 10 penalty(E(x), z)

    Step s takes batch 2 s of `volumes` in the first phase and batch 2 s + 1 in the others. Metrics:
    `autoencoder_reconstruction` (mean|xh - x|), and of both discriminators `_distance` and the mean `_penalty`, without
    its weight. The discriminator's distance is mean D(x) - (mean D(xh) + mean D(xr)) / 2.
    """

    def autoencoder_batch(update: int, slots: Sequence[int]) -> dict[str, Tensor]:
        return {"x": volumes(2 * update, slots), **_random_numbers(seed, 0, update, slots, latent_dim)}

    def discriminator_batch(update: int, slots: Sequence[int]) -> dict[str, Tensor]:
        return {"x": volumes(2 * update + 1, slots), **_random_numbers(seed, 1, update, slots, latent_dim)}

    def autoencoder_loss(networks: Networks, batch: Mapping[str, Tensor], _step: int) -> Loss:
        x, generator, discriminator = batch["x"], networks["generator"], networks["discriminator"]
        _check_batch(x)
        codes = networks["encoder"](x)
        rebuilt, made = generator(codes), generator(batch["z"])
        reconstruction = (rebuilt - x).abs().mean()
        logits = networks["code_discriminator"](codes).mean() + discriminator(rebuilt).mean()
        loss = RECONSTRUCTION_WEIGHT * reconstruction - logits - discriminator(made).mean()
        return loss, {"reconstruction": reconstruction}

    def discriminator_loss(networks: Networks, batch: Mapping[str, Tensor], _step: int) -> Loss:
        x, discriminator, generator = batch["x"], networks["discriminator"], networks["generator"]
        made, rebuilt = generator(batch["z"]), generator(networks["encoder"](x))
        distance = discriminator(x).mean() - (discriminator(rebuilt).mean() + discriminator(made).mean()) / 2
        penalties = [
            gradient_penalty(discriminator, x, other, batch[share])
            for other, share in ((made, "share"), (rebuilt, "other_share"))
        ]
        loss = PENALTY_WEIGHT * (penalties[0] + penalties[1]) - 2 * distance
        return loss, {"distance": distance, "penalty": (penalties[0] + penalties[1]) / 2}

    def code_loss(networks: Networks, batch: Mapping[str, Tensor], _step: int) -> Loss:
        z, discriminator = batch["z"], networks["code_discriminator"]
        codes = networks["encoder"](batch["x"])
        of_codes = discriminator(codes).mean()
        distance = discriminator(z).mean() - (of_codes if learn_from_codes else of_codes.detach())
        penalty = gradient_penalty(discriminator, codes, z, batch["share"])
        return PENALTY_WEIGHT * penalty - distance, {"distance": distance, "penalty": penalty}

    phases = (
        Phase(
            "autoencoder",
            ("encoder", "generator"),
            autoencoder_batch,
            autoencoder_loss,
            two_steps=("generator",) if double_generator_step else (),
        ),
        Phase("discriminator", ("discriminator",), discriminator_batch, discriminator_loss),
        Phase("code_discriminator", ("code_discriminator",), discriminator_batch, code_loss),
    )
    facts = {"latent_dim": latent_dim, "seed": seed, "learn_from_codes": learn_from_codes, **(identity or {})}
    return PhasedTask(
        "alpha_gan",
        build,
        phases,
        identity=facts,
        collapsed=_flat_critic("discriminator"),
        flops=lambda _step: sum(count_sample_flops(build, phases).values()),
        memory=lambda config, processes: count_phased_training(build, phases, config, num_processes=processes),
    )


def count_sample_flops(build: Callable[[], Networks], phases: Sequence[Phase]) -> dict[str, int]:
    """Count the operations of one sample in each phase of a step, as half of those of two samples.

    Batch normalisation of codes refuses a single one.
    """

    def of_two(phase: Phase) -> Phase:
        return replace(phase, batch=lambda update, _slots: phase.batch(update, [0, 1]))

    pairs = [of_two(phase) for phase in phases]
    return {name: count // 2 for name, count in count_phase_flops(build, pairs).items()}


def _random_numbers(seed: int, stream: int, update: int, slots: Sequence[int], latent_dim: int) -> dict[str, Tensor]:
    """Return z [B, latent_dim], standard normal, and two weights of mixed samples [B], uniform in [0, 1)."""
    generators = [seeded(_KEY_GAN, seed, stream, update, slot) for slot in slots]
    z = torch.stack([torch.randn(latent_dim, generator=generator) for generator in generators])
    shares = torch.stack([torch.rand(2, generator=generator) for generator in generators])
    return {"z": z, "share": shares[:, 0], "other_share": shares[:, 1]}


def _check_batch(x: Tensor) -> None:
    if len(x) * num_processes() < 2:
        raise InputError(
            "alpha_gan: the micro-batches of all processes hold 1 volume, expected at least 2, because the"
            " discriminator of codes normalises over them; raise train.micro_batch_size"
        )


def _flat_critic(phase: str) -> Callable[[Mapping[str, Any]], str | None]:
    """Return the test for a critic whose gradient has vanished: a penalty of 1 and no distance, over a whole row."""

    def collapsed(row: Mapping[str, Any]) -> str | None:
        penalty, distance = row.get(f"{phase}_penalty"), row.get(f"{phase}_distance")
        if penalty is None or distance is None:
            return None
        if abs(penalty - 1) > _FLAT_PENALTY or abs(distance) > _FLAT_DISTANCE:
            return None
        return f"the {phase} gives every volume the same value (penalty {penalty:.5f}, distance {distance:.1e})"

    return collapsed
