"""Tables I to VII: every number against a hand-made input, missing values counted, bad input named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medsyn.cli import main
from medsyn.config import EvaluationConfig, PromptPairConfig
from medsyn.errors import InputError
from medsyn.evaluate.distances import frechet_distance, maximum_mean_discrepancy
from medsyn.evaluate.inputs import FeatureSet, read_measures, split_prompt_type
from medsyn.evaluate.measure_names import MEASURES
from medsyn.evaluate.statistics import one_tailed_p_value
from medsyn.exhibits.finding_tables import prompt_pair_table
from medsyn.exhibits.table1 import table1
from medsyn.exhibits.table5 import table5
from medsyn.exhibits.table6 import table6
from medsyn.files import read_csv, read_json, write_csv, write_json

CONFIG = EvaluationConfig(
    num_fid_samples=8,
    num_bootstrap=100,
    prompt_pairs={
        "pleural_effusion": PromptPairConfig(
            measure="effusion_volume_ml", with_finding="There is a large effusion.", without_finding="No effusion."
        )
    },
)
EFFUSION = {"a": 900.0, "b": 1100.0, "c": None, "d": 0.0, "e": 10.0, "f": 20.0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with prompts, measures and evaluation.json of six samples."""
    prompts = [
        {"sample_id": name, "prompt_type": f"pleural_effusion/{sign}", "text": text, "seed": 0}
        for sign, text, names in (("with", "With.", "abc"), ("without", "Without.", "def"))
        for name in names
    ]
    prompts.append({"sample_id": "x", "prompt_type": "emphysema/with", "text": "Bullae.", "seed": 0})
    write_csv(tmp_path / "pairs.csv", prompts, ["sample_id", "prompt_type", "text", "seed"])
    rows = [{"subject_id": name, "effusion_volume_ml": value} for name, value in EFFUSION.items()]
    write_csv(tmp_path / "0.csv", rows, ["subject_id", *MEASURES, "reason"])
    write_json(tmp_path / "evaluation.json", CONFIG.model_dump(mode="json"))
    return tmp_path


def test_table2_by_hand(run: Path) -> None:
    out = run / "table2.csv"
    arguments = ["--config", str(run / "evaluation.json"), "--prompts", str(run / "pairs.csv"), "--out", str(out)]
    assert main(["table", "2", *arguments, "--measures", "medsyn", str(run / "0.csv"), "--quiet"]) == 0
    without, with_it = read_csv(out)
    assert (without["prompt_type"], with_it["prompt_type"]) == (
        "pleural_effusion/without",
        "pleural_effusion/with",
    )
    assert (with_it["n"], with_it["num_missing"], without["n"], without["num_missing"]) == ("2", "1", "3", "0")
    assert float(with_it["effusion_volume_ml_mean"]) == 1000
    assert float(with_it["effusion_volume_ml_std"]) == pytest.approx(141.421, abs=1e-3)
    assert float(without["effusion_volume_ml_mean"]) == 10
    expected = one_tailed_p_value([900.0, 1100.0], [0.0, 10.0, 20.0])
    assert float(with_it["p_value"]) == pytest.approx(expected, rel=1e-5)
    assert without["p_value"] == ""
    assert with_it["prompt"] == "With."
    sidecar = read_json(run / "table2.json")
    assert sidecar["table"] == 2
    assert len(sidecar["inputs"]) == 2
    first = out.read_bytes()
    assert main(["table", "2", *arguments, "--measures", "medsyn", str(run / "0.csv"), "--quiet"]) == 0
    assert out.read_bytes() == first


def test_table7_names_the_language_models(run: Path) -> None:
    measured = read_measures([run / "0.csv"])
    groups = {"biomedical": measured, "generic": measured}
    columns, rows = prompt_pair_table(
        "pleural_effusion", [str(run / "pairs.csv")], groups, CONFIG, method_column="language_model"
    )
    assert columns[0] == "language_model"
    assert [row["language_model"] for row in rows] == ["biomedical", "biomedical", "generic", "generic"]


def test_samples_that_were_never_measured_are_missing(run: Path) -> None:
    measured = {name: row for name, row in read_measures([run / "0.csv"]).items() if name != "d"}
    _, rows = prompt_pair_table("pleural_effusion", [str(run / "pairs.csv")], {"medsyn": measured}, CONFIG)
    assert (rows[0]["n"], rows[0]["num_missing"]) == (2, 1)


def test_prompts_of_another_set_are_refused(run: Path) -> None:
    measured = {"stranger": dict.fromkeys(MEASURES, 1.0)}
    with pytest.raises(InputError, match="pleural_effusion/with"):
        prompt_pair_table("pleural_effusion", [str(run / "pairs.csv")], {"medsyn": measured}, CONFIG)


