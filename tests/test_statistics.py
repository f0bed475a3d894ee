"""Statistics of the tables on cases that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medsyn.evaluate.statistics import (
    accuracy_and_f1,
    area_under_roc,
    bootstrap_interval,
    one_tailed_p_value,
    summarise,
)
from medsyn.masks.labels import dice, mean_label_dice


def test_summary_counts_missing_values() -> None:
    summary = summarise([1.0, None, 3.0, float("nan"), 5.0], num_bootstrap=200, seed=0)
    assert (summary.n, summary.num_missing, summary.mean, summary.std) == (3, 2, 3.0, 2.0)
    assert summary.ci_low is not None and summary.ci_high is not None
    assert 1.0 <= summary.ci_low < 3.0 < summary.ci_high <= 5.0


def test_summary_of_nothing_and_of_one() -> None:
    nothing = summarise([None, None], num_bootstrap=10, seed=0)
    assert (nothing.n, nothing.num_missing, nothing.mean, nothing.ci_low) == (0, 2, None, None)
    one = summarise([4.0], num_bootstrap=10, seed=0)
    assert (one.n, one.mean, one.std, one.ci_low) == (1, 4.0, None, None)


def test_welch_by_hand() -> None:
    greater, smaller = [3.0, 4.0, 5.0, 8.0], [1.0, 2.0, 3.0]
    a, b = np.var(greater, ddof=1) / 4, np.var(smaller, ddof=1) / 3
    t = (5.0 - 2.0) / np.sqrt(a + b)
    freedom = (a + b) ** 2 / (a**2 / 3 + b**2 / 2)
    expected = stats.t.sf(t, freedom)
    assert one_tailed_p_value(greater, smaller) == pytest.approx(expected, rel=1e-12)
    assert one_tailed_p_value([*greater, None], smaller) == pytest.approx(expected, rel=1e-12)
    assert one_tailed_p_value(smaller, greater) == pytest.approx(1 - expected, rel=1e-12)


def test_p_value_that_is_not_defined() -> None:
    assert one_tailed_p_value([1.0], [0.0, 0.0]) is None
    assert one_tailed_p_value([2.0, 2.0], [0.0, 0.0]) is None
    assert one_tailed_p_value([2.0, 3.0], [0.0, 0.0]) is not None


def test_bootstrap_matches_the_normal_interval_of_a_large_sample() -> None:
    values = np.random.default_rng(2).normal(10, 2, size=2000)
    low, high = bootstrap_interval(values, num_bootstrap=2000, seed=1)
    half = 1.96 * values.std(ddof=1) / np.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_dice() -> None:
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert dice(a, b) == 0.5
    assert dice(a, ~a) == 0.0
    assert dice(a & ~a, b & ~b) is None
    first, second = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])
    assert mean_label_dice(first, second, range(1, 6)) == pytest.approx(2 / 3)
    assert mean_label_dice(first * 0, second * 0, range(1, 6)) is None


def test_area_under_roc() -> None:
    assert area_under_roc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == 1.0
    assert area_under_roc([0.5, 0.5], [0, 1]) == 0.5
    assert area_under_roc([0.9, 0.1, 0.4], [0, 1, 1]) == 0.0
    assert area_under_roc([0.1, 0.9], [1, 1]) is None


def test_accuracy_and_f1() -> None:
    assert accuracy_and_f1([1, 1, 0, 0], [1, 0, 1, 0]) == (0.5, 0.5)
    assert accuracy_and_f1([0, 0], [0, 0]) == (1.0, 0.0)
