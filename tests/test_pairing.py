"""Paired tests on cases that can be worked out by hand, and which rows of the tables make a pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from medsyn.config import EvaluationConfig, PromptPairConfig
from medsyn.errors import InputError
from medsyn.evaluate.measure_names import MEASURES
from medsyn.evaluate.pairing import effect_size_bounds, pair_by_seed, paired_test, units_needed
from medsyn.exhibits.finding_tables import prompt_pair_table
from medsyn.exhibits.table1 import table1
from medsyn.exhibits.table5 import table5
from medsyn.exhibits.table6 import table6
from medsyn.files import write_csv

PAIR = PromptPairConfig(measure="effusion_volume_ml", with_finding="Large effusion.", without_finding="No effusion.")
CONFIG = EvaluationConfig(num_fid_samples=4, num_bootstrap=20, prompt_pairs={"pleural_effusion": PAIR})
PREFIXED = ("p_paired", "p_wilcoxon", "effect_size", "n_pairs", "n_units", "units_needed", "num_unpaired")


def test_paired_test_by_hand() -> None:
    greater, smaller = [3.0, 5.0, 4.0, 8.0], [1.0, 4.0, 1.0, 2.0]
    test = paired_test(zip("abcd", greater, smaller, strict=True))
    # differences 2, 1, 3, 6: mean 3, squares of deviations 1 + 4 + 0 + 9 = 14, sd = sqrt(14 / 3)
    assert test.effect_size == pytest.approx(3 / np.sqrt(14 / 3))
    assert test.p_value == pytest.approx(stats.t.sf(2 * 3 / np.sqrt(14 / 3), 3))
    assert test.p_value == pytest.approx(stats.ttest_rel(greater, smaller, alternative="greater").pvalue)
    assert (test.n_pairs, test.n_units, test.num_unpaired) == (4, 4, 0)
    assert test.p_wilcoxon == 1 / 2**4  # all four ranks are positive: one of 16 ways
    reverse = paired_test(zip("abcd", smaller, greater, strict=True))
    assert (reverse.p_wilcoxon, reverse.units_needed) == (1.0, None)
    assert reverse.p_value == pytest.approx(1 - test.p_value)
    assert reverse.effect_size == -test.effect_size


def test_pairs_of_one_unit_count_once_and_missing_values_drop_the_pair() -> None:
    rows = [("a", 4.0, 1.0), ("a", 2.0, 1.0), ("b", 6.0, 2.0), ("c", None, 1.0), ("d", 1.0, None), ("e", 1.0, 0.0)]
    test = paired_test(rows)
    assert (test.n_pairs, test.n_units, test.num_unpaired) == (4, 3, 2)
    expected = stats.ttest_1samp([2.0, 4.0, 1.0], 0.0, alternative="greater").pvalue
    assert test.p_value == pytest.approx(expected)


@pytest.mark.parametrize("values", [[], [(1.0, 0.0)], [(0.3, 0.1), (0.4, 0.2), (0.9, 0.7)]])
def test_a_test_that_is_not_defined(values: list[tuple[float, float]]) -> None:
    test = paired_test((place, *pair) for place, pair in enumerate(values))
    assert (test.n_pairs, test.p_value, test.effect_size, test.ci_low) == (len(values), None, None, None)


@pytest.mark.parametrize(("effect", "n"), [(0.5, 10), (3.0, 16), (-1.0, 4), (0.0, 30), (20.0, 4)])
def test_bounds_put_the_observed_t_at_the_quantiles(effect: float, n: int) -> None:
    low, high = effect_size_bounds(effect, n)
    assert low < effect < high
    for bound, quantile in ((low, 0.975), (high, 0.025)):
        assert stats.nct.cdf(effect * np.sqrt(n), n - 1, bound * np.sqrt(n)) == pytest.approx(quantile, abs=1e-6)
    assert effect_size_bounds(1e9, 4) == (None, None)


def test_signed_ranks_by_hand() -> None:
    test = paired_test((place, d, 0.0) for place, d in enumerate([1.0, -2.0, 3.0, 4.0, 5.0]))
    # rank sum of the negative one is 2; of 32 sign patterns, the negative sums 0, 1 and 2 occur once each
    assert test.p_wilcoxon == pytest.approx(3 / 32)


def test_differences_that_are_equal_but_for_rounding_are_ties() -> None:
    rounded = [0.3 - 0.2, 0.4 - 0.3, 0.9 - 0.8, -(0.7 - 0.6), 0.5]
    exact = [1.0, 1.0, 1.0, -1.0, 5.0]
    tests = [paired_test((place, d, 0.0) for place, d in enumerate(part)) for part in (rounded, exact)]
    assert len(set(map(abs, rounded))) > 2 and tests[0].p_wilcoxon == tests[1].p_wilcoxon


@pytest.mark.parametrize(("effect", "units"), [(0.2, 216), (0.5, 36), (0.8, 15), (1.2, 8)])
def test_units_needed(effect: float, units: int) -> None:
    assert units_needed(effect) == units

    def power(n: int) -> float:
        return float(stats.nct.sf(stats.t.isf(0.05, n - 1), n - 1, effect * np.sqrt(n)))

    assert power(units - 1) < 0.9 <= power(units)
    assert units_needed(-effect) is None and units_needed(0.001) is None and units_needed(1e9) == 2


def test_power_is_what_experiments_of_that_size_show() -> None:
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        d = generator.normal(0.8, 1.0, size=15)
        found += paired_test((place, value, 0.0) for place, value in enumerate(d)).p_value < 0.05
    assert 0.85 < found / 400 < 0.95


def prompt(name: str, seed: str) -> dict[str, str]:
    return {"sample_id": name, "seed": seed}


def test_pairs_by_seed_in_the_order_of_their_names() -> None:
    first = [prompt("x_with_2", "7"), prompt("x_with_1", "7"), prompt("x_with_3", "8"), prompt("x_with_9", "")]
    second = [prompt("x_without_1", "7"), prompt("x_without_2", "7"), prompt("x_without_4", "9")]
    assert sorted(pair_by_seed(first, second)) == [
        ("7", "x_with_1", "x_without_1"),
        ("7", "x_with_2", "x_without_2"),
        ("8", "x_with_3", None),
        ("9", None, "x_without_4"),
    ]


def test_a_named_pair_decides_over_the_order() -> None:
    first = [prompt("a1", "7") | {"pair": "x"}, prompt("a2", "7") | {"pair": "y"}]
    second = [prompt("b1", "7") | {"pair": "y"}, prompt("b2", "7") | {"pair": "x"}]
    assert sorted(pair_by_seed(first, second)) == [("7", "a1", "b2"), ("7", "a2", "b1")]


def test_table2_pairs_the_samples_of_one_seed(tmp_path: Path) -> None:
    ml = {
        "with": {"0": 100.0, "1": 210.0, "2": 330.0, "3": None},
        "without": {"3": 1.0, "2": 30.0, "1": 10.0, "0": 0.0},
    }
    rows = [
        {"sample_id": f"{sign}{seed}", "prompt_type": f"pleural_effusion/{sign}", "text": sign, "seed": seed}
        for sign, values in ml.items()
        for seed in values
    ]
    write_csv(tmp_path / "pairs.csv", rows, ["sample_id", "prompt_type", "text", "seed"])
    measured = {
        f"{sign}{seed}": dict.fromkeys(MEASURES) | {"effusion_volume_ml": value}
        for sign, values in ml.items()
        for seed, value in values.items()
    }
    columns, (without, with_it) = prompt_pair_table(
        "pleural_effusion", [str(tmp_path / "pairs.csv")], {"medsyn": measured}, CONFIG
    )
    assert columns.index("p_value") + 1 == columns.index("p_paired")
    assert with_it["p_paired"] == pytest.approx(stats.ttest_1samp([100, 200, 300], 0, alternative="greater").pvalue)
    assert with_it["effect_size"] == pytest.approx(2.0)
    assert with_it["effect_size_ci_low"] < 2.0 < with_it["effect_size_ci_high"]
    assert (with_it["n_pairs"], with_it["n_units"], with_it["num_unpaired"]) == (3, 3, 1)
    assert not set(PREFIXED) & set(without)


def test_table1_pairs_the_methods_by_sample() -> None:
    airways = {"medsyn": {"a": 30.0, "b": 40.0, "c": 0.0}, "worse": {"c": 0.0, "b": 10.0, "a": 20.0, "d": 9.0}}
    measures = {
        method: {
            name: dict.fromkeys(MEASURES) | {"airway_volume_mm3": value, "airway_found": float(value > 0), "chest": 1.0}
            for name, value in values.items()
        }
        for method, values in (*airways.items(), ("real", {"r": 50.0}))
    }
    medsyn, worse, real = table1({}, measures, CONFIG, against="worse")[1]
    assert medsyn["p_paired"] == pytest.approx(stats.ttest_1samp([10, 30, 0], 0, alternative="greater").pvalue)
    assert (medsyn["n_pairs"], medsyn["num_unpaired"]) == (3, 1)
    assert "p_paired" not in worse and "p_paired" not in real and "p_value" in real


def test_table5_pairs_by_subject(tmp_path: Path) -> None:
    dice = {
        "with": {"s1": 0.8, "s2": 0.9, "s3": 0.5, "s4": 0.5},
        "without": {"s3": 0.4, "s2": 0.6, "s1": 0.6, "s4": None},
    }
    rows = [
        {"sample_id": f"{s}_{text}", "subject_id": s, "text": text, "airway_dice": value, "lobe_dice": 0.5}
        for text, values in dice.items()
        for s, value in values.items()
    ]
    write_csv(tmp_path / "s.csv", rows, ["sample_id", "subject_id", "text", "airway_dice", "lobe_dice"])
    without, with_text = table5([tmp_path / "s.csv"], CONFIG)[1]
    expected = stats.ttest_rel([0.8, 0.9, 0.5], [0.6, 0.6, 0.4], alternative="greater").pvalue
    assert with_text["airway_dice_p_paired"] == pytest.approx(expected)
    assert (with_text["airway_dice_n_pairs"], with_text["airway_dice_num_unpaired"]) == (3, 1)
    assert with_text["lobe_dice_p_paired"] is None
    assert (without["airway_dice_n"], without["lobe_dice_n"], without["num_volumes"]) == (3, 4, 4)


def test_table6_pairs_by_fold(tmp_path: Path) -> None:
    scores = {"baseline": (0.5, 0.75, 0.5), "augmented with M": (0.75, 0.75, 1.0)}
    columns = ["method", "finding", "fold", "accuracy", "f1", "n_train_real", "n_test", "n_synthetic"]
    rows = [
        dict(zip(columns, (method, "nodule", fold, value, 0.5, 4, 2, 9 - fold), strict=True))
        for method, values in scores.items()
        for fold, value in enumerate(values)
    ]
    write_csv(tmp_path / "nodule.csv", rows, columns)
    baseline, augmented = table6([tmp_path / "nodule.csv"])[1]
    expected = stats.ttest_1samp([0.25, 0.0, 0.5], 0, alternative="greater").pvalue
    assert augmented["accuracy_p_paired"] == pytest.approx(expected)
    assert (augmented["accuracy_n_pairs"], augmented["f1_p_paired"]) == (3, None)
    assert "accuracy_p_paired" not in baseline
    assert (augmented["n_synthetic"], augmented["n_synthetic_min"]) == (9, 7)
    with pytest.raises(InputError, match="baseline / nodule / 0 is already in"):
        table6([tmp_path / "nodule.csv"] * 2)


def test_scores_given_twice_or_without_a_number_do_not_reach_the_test(tmp_path: Path) -> None:
    columns = ["sample_id", "subject_id", "text", "airway_dice", "lobe_dice"]
    values = {"with": ("nan", "0.5", "0.8"), "without": ("0.4", "0.3", "0.7")}
    rows = [
        dict(zip(columns, (f"s{k}_{text}", f"s{k}", text, value, "0.5"), strict=True))
        for text, each in values.items()
        for k, value in enumerate(each)
    ]
    write_csv(tmp_path / "s.csv", rows, columns)
    with_text = table5([tmp_path / "s.csv"], CONFIG)[1][1]
    assert [with_text[f"airway_dice_{name}"] for name in ("n", "n_pairs", "num_unpaired")] == [2, 2, 1]
    expected = stats.ttest_1samp([0.2, 0.1], 0, alternative="greater").pvalue
    assert with_text["airway_dice_p_paired"] == pytest.approx(expected)
    with pytest.raises(InputError, match="s0_with / with is already in"):
        table5([tmp_path / "s.csv"] * 2, CONFIG)
    write_csv(tmp_path / "s.csv", [rows[0] | {"airway_dice": "high"}], columns)
    with pytest.raises(InputError, match="airway_dice holds 'high'"):
        table5([tmp_path / "s.csv"], CONFIG)
