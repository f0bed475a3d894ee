"""Thresholds and intervals of Table VIII: known answers, and how often the 95 % bounds cover the true value.

Each simulation prints its coverage (`pytest -s`); docs/faithfulness.md quotes it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from medsyn.evaluate.distances import share_interval
from medsyn.evaluate.intervals import best_threshold, difference_of_shares, mean_interval, somers_d

NUM_RUNS = 2000


def test_the_threshold_parts_the_classes_and_needs_both() -> None:
    assert best_threshold([1, 2, 8, 9], [0, 0, 1, 1]) == 5.0
    assert best_threshold([1, 2, 3, 8, 9], [0, 1, 0, 1, 1]) == 5.5  # J: 2/3 at 5.5, 1/2 at 1.5
    assert best_threshold([3, 3, 3], [0, 1, 1]) is None
    assert best_threshold([1, 2], [1, 1]) is None


def test_bounds_of_a_mean_by_hand() -> None:
    low, high = mean_interval([1.0, 2.0, 3.0])
    half = 4.302653 / np.sqrt(3)  # t of two degrees of freedom, standard deviation 1
    assert (low, high) == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert mean_interval([1.0]) == mean_interval([]) == (None, None)


def booleans(*counts: tuple[bool, bool, int]) -> tuple[list[bool], list[bool]]:
    pairs = [(a, b) for a, b, count in counts for _ in range(count)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_bounds_of_a_difference_of_independent_shares_are_newcombes() -> None:
    first, second = [True] * 56 + [False] * 14, [True] * 48 + [False] * 32
    bounds = difference_of_shares(first, second, paired=False)
    assert bounds == pytest.approx((0.0524, 0.3339), abs=1e-4)  # Newcombe 1998, table II, example (a), method 10


def test_bounds_of_a_difference_of_paired_shares_by_hand() -> None:
    first, second = booleans((True, True, 36), (True, False, 14), (False, True, 12), (False, False, 28))
    p, q = 50 / 90, 48 / 90
    (p_low, p_high), (q_low, q_high) = (share_interval(share, 0.0, 90) for share in (p, q))
    phi = (36 * 28 - 14 * 12 - 45) / np.sqrt(50 * 40 * 48 * 42)
    down, up, q_up, q_down = p - p_low, p_high - p, q_high - q, q - q_low
    low = p - q - np.sqrt(down**2 - 2 * phi * down * q_up + q_up**2)
    high = p - q + np.sqrt(up**2 - 2 * phi * up * q_down + q_down**2)
    assert difference_of_shares(first, second, paired=True) == pytest.approx((low, high), rel=1e-9)
    apart = difference_of_shares(first, second, paired=False)
    assert apart[0] < low < high < apart[1]


def test_perfect_and_opposite_verdicts_have_bounds() -> None:
    low, high = difference_of_shares([True] * 10, [False] * 10, paired=True)
    assert 0.5 < low < high == 1.0
    assert difference_of_shares([False] * 10, [True] * 10, paired=True) == pytest.approx((-high, -low))


def test_somers_d_by_hand_and_by_scipy() -> None:
    ranks, values = [1, 1, 2, 2, 3], [1.0, 4.0, 3.0, 6.0, 6.0]
    found = somers_d(ranks, values)
    assert found is not None
    value, low, high = found
    assert value == pytest.approx((6 + 0.5 - 1.5) / 8)  # 8 pairs: 6 concordant, 1 tied, 1 discordant
    assert value == pytest.approx(stats.somersd(ranks, values).statistic)
    assert low < value < high
    assert somers_d([1, 2, 3] * 3, [1, 2, 3] * 3)[0] == 1.0  # type: ignore[index]
    assert somers_d([2, 2], [1.0, 5.0]) is None
    assert somers_d([], []) is None
    one_pair = somers_d([1, 2], [5.0, 5.0])
    assert one_pair is not None and one_pair[0] == 0.0


# --- coverage: the true value lies within 95 % bounds in 93 to 97 % of the runs, over true values of all sizes ---


def covered(name: str, run: Callable[[np.random.Generator], tuple[float, float, float]]) -> float:
    """Return the share of NUM_RUNS runs, each (true value, low, high), whose bounds hold the true value."""
    rng = np.random.default_rng(20)
    runs = np.array([run(rng) for _ in range(NUM_RUNS)])
    share = float(((runs[:, 1] <= runs[:, 0]) & (runs[:, 0] <= runs[:, 2])).mean())
    print(f"\n{name}: {100 * share:.1f} %")
    return share


@pytest.mark.parametrize("n", [6, 10, 30])
def test_bounds_of_a_share_cover(n: int) -> None:
    def run(rng: np.random.Generator) -> tuple[float, float, float]:
        p = rng.uniform()
        return (p, *share_interval(rng.binomial(n, p) / n, 0.0, n))

    assert 0.93 < covered(f"share, n {n}", run) < 0.97


@pytest.mark.parametrize("n", [6, 10, 30])
@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_bounds_of_presence_cover(n: int, correlation: float) -> None:
    """Stated and denied volumes of a seed are correlated, because both show the person of the seed."""

    def run(rng: np.random.Generator) -> tuple[float, float, float]:
        p, q = rng.uniform(size=2)
        normal = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], size=n)
        stated, denied = (stats.norm.cdf(normal[:, k]) < share for k, share in enumerate((p, q)))
        return (p - q, *difference_of_shares(list(stated), list(denied), paired=True))

    assert 0.93 < covered(f"presence, n {n}, correlation {correlation}", run) < 0.975


@pytest.mark.parametrize(("num_with", "num_without"), [(5, 30), (15, 25)])
def test_bounds_of_presence_in_real_volumes_cover(num_with: int, num_without: int) -> None:
    def run(rng: np.random.Generator) -> tuple[float, float, float]:
        p, q = rng.uniform(size=2)
        groups = (list(rng.random(n) < share) for n, share in ((num_with, p), (num_without, q)))
        return (p - q, *difference_of_shares(*groups, paired=False))

    assert 0.93 < covered(f"presence, real, n {num_with} and {num_without}", run) < 0.97


def amount_of(kind: str, rank: NDArray[np.int64], slope: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return amounts that rise with the rank: with equal noise, growing noise, or where a quarter ignores the rank."""
    noise = rng.normal(size=len(rank))
    if kind == "growing noise":
        return slope * rank + noise * rank
    followed = rng.random(len(rank)) < 0.75 if kind == "a quarter ignores the text" else True
    return np.where(followed, slope * rank, 0.0) + noise


