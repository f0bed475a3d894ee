"""The kinds `wgan` and `alpha_gan`: WGAN-GP and alpha-WGAN-GP, two baselines of Table I (docs/baselines.md).

Both train at a resolution R and are enlarged to the model's grid by nearest neighbour: 128 to 256 in the comparison of
HA-GAN, which the paper's Table I follows. The networks are `medsyn.models.gan`, the losses `medsyn.training.gan`. `Gan`
is what they share with the kind `hagan` (`medsyn.methods.hagan`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, ValidationInfo, field_validator

from medsyn.config import Config, Section, TrainConfig, load_stage
from medsyn.config.checks import training_fault
from medsyn.config.networks import FixedMicroBatch
from medsyn.config.section import Count, Voxels, Width
from medsyn.methods.base import CountedTraining, Method, MethodStage, Training
from medsyn.methods.unconditional import (
    AVERAGE_SETTINGS,
    NUM_PREVIEWS,
    Unconditional,
    UnconditionalConfig,
    UnconditionalKind,
    UnconditionalStage,
    counted,
    grid_fault,
    num_processes,
    open_network,
    read_stage,
    train_on_images,
    unused_fault,
    volumes_without_data,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medsyn.training.task import Networks, PhasedTask
    from medsyn.training.volumes import ImageVolumes


NUM_STATISTICS_BATCHES, STATISTICS_BATCH = 16, 8
"""Batches, and latents in each, that the standing statistics of a generator are taken of."""


class GanTrainConfig(TrainConfig):
    """Training of a GAN; the defaults are the recipe of Kwon et al. 2019 at the number of steps of HA-GAN's comparison.

    Nothing is clipped, and no average of the weights is kept.
    """

    num_steps: int = Field(80_000, ge=1, le=1_000_000_000)
    batch_size: Count = 4
    micro_batch_size: FixedMicroBatch = Field(
        4, description="volumes per process and forward pass; a batch norm sees those of all processes"
    )
    learning_rate: PositiveFloat = 2e-4
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: PositiveFloat = 1e9
    checkpoint_every: Count = 500


class GanSettings(Section):
    """What both kinds train with."""

    size: Voxels = Field(128, description="side R of the volumes it makes, a power of two of at least 16")
    width: Width = Field(64, description="channels of the generator on (R/2)^3")
    critic_width: Width = Field(512, description="channels of the critic and the encoder on their coarsest grid")
    train: GanTrainConfig = GanTrainConfig()

    @field_validator("size")
    @classmethod
    def _check_size(cls, value: int) -> int:
        if value < 16 or value & (value - 1):
            raise ValueError(f"{value} is not a power of two of at least 16")
        return value

    @field_validator("critic_width")
    @classmethod
    def _check_critic_width(cls, value: int, info: ValidationInfo) -> int:
        size = info.data.get("size", 16)  # absent where it is wrong itself
        if value % (size // 8):  # channels double from those of the first halving on, see medsyn.models.gan.Encoder
            raise ValueError(f"{value} is not a multiple of {size // 8}, expected one at size {size}")
        return value

    @field_validator("train")
    @classmethod
    def _check_train(cls, value: GanTrainConfig) -> GanTrainConfig:
        if value.compile:
            raise ValueError(
                "compile is true, expected false: the gradient penalty is differentiated twice, which PyTorch cannot do"
                " with a compiled network"
            )
        return value


class WganSettings(GanSettings):
    """WGAN-GP."""

    latent_dim: Width = 1024
    critic: Literal["slabs", "whole"] = Field(
        "slabs", description="slabs: one logit per slab of the depth (HA-GAN's WGAN); whole: Kwon's critic"
    )
    penalty_norm: Literal["sample", "voxel"] = Field(
        "sample", description="norm of the gradient in the penalty: of a sample (Gulrajani), of a voxel (Kwon's code)"
    )
    num_critic_updates: Count = Field(1, description="per step; Gulrajani: 5")
    num_generator_updates: Count = Field(1, description="per step; Kwon's code: 5")


class AlphaGanSettings(GanSettings):
    """Alpha-WGAN-GP."""

    latent_dim: Width = 1000
    code_units: Width = Field(4096, description="units of the discriminator of codes")
    learn_from_codes: bool = Field(
        True, description="train the discriminator of codes on encoded codes too; false: as Kwon's code does"
    )
    double_generator_step: bool = Field(
        False, description="let the generator's optimiser make two steps with the same gradient, as Kwon's code does"
    )


class GanConfig(UnconditionalConfig):
    """What the entries of both kinds share besides the settings of the training."""

    standing_statistics: bool = Field(
        True,
        description="sample with the batch statistics of latents alone; false: with those of the training, in which an"
        " alpha-GAN's generator also decodes codes",
    )


class WganConfig(WganSettings, GanConfig):
    """WGAN-GP (Gulrajani et al. 2017), as in the comparison of HA-GAN."""

    kind: Literal["wgan"] = "wgan"


class AlphaGanConfig(AlphaGanSettings, GanConfig):
    """Alpha-WGAN-GP (Kwon et al. 2019)."""

    kind: Literal["alpha_gan"] = "alpha_gan"


class WganStage(UnconditionalStage):
    """config/gan_<method>.json of a WGAN."""

    settings: WganSettings


class AlphaGanStage(UnconditionalStage):
    """config/gan_<method>.json of an alpha-GAN."""

    settings: AlphaGanSettings


class Gan(UnconditionalKind):
    """What the kinds of GANs share: one training run of all networks, sampling by the generator alone.

    settings_type: the settings, among them `size` (side R of the volumes) and `train`; least_micro_batch: fewest
    volumes that all processes together train on.
    """

    settings_type: ClassVar[type[Section]]
    least_micro_batch: ClassVar[int] = 1

    def settings(self, entry: Any) -> dict[str, Section]:
        """Return the settings of the one training run."""
        return {"gan": self.settings_type(**{name: getattr(entry, name) for name in self.settings_type.model_fields})}

    def fault(self, config: Config, name: str) -> str | None:
        """Return that the size or the training does not fit the rest of the configuration, or None."""
        entry: Any = config.methods[name]
        key = f"methods.{name}.train"
        return (
            self.grid_fault(config, name, entry.size)
            or training_fault(key, entry.train, num_processes(config, entry))
            or unused_fault(key, entry.train, (*AVERAGE_SETTINGS, "activation_checkpointing"))
        )

    def grid_fault(self, config: Config, name: str, edge: int) -> str | None:
        """Return that volumes of `edge` voxels a side cannot be brought to the model's grid, or None."""
        return grid_fault(config, name, edge)

    @abstractmethod
    def networks_of(self, settings: Any) -> dict[str, nn.Module]:
        """Build the untrained networks; one of them is the generator."""

    @abstractmethod
    def task(self, settings: Any, volumes: Any, **options: Any) -> PhasedTask:
        """Return the training on `volumes`."""

    def counted_trainings(self, config: Config, name: str) -> dict[str, CountedTraining]:
        """Return the one training run."""
        settings: Any = self.settings(config.methods[name])["gan"]
        volumes = volumes_without_data((settings.size,) * 3)
        return {
            "gan": counted(
                settings,
                ("methods", name),
                lambda changed: self.task(changed, volumes),
                least_micro_batch=self.least_micro_batch,
            )
        }

    def train(self, training: Training) -> None:
        """Train all networks of a GAN."""
        stage = load_stage(self.stages_of_networks["gan"], training.config)
        settings: Any = stage.settings

        def task(volumes: ImageVolumes, identity: Mapping[str, Any]) -> PhasedTask:
            return self.task(settings, volumes, identity=identity)

        train_on_images(training, stage, settings.size, task, write_preview)

    def open(self, config: Path, files: Sequence[Path], work: Path) -> Method:
        """Load the generator."""
        return GanMethod(self, self.load(config), files)


