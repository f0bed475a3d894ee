"""Deterministic samplers: DDIM (Song et al. 2021, eq. 12 with eta = 0), as in the authors' release, and DPM-Solver++.

Both have one signature and call the network num_steps + 1 times (DDIM's integer grid now and then once more); the last
call, at tau = 0, gives the result. A denoiser is a function (x [B, C, D, H, W], tau [B]) -> predicted x0. Volumes are
in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from medsyn.diffusion.schedule import TAU_PER_T, alpha_bar_at, half_log_snr, time_of_half_log_snr
from medsyn.progress import track

Denoiser = Callable[[Tensor, Tensor], Tensor]
Solver = Literal["ddim", "dpmpp_2m"]


def ddim_grid(num_steps: int) -> list[int]:
    """Times tau of the network calls, falling to 0: multiples of floor(1000 / num_steps), so often num_steps + 1."""
    if not 1 <= num_steps <= TAU_PER_T:
        raise ValueError(f"num_steps must be in 1..{TAU_PER_T:.0f}, got {num_steps}")
    delta = int(TAU_PER_T // num_steps)
    return list(range(int(TAU_PER_T // delta) * delta, -1, -delta))


def ddim(
    denoiser: Denoiser,
    noise: Tensor,
    num_steps: int,
    *,
    fixed: Tensor | None = None,
    fixed_channels: Sequence[int] = (),
    what: str = "sampling",
) -> Tensor:
    """Draw volumes in [-1, 1] from `noise` [B, C, D, H, W].

    fixed: clean volumes of the same shape in [-1, 1]; its `fixed_channels` replace the prediction at every step, before
    clipping, so the other channels are drawn given them and the result holds them exactly.
    """
    x = noise
    grid = ddim_grid(num_steps)
    for tau, following in track(zip(grid, [*grid[1:], None], strict=True), description=what, total=len(grid)):
        x0 = _clean_volume(denoiser, x, tau, fixed, fixed_channels)
        if following is None:
            return x0
        x = ddim_step(x, x0, tau / TAU_PER_T, following / TAU_PER_T)
    raise AssertionError("the grid is never empty")


def ddim_step(x: Tensor, x0: Tensor, t: float, s: float) -> Tensor:
    """x_s from x_t and the predicted x0: keep the implied noise, lower its level."""
    alpha_t, alpha_s = alpha_bar_at(t), alpha_bar_at(s)
    epsilon = (x - math.sqrt(alpha_t) * x0) / math.sqrt(1 - alpha_t)
    return math.sqrt(alpha_s) * x0 + math.sqrt(1 - alpha_s) * epsilon


def dpmpp_2m_grid(num_steps: int) -> list[float]:
    """num_steps + 1 times tau from 1000 to 0, evenly spaced in lambda = log(sqrt(alpha_bar / (1 - alpha_bar))).

    The inverse is that of the cosine schedule; its clipped end (t > 0.9936) has one lambda, called by tau = 1000.
    """
    if not 1 <= num_steps <= TAU_PER_T:
        raise ValueError(f"num_steps must be in 1..{TAU_PER_T:.0f}, got {num_steps}")
    start, end = half_log_snr(1.0), half_log_snr(0.0)
    inner = [time_of_half_log_snr(start + (end - start) * i / num_steps) for i in range(1, num_steps)]
    return [TAU_PER_T, *(TAU_PER_T * t for t in inner), 0.0]


def dpmpp_2m(
    denoiser: Denoiser,
    noise: Tensor,
    num_steps: int,
    *,
    fixed: Tensor | None = None,
    fixed_channels: Sequence[int] = (),
    what: str = "sampling",
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2): second order, for few steps; else as `ddim`.

    The predicted x0 is extrapolated linearly in lambda from the last two calls; the first step has only one and is
    a DDIM step. Clipping and fixed channels act on each prediction before it is extrapolated.
    """
    x = noise
    before: tuple[Tensor, float] | None = None  # the previous prediction, and its step in lambda
    for tau, following in track(list(pairwise([*dpmpp_2m_grid(num_steps), None])), description=what):
        x0 = _clean_volume(denoiser, x, tau, fixed, fixed_channels)  # type: ignore[arg-type]
        if following is None:
            return x0
        t, s = tau / TAU_PER_T, following / TAU_PER_T  # type: ignore[operator]
        step = half_log_snr(s) - half_log_snr(t)
        guess = x0 if before is None else x0 + step / (2 * before[1]) * (x0 - before[0])
        x = dpmpp_step(x, guess, t, s)
        before = x0, step
    raise AssertionError("the grid is never empty")


def dpmpp_step(x: Tensor, guess: Tensor, t: float, s: float) -> Tensor:
    """x_s = sigma_s / sigma_t x_t - a_s (exp(-h) - 1) guess, with a^2 = alpha_bar = 1 - sigma^2, h the lambda step."""
    alpha_t, alpha_s = alpha_bar_at(t), alpha_bar_at(s)
    shrink = math.expm1(half_log_snr(t) - half_log_snr(s))
    return math.sqrt((1 - alpha_s) / (1 - alpha_t)) * x - math.sqrt(alpha_s) * shrink * guess


SOLVERS = {"ddim": ddim, "dpmpp_2m": dpmpp_2m}


def _clean_volume(
    denoiser: Denoiser, x: Tensor, tau: float, fixed: Tensor | None, fixed_channels: Sequence[int]
) -> Tensor:
    """The prediction at tau with the fixed channels put in, clipped to [-1, 1]."""
    x0 = denoiser(x, torch.full((x.shape[0],), float(tau), device=x.device))
    if fixed is not None and fixed_channels:
        x0 = x0.clone()
        x0[:, list(fixed_channels)] = fixed[:, list(fixed_channels)].to(x0.dtype)
    return x0.clamp(-1, 1)


def guided_denoiser(
    network: nn.Module, *, text: Tensor | None = None, guidance_scale: float = 1.0, condition: Tensor | None = None
) -> Denoiser:
    """Classifier-free guidance in x0 form: x0_null + w (x0_text - x0_null); w = 1 or no text needs one call only.

    The authors mix the noises; for any alpha_bar both forms are equal. This is the plain form, for any network;
    medsyn.models.drawing gives the same faster for ours.
    """
    given = {} if condition is None else {"condition": condition}

    def denoise(x: Tensor, tau: Tensor) -> Tensor:
        if text is None:
            return network(x, tau, **given)
        x0 = network(x, tau, text=text, **given)
        if guidance_scale == 1.0:
            return x0
        null = network(x, tau, text=None, **given)
        return null + guidance_scale * (x0 - null)

    return denoise


def volume_noise(seeds: Sequence[int], shape: Sequence[int], stage: int) -> Tensor:
    """Standard normal [len(seeds), *shape], float32 on the CPU; each volume has its own generator.

    A volume's noise depends on its seed and the stage (0 low resolution, 1 super-resolution) only, not on its batch.
    """
    return torch.stack([torch.randn(*shape, generator=seeded(seed, stage)) for seed in seeds])


def seeded(*key: int) -> torch.Generator:
    """A CPU generator that is a pure function of non-negative integers (numpy's SeedSequence mixes them)."""
    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state & (2**63 - 1))
