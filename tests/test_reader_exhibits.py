"""Figures 7 and 8 and their tables: automatic observers are named so everywhere, real answers take their place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from study_data import METHODS, stage

from medsyn.config import Config, study_stage, validate
from medsyn.exhibits.base import EXHIBITS
from medsyn.exhibits.captions import NO_RADIOLOGIST
from medsyn.exhibits.panels import write_figure
from medsyn.exhibits.reader_figures import figure7, figure8
from medsyn.exhibits.sources import Sources
from medsyn.study.analysis import ranking_table
from medsyn.study.cases import Case
from medsyn.study.observers import automatic_ranking, automatic_recognition

LABELS = {"real": "real", **METHODS}


def config(**study: object) -> Config:
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    return validate(Config, values | {"study": study}, "test.yaml")


def pools(count: int) -> tuple[dict[str, list[Case]], dict[str, dict[str, dict[str, float]]]]:
    """Return cases and measures of four methods; HA-GAN's lungs are the farthest from the real ones."""
    volume = {"real": 4000.0, "medsyn": 4500.0, "medical_diffusion": 6000.0, "hagan": 9000.0}
    cases = {
        name: [Case(name, LABELS[name], name == "real", "", f"{name}{k}") for k in range(count)] for name in LABELS
    }
    measures = {
        name: {case.sample: {"lung_volume_ml": volume[name] + 200 * k, "airway_volume_mm3": 100.0 * k}
               for k, case in enumerate(each)}
        for name, each in cases.items()
    }  # fmt: skip
    return cases, measures


def test_observers_rank_by_the_distance_to_real_ones_the_same_for_the_same_seed():
    cases, measures = pools(4)
    answers = automatic_ranking(stage(), cases, measures)
    assert answers == automatic_ranking(stage(), cases, measures) != automatic_ranking(stage(seed=1), cases, measures)
    rows = {(row["structure"], row["method"]): row["rank_mean"] for row in ranking_table(answers, "medsyn")[1]}
    assert rows["lobes", "real"] < rows["lobes", "medical_diffusion"] < rows["lobes", "hagan"]
    assert {name for name, _ in rows} == {"lobes", "airways"}, "no measure is of vessels"


def test_fewer_volumes_make_fewer_sets_and_none_no_answers():
    cases, measures = pools(2)
    assert len({part.item for part in automatic_ranking(stage(), cases, measures)}) == 2 * 2
    assert automatic_ranking(stage(), {**cases, "hagan": []}, measures) == []


def test_observers_name_what_the_measures_show():
    big = {"effusion_volume_ml": 1500.0, "cardiothoracic_ratio": 0.45, "laa950_percent": 0.0}
    none = big | {"effusion_volume_ml": 0.0, "cardiothoracic_ratio": 0.3}
    generated = [Case("medsyn", "MedSyn", False, "pairs", f"e{k}", "pleural_effusion") for k in range(2)]
    generated.append(Case("medsyn", "MedSyn", False, "pairs", "n", "no_abnormality"))
    answers = automatic_recognition(stage(), generated, [], {"e0": big, "e1": big, "n": none})
    right = [part.answer == part.truth for part in answers]
    assert len(right) == 30 and sum(right) > 26
    assert all(part.answer == "pleural_effusion" for part in answers if part.truth == "pleural_effusion")


def row(**facts: object) -> dict[str, str]:
    return {name: str(value) for name, value in facts.items()}


@pytest.mark.parametrize("rows", [[], [1]])
def test_a_figure_says_who_read_and_an_empty_one_that_it_cannot_be_drawn(rows, tmp_path):
    from PIL import Image

    facts = {"readers": "automatic observers", "num_readers": 10, "note": NO_RADIOLOGIST, "label": "MedSyn", "n": 10}
    seven = row(**facts, truth="other", method="medsyn", num_correct=3, correct_ci_low=0.1, correct_ci_high=0.7)
    eight = row(**facts, structure="lobes", method="medsyn", num_incomplete=2, rank_mean=2, rank_ci_low=1.5)
    eight |= row(rank_ci_high=2.5, p_value="", kendall_w="")
    for draw, table_row in ((figure7, seven), (figure8, eight)):
        figure = draw([table_row] * len(rows), phantom=True)
        texts = " ".join(text.get_text() for axes in [figure, *figure.axes] for text in axes.texts).replace("\n", " ")
        assert ("10 automatic observers" in texts and NO_RADIOLOGIST in texts) == bool(rows)
        assert ("Cannot be drawn" in texts) == (not rows)
        write_figure(tmp_path / "f.png", figure)
        assert ("automatic observers" in Image.open(tmp_path / "f.png").info["Description"]) == bool(rows)


@pytest.mark.parametrize("name", ["recognition", "ranking", "figure7", "figure8"])
def test_title_and_caption_follow_the_settings(name):
    exhibit = EXHIBITS[name]
    assert exhibit.full_title({"study": {"answers": None}}).endswith(" by automatic observers")
    assert NO_RADIOLOGIST in exhibit.full_caption({"study": {"answers": None}})
    assert "automatic" not in exhibit.full_title({"study": {"answers": "a.csv"}})
    assert NO_RADIOLOGIST not in exhibit.full_caption({"study": {"answers": "a.csv"}})
    assert "automatic" not in exhibit.full_title({}), "nobody knows"


def test_answers_of_the_configuration_take_the_observers_place():
    automatic, real = Sources(config()), Sources(config(answers="a.csv", key="k.json"))
    for name in ("recognition", "ranking"):
        assert {need.option for need in EXHIBITS[name].needs(automatic)} >= {"file", "measures"}
        needs = EXHIBITS[name].needs(real)
        assert [(need.words, need.paths) for need in needs] == [(("answers",), ("a.csv",)), (("key",), ("k.json",))]


def test_the_default_ranks_the_papers_methods():
    assert study_stage(config()).ranked == ("real", "medsyn", "hagan", "medical_diffusion")


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (
            {"ranking": {"methods": ["real", "nobody"]}},
            "study.ranking.methods: 'nobody' is neither a method nor a folder",
        ),
        ({"key": "k.json"}, "key: is given without answers"),
        ({"folders": {"wgan": {"label": "W", "path": "x"}}}, "study.folders.wgan: is the name of a method already"),
        ({"recognition": {"cases": ["nodule"]}}, "study.recognition.prompts: has no text for 'nodule'"),
        ({"range_hu": [600, -1000]}, "expected .low, high. with low < high"),
    ],
)
def test_settings_that_cannot_be_met_are_one_line(study, message):
    from medsyn.errors import InputError

    with pytest.raises(InputError, match=message):
        config(**study)


def test_the_tables_can_be_made_by_verb(tmp_path, monkeypatch):
    from medsyn.cli import main

    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("reader,item,task,answer,rank,method,truth\nA,r1,recognition,other,,medsyn,other\n")
    assert main(["table", "recognition", "--file", "answers", "a.csv", "--out", "recognition.csv"]) == 0
    assert "automatic" not in Path("recognition.csv").read_text()
    assert main(["verify", "recognition.csv"]) == 0
