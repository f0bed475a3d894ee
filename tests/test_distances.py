"""FID and MMD: parity numbers of an independent implementation, closed forms, and samples smaller than the features."""

from __future__ import annotations

import numpy as np
import pytest
from parity import hashed

from medsyn.evaluate.distances import (
    equal_numbers,
    frechet_distance,
    half_split,
    maximum_mean_discrepancy,
    median_distance,
    metric_columns,
)

A = (1.3 * hashed(384, 400010)).reshape(64, 6)
B = (hashed(480, 400011) + 0.2).reshape(80, 6)


def test_parity() -> None:
    assert frechet_distance(A, B) == pytest.approx(0.5540400468, abs=1e-9)
    assert median_distance(A, B) == pytest.approx(2.1742252372, abs=1e-9)
    assert maximum_mean_discrepancy(A, B) == pytest.approx(0.0487328854, abs=1e-9)


def test_frechet_equals_the_eigenvalue_form_with_fewer_rows_than_features() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(7, 12)), generator.normal(0.5, 2.0, size=(9, 12))
    s1, s2 = np.cov(x.T), np.cov(y.T)
    roots = np.sqrt(np.clip(np.linalg.eigvals(s1 @ s2).real, 0, None)).sum()
    offset = x.mean(axis=0) - y.mean(axis=0)
    expected = offset @ offset + np.trace(s1) + np.trace(s2) - 2 * roots
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_one_dimension_by_hand() -> None:
    x, y = np.array([[0.0], [2.0], [4.0]]), np.array([[10.0], [11.0], [12.0]])
    assert frechet_distance(x, y) == pytest.approx((2 - 11) ** 2 + (2 - 1) ** 2)


def test_mmd_by_hand() -> None:
    x, y = np.array([[0.0], [1.0]]), np.array([[0.0], [3.0]])
    # lower median of 16 ordered distances: the eighth
    distances = sorted(abs(p - q) for p in (0, 1, 0, 3) for q in (0, 1, 0, 3))
    sigma = distances[7]
    k = lambda d: np.exp(-(d**2) / sigma**2)  # noqa: E731
    assert median_distance(x, y) == sigma
    assert maximum_mean_discrepancy(x, y) == pytest.approx(k(1) + k(3) - 2 * (k(0) + k(3) + k(1) + k(2)) / 4)


def test_identical_samples_have_no_distance() -> None:
    assert frechet_distance(A, A) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(A, A[::-1] + 0.0) == pytest.approx(0, abs=1e-10)
    assert maximum_mean_discrepancy(A, A) < 0.01


@pytest.mark.parametrize("bad", [A[:, :5], A[:1], np.full_like(A, np.nan), A[0]])
def test_unusable_features_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"features|rows"):
        frechet_distance(A, bad)


def test_constant_features_have_no_bandwidth() -> None:
    with pytest.raises(ValueError, match="bandwidth"):
        maximum_mean_discrepancy(np.ones((5, 2)), np.ones((5, 2)))


def test_half_split_tells_same_from_different() -> None:
    same = half_split(frechet_distance, A, None, seed=1)
    other = half_split(frechet_distance, A, B[:64] + 3.0, seed=1)
    assert same == half_split(frechet_distance, A, None, seed=1)
    assert 0 < same < other
    with pytest.raises(ValueError, match="4 real rows"):
        half_split(frechet_distance, A[:3], None, seed=1)


def test_jackknife_interval_covers_and_narrows() -> None:
    generator = np.random.default_rng(5)
    covered, widths = 0, {20: [], 200: []}
    for trial in range(40):
        for count in (20, 200):
            x, y = generator.normal(size=(count, 1)), generator.normal(2.0, 1.0, size=(count, 1))
            row, note = metric_columns(("fid",), frechet_distance, x, y, trial)
            assert note is None
            widths[count].append(row["fid_ci_high"] - row["fid_ci_low"])
            covered += count == 200 and row["fid_ci_low"] <= 4.0 <= row["fid_ci_high"]
    assert covered >= 33
    assert np.mean(widths[200]) < np.mean(widths[20])


def test_equal_numbers() -> None:
    x, y = equal_numbers(A, B, 50, seed=3)
    assert len(x) == len(y) == 50
    again, _ = equal_numbers(A, B, 50, seed=3)
    assert np.array_equal(x, again)
    assert all(len(part) == 64 for part in equal_numbers(A, B, 1000, seed=3))