class Wgan(Gan):
    """WGAN-GP."""

    entry = WganConfig
    settings_type = WganSettings
    stages_of_networks: ClassVar = {"gan": WganStage}

    def networks_of(self, settings: Any) -> dict[str, nn.Module]:
        """Build generator and critic."""
        from medsyn.models.gan import Generator, kwon_critic, wgan_critic

        critic = wgan_critic if settings.critic == "slabs" else kwon_critic
        generator = Generator(settings.size, settings.latent_dim, settings.width)
        return {"generator": generator, "critic": critic(settings.size, settings.critic_width)}

    def task(self, settings: Any, volumes: Any, **options: Any) -> PhasedTask:
        """Return the training of generator and critic."""
        from medsyn.training.gan import wgan_task

        return wgan_task(
            lambda: self.networks_of(settings),
            volumes,
            latent_dim=settings.latent_dim,
            seed=settings.train.seed,
            num_critic_updates=settings.num_critic_updates,
            num_generator_updates=settings.num_generator_updates,
            penalty_norm=settings.penalty_norm,
            **options,
        )


class AlphaGan(Gan):
    """Alpha-WGAN-GP."""

    entry = AlphaGanConfig
    settings_type = AlphaGanSettings
    least_micro_batch = 2  # the discriminator of codes normalises over them
    stages_of_networks: ClassVar = {"gan": AlphaGanStage}

    def fault(self, config: Config, name: str) -> str | None:
        """Return also that a single volume per step of the discriminator of codes is too few, or None."""
        entry: Any = config.methods[name]
        train = entry.train
        if min(train.micro_batch_size, train.batch_size) * num_processes(config, entry) == 1:
            return (
                f"methods.{name}.train.micro_batch_size: {train.micro_batch_size} in one process, expected at least 2"
                " volumes over all processes, because the discriminator of codes normalises over them"
            )
        return super().fault(config, name)

    def networks_of(self, settings: Any) -> dict[str, nn.Module]:
        """Build encoder, generator and both discriminators."""
        from medsyn.models.gan import CodeDiscriminator, Generator, alpha_discriminator, alpha_encoder

        return {
            "encoder": alpha_encoder(settings.size, settings.latent_dim, settings.critic_width),
            "generator": Generator(settings.size, settings.latent_dim, settings.width),
            "discriminator": alpha_discriminator(settings.size, settings.critic_width),
            "code_discriminator": CodeDiscriminator(settings.latent_dim, settings.code_units),
        }

    def task(self, settings: Any, volumes: Any, **options: Any) -> PhasedTask:
        """Return the training of the four networks."""
        from medsyn.training.gan import alpha_gan_task

        return alpha_gan_task(
            lambda: self.networks_of(settings),
            volumes,
            latent_dim=settings.latent_dim,
            seed=settings.train.seed,
            learn_from_codes=settings.learn_from_codes,
            double_generator_step=settings.double_generator_step,
            **options,
        )


