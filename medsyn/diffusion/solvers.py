"""The deterministic solvers of the package: DDIM, as in the authors' release, and two of higher order for few steps.

All call the denoiser once per time of their grid; the last call, at tau = 0 or where sampling ends, gives the result.
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


def unipc(denoiser: Denoiser, x: Tensor, times: Sequence[float]) -> Tensor:
    """Solve by UniPC-2 (Zhao et al. 2023, arXiv:2302.04867): DPM-Solver++(2M), whose steps are corrected afterwards.

    A step is repeated with the prediction at its end, which the next step needs anyway, so that the third order costs
    no call. The predictions are interpolated in lambda, by a parabola where there are three of them, and integrated
    exactly; the function B(h) of the paper then cancels out.
    """
    before: tuple[Tensor, float] | None = None  # the previous prediction, and the step in lambda that followed it
    x0 = denoiser(x, times[0])
    for tau, following in pairwise(times):
        t, s = tau / TAU_PER_T, following / TAU_PER_T
        step = half_log_snr(s) - half_log_snr(t)
        guess = x0 if before is None else x0 + step / (2 * before[1]) * (x0 - before[0])
        after = denoiser(dpmpp_step(x, guess, t, s), following)
        x = dpmpp_step(x, _mean_prediction(x0, after, step, before), t, s)
        before, x0 = (x0, step) if step else None, after
    return x0


def _mean_prediction(x0: Tensor, after: Tensor, step: float, before: tuple[Tensor, float] | None) -> Tensor:
    """Return the mean over a step of the interpolated prediction, weighted by exp(lambda).

    x0, after: the predictions at both ends; step: its length in lambda; before: the prediction before x0 and the
    distance from there. The interpolation is x0 + a u + b u^2 for u in [0, 1], and b = 0 without `before`.
    """
    if step == 0.0:  # both times lie in the clipped end of the schedule
        return x0
    total = -math.expm1(-step)
    first = 1 / total - 1 / step  # of u
    second = 1 / total - 2 / step * first  # of u^2
    if before is None:
        return x0 + first * (after - x0)
    place = -before[1] / step  # of `before` in units of u
    slope = (before[0] - x0) / place
    curvature = (after - x0 - slope) / (1 - place)
    return x0 + first * (after - x0 - curvature) + second * curvature


def _check(num_steps: int) -> None:
    if not 1 <= num_steps <= TAU_PER_T:
        raise ValueError(f"num_steps is {num_steps}, expected 1 to {TAU_PER_T:.0f}")


DDIM = Solver("DDIM", ddim_times, ddim)
DPMPP_2M = Solver("DPM-Solver++(2M)", dpmpp_2m_times, dpmpp_2m)
UNIPC = Solver("UniPC-2", dpmpp_2m_times, unipc)
