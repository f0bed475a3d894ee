"""Sizes of the networks of HA-GAN (`medsyn.models.hagan`), which a configuration holds; read without PyTorch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medsyn.config import Section
from medsyn.config.section import Width

NUM_SLABS = 8
"""Disjoint slabs of a volume: S = R / NUM_SLABS."""


class HaganSizes(Section):
    """What the networks are built from; the defaults are the original's."""

    size: Literal[64, 128, 256] = Field(256, description="side R of the volumes it makes, that of the model's grid")
    width: Width = Field(
        32, multiple_of=16, description="channels of the generator's last hidden layer, a multiple of 16"
    )
    latent_dim: Width = 1024
    discriminator_width: Width = Field(
        512,
        multiple_of=32,
        description="channels of the widest layer of the discriminator of slabs, a multiple of 32; the discriminator of"
        " low-resolution volumes has half as many",
    )

    @property
    def slab_slices(self) -> int:
        """Number of slices S of a slab."""
        return self.size // NUM_SLABS

    @property
    def last_start(self) -> int:
        """Largest first slice of a slab, 7R/8."""
        return self.size - self.slab_slices