class GanMethod(Unconditional):
    """A generator in memory."""

    def __init__(self, kind: Gan, stage: MethodStage, files: Sequence[Path]) -> None:
        [path] = files
        trained = read_stage(path, kind.stages_of_networks["gan"])
        super().__init__(stage, files, trained.window_hu)
        self.generator: Any = open_network(path, "generator", kind.networks_of(trained.settings)["generator"])
        entry: Any = stage.entry
        if getattr(entry, "standing_statistics", False):
            settle(self.generator)

    def cube(self, seed: int) -> Tensor:
        """Return the volume [1, 1, R, R, R] in [-1, 1] that the generator makes of a seed."""
        from medsyn.diffusion.seeds import volume_noise

        device = next(self.generator.parameters()).device
        made: Tensor = self.generator(volume_noise([seed], (self.generator.latent_dim,), "latent").to(device))
        return made


def settle(generator: Any) -> None:
    """Take the statistics of a generator's batch normalisations of the same latents every time."""
    from medsyn.diffusion.seeds import volume_noise
    from medsyn.models.batch_norm import use_standing_statistics

    device = next(generator.parameters()).device
    numbers = range(NUM_STATISTICS_BATCHES * STATISTICS_BATCH)
    latents = volume_noise(numbers, (generator.latent_dim,), "statistics").split(STATISTICS_BATCH)
    use_standing_statistics(generator, (latent.to(device) for latent in latents))


def write_preview(networks: Networks, volumes: ImageVolumes, path: Path) -> None:
    """Write a PNG of training volumes and, below them, what the generator makes of the first seeds, one at a time."""
    from copy import deepcopy

    import torch

    from medsyn.diffusion.seeds import volume_noise
    from medsyn.training.driver import write_pictures

    generator: Any = deepcopy(networks["generator"])
    settle(generator)
    device = next(generator.parameters()).device
    latents = volume_noise(range(NUM_PREVIEWS), (generator.latent_dim,), "latent").split(1)
    made = torch.cat([generator(latent.to(device)).cpu() for latent in latents])
    write_pictures(path, [volumes.first(NUM_PREVIEWS), made])


WGAN, ALPHA_GAN = Wgan(), AlphaGan()
