"""The analysis of readers' answers: counts, ranks, ties, missing answers, hostile tables, figures; and planning."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from medsyn.cli import main
from medsyn.errors import InputError
from medsyn.exhibits.reader_analysis import analyse
from medsyn.files import read_csv
from medsyn.study.power import Model, simulate, smallest
from medsyn.study.responses import ANSWER_COLUMNS, read_responses

COLUMNS = (*ANSWER_COLUMNS, "method", "truth")
ORDER = ("real", "medsyn", "hagan")


def recognition(reader: str, item: str, truth: str, answer: str, method: str = "medsyn", **more: str) -> dict[str, str]:
    """Return a row of a recognition item."""
    return {
        "reader": reader,
        "item": item,
        "task": "recognition",
        "truth": truth,
        "answer": answer,
        "method": method,
    } | more


def ranking(reader: str, item: str, ranks: tuple[object, ...], structure: str = "lobes", **more: str) -> list[dict]:
    """Return the rows of a ranking item: ranks of real, medsyn, hagan."""
    facts = {"reader": reader, "item": item, "task": "ranking", "structure": structure} | more
    return [facts | {"method": method, "rank": str(rank)} for method, rank in zip(ORDER, ranks, strict=True)]


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write an answers table that says method and truth itself."""
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def answers(tmp_path):
    """Three readers: the rankings of the hand-computed Friedman test, one tie, one missing rank, one repeated item."""
    rows = []
    for reader, group, ranks in (("A", "junior", (1, 2, 3)), ("B", "junior", (1, 3, 2)), ("C", "senior", (2, 1, 3))):
        rows += ranking(reader, "k1", ranks, group=group, seconds="30")
        rows += ranking(reader, "k2", (1, 1, 3) if reader == "A" else (1, 2, ""), "airways", group=group)
        said = "cardiomegaly" if reader != "C" else "other"
        rows.append(recognition(reader, "r1", "cardiomegaly", said, group=group, seconds="60"))
        rows.append(recognition(reader, "r2", "no_abnormality", "no_abnormality", "real", group=group))
    rows += ranking("A", "k9", (2, 1, 3), group="junior", repeats="k1")
    rows.append(recognition("A", "r9", "cardiomegaly", "cardiomegaly", group="junior", repeats="r1"))
    rows.append(recognition("A", "r3", "consolidation", "", group="junior"))
    return table(tmp_path / "answers.csv", rows)


def by(path: Path, *keys: str) -> dict[tuple[str, ...], dict[str, str]]:
    return {tuple(row[key] for key in keys): row for row in read_csv(path)}


def test_the_tables_of_three_readers_are_those_computed_by_hand(answers, tmp_path):
    summary = analyse(answers, None, tmp_path / "out")
    found = by(tmp_path / "out/recognition.csv", "item")
    assert {name: found["r1",][name] for name in ("n", "num_correct", "num_missing", "said_other")} == {
        "n": "3", "num_correct": "2", "num_missing": "0", "said_other": "1"
    }  # fmt: skip
    assert float(found["r1",]["correct_ci_low"]) == pytest.approx(0.0943, abs=1e-4)
    assert (found["r3",]["n"], found["r3",]["num_missing"]) == ("0", "3"), "one empty, two that never came"
    ranks = by(tmp_path / "out/ranking.csv", "structure", "method")
    lobes = ranks["lobes", "medsyn"]
    assert float(lobes["rank_mean"]) == 2.0
    assert (float(lobes["chi2"]), float(lobes["kendall_w"])) == pytest.approx((8 / 3, 4 / 9), abs=1e-5)
    assert [ranks["lobes", method]["rank_1"] for method in ORDER] == ["2", "1", "0"]
    airways = ranks["airways", "real"]
    assert (airways["n"], airways["num_incomplete"], airways["rank_mean"]) == ("1", "2", "1.5")
    assert summary["num_incomplete_rankings"] == {"lobes": 0, "airways": 2}
    assert summary["num_by_group"] == {"junior": 2, "senior": 1}
    assert summary["minutes_per_reader_mean"] == pytest.approx(1.5)


