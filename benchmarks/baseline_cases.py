"""The networks of Table I as `benchmarks/baselines.py` measures and counts them: training tasks and one sample of each.

Sizes are the paper's (`docs/baselines.md` says which the paper leaves open), or tiny ones for a test on a CPU. Volumes
are random numbers, which changes no time. Without a device they are on the meta device, for counting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medsyn.config import Config, ModelStage, TrainConfig, load_config, stage_configs
from medsyn.diffusion.base import SOLVERS
from medsyn.diffusion.discrete import cosine_alpha_bar, sample_ancestral
from medsyn.diffusion.objective import LowResolution
from medsyn.diffusion.sampling import sample
from medsyn.diffusion.seeds import volume_noise
from medsyn.models.fast.denoiser import prepared_denoiser
from medsyn.models.gan import CodeDiscriminator, Generator, alpha_discriminator, alpha_encoder, wgan_critic
from medsyn.models.hagan import HaganGenerator
from medsyn.models.hagan_sizes import HaganSizes
from medsyn.models.latent_unet import LatentUNet
from medsyn.models.vqgan import VQGAN
from medsyn.models.weights import build
from medsyn.planning.networks import batch_of
from medsyn.training.denoiser import batch_loss
from medsyn.training.gan import alpha_gan_task, wgan_task
from medsyn.training.hagan import hagan_task
from medsyn.training.task import PhasedTask, Task
from medsyn.training.vqgan import denoiser_task, vqgan_task
from medsyn.training.vqgan_loss import VQGANLoss

ROOT = Path(__file__).resolve().parents[1]
Built = Mapping[str, Any]
"""Networks by name."""
TEXT_WIDTH = 768  # of BERT's states


@dataclass(frozen=True)
class Sizes:
    """What is large at the paper's scale: sides of volumes, widths of networks, steps of a sample."""

    half: int = 128
    full: int = 256
    width: int = 64
    top: int = 512
    latent_dim: int = 1024
    alpha_latent_dim: int = 1000
    code_units: int = 4096
    hagan: HaganSizes = field(default_factory=HaganSizes)
    vqgan: tuple[int, int, int, int, int] = (16, 3, 32, 8, 16_384)
    patch_width: int = 64
    latent_side: int = 32
    denoiser_dim: int = 32
    denoiser_batch: int = 10
    diffusion_steps: int = 300
    config: str = "config/paper.yaml"
    text_width: int = TEXT_WIDTH


PAPER = Sizes()
SMALL = Sizes(
    *(16, 32, 4, 16, 8, 8, 32),
    HaganSizes(size=64, width=16, latent_dim=8, discriminator_width=32),
    (4, 2, 4, 4, 64),
    patch_width=4,
    latent_side=8,
    denoiser_dim=8,
    denoiser_batch=2,
    diffusion_steps=3,
    config="config/test.yaml",
    text_width=12,
)


@dataclass(frozen=True)
class Case:
    """One network's training, and what one sample of it takes.

    task(on_meta): the training. batch: samples per step of the paper's scale; micro: of them, per forward pass of a
    measured step. num_steps: of the whole run. checkpointing: whether activations are computed again. further: not one
    of Table I's own trainings.
    """

    method: str
    network: str
    task: Callable[[bool], PhasedTask]
    batch: int
    micro: int
    num_steps: int
    checkpointing: bool = False
    further: bool = False

    @property
    def title(self) -> str:
        """Method, network and form in words."""
        form = ", activation checkpointing" if self.checkpointing else ""
        return f"{self.method}, {self.network}{form}"

    def settings(self, precision: str) -> TrainConfig:
        """Return the settings of a measured step, whose batch is one micro-batch."""
        never = 1_000_000_000
        sizes = {"batch_size": self.micro, "micro_batch_size": self.micro, "num_steps": never}
        form = {"precision": precision, "activation_checkpointing": self.checkpointing}
        return TrainConfig(checkpoint_every=never, log_every=never, **sizes, **form)


@dataclass(frozen=True)
class Part:
    """A piece of sampling that is repeated: call(networks, device) does it once."""

    name: str
    times: int
    call: Callable[[Built, torch.device], Tensor]


@dataclass(frozen=True)
class Sample:
    """Sampling one volume of a method.

    build() makes the networks; volume(networks, device) samples one volume, which is the parts as often as they say.
    half_weights: in 16 bits the weights are converted, as MedSyn's are; those of others run under autocast.
    """

    method: str
    build: Callable[[], dict[str, nn.Module]]
    volume: Callable[[Built, torch.device], Tensor]
    parts: Sequence[Part]
    half_weights: bool = False

    def flops(self) -> int:
        """Count the operations of one volume on tensors without data."""
        meta = torch.device("meta")
        with meta:
            networks = {name: network.eval() for name, network in self.build().items()}
        total = 0
        for part in self.parts:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                part.call(networks, meta)
            total += part.times * int(counter.get_total_flops())
        return total


