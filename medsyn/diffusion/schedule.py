"""The continuous cosine noise schedule: x_t = sqrt(alpha_bar(t)) x0 + sqrt(1 - alpha_bar(t)) epsilon, t in [0, 1].

alpha_bar(t) = clip(cos^2((t + 0.008) / 1.008 * pi / 2), 1e-4, 1 - 1e-4), Nichol and Dhariwal 2021 eq. 17 without the
division by alpha_bar(0), as in the authors' release. The networks are told tau = 1000 t.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TAU_PER_T = 1000.0
_OFFSET = 0.008
_CLIP = 1e-4


def alpha_bar(t: Tensor) -> Tensor:
    """Return alpha_bar of times t (any shape, floating point); 1 before clipping for t < 0."""
    angle = (t + _OFFSET) / (1 + _OFFSET) * (math.pi / 2)
    value = torch.where(t < 0, torch.ones_like(t), angle.cos().square())
    return value.clamp(_CLIP, 1 - _CLIP)


def alpha_bar_at(t: float) -> float:
    """Return alpha_bar of one time, in double precision."""
    return float(alpha_bar(torch.tensor(t, dtype=torch.float64)))


def half_log_snr(t: float) -> float:
    """Return lambda(t) = log(sqrt(alpha_bar(t) / (1 - alpha_bar(t)))), which falls as t rises."""
    alpha = alpha_bar_at(t)
    return 0.5 * math.log(alpha / (1 - alpha))


def time_of_half_log_snr(value: float) -> float:
    """Return the t in [0, 1] of a lambda within the schedule's range: the inverse of `half_log_snr`."""
    t = math.atan(math.exp(-value)) / (math.pi / 2) * (1 + _OFFSET) - _OFFSET  # lambda = log cot(angle)
    return min(max(t, 0.0), 1.0)


def add_noise(x0: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
    """Return x_t for clean x0 and noise epsilon [B, C, D, H, W] at times t [B]."""
    alpha = alpha_bar(t.to(x0.dtype))[:, None, None, None, None]
    return alpha.sqrt() * x0 + (1 - alpha).sqrt() * epsilon


def ancestral_coefficients(t: float, s: float) -> tuple[float, float, float]:
    """Return (c_x0, c_xt, variance) of the posterior q(x_s | x_t, x0) for s < t (Ho et al. 2020 eq. 6 and 7)."""
    alpha_t, alpha_s = alpha_bar_at(t), alpha_bar_at(s)
    beta = 1 - alpha_t / alpha_s
    c_x0 = math.sqrt(alpha_s) * beta / (1 - alpha_t)
    c_xt = math.sqrt(1 - beta) * (1 - alpha_s) / (1 - alpha_t)
    return c_x0, c_xt, (1 - alpha_s) / (1 - alpha_t) * beta