@pytest.mark.parametrize("n", [6, 9, 30])
@pytest.mark.parametrize("kind", ["equal noise", "growing noise", "a quarter ignores the text"])
def test_bounds_of_the_amount_cover(n: int, kind: str) -> None:
    slopes, rng = (0.0, 0.5, 1.0, 2.0), np.random.default_rng(1)
    large = [[amount_of(kind, np.full(2000, rank), slope, rng) for rank in (1, 2, 3)] for slope in slopes]
    counts = np.bincount(np.arange(n) % 3)
    weights = {(i, j): counts[i] * counts[j] for i in range(3) for j in range(i + 1, 3)}
    true = [
        2 * np.average([(g[i][:, None] < g[j]).mean() for i, j in weights], weights=list(weights.values())) - 1
        for g in large
    ]

    def run(rng: np.random.Generator) -> tuple[float, float, float]:
        k = int(rng.integers(len(slopes)))
        rank = np.arange(n) % 3 + 1
        found = somers_d(rank, amount_of(kind, rank, slopes[k], rng))
        assert found is not None
        return (float(true[k]), found[1], found[2])

    assert 0.93 < covered(f"amount, n {n}, {kind}", run) < 0.975


@pytest.mark.parametrize("n", [5, 10, 30])
def test_bounds_of_the_swap_cover(n: int) -> None:
    def run(rng: np.random.Generator) -> tuple[float, float, float]:
        true = rng.uniform(-1, 2)
        low, high = mean_interval(rng.normal(true, 0.5, n))
        assert low is not None and high is not None
        return true, low, high

    assert 0.93 < covered(f"swap, n {n}", run) < 0.97
