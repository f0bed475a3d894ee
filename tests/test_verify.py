"""`medsyn verify`: a table is made again from its inputs, and everything that differs is said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from medsyn.cli import main
from medsyn.config import EvaluationConfig, PromptPairConfig
from medsyn.evaluate.measure_names import MEASURES
from medsyn.exhibits.verify import _differences
from medsyn.files import read_csv, write_csv, write_json

PAIR = PromptPairConfig(measure="effusion_volume_ml", with_finding="Large effusion.", without_finding="No effusion.")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder with Table II of six samples, made from paths relative to it."""
    monkeypatch.chdir(tmp_path)
    prompts, measures = [], []
    for seed in range(3):
        for sign, volume in (("with", 300.5 + 10 * seed**2), ("without", 20.25 + seed)):
            name = f"{sign}_{seed}"
            prompts.append({"sample_id": name, "prompt_type": f"pleural_effusion/{sign}", "text": sign, "seed": seed})
            measures.append(dict.fromkeys(MEASURES, 1.0) | {"subject_id": name, "effusion_volume_ml": volume})
    write_csv(tmp_path / "prompts.csv", prompts, list(prompts[0]))
    write_csv(tmp_path / "measures.csv", measures, ["subject_id", *MEASURES])
    config = EvaluationConfig(num_bootstrap=50, prompt_pairs={"pleural_effusion": PAIR})
    write_json(tmp_path / "evaluation.json", config.model_dump(mode="json"))
    words = ["--config", "evaluation.json", "--prompts", "prompts.csv", "--measures", "medsyn", "measures.csv"]
    assert main(["table", "2", *words, "--out", "eval/table2.csv"]) == 0
    return tmp_path


