"""Few calls in place of many: what a distilled network has to predict (Salimans and Ho 2022, arXiv:2202.00512).

A sampler with the times t_1 > ... > t_N takes every prediction as constant until the next time (DDIM), and the last
one is the volume. With kappa = sqrt(alpha_bar / (1 - alpha_bar)), a step from t to s adds (kappa_s - kappa_t) x0 to x_t
over its noise level. So M steps are one step with the mean of their predictions, weighted by the steps of kappa. This
mean is the target of the paper's appendix G, for any M, and it stays in [-1, 1] where the predictions do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from medsyn.diffusion.schedule import TAU_PER_T, alpha_bar, half_log_snr, time_of_half_log_snr

BatchDenoiser = Callable[[Tensor, Tensor], Tensor]
"""(x [B, C, D, H, W], their times tau [B] in 0..1000) -> the predicted clean volumes x0 [B, C, D, H, W]."""


def teacher_times(num_calls: int, end_time: float) -> list[float]:
    """Return times tau from 1000 to 1000 `end_time`, evenly spaced in lambda as those of DPM-Solver++ are.

    Raises ValueError for less than two calls.
    """
    if num_calls < 2:
        raise ValueError(f"{num_calls} calls, expected at least 2")
    start, end = half_log_snr(1.0), half_log_snr(end_time)
    inner = [time_of_half_log_snr(start + (end - start) * i / (num_calls - 1)) for i in range(1, num_calls - 1)]
    return [TAU_PER_T, *(TAU_PER_T * t for t in inner), TAU_PER_T * end_time]


def teacher_target(denoiser: BatchDenoiser, x: Tensor, times: Tensor) -> Tensor:
    """Return the x0 with which one step equals those of the teacher from `times` [B, M + 1].

    x [B, C, D, H, W] is at times[:, 0]. Column M is where the student is called next; a NaN there stands for the end of
    sampling, where the last prediction is the volume.
    """
    signal = alpha_bar(times / TAU_PER_T)
    level = torch.sqrt(1 - signal)  # of the noise
    kappa = torch.sqrt(signal) / level
    first = scaled = x / _wide(level[:, 0])
    for place, step in enumerate(kappa.diff(dim=1).unbind(dim=1)):
        x0 = denoiser(_wide(level[:, place]) * scaled, times[:, place]).clamp(-1, 1)
        scaled = scaled + _wide(step.nan_to_num(0.0)) * x0
    mean = (scaled - first) / _wide(kappa[:, -1] - kappa[:, 0])
    return torch.where(_wide(times[:, -1]).isnan(), x0, mean)


def snr_weight(tau: Tensor) -> Tensor:
    """Return the paper's truncated weight max(alpha_bar / (1 - alpha_bar), 1) of squared errors of x0, [B]."""
    signal = alpha_bar(tau / TAU_PER_T)
    return (signal / (1 - signal)).clamp(min=1)


def intervals(times: Sequence[float], num_calls: int) -> list[list[float]]:
    """Return for each call of the student the teacher's times until the next call, which the last entry is.

    The last entry of the last call is NaN. Raises ValueError unless the number of calls divides that of the times.
    """
    each, rest = divmod(len(times), num_calls)
    if rest or not each:
        raise ValueError(f"{len(times)} calls of the teacher are not a multiple of {num_calls}")
    padded = [*times, math.nan]
    return [padded[i : i + each + 1] for i in range(0, len(times), each)]


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None, None]
