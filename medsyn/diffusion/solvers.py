"""The deterministic solvers of the package: DDIM, as in the authors' release, and DPM-Solver++(2M) for few steps.

Both call the denoiser once per time of their grid; the last call, at tau = 0 or where sampling ends, gives the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from medsyn.diffusion.base import Denoiser, Solver
from medsyn.diffusion.schedule import TAU_PER_T, alpha_bar_at, half_log_snr, time_of_half_log_snr


def ddim(denoiser: Denoiser, x: Tensor, times: Sequence[float]) -> Tensor:
    """Solve by DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12 with eta = 0)."""
    for tau, following in pairwise(times):
        x = ddim_step(x, denoiser(x, tau), tau / TAU_PER_T, following / TAU_PER_T)
    return denoiser(x, times[-1])


def ddim_times(num_steps: int) -> list[float]:
    """Return the multiples of floor(1000 / num_steps) up to 1000, falling to 0: often num_steps + 1 times."""
    _check(num_steps)
    delta = int(TAU_PER_T // num_steps)
    return [float(tau) for tau in range(int(TAU_PER_T // delta) * delta, -1, -delta)]


def ddim_step(x: Tensor, x0: Tensor, t: float, s: float) -> Tensor:
    """Return x_s from x_t and the predicted x0: keep the implied noise, lower its level."""
    alpha_t, alpha_s = alpha_bar_at(t), alpha_bar_at(s)
    epsilon = (x - math.sqrt(alpha_t) * x0) / math.sqrt(1 - alpha_t)
    return math.sqrt(alpha_s) * x0 + math.sqrt(1 - alpha_s) * epsilon


def dpmpp_2m(denoiser: Denoiser, x: Tensor, times: Sequence[float]) -> Tensor:
    """Solve by DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2), of second order.

    The predicted x0 is extrapolated linearly in lambda from the last two calls. The first step has only one and is a
    DDIM step.
    """
    before: tuple[Tensor, float] | None = None  # the previous prediction, and its step in lambda
    for tau, following in pairwise(times):
        t, s = tau / TAU_PER_T, following / TAU_PER_T
        x0, step = denoiser(x, tau), half_log_snr(s) - half_log_snr(t)
        guess = x0 if before is None else x0 + step / (2 * before[1]) * (x0 - before[0])
        x = dpmpp_step(x, guess, t, s)
        before = x0, step
    return denoiser(x, times[-1])


def dpmpp_2m_times(num_steps: int) -> list[float]:
    """Return num_steps + 1 times from 1000 to 0, evenly spaced in lambda = log(sqrt(alpha_bar / (1 - alpha_bar))).

    The inverse is that of the cosine schedule; its clipped end (t > 0.9936) has one lambda, called by tau = 1000.
    """
    _check(num_steps)
    start, end = half_log_snr(1.0), half_log_snr(0.0)
    inner = [time_of_half_log_snr(start + (end - start) * i / num_steps) for i in range(1, num_steps)]
    return [TAU_PER_T, *(TAU_PER_T * t for t in inner), 0.0]


def dpmpp_step(x: Tensor, guess: Tensor, t: float, s: float) -> Tensor:
    """Return x_s = sigma_s / sigma_t x_t - a_s (exp(-h) - 1) guess, with a^2 = alpha_bar = 1 - sigma^2.

    h is the step in lambda.
    """
    alpha_t, alpha_s = alpha_bar_at(t), alpha_bar_at(s)
    shrink = math.expm1(half_log_snr(t) - half_log_snr(s))
    return math.sqrt((1 - alpha_s) / (1 - alpha_t)) * x - math.sqrt(alpha_s) * shrink * guess


def _check(num_steps: int) -> None:
    if not 1 <= num_steps <= TAU_PER_T:
        raise ValueError(f"num_steps is {num_steps}, expected 1 to {TAU_PER_T:.0f}")


DDIM = Solver("DDIM", ddim_times, ddim)
DPMPP_2M = Solver("DPM-Solver++(2M)", dpmpp_2m_times, dpmpp_2m)