def test_a_table_that_its_inputs_give_is_equal(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((made / "eval/table2.json").read_text(encoding="utf-8"))
    assert record["made_from"]["exhibit"] == "table2" and record["made_from"]["groups"]["measures"] == [
        ["medsyn", ["measures.csv"]]
    ]
    assert set(record["inputs"]) == {"prompts.csv", "measures.csv"}
    (made / "evaluation.json").unlink()  # its content is in the record
    for name in ("eval/table2.csv", "eval/table2.json"):
        assert main(["verify", name]) == 0
        assert capsys.readouterr().out == f"{name}: equal\n"


def test_the_order_of_labels_is_kept(made: Path) -> None:
    words = ["--config", "evaluation.json", "--measures", "zebra", "measures.csv", "--measures", "real", "measures.csv"]
    assert main(["table", "1", *words, "--measures", "ant", "measures.csv", "--out", "eval/table1.csv"]) == 0
    assert [row["method"] for row in read_csv(made / "eval/table1.csv")] == ["zebra", "ant", "real"]
    assert main(["verify", "eval/table1.csv"]) == 0


def test_paths_are_relative_to_the_root(made: Path, tmp_path_factory, monkeypatch, capsys) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    moved = shutil.copytree(made, elsewhere / "moved")
    monkeypatch.chdir(elsewhere)
    assert main(["verify", "moved/eval/table2.csv"]) == 1
    assert "prompts.csv: is missing; the table was made from it" in capsys.readouterr().out
    assert main(["verify", "moved/eval/table2.csv", "--root", str(moved)]) == 0


def test_every_cell_that_differs_is_named(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_csv(made / "eval/table2.csv")
    true = rows[1]["effusion_volume_ml_mean"]
    rows[1] |= {"effusion_volume_ml_mean": "1234", "n": "4"}
    write_csv(made / "eval/table2.csv", rows, list(rows[0]))
    assert main(["verify", "eval/table2.csv"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "eval/table2.csv: differs",
        "  row 2 (pleural_effusion/with), n: 4 in the file, 3 now",
        f"  row 2 (pleural_effusion/with), effusion_volume_ml_mean: 1234 in the file, {true} now",
    ]


def test_rounding_is_no_difference(made: Path) -> None:
    rows = read_csv(made / "eval/table2.csv")
    last_digit = f"{float(rows[1]['effusion_volume_ml_mean']) * (1 + 3e-6):.7g}"
    true = rows[1]["effusion_volume_ml_mean"]
    assert last_digit != true
    for value, status in ((last_digit, 0), (f"{float(true) * (1 + 1e-4):.7g}", 1)):
        rows[1]["effusion_volume_ml_mean"] = value
        write_csv(made / "eval/table2.csv", rows, list(rows[0]))
        assert main(["verify", "eval/table2.csv"]) == status


def test_zero_but_for_the_order_of_sums_is_no_difference_and_counts_have_no_rounding() -> None:
    columns = ["name", "effect", "n"]
    new = [{"name": "a", "effect": 2e-17, "n": 100_001}]
    assert not list(_differences([{"name": "a", "effect": "-1e-17", "n": "100001"}], new, columns))
    [line] = _differences([{"name": "a", "effect": "0", "n": "100000"}], new, columns)
    assert line == "row 1 (a), n: 100000 in the file, 100001 now"


@pytest.mark.parametrize("change", ["row", "column"])
def test_missing_rows_and_columns_are_named(made: Path, capsys: pytest.CaptureFixture[str], change: str) -> None:
    rows = read_csv(made / "eval/table2.csv")
    columns = list(rows[0])
    if change == "row":
        rows = rows[:1]
    else:
        columns.remove("p_value")
    write_csv(made / "eval/table2.csv", [{name: row[name] for name in columns} for row in rows], columns)
    assert main(["verify", "eval/table2.csv"]) == 1
    out = capsys.readouterr().out
    assert "rows: 1 in the file, 2 now" in out if change == "row" else "columns: " in out


def test_an_input_that_has_changed_is_named_before_anything_is_computed(made: Path, capsys) -> None:
    text = (made / "measures.csv").read_text(encoding="utf-8")
    (made / "measures.csv").write_text(text.replace("300.5", "900.5"), encoding="utf-8")
    assert main(["verify", "eval/table2.csv"]) == 1
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("  measures.csv: has changed: its SHA-256 is ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.pop("made_from"), "does not say from what the table was made"),
        (
            lambda record: record["made_from"].update(exhibit="table99"),
            "exhibit 'table99' is not known; give --plugin MODULE before",
        ),
        (lambda record: record["made_from"].update(groups={"measures": {"a": []}}), "made_from cannot be read"),
        (lambda record: record.pop("config"), "holds no `config`, which table2 is made with; make the table again"),
        (lambda record: record["config"].update(num_bootstrap=-1), "config.num_bootstrap: .* verify it with that one"),
    ],
)
def test_a_record_that_cannot_be_used_is_one_line(made: Path, capsys, change, message: str) -> None:
    record = json.loads((made / "eval/table2.json").read_text(encoding="utf-8"))
    change(record)
    (made / "eval/table2.json").write_text(json.dumps(record), encoding="utf-8")
    assert main(["verify", "eval/table2.csv"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)


def test_several_tables_are_all_verified(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in (".csv", ".json"):
        shutil.copy(made / f"eval/table2{suffix}", made / f"eval/copy{suffix}")
    rows = read_csv(made / "eval/copy.csv")
    write_csv(made / "eval/copy.csv", rows[:1], list(rows[0]))
    assert main(["verify", "eval/copy.csv", "eval/table2.csv"]) == 1
    assert "eval/table2.csv: equal" in capsys.readouterr().out
    (made / "eval/copy.json").write_text("{}", encoding="utf-8")
    assert main(["verify", "eval/copy.csv", "eval/table2.csv"]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines() == ["eval/copy.csv: cannot be verified", "eval/table2.csv: equal"]
    assert [line[:15] for line in said.err.splitlines() if line.startswith("medsyn")] == ["medsyn verify: "]


def test_a_table_of_another_suffix(made: Path) -> None:
    shutil.copy(made / "eval/table2.csv", made / "eval/other.tsv")
    shutil.copy(made / "eval/table2.json", made / "eval/other.json")
    assert main(["verify", "eval/other.tsv"]) == 0


def test_a_table_of_a_plugin_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ones.py").write_text(
        "from medsyn.exhibits.base import Exhibit\n"
        "from medsyn.registry import EXHIBITS\n"
        "EXHIBITS.register('ones', Exhibit(name='ones', kind='table', title='Ones', caption='', needs=lambda _: [],"
        " options=(), make=lambda *_: (['one'], [{'one': 1}]), uses_settings=False))\n",
        encoding="utf-8",
    )
    assert main(["--plugin", "ones.py", "table", "ones", "--out", "ones.csv"]) == 0
    record = json.loads((tmp_path / "ones.json").read_text(encoding="utf-8"))
    assert "ones" in record["made_from"]["plugin"]
    assert main(["--plugin", "ones.py", "verify", "ones.csv"]) == 0
    assert capsys.readouterr().out == "ones.csv: equal\n"
