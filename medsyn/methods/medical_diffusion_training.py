"""Training of the networks of Medical Diffusion: what the verb `train` does for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from medsyn.config import Config
from medsyn.diffusion.discrete import cosine_alpha_bar, sample_ancestral
from medsyn.errors import InputError
from medsyn.files import sha256
from medsyn.methods.base import CountedTraining, Training
from medsyn.methods.medical_diffusion import build_denoiser, build_vqgan, open_vqgan
from medsyn.methods.medical_diffusion_settings import (
    LatentDenoiserSettings,
    LatentDenoiserStage,
    VqganSettings,
    VqganStage,
)
from medsyn.methods.unconditional import NUM_PREVIEWS, counted, train_on_images, volumes_without_data
from medsyn.models.vqgan import VQGAN
from medsyn.provenance import hash_json
from medsyn.training.driver import write_pictures
from medsyn.training.latents import CachedLatents, LatentBatches, VolumesWithSlices
from medsyn.training.perceptual import load_lpips
from medsyn.training.processes import make_accelerator
from medsyn.training.task import Networks, PhasedTask
from medsyn.training.volumes import ImageVolumes
from medsyn.training.vqgan import denoiser_task, vqgan_task

_NUM_PREVIEW_STEPS = 20


def train_vqgan(training: Training, stage: VqganStage) -> None:
    """Train the VQ-GAN and its discriminators on the CTs of the store."""
    settings = stage.settings
    weights = None if settings.perceptual_weights is None else Path(settings.perceptual_weights)
    perceptual = None if weights is None else load_lpips(weights)

    def task(volumes: ImageVolumes, identity: Mapping[str, Any]) -> PhasedTask:
        return vqgan_task(
            lambda: build_vqgan(settings),
            VolumesWithSlices(volumes, flip=settings.flip),
            settings.loss,
            discriminator_width=settings.discriminator_width,
            perceptual=perceptual,
            identity=identity,
        )

    facts = {} if weights is None else {"perceptual_weights": sha256(weights)}
    train_on_images(training, stage, None, task, _write_reconstructions, facts)


def train_latent_denoiser(training: Training, stage: LatentDenoiserStage) -> None:
    """Encode the CTs of the store once by a trained VQ-GAN, then train the denoiser of their latents."""
    settings = stage.settings
    path = training.networks.get("vqgan")
    if path is None:
        raise InputError(f"{training.config}: trains on the latents of a VQ-GAN; give its weights by --networks")
    accelerator = make_accelerator(settings.train.precision)  # chooses the GPU of this process
    vqgan = open_vqgan(path)
    channels = vqgan.codebook.codes.shape[1]
    compressor = sha256(path)

    def task(volumes: ImageVolumes, identity: Mapping[str, Any]) -> PhasedTask:
        latents = encode_volumes(vqgan, compressor, volumes, training.state, stage, accelerator)
        batches = LatentBatches(latents, volumes, settings.num_diffusion_steps)
        return denoiser_task(
            lambda: build_denoiser(settings, channels),
            batches,
            num_diffusion_steps=settings.num_diffusion_steps,
            identity=identity,
        ).phased()

    def preview(networks: Networks, volumes: ImageVolumes, path: Path) -> None:
        alpha_bar = cosine_alpha_bar(settings.num_diffusion_steps)
        _write_samples(path, networks[""], vqgan, alpha_bar, volumes)

    train_on_images(training, stage, None, task, preview, {"vqgan": compressor})


def counted_trainings(config: Config, name: str) -> dict[str, CountedTraining]:
    """Return how the memory of both trainings is counted. That of the perceptual loss is left out."""
    entry: Any = config.methods[name]
    size = config.preprocess.size
    volumes = volumes_without_data(size)
    latents = (entry.vqgan.embedding_dim, *(length // entry.vqgan.compression for length in size))

    def of_volumes(number: int, slots: Sequence[int]) -> dict[str, Tensor]:
        return {"volume": volumes(number, slots), "slice": torch.zeros(len(slots), dtype=torch.long, device="meta")}

    def of_latents(_step: int, slots: Sequence[int]) -> dict[str, Tensor]:
        made = torch.empty(len(slots), *latents, device="meta")
        return {"latents": made, "noise": made, "step": torch.empty(len(slots), dtype=torch.long, device="meta")}

    def vqgan(settings: VqganSettings) -> PhasedTask:
        width = settings.discriminator_width
        return vqgan_task(lambda: build_vqgan(settings), of_volumes, settings.loss, discriminator_width=width)

    def denoiser(settings: LatentDenoiserSettings) -> PhasedTask:
        steps = settings.num_diffusion_steps
        build = partial(build_denoiser, settings, latents[0])
        return denoiser_task(build, of_latents, num_diffusion_steps=steps).phased()

    section = ("methods", name)
    return {
        "vqgan": counted(entry.vqgan, (*section, "vqgan"), vqgan, checkpointing=True),
        "denoiser": counted(entry.denoiser, (*section, "denoiser"), denoiser),
    }


def encode_volumes(
    vqgan: VQGAN,
    compressor: str,
    volumes: ImageVolumes,
    state: Path,
    stage: LatentDenoiserStage,
    accelerator: Accelerator,
) -> CachedLatents:
    """Return the latents of all training volumes, encoded into `state` where they are not there yet.

    compressor: SHA-256 of the file of the VQ-GAN. Latents of other weights or data have a folder of their own, so they
    are never taken for these.
    """
    of = hash_json([compressor, volumes.store.hash, stage.window_hu, stage.settings.flip])
    latents = CachedLatents(state / f"latents_{of}", len(volumes), flip=stage.settings.flip)
    latents.complete(vqgan.encode, volumes.volume, accelerator)
    return latents


def _write_reconstructions(networks: Networks, volumes: ImageVolumes, path: Path) -> None:
    """Write a PNG of training volumes and, below them, their reconstructions, made one at a time."""
    autoencoder: Any = networks["autoencoder"]
    device = next(autoencoder.parameters()).device
    real = volumes.first(NUM_PREVIEWS)
    made = [autoencoder(volume.to(device), update_codebook=False).volume.cpu() for volume in real.split(1)]
    write_pictures(path, [real, torch.cat(made)])


def _write_samples(path: Path, denoiser: Any, vqgan: VQGAN, alpha_bar: Tensor, volumes: ImageVolumes) -> None:
    """Write a PNG of training volumes and, below them, samples of the first seeds by a few steps, one at a time."""
    real = volumes.first(NUM_PREVIEWS)
    shape = (vqgan.codebook.codes.shape[1], *(length // vqgan.factor for length in volumes.size))
    device = next(denoiser.parameters()).device
    count = min(_NUM_PREVIEW_STEPS, len(alpha_bar))
    made = [
        vqgan.decode(sample_ancestral(denoiser, alpha_bar, [seed], shape, count=count, device=device)).cpu()
        for seed in range(len(real))
    ]
    write_pictures(path, [real, torch.cat(made)])
