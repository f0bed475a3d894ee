"""Weights of the loss of Medical Diffusion's VQ-GAN, apart from the loss so that the configuration needs no torch."""

from __future__ import annotations

from pydantic import Field

from medsyn.config.section import Section


class VQGANLoss(Section):
    """Weights of the parts of the autoencoder's loss, and when the discriminators begin.

    The defaults are those of the run scripts of the public code (FirasGit/medicaldiffusion on GitHub).
    """

    reconstruction: float = Field(4.0, ge=0, description="of the mean absolute error")
    perceptual: float = Field(4.0, ge=0, description="of LPIPS; without effect where perceptual_weights is null")
    adversarial: float = Field(1.0, ge=0, description="of both discriminators")
    feature_matching: float = Field(4.0, ge=0, description="of the features of both, on top of `adversarial`")
    adversarial_start: int = Field(
        5_000,
        ge=0,
        le=1_000_000_000,
        description="step from which on the discriminators learn and take part; the public code says 10,000 and counts"
        " the steps of both optimisers",
    )
    codebook_learns_twice: bool = Field(
        False, description="let the codebook learn in the pass for the discriminators too, as the public code does"
    )
