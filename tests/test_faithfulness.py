"""Table VIII by hand: verdicts, chance, denials and swaps of made-up volumes whose answers are known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsyn.cli import main
from medsyn.config import EvaluationConfig, prompts_stage
from medsyn.errors import InputError
from medsyn.evaluate.faithfulness import (
    MEASURES_OF,
    Trial,
    Yardstick,
    amounts,
    answers,
    answers_of_real,
    shown_place,
    shows,
    yardstick,
)
from medsyn.evaluate.regions import CHANGES, MEASURES
from medsyn.exhibits.faithfulness import mean_changes, measures_of, texts_of
from medsyn.exhibits.inputs import Inputs
from medsyn.exhibits.table8 import QUESTIONS, make
from medsyn.files import read_csv, write_csv
from medsyn.names import BOTH
from medsyn.report.tables import display_table
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
SCALE = Yardstick({"left": 0.0, "right": 0.0}, 50.0)


def fluid(left: float | None, right: float | None) -> dict[str, float | None]:
    return {"effusion_ml_left": left, "effusion_ml_right": right}


def trial(place: str, rank: int, stated: Mapping[str, float | None], denied: Mapping[str, float | None]) -> Trial:
    return Trial(place, rank, stated, denied)


def effusions(*trials: Trial) -> dict:
    return answers("pleural_effusion", trials, SCALE)


# --- the grid ---


@pytest.mark.parametrize("finding", FINDINGS)
def test_every_sentence_of_the_grid_says_what_its_cell_states(finding: str) -> None:
    wording = GRID[finding]
    whole = list(cells(finding, len(wording.severities)))
    assert len({cell.text for cell in whole}) == len(whole) == len(wording.sentences) * len(wording.severities)
    for text, present in [(cell.text, 1) for cell in whole] + [(text, 0) for text in wording.denials]:
        labels = default_labeler().label(text)
        assert labels[finding] == present, text
        for name, label in labels.items():
            assert not label or name in (finding, "lung_opacity"), text


@pytest.mark.parametrize("finding", FINDINGS)
def test_every_place_is_named_equally_often_and_words_come_in_turn(finding: str) -> None:
    wording = GRID[finding]
    chosen = list(cells(finding, 2))
    assert set(Counter(cell.place for cell in chosen).values()) == {2}
    ranks = Counter(cell.rank for cell in chosen)
    assert max(ranks.values()) - min(ranks.values()) <= 1 or len(chosen) < len(wording.severities)
    assert {cell.denial for cell in cells(finding, 4)} == set(wording.denials)
    assert chosen[: len(wording.sentences)] == list(cells(finding, 1))


def test_the_papers_sentences_are_in_the_grid() -> None:
    stated = {cell.text for finding in FINDINGS for cell in cells(finding, 3)}
    denied = {cell.denial for finding in FINDINGS for cell in cells(finding, 3)}
    assert {"There are large pleural effusions seen.", "There is severe bullous emphysema."} <= stated
    assert {"There is no pleural effusion.", "There are no bullae.", "There is no cardiomegaly."} <= denied


def test_the_places_of_the_grid_are_those_of_the_measures() -> None:
    for finding, wording in GRID.items():
        assert set(wording.sentences) - {BOTH, ""} == set(MEASURES_OF[finding]) - {""}
    assert {name for places in MEASURES_OF.values() for name in places.values()} <= set(MEASURES)
    assert {f"change_hu_{place}" for finding in MEASURES_OF.values() for place in finding if place} == set(CHANGES)


def test_two_prompts_share_a_seed_and_no_others_have_it() -> None:
    rows = build_prompts("faithfulness", sources(dict.fromkeys(FINDINGS, 3)))
    seeds: dict[int, list] = {}
    for row in rows:
        seeds.setdefault(row["seed"], []).append(row)
    assert len(seeds) == 3 * (3 + 6 + 1 + 5 + 5)
    for stated, denied in seeds.values():
        assert (stated["present"], denied["present"]) == (1, 0)
        assert stated["pair"] == denied["pair"] and stated["finding"] == denied["finding"]
    smaller = build_prompts("faithfulness", sources(dict.fromkeys(FINDINGS, 1)))
    assert [row for row in rows if row in smaller] == smaller


def test_the_demo_samples_at_most_90_volumes() -> None:
    demo = {"pleural_effusion": 3, "emphysema": 1, "cardiomegaly": 9, "consolidation": 2, "ground_glass_opacity": 2}
    assert len(build_prompts("faithfulness", sources(demo))) == 88


def sources(seeds: Mapping[str, int]) -> Sources:
    evaluation = EvaluationConfig(prompt_pairs=PAIRS, faithfulness=seeds)  # type: ignore[arg-type]
    return Sources(prompts_stage(evaluation), [], [])


# --- verdicts ---


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
    assert amounts("cardiomegaly", {"cardiothoracic_ratio": 0.5}) == {"": 0.5}


# --- answers ---


def test_presence_is_the_balanced_accuracy_and_denied_the_share_of_false_alarms() -> None:
    ill, well = fluid(0, 90), fluid(0, 0)
    found = effusions(
        *(trial("right", 1, ill, well) for _ in range(2)),
        trial("right", 1, ill, ill),
        trial("right", 1, well, well),
        trial("right", 1, ill, fluid(None, 0)),
    )
    presence, denied = found["presence"], found["denied"]
    assert (presence.n, presence.value, presence.chance) == (4, 0.75, 0.5)
    assert (denied.n, denied.value, denied.chance) == (4, 0.25, 0.5)
    assert (denied.low, denied.high) == pytest.approx((0.0456, 0.6994), abs=1e-4)  # Wilson, 1 of 4
    assert presence.low < 0.75 < presence.high


def test_presence_of_real_volumes_does_not_depend_on_how_common_the_finding_is() -> None:
    rows, labels = [fluid(0, 90)] * 2 + [fluid(0, 0)] * 38, [True] * 2 + [False] * 38
    scales = (SCALE, replace(SCALE, threshold=1e9), replace(SCALE, threshold=-1.0))
    values = [answers_of_real("pleural_effusion", rows, labels, scale)["presence"].value for scale in scales]
    assert values == [1.0, 0.5, 0.5]  # right, never and always
    found = answers_of_real("pleural_effusion", rows, labels, SCALE)
    assert (found["presence"].n, found["denied"].n) == (40, 38)
    assert all(found[name].value is None and found[name].reason for name in ("side", "lobe", "amount", "swap"))
    assert answers_of_real("pleural_effusion", rows[:2], labels[:2], SCALE)["presence"].reason


def test_the_side_counts_texts_that_name_one_and_a_tie_is_wrong() -> None:
    well = fluid(0, 0)
    found = effusions(
        trial("left", 1, fluid(9, 0), well),
        trial("right", 1, fluid(9, 0), well),
        trial("right", 1, well, well),
        trial("right", 1, fluid(None, 9), well),
        trial(BOTH, 1, fluid(9, 0), well),
    )
    side = found["side"]
    assert (side.n, side.value, side.chance) == (3, pytest.approx(1 / 3), 0.5)
    assert found["lobe"] == replace(found["lobe"], n=0, value=None, reason="texts about pleural effusion name no lobe")


def test_the_amount_is_of_the_named_place_beyond_its_baseline() -> None:
    scale, well = Yardstick({"left": 0.0, "right": 100.0}, 50.0), fluid(0, 0)
    trials = [
        trial("left", 1, fluid(10, 900), well),
        trial("right", 2, fluid(900, 120), well),
        trial(BOTH, 3, fluid(40, 130), well),
    ]
    assert answers("pleural_effusion", trials, scale)["amount"].value == 1.0  # 10 < 20 < 35
    assert answers("pleural_effusion", trials[::2], scale)["amount"].n == 2
    assert answers("pleural_effusion", trials[:1], scale)["amount"].reason


def test_the_swap_is_of_the_named_place_against_the_others_within_a_seed() -> None:
    def changed(place: str, left: float | None, right: float | None) -> Trial:
        return Trial(place, 1, {"change_hu_left": left, "change_hu_right": right}, {})

    swap = effusions(changed("left", 30, 10), changed("right", 4, 48), changed(BOTH, 9, 9), changed("left", None, 5))
    assert (swap["swap"].n, swap["swap"].chance) == (2, 1.0)
    assert swap["swap"].value == pytest.approx((3 * 12) ** 0.5)
    alone = effusions(changed("left", 30, 10))["swap"]
    assert (alone.value, alone.low, alone.high) == (pytest.approx(3.0), None, None)
    assert effusions(changed("left", 0.0, 0.0))["swap"].reason


def test_a_change_that_ignores_the_name_has_ratio_1() -> None:
    where = {f"change_hu_{lobe}": float(k) for k, lobe in enumerate(LOBE_NAMES, start=1)}
    trials = [Trial(lobe, 1, where, {}) for lobe in LOBE_NAMES]
    scale = Yardstick(dict.fromkeys(LOBE_NAMES, 0.0), 1.0)
    assert answers("consolidation", trials, scale)["swap"].value == pytest.approx(1.0)


def test_a_finding_without_place_has_neither_side_nor_lobe_nor_swap() -> None:
    trials = [
        Trial("", rank, {"cardiothoracic_ratio": 0.4 + rank / 10}, {"cardiothoracic_ratio": 0.4}) for rank in (1, 2)
    ]
    found = answers("cardiomegaly", trials, Yardstick({"": 0.4}, 0.05))
    assert (found["presence"].value, found["amount"].value) == (1.0, 1.0)
    for name in ("side", "lobe", "swap"):
        assert found[name].value is None
        assert found[name].reason.startswith("texts about cardiomegaly name no ")


# --- the table ---


def obedient(cell: Mapping[str, str], rng: np.random.Generator) -> dict[str, float]:
    """Return the measures of a volume that shows what its text states, with noise."""
    row = {name: float(rng.uniform(0, 0.1)) for name in MEASURES}
    row |= {name: float(rng.uniform(1, 1.2)) for name in CHANGES}
    for finding, places in MEASURES_OF.items():
        for place, name in places.items():
            named = cell["finding"] == finding and cell["place"] in (place, BOTH, "")
            row[name] += 10.0 * int(cell["severity_rank"]) * named
            if place and named and cell["present"] == "1":
                row[f"change_hu_{place}"] *= 10
    return row


def shuffled(rows: list[dict[str, str]], rng: np.random.Generator) -> list[dict[str, str]]:
    """Return what the volumes show if texts say nothing: stated cells in random order, the pair in random order."""
    shown: list[dict[str, str]] = []
    for finding in FINDINGS:
        stated, denied = ([r for r in rows if r["finding"] == finding and r["present"] == side] for side in "10")
        for number, cell in enumerate(rng.permutation(len(stated))):
            pair = [stated[cell], denied[number]]
            shown += pair if rng.random() < 0.5 else pair[::-1]
    return shown


def write_inputs(folder: Path, permuted: bool = False, without: Iterable[str] = (), seed: int = 1) -> Inputs:
    """Write prompts, real volumes and samples that follow their texts; permuted: neither volumes nor reports do."""
    rng = np.random.default_rng(seed)
    rounds = {"pleural_effusion": 6, "emphysema": 3, "cardiomegaly": 12, "consolidation": 4, "ground_glass_opacity": 4}
    rows = [{k: str(v) for k, v in row.items()} for row in build_prompts("faithfulness", sources(rounds))]
    write_csv(folder / "prompts.csv", [dict.fromkeys(COLUMNS, "") | row for row in rows], [*COLUMNS, *GRID_COLUMNS])
    columns = ["subject_id", *MEASURES, *CHANGES]
    shown = shuffled(rows, rng) if permuted else rows
    samples = [{"subject_id": a["sample_id"]} | obedient(b, rng) for a, b in zip(rows, shown, strict=True)]
    write_csv(folder / "samples.csv", [row for row in samples if row["subject_id"] not in without], columns)
    subjects, real, labels = [], [], []
    for k in range(400):
        stated = rows[int(rng.integers(len(rows)))]
        said = rows[int(rng.integers(len(rows)))] if permuted else stated
        subjects.append({"subject_id": f"s{k}", "split": ("train", "validation")[k % 2]})
        real.append({"subject_id": f"s{k}"} | obedient(stated, rng))
        labels.append({"id": f"s{k}"} | {f: int(f == said["finding"] and said["present"] == "1") for f in FINDINGS})
    for name, table in (("cohort", subjects), ("real", real), ("labels", labels)):
        write_csv(folder / f"{name}.csv", table, list(table[0]))
    paths = {name: [str(folder / f"{name}.csv")] for name in ("cohort", "labels", "prompts")}
    files = {"real": [str(folder / "real.csv")], "medsyn": [str(folder / "samples.csv")]}
    return Inputs(name="table 8", groups={"file": files}, paths=paths, names={"medsyn": "MedSyn"})


def table_of(inputs: Inputs) -> dict[tuple[str, str], dict]:
    """Return the rows of the table by method and finding."""
    columns, rows = make(inputs, EvaluationConfig(prompt_pairs=PAIRS))  # type: ignore[arg-type]
    assert all(list(row) == columns for row in rows)
    return {(row["method"], row["finding"]): row for row in rows}


def test_a_model_that_follows_its_text_has_every_answer_right(tmp_path: Path) -> None:
    table = table_of(write_inputs(tmp_path))
    assert [finding for _, finding in table] == [f for f in FINDINGS for _ in range(2)]
    for (method, finding), row in table.items():
        assert (row["presence"], row["denied"]) == (1.0, 0.0)
        assert row["presence_chance"] == 0.5
        assert method == "real" or row["denied_chance"] == 0.5
        for question in QUESTIONS:
            if row[question] is None:
                assert f"no {question}: " in row["note"], (method, finding)
                assert row[f"{question}_chance"] is None and row[f"{question}_n"] == 0
            else:
                assert row[f"{question}_ci_low"] <= row[question] <= row[f"{question}_ci_high"]
                assert row[f"{question}_n"] > 0 and f"no {question}: " not in row["note"]
        if method == "MedSyn":
            own = "side" if finding == "pleural_effusion" else "lobe"
            assert (row[own], row["side" if own == "lobe" else "lobe"]) == (
                None if finding == "cardiomegaly" else 1.0,
                None,
            )
            assert row["amount"] > 0.95
            assert row["swap"] == (None if finding == "cardiomegaly" else pytest.approx(10.0, rel=0.05))
    effusion = table["MedSyn", "pleural_effusion"]
    assert (effusion["n"], effusion["side_n"], effusion["amount_n"]) == (18, 12, 18)
    assert table["real", "consolidation"]["n"] == table["real", "consolidation"]["presence_n"] == 200


def test_permuted_labels_leave_every_column_at_chance(tmp_path: Path) -> None:
    distances: dict[tuple[str, str, str], list[float]] = {}
    covered = []
    for seed in range(20):
        for (method, finding), row in table_of(write_inputs(tmp_path, permuted=True, seed=seed)).items():
            for question in QUESTIONS:
                value, chance = row[question], row[f"{question}_chance"]
                if value is not None:
                    if question != "swap":  # its logarithms are far from normal here: one place in five changes tenfold
                        covered.append(row[f"{question}_ci_low"] <= chance <= row[f"{question}_ci_high"])
                    apart = np.log(value) if question == "swap" else value - chance
                    distances.setdefault((method, finding, question), []).append(apart)
    assert len(distances) == 33  # presence and denied of 2 x 5 rows, amount of 5, place and swap of 4
    assert np.mean(covered) > 0.93
    for key, found in distances.items():
        assert abs(np.mean(found)) < 5 * np.std(found, ddof=1) / np.sqrt(len(found)) + 1e-9, key


def test_samples_without_a_row_are_missing_in_their_answers_alone(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, without=["cardiomegaly_with_000", "cardiomegaly_without_005"])
    row = table_of(inputs)["MedSyn", "cardiomegaly"]
    assert (row["n"], row["presence_n"], row["denied_n"], row["amount_n"]) == (12, 10, 10, 11)


def test_without_both_classes_presence_is_missing_and_says_why(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    rows = read_csv(tmp_path / "labels.csv")
    write_csv(tmp_path / "labels.csv", [row | {"emphysema": 0} for row in rows], list(rows[0]))
    row = table_of(inputs)["MedSyn", "emphysema"]
    assert (row["presence"], row["presence_n"], row["n_threshold_with"]) == (None, 0, 0)
    assert "no presence: no threshold, because the measured training volumes do not have both classes" in row["note"]


def test_the_verb_writes_the_table_and_verifies_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["--cohort", "cohort.csv", "--labels", "labels.csv", "--prompts", "prompts.csv"]
    words += ["--file", "real", "real.csv", "--file", "medsyn", "samples.csv", "--quiet"]
    assert main(["table", "8", *words, "--out", "table8.csv"]) == 0
    rows = read_csv("table8.csv")
    assert {row["method"] for row in rows} == {"medsyn", "real"}
    assert main(["verify", "table8.csv", "--quiet"]) == 0
    assert main(["figure", "faithfulness", *words, "--out", "map.png"]) == 0
    assert Path("map.png").stat().st_size > 10_000
    header, shown, notes = display_table(rows)
    assert header[:5] == ["Method", "Finding", "n", "presence", "side"]
    assert re.fullmatch(r"\[0\.\d+, 1\], chance 0\.5, n 18", shown[1][3]["below"])
    assert len(notes) == len(set(notes)) >= 3


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


@pytest.mark.parametrize(
    ("change", "num_rows", "words"),
    [
        ({"finding": "nodule"}, 2, "no measure of 'nodule', expected a finding out of pleural_effusion"),
        ({"present": "0"}, 2, "has present 0, expected 1 once and 0 once in pair 'pleural_effusion_000'"),
        ({}, 1, "pair 'pleural_effusion_000' has one prompt, expected two"),
    ],
)
def test_prompts_that_are_not_pairs_of_the_grid_are_refused(
    tmp_path: Path, change: dict, num_rows: int, words: str
) -> None:
    inputs = write_inputs(tmp_path)
    rows = read_csv(tmp_path / "prompts.csv")[:num_rows]
    write_csv(tmp_path / "prompts.csv", [rows[0] | change, *rows[1:]], list(rows[0]))
    with pytest.raises(InputError, match=re.escape(words)):
        table_of(inputs)


def test_the_heat_map_holds_the_mean_change_of_each_text() -> None:
    trials = {
        "pleural_effusion": [
            trial("left", 1, fluid(10, 0), fluid(2, 0)),
            trial("left", 2, fluid(30, None), fluid(4, 0)),
            trial("right", 1, fluid(None, 5), fluid(0, 0)),
        ]
    }
    assert texts_of(trials) == [("pleural_effusion", "left"), ("pleural_effusion", "right")]
    assert [place for _, place, _ in measures_of(trials)] == ["left", "right"]
    means = mean_changes(trials)
    assert means[0].tolist() == [17.0, 0.0]
    assert np.isnan(means[1, 0]) and means[1, 1] == 5.0
