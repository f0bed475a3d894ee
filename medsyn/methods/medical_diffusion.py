"""The kind `medical_diffusion`: Medical Diffusion (Khader et al. 2023), a baseline of Table I (docs/baselines.md).

A VQ-GAN compresses volumes of the model's grid, then a denoiser learns the diffusion of its latents. The networks are
`medsyn.models.vqgan` and `medsyn.models.latent_unet`, the losses `medsyn.training.vqgan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from medsyn.config import Config, Section, load_stage
from medsyn.config.checks import training_fault
from medsyn.errors import InputError
from medsyn.files import read_json
from medsyn.methods.base import CountedTraining, Method, MethodStage, Training
from medsyn.methods.medical_diffusion_settings import (
    LatentDenoiserSettings,
    LatentDenoiserStage,
    MedicalDiffusionConfig,
    VqganSettings,
    VqganStage,
)
from medsyn.methods.unconditional import (
    AVERAGE_SETTINGS,
    Unconditional,
    UnconditionalKind,
    num_processes,
    open_network,
    provenance_of,
    read_stage,
    unused_fault,
)

if TYPE_CHECKING:
    from torch import Tensor

    from medsyn.models.latent_unet import LatentUNet
    from medsyn.models.vqgan import VQGAN


class MedicalDiffusion(UnconditionalKind):
    """Medical Diffusion: the networks "vqgan" and, on its latents, "denoiser"."""

    entry = MedicalDiffusionConfig
    stages_of_networks: ClassVar = {"vqgan": VqganStage, "denoiser": LatentDenoiserStage}

    def settings(self, entry: Any) -> dict[str, Section]:
        """Return the settings of both networks, which are independent of each other."""
        return {"vqgan": entry.vqgan, "denoiser": entry.denoiser}

    def fault(self, config: Config, name: str) -> str | None:
        """Return that the grid, a training or the steps of sampling do not fit, or None."""
        entry: Any = config.methods[name]
        key = f"methods.{name}"
        steps, most = entry.sampling.num_steps, entry.denoiser.num_diffusion_steps
        if steps is not None and steps > most:
            return f"{key}.sampling.num_steps: {steps} is more than denoiser.num_diffusion_steps, which is {most}"
        processes = num_processes(config, entry)
        return (
            latent_grid_fault(config, key, entry)
            or vqgan_fault(f"{key}.vqgan", entry.vqgan)
            or training_fault(f"{key}.vqgan.train", entry.vqgan.train, processes)
            or unused_fault(f"{key}.vqgan.train", entry.vqgan.train, AVERAGE_SETTINGS)
            or training_fault(f"{key}.denoiser.train", entry.denoiser.train, processes)
            or unused_fault(f"{key}.denoiser.train", entry.denoiser.train, ("activation_checkpointing",))
        )

    def counted_trainings(self, config: Config, name: str) -> dict[str, CountedTraining]:
        """Return the training of both networks."""
        from medsyn.methods.medical_diffusion_training import counted_trainings

        return counted_trainings(config, name)

    def train(self, training: Training) -> None:
        """Train the VQ-GAN, or the denoiser on the latents of a trained VQ-GAN."""
        from medsyn.methods.medical_diffusion_training import train_latent_denoiser, train_vqgan

        values = read_json(training.config)
        if isinstance(values, dict) and values.get("network") == "denoiser":
            train_latent_denoiser(training, load_stage(LatentDenoiserStage, training.config))
        else:
            train_vqgan(training, load_stage(VqganStage, training.config))

    def open(self, config: Path, files: Sequence[Path], work: Path) -> Method:
        """Load both networks."""
        return MedicalDiffusionMethod(self.load(config), files)


class MedicalDiffusionMethod(Unconditional):
    """The denoiser and the VQ-GAN in memory."""

    def __init__(self, stage: MethodStage, files: Sequence[Path]) -> None:
        from medsyn.diffusion.discrete import cosine_alpha_bar
        from medsyn.files import sha256

        if len(files) != 2:
            raise InputError(f"{stage.name}: found {len(files)} files, expected those of the VQ-GAN and the denoiser")
        compressor, path = files
        trained = read_stage(path, LatentDenoiserStage)
        super().__init__(stage, files, trained.window_hu)
        if provenance_of(path).get("vqgan") != sha256(compressor):
            raise InputError(
                f"{path}: was not trained on latents of {compressor}, expected the VQ-GAN of its training; remove it"
                " and train it again"
            )
        self.vqgan = open_vqgan(compressor)
        channels = self.vqgan.codebook.codes.shape[1]
        self.denoiser: Any = open_network(path, "", build_denoiser(trained.settings, channels))
        self.alpha_bar = cosine_alpha_bar(trained.settings.num_diffusion_steps)
        self.shape = (channels, *(length // self.vqgan.factor for length in stage.preprocess.size))
        entry: Any = stage.entry
        self.num_steps: int | None = entry.sampling.num_steps

    def cube(self, seed: int) -> Tensor:
        """Return the volume [1, 1, D, H, W] of a seed: latents by ancestral steps, quantised and decoded."""
        from medsyn.diffusion.discrete import sample_ancestral

        device = next(self.denoiser.parameters()).device
        latents = sample_ancestral(
            self.denoiser, self.alpha_bar, [seed], self.shape, count=self.num_steps, device=device
        )
        return self.vqgan.decode(latents)


def latent_grid_fault(config: Config, key: str, entry: MedicalDiffusionConfig) -> str | None:
    """Return that the model's grid cannot be compressed, or its latents not be halved by the denoiser, or None."""
    size, factor = list(config.preprocess.size), entry.vqgan.compression
    if any(length % factor for length in size):
        return (
            f"{key}.vqgan.compression: {factor} does not divide preprocess.size {size}, expected a divisor of each"
            " axis; change one of the two"
        )
    wanted = factor * 2 ** (len(entry.denoiser.mults) - 1)
    if any(length % wanted for length in size[1:]):
        return (
            f"{key}.denoiser.mults: {len(entry.denoiser.mults)} levels on latents of {size[0] // factor} x"
            f" {size[1] // factor} x {size[2] // factor} voxels need the last two axes of preprocess.size {size} to be"
            f" multiples of {wanted}; take fewer levels, less compression or another size"
        )
    return None