def volumes(side: int, on_meta: bool) -> Callable[[int, Sequence[int]], Tensor]:
    """Return volumes [B, 1, side, side, side] in [-1, 1] as a function of update and slots."""

    @cache
    def made(count: int) -> Tensor:
        if on_meta:
            return torch.empty(count, 1, side, side, side, device="meta")
        return torch.rand(count, 1, side, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1

    return lambda _update, slots: made(len(slots))


def training_cases(sizes: Sizes) -> list[Case]:
    """List the trainings of Table I, then the same with larger micro-batches or larger volumes."""
    cases = [*_gan_cases(sizes), *_medical_diffusion_cases(sizes), *_medsyn_cases(sizes)]
    return sorted(cases, key=lambda case: case.further)


def _gan_cases(sizes: Sizes) -> list[Case]:
    def wgan(side: int, on_meta: bool) -> PhasedTask:
        def networks() -> dict[str, nn.Module]:
            return {
                "generator": Generator(side, sizes.latent_dim, sizes.width),
                "critic": wgan_critic(side, sizes.top * side // sizes.half),
            }

        return wgan_task(networks, volumes(side, on_meta), latent_dim=sizes.latent_dim, seed=0)

    def alpha(side: int, on_meta: bool) -> PhasedTask:
        codes, top = sizes.alpha_latent_dim, sizes.top * side // sizes.half

        def networks() -> dict[str, nn.Module]:
            return {
                "encoder": alpha_encoder(side, codes, top),
                "generator": Generator(side, codes, sizes.width),
                "discriminator": alpha_discriminator(side, top),
                "code_discriminator": CodeDiscriminator(codes, sizes.code_units),
            }

        return alpha_gan_task(networks, volumes(side, on_meta), latent_dim=codes, seed=0)

    def hagan(on_meta: bool) -> PhasedTask:
        return hagan_task(sizes.hagan, volumes(sizes.hagan.size, on_meta), 0, discriminator_learning_rate=4e-4)

    half, full = f"{sizes.half}^3", f"{sizes.full}^3"
    return [
        Case("WGAN", half, partial(wgan, sizes.half), 4, 4, 80_000),
        Case("alpha-GAN", half, partial(alpha, sizes.half), 4, 4, 80_000),
        Case("HA-GAN", f"{sizes.hagan.size}^3", hagan, 4, 4, 80_000),
        *(Case("WGAN", full, partial(wgan, sizes.full), 4, micro, 80_000, further=True) for micro in (1, 4)),
        *(Case("alpha-GAN", full, partial(alpha, sizes.full), 4, micro, 80_000, further=True) for micro in (2, 4)),
    ]


def _medical_diffusion_cases(sizes: Sizes) -> list[Case]:
    def vqgan(on_meta: bool) -> PhasedTask:
        given = volumes(sizes.full, on_meta)

        def batch(update: int, slots: Sequence[int]) -> dict[str, Tensor]:
            return {"volume": given(update, slots), "slice": torch.full((len(slots),), sizes.full // 2)}

        def network() -> VQGAN:
            return VQGAN(*sizes.vqgan)

        loss = VQGANLoss(adversarial_start=0)
        return vqgan_task(network, batch, loss, discriminator_width=sizes.patch_width)

    def denoiser(on_meta: bool) -> PhasedTask:
        shape = (sizes.vqgan[3], *(sizes.latent_side,) * 3)

        def batch(_update: int, slots: Sequence[int]) -> dict[str, Tensor]:
            place = "meta" if on_meta else "cpu"
            made = torch.zeros(len(slots), *shape, device=place)
            return {"latents": made, "noise": made.clone(), "step": torch.full((len(slots),), 1, device=place)}

        steps = sizes.diffusion_steps
        return denoiser_task(partial(_latent_unet, sizes), batch, num_diffusion_steps=steps).phased()

    full, latents = f"VQ-GAN {sizes.full}^3", f"denoiser {sizes.latent_side}^3"
    method = "Medical Diffusion"
    batch = sizes.denoiser_batch
    return [
        *(
            Case(method, full, vqgan, 2, micro, 100_000, checkpointing, micro > 1)
            for micro in (1, 2)
            for checkpointing in (False, True)
        ),
        Case(method, latents, denoiser, 2 * batch, batch, 150_000),
    ]


def _latent_unet(sizes: Sizes) -> LatentUNet:
    return LatentUNet(sizes.denoiser_dim, channels=sizes.vqgan[3])


def medsyn_stages(sizes: Sizes) -> tuple[Config, dict[str, ModelStage]]:
    """Return the configuration and the stages of MedSyn's two networks."""
    config = load_config(ROOT / sizes.config)
    found = stage_configs(config)
    stages = {kind: found[f"{kind}_{config.reference}"] for kind in ("low_res", "super_res")}
    return config, {kind: stage for kind, stage in stages.items() if isinstance(stage, ModelStage)}


def _medsyn_cases(sizes: Sizes) -> list[Case]:
    config, stages = medsyn_stages(sizes)

    def training(stage: ModelStage, on_meta: bool) -> PhasedTask:
        width = sizes.text_width if stage.stage == "low_res" else None

        def batch(_update: int, slots: Sequence[int]) -> dict[str, Tensor]:
            shapes = batch_of(config, stage, sizes.text_width, len(slots))
            return shapes if on_meta else {name: torch.zeros(x.shape, dtype=x.dtype) for name, x in shapes.items()}

        def loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            return batch_loss(network, batch, stage)

        return Task(stage.stage, lambda: build(stage, width), batch, loss).phased()

    return [
        Case("MedSyn", kind, partial(training, s), s.train.batch_size, s.train.micro_batch_size, s.train.num_steps)
        for kind, s in stages.items()
    ]


def sample_cases(sizes: Sizes) -> list[Sample]:
    """List how one volume of each method is sampled; WGAN's and alpha-GAN's are enlarged to the full side."""
    factor = sizes.full // sizes.half
    latent, codes = sizes.latent_dim, sizes.alpha_latent_dim
    return [
        _generator_sample("WGAN", lambda: Generator(sizes.half, latent, sizes.width), latent, factor),
        _generator_sample("alpha-GAN", lambda: Generator(sizes.half, codes, sizes.width), codes, factor),
        _generator_sample("HA-GAN", lambda: HaganGenerator(sizes.hagan), sizes.hagan.latent_dim, 1),
        _medical_diffusion_sample(sizes),
        _medsyn_sample(sizes),
    ]


def _generator_sample(method: str, build: Callable[[], nn.Module], latent_dim: int, factor: int) -> Sample:
    def volume(networks: Built, device: torch.device) -> Tensor:
        return LowResolution(factor).enlarge(networks["generator"](torch.randn(1, latent_dim, device=device)))

    return Sample(method, lambda: {"generator": build()}, volume, [Part("pass", 1, volume)])


def _medical_diffusion_sample(sizes: Sizes) -> Sample:
    alpha_bar = cosine_alpha_bar(sizes.diffusion_steps)
    shape = (sizes.vqgan[3], *(sizes.latent_side,) * 3)

    def networks() -> dict[str, nn.Module]:
        return {"denoiser": _latent_unet(sizes), "vqgan": VQGAN(*sizes.vqgan)}

    def step(networks: Built, device: torch.device) -> Tensor:
        return networks["denoiser"](torch.zeros(1, *shape, device=device), torch.ones(1, device=device))

    def decode(networks: Built, device: torch.device) -> Tensor:
        return networks["vqgan"].decode(torch.zeros(1, *shape, device=device))

    def volume(networks: Built, device: torch.device) -> Tensor:
        latents = sample_ancestral(networks["denoiser"], alpha_bar, [0], shape, device=device)
        return networks["vqgan"].decode(latents)

    parts = [Part("denoising step", sizes.diffusion_steps, step), Part("decoding", 1, decode)]
    return Sample("Medical Diffusion", networks, volume, parts)


def _medsyn_sample(sizes: Sizes) -> Sample:
    config, stages = medsyn_stages(sizes)
    sampling, factor = config.sampling, config.preprocess.low_res_factor
    high = (len(stages["super_res"].channels), *config.preprocess.size)
    low = (high[0], *(side // factor for side in high[1:]))
    solver, scale = SOLVERS[sampling.solver], sampling.guidance_scale

    def networks() -> dict[str, nn.Module]:
        return {"low_res": build(stages["low_res"], sizes.text_width), "super_res": build(stages["super_res"], None)}

    def text(device: torch.device) -> Tensor:
        return torch.ones(1, stages["low_res"].num_tokens, sizes.text_width, device=device)

    def low_step(networks: Built, device: torch.device) -> Tensor:
        denoiser = prepared_denoiser(networks["low_res"], text=text(device), guidance_scale=scale)
        return denoiser(torch.zeros(1, *low, device=device), 400.0)

    def high_step(networks: Built, device: torch.device) -> Tensor:
        zeros = torch.zeros(1, *high, device=device)
        return prepared_denoiser(networks["super_res"], condition=zeros)(zeros, 400.0)

    def volume(networks: Built, device: torch.device) -> Tensor:
        denoiser = prepared_denoiser(networks["low_res"], text=text(device), guidance_scale=scale)
        small = sample(solver, denoiser, volume_noise([0], low, "low_res").to(device), sampling.num_steps_low_res)
        denoiser = prepared_denoiser(networks["super_res"], condition=LowResolution(factor).enlarge(small))
        noise = volume_noise([0], high, "super_res").to(device)
        return sample(solver, denoiser, noise, sampling.num_steps_super_res)

    parts = [
        Part("low_res step", sampling.num_steps_low_res + 1, low_step),
        Part("super_res step", sampling.num_steps_super_res + 1, high_step),
    ]
    return Sample("MedSyn", networks, volume, parts, half_weights=True)