def test_agreement_confusion_and_groups(answers, tmp_path):
    analyse(answers, None, tmp_path / "out")
    agreement = by(tmp_path / "out/agreement.csv", "task", "statistic")
    assert agreement["recognition", "same answer again"]["value"] == "1"
    tau = agreement["ranking", "Kendall's tau-b with the first ranking"]
    assert float(tau["value"]) == pytest.approx(1 / 3, abs=1e-5)
    confusion = by(tmp_path / "out/confusion.csv", "volumes", "truth")
    assert confusion["generated", "cardiomegaly"]["said_cardiomegaly"] == "2"
    assert confusion["real", "no_abnormality"]["said_no_abnormality"] == "3"
    groups = by(tmp_path / "out/groups.csv", "measure")
    assert groups["share of right answers",]["senior_mean"] == "0.5"
    assert groups["mean rank of medsyn, lobes",]["n_junior"] == "2"
    for number in (7, 8):
        assert (tmp_path / f"out/figure{number}.png").stat().st_size > 10_000
    assert "Dunn" in json.loads((tmp_path / "out/analysis.json").read_text())["tests"]["pairs"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no answers"),
        ([recognition("A", "r1", "", "other")], "has no truth"),
        ([recognition("A", "r1", "other", "other")] * 2, "answered twice"),
        (
            [recognition("A", "r1", "other", "other"), recognition("A", "r2", "other", "", group="senior")],
            "in two groups",
        ),
        (ranking("A", "k1", (1, 2, 4)), "rank 4 of 3 volumes, expected 1 to 3"),
        (ranking("A", "k1", (1, 2, "nan")), "rank 'nan' is not a number"),
        (ranking("A", "k1", (1, 2, "=1+1")), "rank '=1.1' is not a number"),
        (ranking("A", "k1", (1, 2, 3), ""), "a ranking item alone has a structure"),
        (ranking("A", "k1", (1, 2, 3), "bones"), "structure 'bones', expected nothing, lobes, vessels, airways"),
        ([recognition("A", "r1", "other", "other") | {"task": "guess"}], "task 'guess', expected recognition, ranking"),
        ([recognition("", "r1", "other", "other")], "the name of a reader or item is empty"),
        ([recognition("A", "r1", "other", "other", method="")], "the method is empty"),
    ],
)
def test_a_table_that_cannot_be_true_is_one_line(rows, message, tmp_path, capsys):
    path = table(tmp_path / "a.csv", rows)
    with pytest.raises(InputError, match=message):
        read_responses(path)
    assert main(["study", "analyse", str(path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_notes_and_names_of_readers_may_be_anything(tmp_path):
    rows = [recognition("<b>ä,\n", "r1", "other", "other", note='"; DROP TABLE')]
    assert analyse(table(tmp_path / "a.csv", rows), None, tmp_path / "out")["num_readers"] == 1
    assert read_csv(tmp_path / "out/ranking.csv") == []


def test_an_unknown_reference_and_a_folder_that_exists(answers, tmp_path, capsys):
    with pytest.raises(InputError, match=r"--reference x: is not a method .* expected one of hagan, medsyn, real"):
        analyse(answers, None, tmp_path / "out", "x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    assert main(["study", "analyse", str(answers), "--out", str(tmp_path / "out")]) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_power_grows_with_readers_and_alarms_are_counted():
    found = simulate(Model(0.75, 4, 0.0, 0.0), [4, 16], [4], 400, 1)
    assert found[0].power < found[1].power
    assert found[0].reader_power < found[1].reader_power
    assert found[1].false_alarm < 0.03  # without tastes the rankings are independent: 0.05 / 6
    assert simulate(Model(0.75, 4, 1.0, 0.5), [16], [8], 400, 1)[0].false_alarm > 0.05, "but not with them"
    assert simulate(Model(), [4], [2], 50, 7) == simulate(Model(), [4], [2], 50, 7)
    assert smallest(found, 2.0) is None


def test_the_model_prefers_as_often_as_it_says():
    import numpy as np

    from medsyn.study.power import _ranks

    model = Model(0.8, 2, 0.7, 0.4)
    ranks = _ranks(model, model.difference, 1, 1, 20_000, np.random.default_rng(0))
    assert (ranks[..., 0] < ranks[..., 1]).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    "words", [["--preferred", "0.5"], ["--methods", "1"], ["--readers", "1"], ["--reader-spread", "-1"]]
)
def test_a_plan_that_means_nothing_is_one_line(words, tmp_path, capsys):
    assert main(["study", "plan", *words, "--out", str(tmp_path / "p.csv")]) == 2
    assert "expected" in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()
