"""Statistics of reader studies: counts with exact bounds, ranks, agreement. Arrays in, numbers out.

A block of ranks is one ranking of k things by one reader: rank 1 is the best, tied things share the mean of their
places. Incomplete blocks are left out by the callers, who count them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


def exact_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the bounds of a proportion by Clopper and Pearson (Biometrika 1934); (0, 1) without observations.

    They are quantiles of beta distributions, and hold the true proportion with at least the probability `level`.
    """
    from scipy import stats

    tail = (1 - level) / 2
    low = float(stats.beta.ppf(tail, successes, n - successes + 1)) if successes > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, successes + 1, n - successes)) if successes < n else 1.0
    return low, high


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float | None, float | None]:
    """Return the bounds of a mean by Student's t, which takes the values as independent and normal.

    (None, None) for fewer than two values.
    """
    from scipy import stats

    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return None, None
    half = float(stats.t.ppf((1 + level) / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return float(array.mean()) - half, float(array.mean()) + half


def within_ranks(blocks: ArrayLike) -> NDArray[np.float64]:
    """Return the ranks 1 .. k within each row of (n, k) values, ties as mean ranks."""
    from scipy import stats

    array = np.asarray(blocks, dtype=np.float64)
    return stats.rankdata(array, axis=1) if array.size else array


@dataclass(frozen=True)
class Friedman:
    """Friedman's test over `n_blocks` complete blocks of k ranks, and Kendall's coefficient of concordance W.

    chi2: corrected for ties, with k - 1 degrees of freedom; w = chi2 / (n_blocks (k - 1)), 1 for rankings that all
    agree. None: no block, or every block is tied throughout.
    """

    n_blocks: int
    df: int
    chi2: float | None = None
    p_value: float | None = None
    w: float | None = None


def friedman(blocks: ArrayLike) -> Friedman:
    """Test whether the mean ranks of k things differ; blocks: (n, k) ranks or scores, ranked within each row.

    chi2 = [12 / (n k (k + 1)) sum R_j^2 - 3 n (k + 1)] / C with the sums R_j of the columns' ranks, and
    C = 1 - sum (t^3 - t) / (n (k^3 - k)) over groups of t ties (Friedman 1937; Siegel and Castellan 1988, section 7.2).
    """
    from scipy import stats

    ranks = within_ranks(blocks)
    n, k = ranks.shape
    ties = sum(int(t**3 - t) for row in ranks for t in np.unique(row, return_counts=True)[1])
    correction = 1 - ties / (n * (k**3 - k)) if n else 0.0
    if correction <= 0:
        return Friedman(n, k - 1)
    chi2 = (12 / (n * k * (k + 1)) * float((ranks.sum(0) ** 2).sum()) - 3 * n * (k + 1)) / correction
    return friedman_of_w(chi2 / (n * (k - 1)), n, k, float(stats.chi2.sf(chi2, k - 1)))


def friedman_of_w(w: float, n_blocks: int, k: int, p_value: float | None = None) -> Friedman:
    """Return Friedman's test of n_blocks rankings of k things by its W: chi2 = n_blocks (k - 1) W."""
    from scipy import stats

    chi2 = n_blocks * (k - 1) * w
    return Friedman(n_blocks, k - 1, chi2, float(stats.chi2.sf(chi2, k - 1)) if p_value is None else p_value, w)


@dataclass(frozen=True)
class Comparison:
    """Two of k things compared after Friedman's test.

    first, second: columns; difference: mean rank of the first less that of the second, negative where the first is
    better; p_value: of the post-hoc test; p_wilcoxon: of the signed-rank test of the same blocks, None where no block
    tells the two apart. The p of both are two-tailed; the values `_bonferroni` are times the k (k - 1) / 2 pairs.
    """

    first: int
    second: int
    difference: float
    z: float
    p_value: float
    p_bonferroni: float
    p_wilcoxon: float | None
    p_wilcoxon_bonferroni: float | None


def compare_pairs(blocks: ArrayLike) -> list[Comparison]:
    """Compare every pair of k things over (n, k) blocks by mean ranks and by the signed-rank test.

    The post-hoc test is the normal one of rank sums: z = difference / sqrt(k (k + 1) / (6 n)) (Dunn, Technometrics
    1964; Siegel and Castellan 1988, section 7.2), as SPSS follows Friedman's test with it.
    """
    ranks = within_ranks(blocks)
    n, k = ranks.shape
    if n == 0:
        return []
    pairs = [(a, b) for a in range(k) for b in range(a + 1, k)]
    return [_compare(ranks, np.asarray(blocks, np.float64), a, b, len(pairs)) for a, b in pairs]


def rank_difference_p(difference: float, n_blocks: int, k: int) -> tuple[float, float]:
    """Return z and the two-tailed p of a difference of two mean ranks over n_blocks rankings of k things."""
    from scipy import stats

    z = difference / math.sqrt(k * (k + 1) / (6 * n_blocks))
    return z, float(2 * stats.norm.sf(abs(z)))


def _compare(ranks: NDArray, values: NDArray, a: int, b: int, num_pairs: int) -> Comparison:
    from scipy import stats

    n, k = ranks.shape
    difference = float(ranks[:, a].mean() - ranks[:, b].mean())
    z, p = rank_difference_p(difference, n, k)
    steps = np.round(values[:, a] - values[:, b], 9)  # equal means of ranks are ties
    wilcoxon = float(stats.wilcoxon(steps).pvalue) if np.any(steps) else None
    corrected = None if wilcoxon is None else min(1.0, wilcoxon * num_pairs)
    return Comparison(a, b, difference, z, p, min(1.0, p * num_pairs), wilcoxon, corrected)


def fleiss_kappa(counts: ArrayLike) -> float | None:
    """Return Fleiss' kappa of (items, categories) counts of answers (Psychological Bulletin 1971; 76: 378-382).

    kappa = (P - P_e) / (1 - P_e). P is the mean share of agreeing pairs of answers over items, P_e the sum of the
    squared shares of the categories. Items may have different numbers of answers; those with fewer than two have no
    pair and are left out. None without an item of two answers, or where all answers are the same.
    """
    table = np.asarray(counts, dtype=np.float64)
    table = table[table.sum(1) >= 2] if table.size else table
    if table.size == 0:
        return None
    n = table.sum(1)
    agreement = float(((table * (table - 1)).sum(1) / (n * (n - 1))).mean())
    expected = float(((table.sum(0) / table.sum()) ** 2).sum())
    return None if math.isclose(expected, 1.0) else (agreement - expected) / (1 - expected)


def rank_agreement(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Kendall's tau-b of two rankings of the same things; None where one of them is tied throughout."""
    from scipy import stats

    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(stats.kendalltau(first, second).statistic)


def compare_groups(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the two-tailed p of the Mann-Whitney test of two groups of readers; None where a group is empty."""
    from scipy import stats

    if not first or not second:
        return None
    return float(stats.mannwhitneyu(first, second, alternative="two-sided").pvalue)