def test_table1_distances_halves_and_airway() -> None:
    generator = np.random.default_rng(0)
    draw = {
        name: generator.normal(shift, 1, size=(10, 3)) for name, shift in (("real", 0), ("medsyn", 1), ("worse", 3))
    }
    features = {
        name: FeatureSet([f"{name}{i}" for i in range(10)], x.astype(np.float32), "net") for name, x in draw.items()
    }
    airways = {"real": [40.0, 50.0], "medsyn": [30.0, 34.0, None], "worse": [10.0, 12.0]}
    measures = {
        name: {f"{name}{i}": dict.fromkeys(MEASURES) | {"airway_volume_mm3": value} for i, value in enumerate(values)}
        for name, values in airways.items()
    }
    columns, rows = table1(features, measures, CONFIG, against="worse", labels={"medsyn": "MedSyn"})
    assert {"method", "n", "fid", "mmd", "airway_volume_mm3_mean", "airway_volume_mm3_std"} <= set(columns)
    medsyn, worse, real = rows
    assert [row["method"] for row in rows] == ["medsyn", "worse", "real"]
    assert medsyn["label"] == "MedSyn"
    assert (medsyn["n"], medsyn["n_fid"], medsyn["n_airway"], medsyn["num_missing"]) == (10, 8, 2, 1)
    assert 0 < medsyn["fid"] < worse["fid"]
    assert medsyn["mmd"] < worse["mmd"]
    assert real["fid"] == real["fid_half"] < medsyn["fid_half"] < worse["fid_half"]
    assert real["n_half"] == 4
    assert "halves" in real["note"]
    assert medsyn["p_value"] == pytest.approx(one_tailed_p_value([30.0, 34.0], [10.0, 12.0]))
    assert "p_value" not in worse
    everything = EvaluationConfig(num_fid_samples=10, num_bootstrap=10, prompt_pairs={})
    full = table1(features, measures, everything)[1][0]
    assert full["fid"] == pytest.approx(frechet_distance(features["real"].features, features["medsyn"].features))
    assert full["mmd"] == pytest.approx(
        maximum_mean_discrepancy(features["real"].features, features["medsyn"].features)
    )


