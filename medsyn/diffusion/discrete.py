"""Diffusion with noise prediction over discrete steps, as Medical Diffusion does it over latents (Ho et al. 2020).

Steps count from 0 (least noise) to num_steps - 1. The schedule is the cosine of Nichol and Dhariwal 2021, equation 17,
with each beta at most 0.9999; schedulers of public libraries clip at 0.999, which changes the last step. Arrays of the
schedule are float64, so that no step loses digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsyn.diffusion.seeds import volume_generator

_OFFSET = 0.008
_LARGEST_BETA = 0.9999
NoisePredictor = Callable[[Tensor, Tensor], Tensor]
"""(x [B, ...], step [B]) -> the predicted noise [B, ...]."""


def cosine_alpha_bar(num_steps: int) -> Tensor:
    """Return the share of the signal's variance that is left at each step, [num_steps] in float64."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be positive, got {num_steps}")
    t = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    whole = ((t + _OFFSET) / (1 + _OFFSET) * (math.pi / 2)).cos().square()
    betas = (1 - whole[1:] / whole[:-1]).clamp(0, _LARGEST_BETA)
    return (1 - betas).cumprod(0)


def add_noise(alpha_bar: Tensor, x0: Tensor, noise: Tensor, step: Tensor) -> Tensor:
    """Return x0 [B, ...] with noise of the same shape at the steps `step` [B]."""
    signal = alpha_bar.to(x0.device)[step].view(-1, *[1] * (x0.ndim - 1))
    return signal.sqrt().to(x0.dtype) * x0 + (1 - signal).sqrt().to(x0.dtype) * noise


def noise_loss(network: nn.Module, alpha_bar: Tensor, x0: Tensor, noise: Tensor, step: Tensor) -> Tensor:
    """Return the mean absolute error of the predicted noise."""
    return F.l1_loss(network(add_noise(alpha_bar, x0, noise, step), step).float(), noise)


def spaced_steps(num_steps: int, count: int) -> list[int]:
    """Return `count` of the steps, falling from num_steps - 1 to 0 at equal distances; all of them is the original."""
    if not 1 <= count <= num_steps:
        raise ValueError(f"the number of sampling steps must be in 1..{num_steps}, got {count}")
    return [num_steps - 1 - round(i * (num_steps - 1) / max(count - 1, 1)) for i in range(count)]


@torch.no_grad()
def sample_ancestral(
    predict: NoisePredictor,
    alpha_bar: Tensor,
    seeds: Sequence[int],
    shape: Sequence[int],
    *,
    count: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return samples [len(seeds), *shape] in [-1, 1] by `count` ancestral steps (all by default).

    The predicted x0 is clipped to [-1, 1], the noise of a step has the variance of the posterior, the last step has
    none. Each sample has its own generator, so it depends on its seed only and not on its batch.
    """
    generators = [volume_generator(seed, "diffusion") for seed in seeds]

    def noise() -> Tensor:
        return torch.stack([torch.randn(*shape, generator=generator) for generator in generators]).to(device)

    steps = spaced_steps(len(alpha_bar), len(alpha_bar) if count is None else count)
    x = noise()
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        predicted = predict(x, torch.full((len(x),), step, device=device)).float()
        now = float(alpha_bar[step])
        x0 = ((x - math.sqrt(1 - now) * predicted) / math.sqrt(now)).clamp(-1, 1)
        if after is None:
            return x0
        x = _posterior(x0, x, now, float(alpha_bar[after]), noise())
    return x


def _posterior(x0: Tensor, x: Tensor, now: float, after: float, noise: Tensor) -> Tensor:
    """Return a sample of q(x_after | x_now, x0), Ho et al. 2020, equations 6 and 7, between any two steps."""
    kept = now / after
    mean = math.sqrt(after) * (1 - kept) / (1 - now) * x0 + math.sqrt(kept) * (1 - after) / (1 - now) * x
    return mean + math.sqrt((1 - kept) * (1 - after) / (1 - now)) * noise
