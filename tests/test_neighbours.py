"""Precision, recall, density and coverage: by hand, against the definitions written out, and what each of them sees."""

from __future__ import annotations

import numpy as np
import pytest
from parity import hashed

from medsyn.evaluate.distances import (
    METRIC_NAMES,
    checked_neighbour_measures,
    distance_columns,
    metric_columns,
    share_interval,
)
from medsyn.evaluate.neighbours import NEIGHBOUR_MEASURES, NUM_NEIGHBOURS, neighbour_measures


def written_out(real: np.ndarray, synthetic: np.ndarray) -> list[float]:
    """The four definitions (Naeem et al. 2020, equations 3 to 5 and 7), volume by volume."""

    def radius(rows: np.ndarray, i: int) -> float:
        return sorted(np.linalg.norm(rows[i] - other) for j, other in enumerate(rows) if j != i)[NUM_NEIGHBOURS - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    synthetic_radii = [radius(synthetic, j) for j in range(len(synthetic))]
    inside = [[np.linalg.norm(x - y) < r for y in synthetic] for x, r in zip(real, real_radii, strict=True)]
    reached = [[np.linalg.norm(x - y) < r for y, r in zip(synthetic, synthetic_radii, strict=True)] for x in real]
    columns = list(zip(*inside, strict=True))
    return [
        sum(map(any, columns)) / len(synthetic),
        sum(map(any, reached)) / len(real),
        sum(map(sum, columns)) / (NUM_NEIGHBOURS * len(synthetic)),
        sum(map(any, inside)) / len(real),
    ]


def test_parity() -> None:
    """The numbers of the reference implementation of Naeem et al., `compute_prdc(..., nearest_k=5)` of prdc 0.2."""
    real, synthetic = (1.3 * hashed(384, 400010)).reshape(64, 6), (hashed(480, 400011) + 0.7).reshape(80, 6)
    assert neighbour_measures(real, synthetic) == pytest.approx([0.9375, 0.296875, 0.785, 0.53125], abs=1e-12)


def test_by_hand() -> None:
    real = np.arange(7.0)[:, None]  # balls of radius 5 or 6 at the ends, 3 in the middle: (-6, 6), (-4, 6), (-2, 6) ...
    synthetic = np.array([[0.5], [20.0], [21.0], [22.0], [23.0], [24.0], [25.0], [26.0]])
    radii = [5, 4, 3, 3, 3, 4, 5]
    inside = sum(abs(x - 0.5) < r for x, r in enumerate(radii))
    precision, recall, density, coverage = neighbour_measures(real, synthetic)
    assert (precision, density, coverage) == (1 / 8, inside / (8 * NUM_NEIGHBOURS), inside / 7)
    assert recall == 1.0  # the ball around 0.5 reaches 24


@pytest.mark.parametrize(("n", "m"), [(6, 9), (40, 25)])
def test_equal_the_definitions_written_out(n: int, m: int) -> None:
    generator = np.random.default_rng(n)
    real, synthetic = generator.normal(size=(n, 3)), generator.normal(0.4, 0.7, size=(m, 3))
    assert neighbour_measures(real, synthetic) == pytest.approx(written_out(real, synthetic))


def test_what_each_of_them_sees() -> None:
    generator = np.random.default_rng(3)
    real = generator.normal(size=(300, 4))
    same = generator.normal(size=(300, 4))
    narrow = 0.2 * generator.normal(size=(300, 4))  # mode collapse: good volumes, little variety
    wide = 3.0 * generator.normal(size=(300, 4))  # variety with many bad volumes
    far = generator.normal(9.0, 1.0, size=(300, 4))
    values = {
        name: dict(zip(("precision", "recall", "density", "coverage"), neighbour_measures(real, rows), strict=True))
        for name, rows in (("same", same), ("narrow", narrow), ("wide", wide), ("far", far))
    }
    assert min(values["same"].values()) > 0.85
    assert values["narrow"]["precision"] == 1.0 and values["narrow"]["density"] > 1.1
    assert values["narrow"]["recall"] < 0.1 and values["narrow"]["coverage"] < 0.5
    assert values["wide"]["precision"] < 0.5 and values["wide"]["recall"] > 0.85
    assert set(values["far"].values()) == {0.0}


def test_copies_of_the_real_volumes_reach_all_of_them() -> None:
    real = np.random.default_rng(0).normal(size=(20, 3))
    precision, recall, _, coverage = neighbour_measures(real, real.copy())
    assert (precision, recall, coverage) == (1.0, 1.0, 1.0)


def test_too_few_rows_cost_these_four_alone() -> None:
    generator = np.random.default_rng(1)
    real, synthetic = generator.normal(size=(NUM_NEIGHBOURS, 2)), generator.normal(size=(NUM_NEIGHBOURS, 2))
    with pytest.raises(ValueError, match=f"more than {NUM_NEIGHBOURS} rows in each set, got {NUM_NEIGHBOURS}"):
        neighbour_measures(real, synthetic)
    row = distance_columns(real, synthetic, max_volumes=100, seed=0)
    assert {"fid", "mmd", "fid_half"} <= set(row) and "coverage" not in row
    assert "no precision, recall, density, coverage: precision to coverage need more than 5 rows" in str(row["note"])


@pytest.mark.parametrize(
    ("count", "metrics"), [(3, ("fid", "mmd")), (6, ("precision", "recall", "density", "coverage"))]
)
def test_values_stand_where_only_their_bounds_need_more_volumes(count: int, metrics: tuple[str, ...]) -> None:
    generator = np.random.default_rng(4)
    real, synthetic = generator.normal(size=(count, 2)), generator.normal(size=(count, 2))
    row = distance_columns(real, synthetic, max_volumes=100, seed=0)
    assert set(metrics) <= set(row) and not {f"{name}_ci_low" for name in metrics} & set(row)
    assert f"no bounds of {', bounds of '.join(metrics)}" in str(row["note"])
    assert "the intervals need more volumes" in str(row["note"])


def test_columns_of_a_method_and_of_the_real_volumes() -> None:
    generator = np.random.default_rng(2)
    real, synthetic = generator.normal(size=(60, 3)), generator.normal(0.5, 1.0, size=(80, 3))
    row = distance_columns(real, synthetic, max_volumes=50, seed=0)
    for name in METRIC_NAMES:
        assert row[f"{name}_ci_low"] <= row[name] <= row[f"{name}_ci_high"]
        assert isinstance(row[f"{name}_half"], float)
        if name in ("precision", "recall", "coverage"):
            assert row[f"{name}_ci_low"] >= 0 and row[f"{name}_ci_high"] <= 1
    assert (row["n_fid"], row["n_half"]) == (50, 25) and "note" not in row
    floor = distance_columns(real, None, max_volumes=50, seed=0)
    assert all(floor[name] == floor[f"{name}_half"] for name in METRIC_NAMES)
    assert floor["coverage"] > row["coverage_half"]


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (0.8, 0.8), (1.0, 0.4)])
def test_bounds_hold_the_mean_of_other_samples_of_the_same_size(offset: float, scale: float) -> None:
    generator = np.random.default_rng(11)

    def samples() -> tuple[np.ndarray, np.ndarray]:
        return generator.normal(size=(40, 4)), generator.normal(offset / 2, scale, size=(40, 4))

    truth = dict(
        zip(NEIGHBOUR_MEASURES, np.mean([neighbour_measures(*samples()) for _ in range(300)], axis=0), strict=True)
    )
    held = dict.fromkeys(NEIGHBOUR_MEASURES, 0)
    for trial in range(100):
        row, _ = metric_columns(NEIGHBOUR_MEASURES, checked_neighbour_measures, *samples(), seed=trial)
        for name, value in truth.items():
            held[name] += row[f"{name}_ci_low"] - 1e-9 <= value <= row[f"{name}_ci_high"] + 1e-9
    assert min(held.values()) >= 88, held


def test_interval_of_a_share_is_wilsons() -> None:
    assert share_interval(0.8, 0.8 * 0.2 / 10, 10) == pytest.approx((0.4901625, 0.9433178), abs=2e-5)
    assert share_interval(1.0, 0.0, 10) == pytest.approx((0.7224672, 1.0), abs=2e-5)
    narrow, wide = (share_interval(0.8, variance, 10) for variance in (0.001, 0.03))
    assert narrow == share_interval(0.8, 0.016, 10) and wide[0] < narrow[0] < narrow[1] < wide[1]
