"""Deterministic sampling with DDIM (Song et al. 2021, eq. 12 with eta = 0), as in the authors' release.

A denoiser is a function (x [B, C, D, H, W], tau [B]) -> predicted x0. Volumes are in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from medsyn.diffusion.schedule import TAU_PER_T, alpha_bar_at
from medsyn.progress import track

Denoiser = Callable[[Tensor, Tensor], Tensor]


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
    for tau, following in track(zip(grid, [*grid[1:], None], strict=True), what=what, total=len(grid)):
        x0 = denoiser(x, torch.full((x.shape[0],), float(tau), device=x.device))
        if fixed is not None and fixed_channels:
            x0 = x0.clone()
            x0[:, list(fixed_channels)] = fixed[:, list(fixed_channels)].to(x0.dtype)
        x0 = x0.clamp(-1, 1)
        if following is None:
            return x0
        x = ddim_step(x, x0, tau / TAU_PER_T, following / TAU_PER_T)
    raise AssertionError("the grid is never empty")


def ddim_step(x: Tensor, x0: Tensor, t: float, s: float) -> Tensor:
    """x_s from x_t and the predicted x0: keep the implied noise, lower its level."""
    alpha_t, alpha_s = alpha_bar_at(t), alpha_bar_at(s)
    epsilon = (x - math.sqrt(alpha_t) * x0) / math.sqrt(1 - alpha_t)
    return math.sqrt(alpha_s) * x0 + math.sqrt(1 - alpha_s) * epsilon


def guided_denoiser(
    network: nn.Module, *, text: Tensor | None = None, guidance_scale: float = 1.0, condition: Tensor | None = None
) -> Denoiser:
    """Classifier-free guidance in x0 form: x0_null + w (x0_text - x0_null); w = 1 or no text needs one call only.

    The authors mix the noises; for any alpha_bar both forms are equal.
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
