"""The training of Medical Diffusion's two networks: first the VQ-GAN, then the denoiser of its latents.

Khader et al. 2023, with the weights and rules of the public code (FirasGit/medicaldiffusion on GitHub) in the setting
of its run scripts. Two of its defects are mended. There the codebook learns twice per batch, because the pass for the
discriminators is a training pass too: `codebook_learns_twice` restores that. There a resumed training run starts the
codebook again; here its state is part of the checkpoint. The recipe is `medsyn.methods.medical_diffusion`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsyn.config import TrainConfig
from medsyn.diffusion.discrete import cosine_alpha_bar, noise_loss
from medsyn.live_bytes import on_meta
from medsyn.models.patch_discriminator import PatchDiscriminator
from medsyn.models.vqgan import VQGAN
from medsyn.training.cost import count_flops, count_phase_flops
from medsyn.training.need import Need, TrainingShapes, count_phased_training, count_training
from medsyn.training.task import Loss, Networks, Phase, PhasedTask, Task
from medsyn.training.vqgan_loss import VQGANLoss

Batch = Mapping[str, Tensor]
Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Distance of slices [B, 1, H, W] from others: a scalar (LPIPS in the public code)."""
_FEWEST_CODES = 2


def vqgan_task(
    build: Callable[[], VQGAN],
    batch: Callable[[int, Sequence[int]], Batch],
    weights: VQGANLoss,
    *,
    discriminator_width: int,
    perceptual: Perceptual | None = None,
    **fields: Any,
) -> PhasedTask:
    """Return the training of a VQ-GAN with its two discriminators.

    A batch holds `volume` [B, 1, D, H, W] in [-1, 1] and `slice` [B], the axial slice of each volume that the
    discriminator of slices sees. Both optimisers have the settings of the run. fields: further fields of the task.
    """

    def networks() -> dict[str, nn.Module]:
        return {
            "autoencoder": build(),
            "slices": PatchDiscriminator(2, discriminator_width),
            "volumes": PatchDiscriminator(3, discriminator_width),
        }

    def autoencoder(networks: Networks, batch: Batch, step: int) -> Loss:
        return autoencoder_loss(networks, batch, step, weights, perceptual)

    def discriminators(networks: Networks, batch: Batch, _step: int) -> Loss:
        return discriminator_loss(networks, batch, weights)

    start = weights.adversarial_start
    phases = (
        Phase("autoencoder", ("autoencoder",), batch, autoencoder),
        Phase("discriminators", ("slices", "volumes"), batch, discriminators, first_step=start),
    )
    identity = {f"vqgan.{key}": value for key, value in weights} | dict(fields.pop("identity", {}))
    identity["vqgan.has_perceptual"] = perceptual is not None
    return PhasedTask(
        "vqgan",
        networks,
        phases,
        identity=identity,
        collapsed=_collapsed,
        flops=lambda step: sum(count_phase_flops(networks, phases, step).values()),
        memory=lambda config, processes: count_phased_training(networks, phases, config, num_processes=processes),
        **fields,
    )


def denoiser_task(
    build: Callable[[], nn.Module],
    batch: Callable[[int, Sequence[int]], Batch],
    *,
    num_diffusion_steps: int,
    **fields: Any,
) -> Task:
    """Return the training of a denoiser of latents.

    A batch holds `latents` [B, C, d, h, w] as `VQGAN.encode` makes them, `noise` of the same shape, and the diffusion
    steps `step` [B], uniform in 0..num_diffusion_steps - 1.
    """
    alpha_bar = cosine_alpha_bar(num_diffusion_steps)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return noise_loss(network, alpha_bar, batch["latents"], batch["noise"], batch["step"])

    def memory(config: TrainConfig, num_processes: int) -> Need:
        sample = batch(0, [0])
        shapes = TrainingShapes(build, loss, lambda count: on_meta(sample, count))
        return count_training(shapes, config, num_processes=num_processes)

    identity = {"num_diffusion_steps": num_diffusion_steps, **fields.pop("identity", {})}
    return Task(
        "latent_denoiser",
        build,
        batch,
        loss,
        identity=identity,
        flops=lambda: count_flops(build, loss, batch(0, [0])),
        memory=memory,
        **fields,
    )


def autoencoder_loss(
    networks: Networks, batch: Batch, step: int, weights: VQGANLoss, perceptual: Perceptual | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of the autoencoder, and the parts of it that the metrics table shows."""
    real = batch["volume"]
    result = networks["autoencoder"](real)
    made = result.volume
    reconstruction = F.l1_loss(made.float(), real)
    loss = weights.reconstruction * reconstruction + result.commitment
    num_codes = len(networks["autoencoder"].codebook.codes)  # type: ignore[union-attr, arg-type]
    shown = {"reconstruction": reconstruction, "commitment": result.commitment}
    shown |= {"codes_used": result.used, "code_share": result.used / num_codes}
    pairs = {"slices": (axial(made, batch["slice"]), axial(real, batch["slice"])), "volumes": (made, real)}
    if perceptual is not None:
        shown["perceptual"] = perceptual(*pairs["slices"])
        loss = loss + weights.perceptual * shown["perceptual"]
    if step >= weights.adversarial_start:
        fooled: list[Tensor] = []
        matched: list[Tensor] = []
        for name, (false, true) in pairs.items():
            logits, features = networks[name](false)
            with torch.no_grad():
                _, wanted = networks[name](true)
            fooled.append(-logits.float().mean())
            matched.extend(F.l1_loss(a.float(), b.float()) for a, b in zip(features, wanted, strict=True))
        shown |= {"adversarial": torch.stack(fooled).sum(), "feature_matching": torch.stack(matched).sum()}
        loss = loss + weights.adversarial * (
            shown["adversarial"] + weights.feature_matching * shown["feature_matching"]
        )
    return loss, shown


def discriminator_loss(networks: Networks, batch: Batch, weights: VQGANLoss) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the hinge loss of both discriminators, and each of them."""
    real = batch["volume"]
    with torch.no_grad():
        made = networks["autoencoder"](real, update_codebook=weights.codebook_learns_twice).volume
    slices = axial(real, batch["slice"]), axial(made, batch["slice"])
    shown = {"slices": _hinge(networks["slices"], *slices), "volumes": _hinge(networks["volumes"], real, made)}
    return weights.adversarial * (shown["slices"] + shown["volumes"]), shown


def axial(volume: Tensor, index: Tensor) -> Tensor:
    """Return slice index [B] of each volume [B, 1, D, H, W], as [B, 1, H, W]."""
    return volume[torch.arange(len(volume), device=volume.device), :, index]


def _hinge(discriminator: nn.Module, true: Tensor, false: Tensor) -> Tensor:
    (real, _), (made, _) = discriminator(true), discriminator(false)
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + made.float()).mean())


def _collapsed(row: Mapping[str, Any]) -> str | None:
    """Say so where batches are quantised to a single code, so that no volume differs from another."""
    used = row["autoencoder_codes_used"]
    if used is None or used >= _FEWEST_CODES:
        return None
    return f"batches use {used:.3g} codes of the codebook, expected at least {_FEWEST_CODES}"
