"""The kind `hagan`: HA-GAN (Sun et al., IEEE JBHI 2022), a baseline of Table I (docs/baselines.md).

It makes volumes of the model's grid. The networks are `medsyn.models.hagan`, the losses `medsyn.training.hagan`. The
defaults are the recipe of the authors' repository (batmanlab/HA-GAN on GitHub).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from medsyn.config import Config
from medsyn.config.section import Share
from medsyn.methods.gans import Gan, GanTrainConfig
from medsyn.methods.unconditional import UnconditionalConfig, UnconditionalStage
from medsyn.models.hagan_sizes import HaganSizes

if TYPE_CHECKING:
    from torch import nn

    from medsyn.training.task import PhasedTask


class HaganTrainConfig(GanTrainConfig):
    """Training of HA-GAN."""

    learning_rate: PositiveFloat = Field(1e-4, description="of the generator and the encoders")
    betas: tuple[Share, Share] = (0.0, 0.999)


class HaganSettings(HaganSizes):
    """Networks and training of HA-GAN."""

    encoders: bool = Field(
        True, description="train both encoders too, which changes neither the generator nor the discriminator"
    )
    any_start: bool = Field(
        False,
        description="let the slabs of a step begin at any slice, as the original does; false: at multiples of 4, where"
        " the generated slabs begin",
    )
    discriminator_learning_rate: PositiveFloat = 4e-4
    train: HaganTrainConfig = HaganTrainConfig()


class HaganConfig(HaganSettings, UnconditionalConfig):
    """HA-GAN (Sun et al. 2022)."""

    kind: Literal["hagan"] = "hagan"


class HaganStage(UnconditionalStage):
    """config/gan_<method>.json of HA-GAN."""

    settings: HaganSettings


class Hagan(Gan):
    """HA-GAN."""

    entry = HaganConfig
    settings_type = HaganSettings
    stages_of_networks: ClassVar = {"gan": HaganStage}

    def grid_fault(self, config: Config, name: str, edge: int) -> str | None:
        """Return that the model's grid is not a cube of `edge` voxels, or None."""
        size = config.preprocess.size
        if size == (edge,) * 3:
            return None
        return (
            f"methods.{name}.size: {edge} does not fit preprocess.size {list(size)}, expected {[edge] * 3}, because"
            " volumes of HA-GAN are not enlarged; change one of the two"
        )

    def networks_of(self, settings: Any) -> dict[str, nn.Module]:
        """Build generator, discriminator and, where the settings have them, both encoders."""
        from medsyn.models.hagan import build_hagan

        return build_hagan(settings, encoders=settings.encoders)

    def task(self, settings: Any, volumes: Any, **options: Any) -> PhasedTask:
        """Return the training of these networks."""
        from medsyn.training.hagan import hagan_task

        return hagan_task(
            settings,
            volumes,
            settings.train.seed,
            discriminator_learning_rate=settings.discriminator_learning_rate,
            encoders=settings.encoders,
            any_start=settings.any_start,
            **options,
        )


HAGAN = Hagan()
