"""Statistics of the tables: mean and standard deviation, bootstrap bounds, one-tailed t-test, Dice, AUROC.

Arrays in, numbers out. The paper names a "one-tailed two-sample t-test" without saying whether variances are pooled;
this is Welch's, which does not assume that an effusion prompt and its reversal vary equally (they never do).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Summary:
    """A sample in one table row: `n` values were used, `num_missing` had none. Bounds are of the mean (95 %)."""

    n: int
    num_missing: int
    mean: float | None
    std: float | None
    ci_low: float | None
    ci_high: float | None


def summarise(values: Sequence[float | None], *, num_bootstrap: int, seed: int) -> Summary:
    """Return the mean, sample standard deviation (n - 1) and bootstrap bounds; None and NaN count as missing."""
    known = known_values(values)
    missing = len(values) - len(known)
    if len(known) == 0:
        return Summary(0, missing, None, None, None, None)
    low, high = bootstrap_interval(known, num_bootstrap=num_bootstrap, seed=seed)
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Summary(len(known), missing, float(np.mean(known)), std, low, high)


def known_values(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Return the values that are numbers, in order."""
    array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return array[np.isfinite(array)]


def bootstrap_interval(
    values: ArrayLike, *, num_bootstrap: int, seed: int, level: float = 0.95
) -> tuple[float | None, float | None]:
    """Return the percentile bootstrap bounds of the mean; (None, None) for fewer than two values."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return None, None
    picks = np.random.default_rng(seed).integers(0, len(array), size=(num_bootstrap, len(array)))
    means = array[picks].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ratio_of_means(
    pairs: Sequence[tuple[float, float]], *, num_bootstrap: int, seed: int, level: float = 0.95
) -> tuple[float | None, float | None, float | None]:
    """Return the mean of the first values over the mean of the second ones, with percentile bootstrap bounds.

    The bootstrap draws pairs. All are None without pairs or where the second mean is 0, the bounds for one pair alone.
    """
    array = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    if len(array) == 0 or array[:, 1].mean() == 0:
        return None, None, None
    ratio = float(array[:, 0].mean() / array[:, 1].mean())
    if len(array) < 2:
        return ratio, None, None
    picks = np.random.default_rng(seed).integers(0, len(array), size=(num_bootstrap, len(array)))
    means = array[picks].mean(axis=1)
    ratios = means[:, 0] / np.where(means[:, 1] == 0, np.nan, means[:, 1])
    low, high = np.nanquantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return ratio, float(low), float(high)


def one_tailed_p_value(greater: Sequence[float | None], smaller: Sequence[float | None]) -> float | None:
    """Return p of Welch's t-test for "the mean of `greater` exceeds that of `smaller`", without missing values.

    None where the test is not defined: fewer than two values, or no variance in either sample.
    """
    from scipy import stats

    a, b = known_values(greater), known_values(smaller)
    if min(len(a), len(b)) < 2 or (np.ptp(a) == 0 and np.ptp(b) == 0):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one sample may well be constant: no effusion at all
        return float(stats.ttest_ind(a, b, equal_var=False, alternative="greater").pvalue)


def area_under_roc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Return the probability that a positive scores above a negative (ties count half); None with one class only."""
    from scipy import stats

    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(bool)
    num_positive, num_negative = int(label.sum()), int((~label).sum())
    if num_positive == 0 or num_negative == 0:
        return None
    ranks = stats.rankdata(score)
    return float((ranks[label].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def area_under_roc_interval(
    area: float, num_positive: int, num_negative: int, level: float = 0.95
) -> tuple[float, float]:
    """Return the bounds of an area under the ROC curve by method 5 of Newcombe (Stat Med 2006; 25: 559-573).

    The bounds are the areas A at which the observed one lies z standard deviations away. The variance is Hanley and
    McNeil's at A, with N = (m + n) / 2 - 1 in place of both group sizes less one:
    V(A) = A (1 - A) (1 + N (1 - A) / (2 - A) + N A / (1 + A)) / (m n). So observed areas of 0 and 1 have bounds too.
    """
    from scipy import optimize, stats

    z = float(stats.norm.ppf((1 + level) / 2))
    excess = (num_positive + num_negative) / 2 - 1

    def lower(observed: float) -> float:
        def beyond(a: float) -> float:
            spread = 1 + excess * (1 - a) / (2 - a) + excess * a / (1 + a)
            return float((observed - a) ** 2 - z**2 * a * (1 - a) * spread / (num_positive * num_negative))

        return 0.0 if observed == 0 else float(optimize.brentq(beyond, 0.0, min(observed, 1 - 1e-9)))

    return lower(area), 1.0 - lower(1.0 - area)


def accuracy_and_f1(predicted: ArrayLike, actual: ArrayLike) -> tuple[float, float]:
    """Share of correct answers, and F1 = 2 TP / (2 TP + FP + FN) (0 where there is nothing to find and none found)."""
    p, a = np.asarray(predicted).astype(bool), np.asarray(actual).astype(bool)
    hits, errors = int((p & a).sum()), int((p != a).sum())
    return float((p == a).mean()), (2 * hits / (2 * hits + errors) if hits + errors else 0.0)