def vqgan_fault(key: str, settings: VqganSettings) -> str | None:
    """Return that the discriminators would never learn, or that the weights of LPIPS are missing, or None."""
    loss, num_steps, weights = settings.loss, settings.train.num_steps, settings.perceptual_weights
    if loss.adversarial and loss.adversarial_start >= num_steps:
        return (
            f"{key}.loss.adversarial_start: {loss.adversarial_start} is not below train.num_steps {num_steps}, so the"
            " discriminators would never learn; lower it, or set loss.adversarial to 0"
        )
    if weights is not None and not Path(weights).is_file():
        return f"{key}.perceptual_weights: {weights}: no such file, expected the weights of LPIPS; write them there"
    return None


def build_vqgan(settings: VqganSettings) -> VQGAN:
    """Build the untrained autoencoder with its codebook."""
    from medsyn.models.vqgan import VQGAN

    return VQGAN(
        settings.width,
        settings.compression.bit_length() - 1,
        settings.num_groups,
        settings.embedding_dim,
        settings.num_codes,
    )


def build_denoiser(settings: LatentDenoiserSettings, channels: int) -> LatentUNet:
    """Build the untrained denoiser of latents with `channels` channels."""
    from medsyn.models.latent_unet import LatentUNet

    return LatentUNet(settings.dim, settings.mults, channels=channels)


def open_vqgan(path: Path) -> VQGAN:
    """Load the autoencoder of a trained VQ-GAN, frozen, on the device."""
    network: Any = open_network(path, "autoencoder", build_vqgan(read_stage(path, VqganStage).settings))
    frozen: VQGAN = network.requires_grad_(False)
    return frozen


KIND = MedicalDiffusion()
