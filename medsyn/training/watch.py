"""Detect an exploding loss.

A loss has exploded if it was more than ten times its lowest smoothed value in 100 optimiser steps in a row. Losses of
single steps scatter, because every step has other times t, so one large loss does not end a run. A network whose loss
has been ten times as high for 100 steps has lost what it learned. A lowest loss below a thousandth of the first one
counts as a thousandth of it, so that the jitter of a perfect fit is not taken for an explosion. The rule supposes a
positive loss that falls.
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
