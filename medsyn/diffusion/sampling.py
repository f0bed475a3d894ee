"""Sample volumes: a solver, its times, and a denoiser made of a network and small wrappers.

A denoiser is a function (x [B, C, D, H, W], tau) -> predicted x0. Each wrapper takes one and returns one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medsyn.diffusion.base import Denoiser, Solver
from medsyn.diffusion.schedule import TAU_PER_T
from medsyn.progress import track


def sample(
    solver: Solver,
    denoiser: Denoiser,
    noise: Tensor,
    num_steps: int,
    *,
    fixed: Tensor | None = None,
    fixed_channels: Sequence[int] = (),
    end_time: float = 0.0,
    times: Sequence[float] | None = None,
    description: str = "sampling",
) -> Tensor:
    """Return volumes in [-1, 1] for `noise` [B, C, D, H, W].

    Every prediction is clipped to [-1, 1]; before that the `fixed_channels` of `fixed` (clean volumes of the same
    shape) replace its own, so that the other channels are sampled given them and the result holds them exactly.
    end_time: t in [0, 1) of the last prediction, which is the result; the solver's times below it are left out.
    times: those of the calls, in place of the solver's until end_time. description: of the progress bar.
    """
    times = times_until(solver.times(num_steps), end_time) if times is None else times
    if fixed is not None and fixed_channels:
        denoiser = with_fixed_channels(denoiser, fixed, fixed_channels)
    return solver.solve(with_progress(clipped(denoiser), times, description), noise, times)


def times_until(times: Sequence[float], end_time: float) -> list[float]:
    """Return the falling times tau in 0..1000 as far as 1000 end_time, which becomes the last one."""
    end = TAU_PER_T * end_time
    return [*(tau for tau in times if tau > end), end]


def clipped(denoiser: Denoiser) -> Denoiser:
    """Clip the predictions to [-1, 1]."""
    return lambda x, tau: denoiser(x, tau).clamp(-1, 1)


def with_fixed_channels(denoiser: Denoiser, fixed: Tensor, channels: Sequence[int]) -> Denoiser:
    """Replace some channels of the predictions by those of clean volumes `fixed` [B, C, D, H, W]."""

    def denoise(x: Tensor, tau: float) -> Tensor:
        x0 = denoiser(x, tau).clone()
        x0[:, list(channels)] = fixed[:, list(channels)].to(x0.dtype)
        return x0

    return denoise


def with_progress(denoiser: Denoiser, times: Sequence[float], description: str) -> Denoiser:
    """Move a progress bar over the falling `times` past those that the denoiser has been called at."""
    bar = track(times, description=description)
    waiting = next(bar, None)

    def denoise(x: Tensor, tau: float) -> Tensor:
        nonlocal waiting
        x0 = denoiser(x, tau)
        while waiting is not None and waiting >= tau:
            waiting = next(bar, None)
        return x0

    return denoise


def guided_denoiser(
    network: nn.Module, *, text: Tensor | None = None, guidance_scale: float = 1.0, condition: Tensor | None = None
) -> Denoiser:
    """Return a network's predictions with classifier-free guidance: x0_null + w (x0_text - x0_null).

    Scale w = 1, or no text, needs one call of the network only. The authors mix the noises; for any alpha_bar both
    forms are equal. This is the plain form, for any network;
    medsyn.models.fast.denoiser does the same faster for ours.
    """
    given = {} if condition is None else {"condition": condition}

    def denoise(x: Tensor, tau: float) -> Tensor:
        taus = torch.full((len(x),), tau, device=x.device)
        if text is None:
            return network(x, taus, **given)
        x0 = network(x, taus, text=text, **given)
        if guidance_scale == 1.0:
            return x0
        null = network(x, taus, text=None, **given)
        return null + guidance_scale * (x0 - null)

    return denoise
