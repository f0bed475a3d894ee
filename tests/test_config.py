"""The configuration: the shipped files are valid, mistakes are one clear line, the schema on disk is current."""

import json
from pathlib import Path

import pytest
import yaml

from medsyn.cli import main
from medsyn.config import Config, ModelStage, load_config, load_stage, stage_configs
from medsyn.errors import InputError

ROOT = Path(__file__).parents[1]
CONFIGS = ("config", "paper", "test")


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configs_are_valid_and_every_stage_reads_its_file_back(name, tmp_path):
    path = ROOT / "config" / f"{name}.yaml"
    assert main(["config", str(path), "--out", str(tmp_path)]) == 0
    stages = stage_configs(load_config(path))
    assert {file.stem for file in tmp_path.glob("*.json")} == set(stages)
    for stage, section in stages.items():
        assert load_stage(type(section), tmp_path / f"{stage}.json") == section


def test_schema_on_disk_is_current():
    stored = json.loads((ROOT / "config/schema.json").read_text(encoding="utf-8"))
    assert stored == Config.model_json_schema(), "run `make schema`"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"phantoms": {}}, "phantoms: unknown key"),
        ({"preprocess": {"size": [64, 64, 63]}}, "divisible"),
        ({"preprocess": {"window_hu": [600, -1024]}}, "low < high"),
        ({"low_res": {"train": {"num_stps": 3}}}, "low_res.train.num_stps: unknown key"),
        ({"variants": {"medsyn": {"label": "x", "text_encoder": "clip"}}}, "no encoder named 'clip'"),
        ({"variants": {"other": {"label": "x"}}}, "medsyn"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_key(change, words, tmp_path, capsys):
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8")) | change
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    assert main(["config", str(path)]) == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert "mine.yaml" in message
    assert "\n" not in message


def test_changing_a_training_setting_changes_only_that_stage():
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    before = stage_configs(Config(**values))
    values["low_res"]["train"]["num_steps"] += 1
    after = stage_configs(Config(**values))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"low_res_medsyn", "low_res_without_shape", "low_res_generic_lm"}


def test_load_stage_names_file_and_key(tmp_path):
    path = tmp_path / "low_res_medsyn.json"
    path.write_text("{}")
    with pytest.raises(InputError, match=r"low_res_medsyn\.json: stage"):
        load_stage(ModelStage, path)
