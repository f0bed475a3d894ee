"""What a solver is, and the registry of solvers: `sampling.solver` of the configuration names one.

A solver turns noise into volumes with a denoiser and a falling series of times. A user's solver is a `Solver` under a
new name: registered by a module under `plugins`, or offered by an installed package as an entry point of the group
`medsyn.solvers`. Clipping, given channels, guidance and progress are wrappers of the denoiser
(medsyn.diffusion.sampling), so that a solver is nothing but its formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medsyn.registry import SOLVERS

if TYPE_CHECKING:
    from torch import Tensor

Denoiser = Callable[["Tensor", float], "Tensor"]
"""(x [B, C, D, H, W], its time tau in 0..1000) -> the predicted clean volumes x0 [B, C, D, H, W]."""


@dataclass(frozen=True)
class Solver:
    """A way from noise to a clean volume.

    label: its name on pages. times(num_steps): the times tau of a run with that many steps, falling from about 1000 to
    0; a number of steps that it cannot take is a ValueError. solve(denoiser, x, times): the clean volumes for the noise
    x [B, C, D, H, W] at times[0], for any falling times; each volume depends on its own noise only, and the result is
    the denoiser's at times[-1].
    """

    label: str
    times: Callable[[int], Sequence[float]]
    solve: Callable[[Denoiser, Tensor, Sequence[float]], Tensor]


def solver_label(name: str) -> str:
    """Return how pages name a solver: its label, or the bare name where no solver is known by it any more."""
    return SOLVERS[name].label if name in SOLVERS else name
