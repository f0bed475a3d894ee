"""Plan a study by simulation: how often a difference is found with so many readers and sets of volumes.

Model (Thurstone's, case V, with random effects): reader r sees of method m in set s a quality
q_m + a_rm + b_sm + e_rsm, and ranks by it. q is `difference` for one method and 0 for the others. a is a taste of the
reader (standard deviation `reader_spread`), b the luck of the volume (`set_spread`), e what changes from look to look
(1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsyn.errors import InputError

LEVEL = 0.05


@dataclass(frozen=True)
class Model:
    """What is taken as true.

    preferred: probability that a reader ranks the better method above another one, between 0.5 and 1, over readers and
    volumes; num_methods: ranked at once; reader_spread, set_spread: standard deviations, that of single looks being 1.
    """

    preferred: float = 0.7
    num_methods: int = 4
    reader_spread: float = 0.5
    set_spread: float = 0.5

    def __post_init__(self) -> None:
        if not 0.5 < self.preferred < 1:
            raise InputError(f"--preferred {self.preferred:g}: expected a probability above 0.5 and below 1")
        if self.num_methods < 2:
            raise InputError(f"--methods {self.num_methods}: expected at least two to rank")
        if min(self.reader_spread, self.set_spread) < 0:
            raise InputError("--reader-spread and --set-spread are standard deviations, expected 0 or more")

    @property
    def difference(self) -> float:
        """The quality that gives `preferred`: Phi^-1(preferred) sqrt(2 (1 + reader_spread^2 + set_spread^2))."""
        from scipy import stats

        variance = 2 * (1 + self.reader_spread**2 + self.set_spread**2)
        return float(stats.norm.ppf(self.preferred)) * math.sqrt(variance)


@dataclass(frozen=True)
class Power:
    """Shares of simulated studies with p < LEVEL after Bonferroni's correction, for one pair of methods.

    power: by the test of mean ranks over readers and sets (medsyn.evaluate.reader_statistics); reader_power: by the
    paired t-test over the readers' mean ranks; false_alarm, reader_false_alarm: the same where no method is better.
    """

    num_readers: int
    num_sets: int
    power: float
    reader_power: float
    false_alarm: float
    reader_false_alarm: float


def simulate(model: Model, readers: Iterable[int], sets: Iterable[int], num_simulations: int, seed: int) -> list[Power]:
    """Return the power of every number of readers and of sets per structure; the seed decides the random numbers."""
    designs = [(num_readers, num_sets) for num_readers in readers for num_sets in sets]
    for num_readers, num_sets in designs:
        if num_readers < 2 or num_sets < 1 or num_simulations < 1:
            raise InputError(
                f"{num_readers} readers, {num_sets} sets, {num_simulations} simulations: expected at least two readers,"
                " one set and one simulation"
            )
    found = []
    for num_readers, num_sets in designs:
        rng = np.random.default_rng([seed, num_readers, num_sets])
        shares = [
            share
            for difference in (model.difference, 0.0)
            for share in _found(_ranks(model, difference, num_readers, num_sets, num_simulations, rng))
        ]
        found.append(Power(num_readers, num_sets, *shares))
    return found


def smallest(found: Iterable[Power], wanted: float) -> Power | None:
    """Return the design with the fewest readers, then sets, whose reader_power is at least `wanted`; None without."""
    enough = [each for each in found if each.reader_power >= wanted]
    return min(enough, key=lambda each: (each.num_readers, each.num_sets), default=None)


def _ranks(
    model: Model, difference: float, num_readers: int, num_sets: int, num_simulations: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return ranks (simulations, readers, sets, methods); method 0 is better by `difference`."""
    n, k = num_simulations, model.num_methods
    quality = np.zeros((n, num_readers, num_sets, k))
    quality[..., 0] = difference
    quality += model.reader_spread * rng.standard_normal((n, num_readers, 1, k))
    quality += model.set_spread * rng.standard_normal((n, 1, num_sets, k))
    quality += rng.standard_normal(quality.shape)
    return ((-quality).argsort(-1).argsort(-1) + 1).astype(np.float64)


def _found(ranks: NDArray[np.float64]) -> tuple[float, float]:
    """Return the shares of simulations in which methods 0 and 1 differ: over all rankings, and over readers."""
    from scipy import stats

    _, num_readers, num_sets, k = ranks.shape
    pairs = k * (k - 1) / 2
    steps = (ranks[..., 0] - ranks[..., 1]).mean(2)  # (simulations, readers)
    z = steps.mean(1) / math.sqrt(k * (k + 1) / (6 * num_readers * num_sets))
    p = 2 * stats.norm.sf(np.abs(z)) * pairs
    error = steps.std(1, ddof=1) / math.sqrt(num_readers)
    t = np.divide(steps.mean(1), error, out=np.where(steps.mean(1) == 0, 0.0, np.inf), where=error > 0)
    reader_p = 2 * stats.t.sf(np.abs(t), num_readers - 1) * pairs
    return float((p < LEVEL).mean()), float((reader_p < LEVEL).mean())
