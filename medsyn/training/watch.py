"""When a training is lost: the loss is no number, or it has exploded.

The rule for an exploded loss: 100 optimiser steps in a row whose loss is more than ten times the lowest smoothed loss
so far. Losses of single steps scatter (the time t is drawn anew), so one of them, however large, proves nothing and
ends no run; a training that recovers breaks the row. One that has been ten times worse than it was for 100 steps has
lost what it learned. A lowest loss below a thousandth of the first counts as that, so that the jitter of a perfect fit
is no explosion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SMOOTHING = 0.98  # smoothed <- 0.98 smoothed + 0.02 loss
FACTOR = 10.0
NUM_STEPS = 100
_FLOOR = 1e-3


@dataclass
class LossWatch:
    """The losses so far in four numbers, all of which go into a checkpoint.

    smoothed: exponential average; first: the first loss; lowest: least smoothed loss; num_high: how many of the last
    losses in a row were high.
    """

    smoothed: float | None = None
    first: float | None = None
    lowest: float = math.inf
    num_high: int = 0

    def update(self, loss: float) -> None:
        """Take in the loss of the next step, a finite number."""
        if self.smoothed is None or self.first is None:
            self.smoothed = self.first = loss
        high = loss > FACTOR * max(self.lowest, _FLOOR * self.first)
        self.num_high = self.num_high + 1 if high else 0
        self.smoothed = SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        self.lowest = min(self.lowest, self.smoothed)

    @property
    def exploded(self) -> bool:
        """Whether the rule above holds now."""
        return self.num_high >= NUM_STEPS
