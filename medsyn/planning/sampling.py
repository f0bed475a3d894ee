"""What sampling and feature extraction need of a GPU's memory, counted without data (medsyn.live_bytes)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medsyn.config import SamplingConfig
from medsyn.diffusion.objective import LowResolution
from medsyn.diffusion.sampling import sample
from medsyn.live_bytes import META, CudaRules, LiveBytes, build_on_meta
from medsyn.models.fast.denoiser import prepared_denoiser
from medsyn.models.fast.unet import FastUNet
from medsyn.registry import SOLVERS
from medsyn.training.need import DTYPES, Need

_SOLVER_STEPS = 2  # enough that every tensor that a solver keeps from step to step exists


@dataclass(frozen=True)
class Sampling:
    """What `count_sampling` counts: builders of both denoisers and of the language model, and the shapes.

    size: full resolution (D, H, W); text: (num_tokens, width) of the text states, None without text.
    """

    low_res: Callable[[], FastUNet]
    super_res: Callable[[], FastUNet]
    language: Callable[[], nn.Module] | None
    size: Sequence[int]
    factor: int
    text: tuple[int, int] | None


def count_sampling(sampling: Sampling, config: SamplingConfig, batch_size: int) -> tuple[Need, Need]:
    """Count sampling `batch_size` volumes with given channels (Table V): low resolution, super-resolution.

    Both networks and the language model stay on the device; the second resolution is sampled one volume at a time,
    whole unless `tile` is a number.
    """
    live = LiveBytes()
    low_net, high_net = (build_on_meta(build, live) for build in (sampling.low_res, sampling.super_res))
    language = None if sampling.language is None else build_on_meta(sampling.language, live)
    assert isinstance(low_net, FastUNet) and isinstance(high_net, FastUNet)
    peaks = []

    def note() -> None:
        peaks.append(live.peak)
        live.restart()

    with live, CudaRules(), torch.no_grad():
        for network in (low_net, high_net):
            network.eval()
            network.set_precision(DTYPES[config.precision])
        high_net.slab_slices = config.tile if isinstance(config.tile, int) else None
        weights = live.restart()
        fixed = torch.empty(batch_size, low_net.channels, *sampling.size, device=META)
        text = None if sampling.text is None else torch.empty(batch_size, *sampling.text, device=META)
        sample_both(low_net, high_net, config, fixed, text, sampling.factor, note)
        note()
    del language
    first, second = (Need({"weights": weights, "activations": peak - weights}) for peak in peaks)
    return first, second


def sample_both(
    low_net: FastUNet,
    high_net: FastUNet,
    config: SamplingConfig,
    fixed: Tensor,
    text: Tensor | None,
    factor: int,
    between: Callable[[], None] = lambda: None,
) -> Tensor:
    """Take the steps of `medsyn.methods.run` that make its peak of memory, on any device: few of them, one volume.

    fixed [B, C, D, H, W]: given channels at full resolution; text [B, num_tokens, width]; between() is called between
    low resolution (B volumes) and super-resolution (the first of them).
    """
    solver = SOLVERS[config.solver]
    low_resolution = LowResolution(factor)
    given = low_resolution.reduce(fixed)
    noise = torch.empty(given.shape, device=fixed.device).normal_()
    denoiser = prepared_denoiser(low_net, text=text, guidance_scale=config.guidance_scale)
    low = sample(solver, denoiser, noise, _SOLVER_STEPS, fixed=given, fixed_channels=[0])
    between()
    condition = low_resolution.enlarge(low[:1])
    noise = torch.empty(1, *fixed.shape[1:], device=fixed.device).normal_()
    denoiser = prepared_denoiser(high_net, text=None if text is None else text[:1], condition=condition)
    return sample(solver, denoiser, noise, _SOLVER_STEPS, fixed=fixed[:1], fixed_channels=[0])


def count_inference(build: Callable[[], nn.Module], batch: Callable[[], Tensor]) -> Need:
    """Count a forward pass without gradients over one batch."""
    live = LiveBytes()
    network = build_on_meta(build, live)
    weights = live.restart()
    with live, CudaRules(), torch.no_grad():
        network.eval()(batch())
    return Need({"weights": weights, "activations": live.peak - weights})
