"""Settings of the denoisers: the U-Net and its training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from medsyn.config.section import Count, Fraction, OwnSeed, Precision, Section, Share, Size3, Width

Interpolation = Literal["nearest", "linear"]
Reduction = Literal["nearest", "mean"]


MAX_COMPONENTS = 998
"""Components are found from at most 1,000 volumes, which allow 2 fewer."""


class UNetConfig(Section):
    """The one U-Net (the authors' release: dim 160 / 56, mults 1-2-4-8, heads 8 / 4)."""

    dim: Width = 16
    mults: Annotated[tuple[Width, ...], Field(min_length=1, max_length=10)] = (1, 2, 4)
    num_heads: int = Field(4, ge=1, le=1024)
    num_groups: Width = 8
    init_kernel: int = Field(7, ge=1, le=63, description="edge of the first convolution, odd")
    num_bottom_blocks: int = Field(4, ge=1, le=256, description="attention blocks at the bottom (text-conditioned net)")
    mask_padding: bool = Field(
        False, description="ignore the padding of a text (needs text.mask_padding); the authors attend to it"
    )
    patch_size: int = Field(1, ge=1, le=64, description="edge of the voxel cube that the network sees as one voxel")
    sigma_data: PositiveFloat | None = Field(
        None,
        description="standard deviation of the training data: the network then predicts only what the noise hides",
    )
    add_condition: bool = Field(
        False, description="super-resolution: add the condition to the output, so that only the difference is learned"
    )
    sigma_share: PositiveFloat | None = Field(
        None,
        description="sigma_data of each channel as this share of its measured deviation from what is known: the mean"
        " volume (mean_volume), the condition (add_condition), or 0",
    )
    mean_volume: bool = Field(
        False,
        description="low_res: give the mean training volume to the network, which predicts the difference from it; the"
        " mean is stored with the weights",
    )
    num_components: int = Field(
        0,
        ge=0,
        le=MAX_COMPONENTS,
        description="low_res, with mean_volume: the network predicts the difference from the linear estimate of the"
        " clean volume by this many principal components of the training volumes and the text, and is given that"
        " estimate; the components are stored with the weights",
    )
    num_text_kinds: int = Field(
        0,
        ge=0,
        le=65536,
        description="low_res, with num_components: the regression on the text reads which of this many kinds of token"
        " states it has, which tell sides and lobes better than the mean state, which 0 reads",
    )
    pooled_text: bool = Field(
        False,
        description="beside the cross-attention, add the mean state of the text to the time embedding of all blocks"
        " after the first cross-attention (as Imagen does)",
    )
    up_order: Literal["A", "B"] = Field("A", description="A: upsample early (training scripts), B: late (inference)")

    @model_validator(mode="after")
    def _check(self) -> UNetConfig:
        for width in (self.dim, *(self.dim * mult for mult in self.mults)):
            if width % self.num_groups:
                raise ValueError(f"num_groups {self.num_groups} does not divide {width} channels (dim times mults)")
        if self.sigma_share is not None and self.sigma_data is not None:
            found = f"sigma_data {self.sigma_data} and sigma_share {self.sigma_share}"
            raise ValueError(f"{found}: both are set, expected at most one; leave one out")
        if self.num_components and not self.mean_volume:
            raise ValueError(f"num_components {self.num_components} with mean_volume false: expected true; set it")
        if self.num_text_kinds and not self.num_components:
            raise ValueError(f"num_text_kinds {self.num_text_kinds} with num_components 0: expected 1 or more; set it")
        for name in ("sigma_data", "sigma_share"):
            if self.num_components and (value := getattr(self, name)) is not None:
                found = f"num_components {self.num_components} and {name} {value}"
                raise ValueError(f"{found}: both are set, expected at most one; leave one out")
        if self.dim % 2 or self.dim < 4 or not self.init_kernel % 2:
            raise ValueError("dim must be even and at least 4, init_kernel odd")
        return self


def _number(value: Any) -> Any:
    """Refuse `auto` where the weights are not the same up to rounding whatever the micro-batch is."""
    if value == "auto":
        raise ValueError(
            "found auto, expected a number: the weights of this network depend on its micro-batch, so they would depend"
            " on the memory that is found"
        )
    return value


FixedMicroBatch = Annotated[Count, BeforeValidator(_number)]
"""The micro-batch of a network that computes statistics of it."""


class TrainConfig(Section):
    """The one training loop, for every network."""

    num_steps: int = Field(1000, ge=1, le=1_000_000_000)
    batch_size: Count = Field(16, description="samples per optimiser step over all processes")
    micro_batch_size: Count | Literal["auto"] = Field(
        16, description="samples per process and forward pass; auto: as many as fit the memory that is found"
    )
    learning_rate: PositiveFloat = 1e-4
    num_warmup_steps: int = Field(0, ge=0)
    learning_rate_decay: Literal["constant", "cosine"] = "constant"
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    ema_decay: Share = 0.999
    ema_start_step: int = Field(0, ge=0, description="before this step the average is a plain copy")
    ema_every: PositiveInt = 1
    precision: Precision = "fp32"
    activation_checkpointing: bool | Literal["auto"] = Field(
        False,
        description="compute activations again in the backward pass: less memory, about a third more time; auto: only"
        " where nothing fits without",
    )
    compile: bool = Field(False, description="torch.compile the network; pays on a GPU")
    checkpoint_every: PositiveInt = 250
    log_every: PositiveInt = 50
    preview_every: int = Field(0, ge=0, description="a picture of samples every so many steps; 0: only at the end")
    tensorboard: bool = Field(False, description="event files too, if the package tensorboard is installed")
    seed: OwnSeed = 0

    @property
    def micro_batch(self) -> int:
        """Samples per process and forward pass, at most the batch. `auto` is replaced when a training run starts."""
        if self.micro_batch_size == "auto":
            raise ValueError("micro_batch_size is auto, expected a number (medsyn.training.fitting)")
        return min(self.micro_batch_size, self.batch_size)


class DenoiserTrainConfig(TrainConfig):
    """The training of a denoiser."""

    text_dropout: Fraction = Field(0.1, description="share of samples that see the null text")
    max_low_res_noise: Fraction = Field(0.4, description="super-resolution: noise level of the condition, U[0, this)")
    condition_interpolation: Interpolation = Field(
        "nearest", description="super-resolution: how the condition is enlarged; the authors take nearest"
    )
    crop_size: Size3 | None = Field(None, description="super-resolution: random crop (D, H, W)")
    timestep_power: PositiveFloat = Field(
        1.0,
        description="exponent of the timestep distribution, t = u^this, u uniform; values below 1 (paper: 1) sample"
        " noisier timesteps more often, which makes the text take effect earlier in training",
    )
    balance_channels: Fraction = Field(
        0.0,
        description="weight of a channel's squared error: the mean square of its difference from what is known without"
        " the network, to the power of minus this, with mean 1 over the channels; 0 (paper): all weigh the same",
    )
    balance_noise: bool = Field(
        False,
        description="divide the squared error by the share of the variance that the linear estimate leaves at that"
        " time, as Karras et al. 2022 do; needs sigma_data, sigma_share or num_components",
    )
    augment: bool = Field(
        False, description="zoom and rotate image and masks together, each in half of the samples (authors: super_res)"
    )


def check_balance(unet: UNetConfig, train: DenoiserTrainConfig) -> None:
    """Raise a ValueError for balance_noise of a network without a linear estimate."""
    if train.balance_noise and not unet.num_components and unet.sigma_data is None and unet.sigma_share is None:
        raise ValueError(
            "train.balance_noise: true without a linear estimate, expected unet.sigma_data, sigma_share or"
            " num_components; set one of them"
        )


class StageModelConfig(Section):
    """Network and training of one resolution."""

    unet: UNetConfig = UNetConfig()
    train: DenoiserTrainConfig = DenoiserTrainConfig()

    @model_validator(mode="after")
    def _check_balance(self) -> StageModelConfig:
        check_balance(self.unet, self.train)
        return self


class LowResConfig(StageModelConfig):
    """The low-resolution network."""

    reduction: Reduction = Field(
        "nearest",
        description="low resolution by every preprocess.low_res_factor-th voxel (paper), or by the mean of each cube of"
        " voxels, which keeps thin structures",
    )


class SuperResConfig(StageModelConfig):
    """The super-resolution network."""

    text: bool = Field(
        False, description="the text conditions this network too, without guidance (paper: the low resolution alone)"
    )
