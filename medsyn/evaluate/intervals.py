"""Bounds that hold for few independent units, and the threshold that parts two classes: what Table VIII is made of.

Arrays in, numbers out. docs/faithfulness.md states how often the 95 % bounds cover the true value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsyn.evaluate.distances import share_interval


def best_threshold(values: ArrayLike, labels: ArrayLike) -> float | None:
    """Return the threshold above which a value is called positive with the largest sensitivity + specificity - 1.

    That sum is Youden's J (Cancer 1950; 3: 32-35). Candidates are the midpoints between neighbouring values; of equal
    ones the smallest is chosen. None with one class only, or where all values are equal.
    """
    value, label = np.asarray(values, dtype=np.float64), np.asarray(labels).astype(bool)
    levels = np.unique(value)
    if label.all() or not label.any() or len(levels) < 2:
        return None
    middles = (levels[:-1] + levels[1:]) / 2
    above = value[:, None] > middles
    youden = above[label].mean(axis=0) - above[~label].mean(axis=0)
    return float(middles[int(np.argmax(youden))])


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float | None, float | None]:
    """Return Student's t bounds of the mean of independent values; (None, None) for fewer than two."""
    from scipy import stats

    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return None, None
    half = float(stats.t.ppf((1 + level) / 2, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
    return float(array.mean()) - half, float(array.mean()) + half


def difference_of_shares(first: Sequence[bool], second: Sequence[bool], *, paired: bool) -> tuple[float, float]:
    """Return the 95 % bounds of share(first) - share(second) by Newcombe's method 10, which holds near 0 and 1.

    It combines Wilson's bounds of both shares, of independent samples (Stat Med 1998; 17: 873-890) or of pairs, whose
    correlation phi narrows the bounds (17: 2635-2650, with its correction of a positive phi).
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    p, q = float(a.mean()), float(b.mean())
    (p_low, p_high), (q_low, q_high) = (share_interval(x, 0.0, len(y)) for x, y in ((p, a), (q, b)))
    phi = _phi(a, b) if paired else 0.0

    def reach(above: float, below: float) -> float:
        return float(np.sqrt(max(above**2 - 2 * phi * above * below + below**2, 0.0)))

    return p - q - reach(p - p_low, q_high - q), p - q + reach(p_high - p, q - q_low)


def _phi(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the correlation of pairs of booleans; a positive one is reduced by n / 2 in its numerator."""
    both, only_a, only_b, neither = (int(part.sum()) for part in (a & b, a & ~b, ~a & b, ~a & ~b))
    product = float((both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither))
    numerator = float(both * neither - only_a * only_b)
    if numerator > 0:
        numerator = max(numerator - len(a) / 2, 0.0)
    return numerator / float(np.sqrt(product)) if product else 0.0


def somers_d(ranks: ArrayLike, values: ArrayLike) -> tuple[float, float, float] | None:
    """Return Somers' D of values by ordered groups and its 95 % bounds; None without two different ranks.

    D = 2 C - 1 (Am Sociol Rev 1962; 27: 799-811), C being the share of the pairs of different rank in which the larger
    rank has the larger value (equal values count half): 1 in perfect order, 0 by chance. The bounds are Wilson's for C
    with its jackknife variance, as for a share of at most 1.5 n independent values: n values of three groups weigh as
    much as 1.1 n by chance, and more above.
    """
    rank, value = np.asarray(ranks), np.asarray(values, dtype=np.float64)
    below = rank[:, None] < rank[None, :]
    if not below.any():
        return None
    won = np.where(below, (np.sign(value[None, :] - value[:, None]) + 1) / 2, 0.0)
    wins, pairs = won.sum(), below.sum()
    others = pairs - below.sum(0) - below.sum(1)
    kept = others > 0
    without = (wins - won.sum(0) - won.sum(1))[kept] / others[kept]
    n = len(rank)
    variance = (n - 1) / n * float(((without - without.mean()) ** 2).sum()) if kept.any() else 0.0
    concordance = float(wins / pairs)
    low, high = share_interval(concordance, variance, round(1.5 * n))
    return 2 * concordance - 1, 2 * low - 1, 2 * high - 1
