"""Table VIII by hand: verdicts, chance, denials and swaps of made-up volumes whose answers are known."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsyn.cli import main
from medsyn.config import EvaluationConfig, prompts_stage
from medsyn.errors import InputError
from medsyn.evaluate.faithfulness import (
    MEASURES_OF,
    Stated,
    Yardstick,
    agreement,
    amounts,
    severity_correlation,
    share_shown,
    shown_place,
    shows,
    stated_amount,
    swap_ratio,
    yardstick,
)
from medsyn.evaluate.regions import CHANGES, MEASURES
from medsyn.evaluate.statistics import best_threshold, rank_correlation
from medsyn.exhibits.faithfulness import cell_means, columns_of
from medsyn.exhibits.inputs import Inputs
from medsyn.exhibits.table8 import make
from medsyn.files import read_csv, write_csv
from medsyn.names import BOTH
from medsyn.text.grid import GRID, cells
from medsyn.text.labels import default_labeler
from medsyn.text.prompts import COLUMNS, GRID_COLUMNS, Sources, build_prompts
from medsyn.volume import LOBE_NAMES

PAIRS = {
    "pleural_effusion": {
        "measure": "effusion_volume_ml",
        "with_finding": "Effusion.",
        "without_finding": "No effusion.",
    }
}
FINDINGS = tuple(GRID)


def fluid(left: float | None, right: float | None) -> dict[str, float | None]:
    return {"effusion_ml_left": left, "effusion_ml_right": right}


def effusion(place: str, rank: int = 1) -> Stated:
    return Stated("pleural_effusion", rank > 0, place, rank, "")


# --- the grid ---


@pytest.mark.parametrize("finding", FINDINGS)
def test_every_sentence_of_the_grid_says_what_its_cell_states(finding: str) -> None:
    wording = GRID[finding]
    found = list(cells([finding]))
    assert len(found) == len(wording.denials) + len(wording.sentences) * len(wording.severities)
    assert len({cell.text for cell in found}) == len(found)
    for cell in found:
        labels = default_labeler().label(cell.text)
        assert labels[finding] == int(cell.present), cell.text
        assert (cell.rank > 0) == cell.present == bool(cell.severity)
        for name, label in labels.items():
            assert not label or name in (finding, "lung_opacity"), cell.text


def test_the_places_of_the_grid_are_those_of_the_measures() -> None:
    for finding, wording in GRID.items():
        assert set(wording.sentences) - {BOTH} == set(MEASURES_OF[finding])
    assert {name for places in MEASURES_OF.values() for name in places.values()} <= set(MEASURES)
    assert {f"change_hu_{place}" for finding in MEASURES_OF.values() for place in finding if place} == set(CHANGES)


def test_cells_of_a_finding_share_their_seeds_and_findings_do_not() -> None:
    rows = build_prompts("faithfulness", sources(num_per_cell=3))
    assert len(rows) == 3 * len(list(cells(FINDINGS)))
    seeds = {finding: {row["seed"] for row in rows if row["finding"] == finding} for finding in FINDINGS}
    assert all(len(found) == 3 for found in seeds.values())
    assert len(set.union(*seeds.values())) == 3 * len(FINDINGS)
    assert len({(row["pair"], row["seed"]) for row in rows}) == 3 * len(FINDINGS)
    smaller = build_prompts("faithfulness", sources(num_per_cell=1))
    assert [row for row in rows if row["sample_id"].endswith("_000")] == smaller


def sources(**settings: object) -> Sources:
    evaluation = EvaluationConfig(prompt_pairs=PAIRS, faithfulness=settings)  # type: ignore[arg-type]
    return Sources(prompts_stage(evaluation), [], [])


# --- verdicts ---


def test_the_threshold_parts_the_classes_and_needs_both() -> None:
    assert best_threshold([1, 2, 8, 9], [0, 0, 1, 1]) == 5.0
    assert best_threshold([1, 2, 3, 8, 9], [0, 1, 0, 1, 1]) == 5.5  # J: 2/3 at 5.5, 1/2 at 1.5
    assert best_threshold([3, 3, 3], [0, 1, 1]) is None
    assert best_threshold([1, 2], [1, 1]) is None


def test_the_yardstick_is_of_the_volumes_without_the_finding() -> None:
    rows = [fluid(0, 10), fluid(2, 12), fluid(4, 14), fluid(300, 12), fluid(2, 412), fluid(None, 5)]
    scale = yardstick("pleural_effusion", rows, [False, False, False, True, True, True])
    assert scale.baseline == {"left": 2.0, "right": 12.0}
    assert scale.threshold == pytest.approx((2 + 298) / 2)
    assert yardstick("pleural_effusion", rows[:3], [False] * 3).threshold is None
    assert yardstick("pleural_effusion", [], []) == Yardstick({"left": 0.0, "right": 0.0}, None)


def test_the_place_is_that_of_the_largest_excess_and_a_tie_is_none() -> None:
    scale = Yardstick({"left": 0.0, "right": 100.0}, 50.0)
    assert shown_place("pleural_effusion", fluid(80, 120), scale) == "left"
    assert shown_place("pleural_effusion", fluid(80, 200), scale) == "right"
    assert shown_place("pleural_effusion", fluid(0, 100), scale) == ""
    assert shown_place("pleural_effusion", fluid(None, 100), scale) is None
    assert [shows("pleural_effusion", fluid(x, 0), scale) for x in (50, 51, None)] == [False, True, None]
    assert shows("pleural_effusion", fluid(500, 0), replace(scale, threshold=None)) is None


def test_the_stated_amount_is_of_the_named_place() -> None:
    row = fluid(100, 300)
    assert [stated_amount(effusion(place), row) for place in ("left", "right", BOTH)] == [100, 300, 200]
    assert stated_amount(effusion("left"), fluid(100, None)) is None
    assert amounts("cardiomegaly", {"cardiothoracic_ratio": 0.5}) == {"": 0.5}


# --- answers ---


def test_agreement_counts_hits_and_missing_and_knows_chance() -> None:
    answer = agreement([(True, True), (True, True), (True, False), (False, False), (False, None)])
    assert (answer.n, answer.num_missing, answer.value) == (4, 1, 0.75)
    assert answer.chance == pytest.approx(0.75 * 0.5 + 0.25 * 0.5)
    assert (answer.low, answer.high) == pytest.approx((0.3006, 0.9544), abs=1e-3)  # Wilson, 3 of 4
    assert agreement([(True, None)]).value is None
    assert agreement([("left", "")] * 3).value == agreement([("left", "")] * 3).chance == 0.0


def test_agreement_of_permuted_texts_is_chance_on_average() -> None:
    rng = np.random.default_rng(0)
    stated = np.array(LOBE_NAMES)[rng.integers(0, 5, 60)]
    shown = np.where(rng.random(60) < 0.7, stated, "right_upper")
    answers = [agreement(list(zip(rng.permutation(stated), shown, strict=True))) for _ in range(400)]
    assert np.mean([a.value for a in answers]) == pytest.approx(answers[0].chance, abs=0.01)
    inside = np.mean([a.low <= a.chance <= a.high for a in answers])  # type: ignore[operator]
    assert 0.92 < inside <= 1.0
    assert agreement(list(zip(stated, shown, strict=True))).low > answers[0].chance


def test_the_share_of_denied_findings_that_are_shown() -> None:
    answer = share_shown([True, False, False, False, None], 0.5)
    assert (answer.n, answer.num_missing, answer.value, answer.chance) == (4, 1, 0.25, 0.5)
    assert share_shown([], None).value is None


def test_rank_correlations_by_hand() -> None:
    rho, low, high = rank_correlation([1, 2, 3, 4, 5], [1, 3, 2, 5, 4])
    assert rho == pytest.approx(0.8)  # 1 - 6 * 4 / 120
    width = 1.959964 * np.sqrt((1 + 0.32) / 2)
    assert (low, high) == pytest.approx((np.tanh(np.arctanh(0.8) - width), np.tanh(np.arctanh(0.8) + width)), rel=1e-5)
    assert rank_correlation([1, 2, 3, 4], [2, 4, 8, 16]) == (pytest.approx(1.0), None, None)
    assert rank_correlation([1, 2, 3], [1, 2, 3]) == (None, None, None)
    assert rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]) == (None, None, None)


def test_the_correlation_leaves_denials_out() -> None:
    prompts = [effusion("left", rank) for rank in (1, 2, 3, 3)] + [effusion("", 0), effusion("left", 2)]
    rows = [fluid(x, 0) for x in (10, 20, 30, 40)] + [fluid(1000, 1000), fluid(None, 0)]
    answer = severity_correlation(prompts, rows)
    assert (answer.n, answer.num_missing, answer.chance) == (4, 1, 0.0)
    assert answer.value == pytest.approx(0.9487, abs=1e-4)


def test_the_swap_ratio_is_of_the_named_place_against_the_others() -> None:
    prompts = [effusion("left"), effusion("right"), effusion(BOTH), effusion("", 0), effusion("left")]
    rows = [{"change_hu_left": a, "change_hu_right": b} for a, b in ((30, 10), (20, 50), (9, 9), (9, 9), (None, 5))]
    answer = swap_ratio(prompts, rows, num_bootstrap=200, seed=0)
    assert (answer.n, answer.num_missing, answer.chance) == (2, 1, 1.0)
    assert answer.value == pytest.approx((30 + 50) / (10 + 20))


def test_a_change_that_ignores_the_name_has_ratio_1() -> None:
    where = {f"change_hu_{lobe}": float(k) for k, lobe in enumerate(LOBE_NAMES, start=1)}
    prompts = [Stated("consolidation", True, lobe, 1, "") for lobe in LOBE_NAMES]
    assert swap_ratio(prompts, [where] * 5, num_bootstrap=50, seed=0).value == pytest.approx(1.0)


# --- the table ---


def obedient(cell: dict[str, str], rng: np.random.Generator) -> dict[str, float]:
    """Return the measures of a volume that shows what its text states, with noise."""
    row = {name: float(rng.uniform(0, 0.1)) for name in (*MEASURES, *CHANGES)}
    for finding, places in MEASURES_OF.items():
        for place, name in places.items():
            named = cell["finding"] == finding and cell["place"] in (place, BOTH, "")
            row[name] += 10.0 * int(cell["severity_rank"]) * named
            if place:
                row[f"change_hu_{place}"] = 1.0 + 9.0 * (named and cell["present"] == "1")
    return row


def write_inputs(folder: Path, permuted: bool = False, without: Iterable[str] = (), seed: int = 1) -> Inputs:
    """Write prompts, real volumes and samples that follow their texts, or texts in random order."""
    rng = np.random.default_rng(seed)
    rows = [
        {name: str(value) for name, value in row.items()}
        for row in build_prompts("faithfulness", sources(num_per_cell=6))
    ]
    write_csv(folder / "prompts.csv", [dict.fromkeys(COLUMNS, "") | row for row in rows], [*COLUMNS, *GRID_COLUMNS])
    shown = list(rows)
    if permuted:
        groups = [[row for row in rows if row["finding"] == finding] for finding in FINDINGS]
        shown = [group[k] for group in groups for k in rng.permutation(len(group))]
    columns = ["subject_id", *MEASURES, *CHANGES]
    samples = [{"subject_id": a["sample_id"]} | obedient(b, rng) for a, b in zip(rows, shown, strict=True)]
    write_csv(folder / "samples.csv", [row for row in samples if row["subject_id"] not in without], columns)
    subjects, real, labels = [], [], []
    for k in range(400):
        stated = rows[int(rng.integers(len(rows)))]
        subjects.append({"subject_id": f"s{k}", "split": ("train", "validation")[k % 2]})
        real.append({"subject_id": f"s{k}"} | obedient(stated, rng))
        labels.append({"id": f"s{k}"} | {f: int(f == stated["finding"] and stated["present"] == "1") for f in FINDINGS})
    for name, table in (("cohort", subjects), ("real", real), ("labels", labels)):
        write_csv(folder / f"{name}.csv", table, list(table[0]))
    paths = {name: [str(folder / f"{name}.csv")] for name in ("cohort", "labels", "prompts")}
    files = {"real": [str(folder / "real.csv")], "medsyn": [str(folder / "samples.csv")]}
    return Inputs(name="table 8", groups={"file": files}, paths=paths, names={"medsyn": "MedSyn"})


def table_of(inputs: Inputs) -> dict[tuple[str, str], dict]:
    """Return the rows of the table by finding and question, without those of single wordings."""
    _, rows = make(inputs, EvaluationConfig(prompt_pairs=PAIRS, num_bootstrap=200))  # type: ignore[arg-type]
    return {(row["finding"], row["question"]): row for row in rows if not row["wording"]}


def test_a_model_that_follows_its_text_has_every_answer_right(tmp_path: Path) -> None:
    table = table_of(write_inputs(tmp_path))
    assert {question for _, question in table} == {"presence", "side", "lobe", "amount", "denied", "swap"}
    for (finding, question), row in table.items():
        value = row["value"]
        assert row["num_missing"] == 0
        if question in ("presence", "side", "lobe"):
            assert value == 1.0 > row["chance"], (finding, question)
        elif question == "amount":
            assert value > 0.9
        elif question == "denied":
            assert value == 0.0 < row["chance"]
        else:
            assert value == pytest.approx(10.0, rel=0.05)
    assert table["cardiomegaly", "presence"]["real"] == 1.0
    assert table["consolidation", "lobe"]["num_volumes"] == 15 * 6
    assert table["pleural_effusion", "side"]["num_volumes"] == 6 * 6


def test_texts_in_random_order_leave_every_answer_at_chance(tmp_path: Path) -> None:
    distances: dict[tuple[str, str], list[float]] = {}
    covered = []
    for seed in range(12):
        for key, row in table_of(write_inputs(tmp_path, permuted=True, seed=seed)).items():
            covered.append(row["value_ci_low"] <= row["chance"] <= row["value_ci_high"])
            distances.setdefault(key, []).append(row["value"] - row["chance"])
    assert np.mean(covered) > 0.9
    for key, found in distances.items():
        assert abs(np.mean(found)) < 4 * np.std(found, ddof=1) / np.sqrt(len(found)), key


def test_samples_without_a_row_are_counted_as_missing(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, without=["cardiomegaly_00_000", "cardiomegaly_05_000"])
    table = table_of(inputs)
    presence = table["cardiomegaly", "presence"]
    assert (presence["n"], presence["num_missing"], presence["num_volumes"]) == (34, 2, 36)
    assert (table["cardiomegaly", "denied"]["num_missing"], table["cardiomegaly", "amount"]["num_missing"]) == (1, 1)


def test_without_both_classes_presence_is_missing_and_says_why(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    rows = read_csv(tmp_path / "labels.csv")
    write_csv(tmp_path / "labels.csv", [row | {"emphysema": 0} for row in rows], list(rows[0]))
    row = table_of(inputs)["emphysema", "presence"]
    assert (row["value"], row["n"], row["num_missing"]) == (None, 0, 36)
    assert "training volumes do not have both classes" in row["note"]


def test_the_verb_writes_the_table_and_verifies_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = EvaluationConfig(prompt_pairs=PAIRS, num_bootstrap=50)  # type: ignore[arg-type]
    Path("evaluation.json").write_text(settings.model_dump_json())
    words = ["--cohort", "cohort.csv", "--labels", "labels.csv", "--prompts", "prompts.csv"]
    words += ["--file", "real", "real.csv", "--file", "medsyn", "samples.csv", "--quiet"]
    assert main(["table", "8", "--config", "evaluation.json", *words, "--out", "table8.csv"]) == 0
    rows = read_csv("table8.csv")
    assert {row["method"] for row in rows} == {"medsyn"}
    keys = [(row["finding"], row["question"], row["wording"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert main(["verify", "table8.csv", "--quiet"]) == 0
    assert main(["figure", "faithfulness", *words, "--out", "map.png"]) == 0
    assert Path("map.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": {"file": {"medsyn": ["samples.csv"]}}}, "give --file real .. and --file LABEL .. of a method"),
        ({"paths": {}}, "--prompts is needed"),
    ],
)
def test_a_missing_input_is_named(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        table_of(replace(write_inputs(tmp_path), **change))


def test_a_finding_without_measure_is_named(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    rows = read_csv(tmp_path / "prompts.csv")
    write_csv(tmp_path / "prompts.csv", [rows[0] | {"finding": "nodule"}], list(rows[0]))
    with pytest.raises(InputError, match="no measure of 'nodule', expected a finding out of pleural_effusion"):
        table_of(inputs)


def test_the_heat_map_holds_the_mean_of_each_text() -> None:
    prompts = {"a": effusion("left"), "b": effusion("left"), "c": replace(effusion("right"), text="other")}
    assert [place for _, place, _ in columns_of(prompts)] == ["left", "right"]
    means = cell_means(prompts, {"a": fluid(10, 0), "b": fluid(20, None)}, ["effusion_ml_left", "effusion_ml_right"])
    assert means[0].tolist() == [15.0, 0.0]
    assert np.isnan(means[1]).all()
