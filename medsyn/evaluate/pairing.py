"""Paired tests of the tables: which volumes belong together, and whether one of each pair is larger.

Prompts with and without a finding share their seeds, Table V shares subject and seed, the methods of Table I share
prompt and seed, Table VI shares the folds. A pair removes what its two volumes have in common. The *unit* of the test
is what was sampled independently: the seed (Tables II to IV and VII), the row of the prompts (I), the subject (V), the
fold (VI). Several pairs of one unit, such as several sentences with one seed, count once, by the mean of their
differences.
The test assumes that the units are independent and that their mean difference is normally distributed, which few units
do not show. Folds share training volumes and are not independent: Table VI's p is smaller than it should be.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

POWER, POWER_LEVEL = 0.9, 0.05
MOST_UNITS = 10_000
_LARGEST_EFFECT = 1e3
Pair = tuple[Hashable, float | None, float | None]
"""Unit, the value that is expected to be larger, the other one; None: no value."""


@dataclass(frozen=True)
class PairedTest:
    """A one-tailed paired t-test over the differences d of `n_units` units, greater - smaller.

    p_value: "the mean of d exceeds 0", with n_units - 1 degrees of freedom. effect_size: Cohen's d_z = mean(d) / sd(d)
    (sd with n - 1; Cohen 1988, section 2.3.5) with exact 95 % bounds. n_pairs: pairs with both values; num_unpaired:
    pairs that lack one, left out of this test only. p_wilcoxon: the same claim by the signed-rank test (Wilcoxon 1945;
    differences of 0 are dropped), which assumes symmetric differences only. units_needed: units with which the t-test
    finds an effect of this size at POWER_LEVEL with probability POWER; None also for an effect that is not positive or
    needs more than MOST_UNITS. None: fewer than two units, or differences that do not vary.
    """

    n_pairs: int
    n_units: int
    num_unpaired: int
    p_value: float | None = None
    effect_size: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p_wilcoxon: float | None = None
    units_needed: int | None = None

    def columns(self, prefix: str = "") -> dict[str, Any]:
        """Return the fields under the names of the tables' columns."""
        return {
            f"{prefix}p_paired": self.p_value,
            f"{prefix}p_wilcoxon": self.p_wilcoxon,
            f"{prefix}effect_size": self.effect_size,
            f"{prefix}effect_size_ci_low": self.ci_low,
            f"{prefix}effect_size_ci_high": self.ci_high,
            f"{prefix}n_pairs": self.n_pairs,
            f"{prefix}n_units": self.n_units,
            f"{prefix}units_needed": self.units_needed,
            f"{prefix}num_unpaired": self.num_unpaired,
        }


def paired_columns(prefix: str = "") -> list[str]:
    """Return the column names of a paired test."""
    return list(PairedTest(0, 0, 0).columns(prefix))


def paired_test(pairs: Iterable[Pair]) -> PairedTest:
    """Test whether the first value of the pairs exceeds the second one."""
    from scipy import stats

    differences: dict[Hashable, list[float]] = {}
    n_pairs = num_unpaired = 0
    largest = 0.0
    for unit, greater, smaller in pairs:
        if greater is None or smaller is None:
            num_unpaired += 1
            continue
        n_pairs += 1
        largest = max(largest, abs(greater), abs(smaller))
        differences.setdefault(unit, []).append(greater - smaller)
    d = np.array([np.mean(values) for values in differences.values()])
    counts = PairedTest(n_pairs, len(d), num_unpaired)
    if len(d) < 2 or d.std(ddof=1) <= 1e-12 * largest:  # equal but for rounding
        return counts
    effect = float(d.mean() / d.std(ddof=1))
    p_value = float(stats.ttest_1samp(d, 0.0, alternative="greater").pvalue)
    ranked = np.round(d / (1e-9 * largest))  # differences that are equal but for rounding are ties
    wilcoxon = float(stats.wilcoxon(ranked, alternative="greater").pvalue) if np.any(ranked) else None
    bounds = effect_size_bounds(effect, len(d))
    return PairedTest(n_pairs, len(d), num_unpaired, p_value, effect, *bounds, wilcoxon, units_needed(effect))


def units_needed(effect: float) -> int | None:
    """Return the least number of units whose one-tailed paired t-test finds d_z = `effect` with probability POWER.

    The level is POWER_LEVEL, the distribution noncentral t (Cohen 1988, section 2.4). None for an effect of 0 or less,
    or one that needs more than MOST_UNITS.
    """
    from scipy import stats

    def power(n: int) -> float:
        critical = stats.t.ppf(1 - POWER_LEVEL, n - 1)
        return float(1 - stats.nct.cdf(critical, n - 1, effect * np.sqrt(n)))

    effect = min(effect, _LARGEST_EFFECT)  # two units show it; the distribution cannot be computed far beyond
    if effect <= 0 or power(MOST_UNITS) < POWER:
        return None
    return bisect_left(range(2, MOST_UNITS), True, key=lambda n: power(n) >= POWER) + 2


def effect_size_bounds(effect: float, n: int) -> tuple[float | None, float | None]:
    """Return the exact 95 % bounds of d_z from n normal differences; None where t is too large to be computed.

    t = d_z sqrt(n) follows the noncentral t distribution with n - 1 degrees of freedom and noncentrality
    delta sqrt(n); a bound is the delta for which the t that was seen is its 2.5 or 97.5 % quantile (Steiger and Fouladi
    1997).
    """
    from scipy import optimize, stats

    root = float(np.sqrt(n))
    t = effect * root

    def bound(level: float) -> float | None:
        def excess(noncentrality: float) -> float:
            return float(stats.nct.cdf(t, n - 1, noncentrality)) - level

        reach = 1.0
        while excess(t - reach) < 0 or excess(t + reach) > 0:  # the function falls
            reach *= 1.5
        try:
            return float(optimize.brentq(excess, t - reach, t + reach)) / root
        except ValueError:  # no number that far out
            return None

    return bound(0.975), bound(0.025)


def pair_by_seed(
    greater: Sequence[Mapping[str, str]], smaller: Sequence[Mapping[str, str]]
) -> list[tuple[str, str | None, str | None]]:
    """Return (seed, sample_id, sample_id) of prompt rows that share a seed and, where they name one, a `pair`.

    Where a side has several rows of one seed and no `pair`, their order by sample_id decides: the two prompts of a pair
    stand at the same place in it. A row without partner comes with None; rows without seed have no pairs.
    """
    groups: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for side, rows in enumerate((greater, smaller)):
        for row in rows:
            if row.get("seed"):
                groups.setdefault((row["seed"], row.get("pair", "")), ([], []))[side].append(row["sample_id"])
    return [
        (seed, *names)
        for (seed, _), (first, second) in groups.items()
        for names in zip_longest(sorted(first), sorted(second))
    ]
