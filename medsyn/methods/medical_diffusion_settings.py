"""Settings of Medical Diffusion: its two networks, their training, and sampling.

The defaults are the setting of the run scripts of the public code (FirasGit/medicaldiffusion on GitHub).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from medsyn.config import Section, TrainConfig
from medsyn.config.networks import FixedMicroBatch
from medsyn.config.section import Count, PathText, Precision, Share, Steps, Width
from medsyn.methods.unconditional import UnconditionalConfig, UnconditionalStage
from medsyn.training.vqgan_loss import VQGANLoss

_FLIP = (
    "exchange left and right in half of the samples, as the original does; a mirrored chest has its heart on the right"
)


class VqganTrainConfig(TrainConfig):
    """Training of the VQ-GAN.

    The public code multiplies its rate of 3e-4 by the number of GPUs / 8 and by the batch / 4, which is the default
    here. It names checkpoints of 99,000 to 567,000 steps.
    """

    num_steps: int = Field(100_000, ge=1, le=1_000_000_000)
    batch_size: Count = 2
    micro_batch_size: FixedMicroBatch = Field(
        2, description="volumes per process and forward pass; a batch norm sees those of all processes"
    )
    learning_rate: PositiveFloat = 1.875e-5
    betas: tuple[Share, Share] = (0.5, 0.9)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    precision: Precision = "fp16"
    checkpoint_every: PositiveInt = 500


class LatentTrainConfig(TrainConfig):
    """Training of the denoiser. Nothing is clipped. The public code stops at 700,000 steps at the latest."""

    num_steps: int = Field(150_000, ge=1, le=1_000_000_000)
    batch_size: Count = 20
    micro_batch_size: Count | Literal["auto"] = 10
    learning_rate: PositiveFloat = 1e-4
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: PositiveFloat = 1e9
    ema_decay: Share = 0.995
    ema_start_step: int = Field(2_000, ge=0, description="before this step the average is a plain copy")
    ema_every: PositiveInt = 10
    checkpoint_every: PositiveInt = 1_000


class VqganSettings(Section):
    """The VQ-GAN and its training."""

    compression: Literal[2, 4, 8] = Field(8, description="per axis; preprocess.size must be divisible by it")
    width: Width = Field(16, description="channels at full resolution, doubled with each halving")
    num_groups: Width = Field(32, description="of the group norms; must divide 2 * width")
    embedding_dim: Width = Field(8, description="channels of the latents and of a code")
    num_codes: int = Field(
        16_384, ge=2, le=1_000_000, description="should be well below the voxels of a batch's latents"
    )
    discriminator_width: Width = 64
    loss: VQGANLoss = VQGANLoss()
    perceptual_weights: PathText | None = Field(
        None, description="state dict of lpips.LPIPS(net='vgg'), needs the package lpips; null: no perceptual loss"
    )
    flip: bool = Field(False, description=_FLIP)
    train: VqganTrainConfig = VqganTrainConfig()

    @model_validator(mode="after")
    def _check(self) -> VqganSettings:
        if 2 * self.width % self.num_groups:
            raise ValueError(f"num_groups: {self.num_groups} does not divide 2 * width, which is {2 * self.width}")
        return self


class LatentDenoiserSettings(Section):
    """The denoiser of latents and its training."""

    dim: int = Field(32, ge=8, le=65_536, multiple_of=8, description="the original takes the side of the latents")
    mults: Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)] = (1, 2, 4, 8)
    num_diffusion_steps: Steps = 300
    flip: bool = Field(False, description=_FLIP)
    train: LatentTrainConfig = LatentTrainConfig()


class LatentSamplingConfig(Section):
    """Sampling of latents."""

    num_steps: Steps | None = Field(
        None, description="ancestral steps, at most denoiser.num_diffusion_steps; null: all, as the original does"
    )


class MedicalDiffusionConfig(UnconditionalConfig):
    """Medical Diffusion (Khader et al. 2023)."""

    kind: Literal["medical_diffusion"] = "medical_diffusion"
    vqgan: VqganSettings = VqganSettings()
    denoiser: LatentDenoiserSettings = LatentDenoiserSettings()
    sampling: LatentSamplingConfig = LatentSamplingConfig()


class VqganStage(UnconditionalStage):
    """config/vqgan_<method>.json."""

    network: Literal["vqgan"] = "vqgan"
    settings: VqganSettings


class LatentDenoiserStage(UnconditionalStage):
    """config/denoiser_<method>.json."""

    network: Literal["denoiser"] = "denoiser"
    settings: LatentDenoiserSettings