def airway_table(values: dict[str, list[float | None]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Measures of volumes by their airway in mm3; 0 was not found, None failed."""
    return {
        method: {
            f"v{k}": dict.fromkeys(MEASURES)
            | {"airway_volume_mm3": value, "airway_found": None if value is None else float(value > 0), "chest": k % 2}
            for k, value in enumerate(airways)
        }
        for method, airways in values.items()
    }


def test_an_absent_airway_counts_as_0_and_does_not_flatter_the_worse_method(tmp_path: Path) -> None:
    airways = {"better": [8.0, 8.0, 8.0, 0.0], "worse": [9.0, 0.0, 0.0, 9.0, None], "real": [20.0, 22.0]}
    better, worse, _ = table1({}, airway_table(airways), CONFIG, against="worse")[1]
    assert (better["airway_volume_mm3_mean"], worse["airway_volume_mm3_mean"]) == (6.0, 4.5)
    assert (better["airway_found"], better["num_volumes"], better["num_failed"]) == (3, 4, 0)
    assert (worse["airway_found"], worse["num_volumes"], worse["num_failed"]) == (2, 5, 1)
    assert (worse["n_airway"], worse["num_missing"]) == (4, 1)
    assert worse["airway_volume_mm3_ci_low"] < 4.5
    assert better["p_value"] == pytest.approx(one_tailed_p_value([8, 8, 8, 0], [9, 0, 0, 9]))
    assert (better["not_chest_fraction"], worse["not_chest_fraction"]) == (0.5, pytest.approx(0.6))


def test_measures_without_validity_are_read_with_a_warning(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "airway_found" not in read_measures([run / "0.csv"])["a"]
    assert "no column lung_found, airway_found, heart_found, chest" in caplog.text


def test_absent_anatomy_in_a_pair_table(run: Path) -> None:
    rows = [
        {"subject_id": name, "effusion_volume_ml": ml, "laa950_percent": laa, "lung_found": lung, "chest": lung}
        for name, ml, laa, lung in (
            ("a", 900, 3, 1),
            ("b", 0, None, 0),
            ("c", None, None, None),
            ("d", 0, 1, 1),
            ("e", 0, None, 0),
        )
    ]
    columns = ["subject_id", *MEASURES, "lung_found", "airway_found", "heart_found", "chest", "reason"]
    write_csv(run / "0.csv", rows, columns)
    measured = {"medsyn": read_measures([run / "0.csv"])}
    without, with_it = prompt_pair_table("pleural_effusion", [str(run / "pairs.csv")], measured, CONFIG)[1]
    assert (with_it["n"], with_it["num_missing"], with_it["effusion_volume_ml_mean"]) == (2, 1, 450.0)
    assert (with_it["num_found"], with_it["num_volumes"], with_it["num_failed"]) == (1, 3, 1)
    assert (without["num_found"], without["num_volumes"], without["num_failed"]) == (1, 3, 1)  # f was never measured
    assert without["not_chest_fraction"] == 0.5
    laa = CONFIG.model_copy(
        update={
            "prompt_pairs": {
                "pleural_effusion": PromptPairConfig(measure="laa950_percent", with_finding="x", without_finding="y")
            }
        }
    )
    without, with_it = prompt_pair_table("pleural_effusion", [str(run / "pairs.csv")], measured, laa)[1]
    assert (with_it["n"], with_it["num_missing"], with_it["num_found"], with_it["num_failed"]) == (1, 2, 1, 1)


def test_table1_refuses_mixed_extractors() -> None:
    features = {name: FeatureSet(["a"], np.zeros((1, 2), np.float32), name) for name in ("real", "medsyn")}
    with pytest.raises(InputError, match="different extractors"):
        table1(features, {}, CONFIG)


def test_table1_with_too_few_volumes_says_so() -> None:
    features = {name: FeatureSet(["a"], np.zeros((1, 2), np.float32), "net") for name in ("real", "medsyn")}
    row = table1(features, {}, CONFIG)[1][0]
    assert "fid" not in row
    assert row["note"] == (
        "no fid, mmd, precision, recall, density, coverage: two rows at least are needed in each sample, got 1 and 1"
    )


def test_table5(tmp_path: Path) -> None:
    rows = [
        {"sample_id": f"{text}{k}", "text": text, "airway_dice": dice, "lobe_dice": dice}
        for text, values in (("with", (0.8, 0.9)), ("without", (0.5, 0.7, None)))
        for k, dice in enumerate(values)
    ]
    write_csv(tmp_path / "s.csv", rows, ["sample_id", "text", "airway_dice", "lobe_dice"])
    without, with_text = table5([tmp_path / "s.csv"], CONFIG)[1]
    assert (without["text"], without["n"], without["num_missing"]) == ("without", 2, 1)
    assert without["airway_dice_mean"] == pytest.approx(0.6)
    assert with_text["lobe_dice_mean"] == pytest.approx(0.85)
    assert with_text["airway_dice_p_value"] == pytest.approx(one_tailed_p_value([0.8, 0.9], [0.5, 0.7]))


def test_table6(tmp_path: Path) -> None:
    columns = ["method", "finding", "fold", "accuracy", "f1", "n_train_real", "n_test", "n_synthetic"]
    rows = [
        dict(zip(columns, values, strict=True))
        for values in (
            ("baseline", "nodule", 0, 0.5, 0.4, 4, 2, 0),
            ("baseline", "nodule", 1, 1.0, 0.8, 3, 3, 0),
            ("augmented with M", "nodule", 0, 0.9, 0.9, 4, 2, 6),
            ("augmented with M", "nodule", 1, 0.9, 0.7, 3, 3, 6),
        )
    ]
    write_csv(tmp_path / "nodule.csv", rows, columns)
    baseline, augmented = table6([tmp_path / "nodule.csv"])[1]
    assert (baseline["accuracy_mean"], baseline["n_real"], baseline["n_synthetic"]) == (0.75, 5, 0)
    assert augmented["f1_std"] == pytest.approx(np.std([0.9, 0.7], ddof=1))
    assert augmented["n_synthetic"] == 6
    write_csv(tmp_path / "empty.csv", [], columns)
    assert all(row["folds"] == 0 and row["accuracy_mean"] is None for row in table6([tmp_path / "empty.csv"])[1])


def test_prompt_types() -> None:
    assert split_prompt_type("pleural_effusion/with") == ("pleural_effusion", True)
    assert split_prompt_type("emphysema/without") == ("emphysema", False)
    assert split_prompt_type("report") is None


def test_bad_measures_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(run / "0.csv", [{"subject_id": "a", "lung_volume_ml": "much"}], ["subject_id", *MEASURES])
    arguments = ["--config", str(run / "evaluation.json"), "--prompts", str(run / "pairs.csv")]
    status = main(["table", "2", *arguments, "--measures", "medsyn", str(run / "0.csv"), "--out", str(run / "t.csv")])
    assert status == 2
    assert "lung_volume_ml holds 'much'" in capsys.readouterr().err
    assert not (run / "t.csv").exists()
