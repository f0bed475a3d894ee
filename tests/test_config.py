"""The configuration: the shipped files are valid, mistakes are one clear line, the schema on disk is current."""

import json
from pathlib import Path

import pytest
import yaml

from medsyn.cli import main
from medsyn.config import Config, ModelStage, load_config, load_stage, stage_configs, validate
from medsyn.errors import InputError

ROOT = Path(__file__).parents[1]
CONFIGS = ("config", "phantom", "paper", "ct_rate", "rad_chest", "test")


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configs_are_valid_and_every_stage_reads_its_file_back(name, tmp_path):
    path = ROOT / "config" / f"{name}.yaml"
    assert main(["config", str(path), "--out", str(tmp_path)]) == 0
    stages = stage_configs(load_config(path))
    assert {file.stem for file in tmp_path.glob("*.json")} == set(stages)
    for stage, section in stages.items():
        assert load_stage(type(section), tmp_path / f"{stage}.json") == section


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "and there is none; add one under methods"), ({"ours": {"label": "Ours"}}, "such as ours")],
)
def test_a_reference_must_be_a_model_of_this_package(own, expected):
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    theirs = {"theirs": {"kind": "external", "label": "Theirs", "command": "a {prompts} {out}"}}
    values |= {"methods": theirs | own, "reference": "theirs", "compare_with": None}
    with pytest.raises(InputError, match=f"reference: 'theirs' is not a model of this package.*{expected}"):
        validate(Config, values, "c.yaml")


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
        ({"methods": {"medsyn": {"label": "x", "text_encoder": "clip"}}}, "no encoder named 'clip'"),
        ({"methods": {"other": {"label": "x"}}}, "medsyn"),
        (
            {"evaluation": {"figure3_methods": ["medsyn", "stylegan"], "prompt_pairs": {}}},
            "evaluation.figure3_methods: 'stylegan' is not among methods; expected out of alpha_gan,",
        ),
        ({"evaluation": {"figure3_methods": [], "prompt_pairs": {}}}, "evaluation.figure3_methods: "),
        ({"evaluation": {"label_source": "given", "prompt_pairs": {}}}, "label_source: 'given' needs cohort.source"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_key(change, words, tmp_path, capsys):
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8")) | {"compare_with": None} | change
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


SEEDED = (
    *("text", "low_res", "super_res", "gan", "vqgan", "denoiser", "method", "sampling", "prompts", "features"),
    *("augmentation", "evaluation", "study"),
)


def seeds_of(values, found=()):
    """Every value under a key `seed`, at any depth."""
    for key, value in values.items():
        found += (value,) if key == "seed" else seeds_of(value) if isinstance(value, dict) else ()
    return found


def test_the_seed_reaches_everything_that_is_trained_or_sampled_and_no_data():
    values = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    before, after = (stage_configs(Config(**values | given)) for given in ({}, {"seed": 7}))
    for name, stage in after.items():
        expected = 7 if name.startswith(SEEDED) else 0
        assert set(seeds_of(stage.model_dump())) <= {expected}, name
        assert set(seeds_of(before[name].model_dump())) <= {0}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {name for name in after if name.startswith(SEEDED)}


def test_a_section_keeps_the_seed_that_it_names():
    values = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    values["low_res"]["train"]["seed"] = 0
    values["text"]["encoders"]["generic"]["seed"] = 3
    stages = {name: stage.model_dump() for name, stage in stage_configs(Config(**values, seed=7)).items()}
    assert stages["low_res_medsyn"]["train"]["seed"] == 0
    assert stages["text_generic"]["encoder"]["seed"] == 3
    assert stages["text_biomedical"]["encoder"]["seed"] == stages["super_res_medsyn"]["train"]["seed"] == 7


def test_load_stage_names_file_and_key(tmp_path):
    path = tmp_path / "low_res_medsyn.json"
    path.write_text("{}")
    with pytest.raises(InputError, match=r"low_res_medsyn\.json: stage"):
        load_stage(ModelStage, path)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("low_res", "unet", {"dim": 10, "num_groups": 8}, "num_groups 8 does not divide 10"),
        ("low_res", "unet", {"init_kernel": 4}, "init_kernel odd"),
        ("text", "num_tokens", 500, "max_tokens must be at least text.num_tokens"),
        ("phantom", "seed", -1, "greater than or equal to 0"),
    ],
)
def test_settings_that_would_fail_hours_later_fail_at_once(section, key, value, message):
    values = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    values[section][key] = values[section].get(key, {}) | value if isinstance(value, dict) else value
    with pytest.raises(InputError, match=message):
        validate(Config, values, "config.yaml")


def test_prompts_depend_on_nothing_but_what_they_are_made_of():
    values = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    before = stage_configs(validate(Config, values, "config.yaml"))["prompts"]
    values["evaluation"]["num_bootstrap"] = 7
    values["evaluation"]["features"]["num_epochs"] = 7
    assert stage_configs(validate(Config, values, "config.yaml"))["prompts"] == before


def changed(key: str, value: object) -> dict:
    """The test configuration with one value, named by its dotted key, replaced."""
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    *path, last = key.split(".")
    section = values
    for name in path:
        section = section.setdefault(name, {})
    section[last] = value
    return values


IMPOSSIBLE = [
    ("evaluation.augmentation.num_folds", 1),
    ("methods.medsyn.channels", []),
    ("methods.medsyn.channels", ["lobe"]),
    ("methods.medsyn.channels", ["image", "lobe", "lobe"]),
    ("methods.without_shape.label", "MedSyn"),
    ("methods.medsyn.label", "--out"),
    ("methods.medsyn.label", ""),
    ("methods.medsyn.label", "a\nb"),
    ("methods.real", {"label": "x"}),
    ("text.encoders.biomedical.num_heads", 5),
    ("text.encoders.biomedical.vocabulary_size", 1),
    ("text.encoders.biomedical.mask_fraction", 0),
    ("text.encoders.biomedical.dropout", 1.0),
    ("text.encoders", {}),
    ("text.sections", ["report", "report"]),
    ("text.num_tokens", 1),
    ("preprocess.size", [400000, 400000, 400000]),
    ("preprocess.size", [4096, 4096, 4096]),
    ("preprocess.size", [64, 64]),
    ("preprocess.field_of_view_mm", [292.0, 316.0, 1e9]),
    ("preprocess.field_of_view_mm", [292.0, 316.0, float("inf")]),
    ("preprocess.window_hu", [float("nan"), 600.0]),
    ("preprocess.window_hu", [-1e9, 600.0]),
    ("cohort.num_shards", 1_000_000_000),
    ("cohort.num_shards", 21),
    ("cohort.validation_fraction", 0.0),
    ("cohort.validation_fraction", float("nan")),
    ("sampling.num_shards", 1_000_000_000),
    ("sampling.guidance_scale", float("inf")),
    ("sampling.num_steps_low_res", 1001),
    ("sampling.batch_size", 0),
    ("phantom.size", 1),
    ("phantom.num_subjects", 1),
    ("low_res.unet.mults", []),
    ("low_res.unet.mults", [1, 2, 4, 8, 16, 32]),
    ("low_res.unet.dim", 10**9),
    ("low_res.unet.init_kernel", 4),
    ("super_res.unet.patch_size", 3),
    ("super_res.train.crop_size", [128, 16, 16]),
    ("super_res.train.crop_size", [16, 18, 16]),
    ("super_res.train.crop_size", [16, 16, 4]),
    ("low_res.train.crop_size", [4, 4, 4]),
    ("low_res.unet.add_condition", True),
    ("low_res.unet.sigma_share", 0),
    ("super_res.unet.mean_volume", True),
    ("low_res.train.balance_channels", 1.5),
    ("low_res.train.micro_batch_size", 3),
    ("compute.num_gpus_training", 3),
    ("low_res.train.learning_rate", float("nan")),
    ("low_res.train.learning_rate", float("inf")),
    ("low_res.train.betas", [0.9, 1.0]),
    ("low_res.train.ema_decay", 1.0),
    ("low_res.train.num_warmup_steps", 13),
    ("low_res.train.weight_decay", float("inf")),
    ("evaluation.prompt_pairs", {}),
    ("evaluation.num_fid_samples", 1),
    ("evaluation.features.findings", []),
    ("evaluation.features.findings", ["nodule", "nodule"]),
    ("evaluation.augmentation.findings", ["nodule", "../../etc/passwd"]),
    ("evaluation.augmentation.findings", ["broken_heart"]),
    ("seed", 2**32),
    ("seed", -1),
    ("masks.weights_dir", "a\x00b"),
    ("cohort.manifest", ""),
]


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE)
def test_an_impossible_setting_is_refused_with_its_key(key, value):
    values = changed(key, value)
    assert Config(**yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8")))
    with pytest.raises(InputError) as error:
        validate(Config, values, "mine.yaml")
    message = str(error.value)
    assert message.startswith("mine.yaml: ")
    asked = {"compute.num_gpus_training": "batch_size", "phantom.num_subjects": "validation_fraction"}
    assert asked.get(key, key.split(".")[-1]) in message, message


def test_settings_of_one_network_or_text_that_exclude_each_other():
    values = changed("super_res", {"text": True, "unet": {"mask_padding": True}})
    with pytest.raises(InputError, match=r"super_res\.unet\.mask_padding needs text\.mask_padding"):
        validate(Config, values, "mine.yaml")
    values = changed("low_res.unet", {"sigma_data": 0.5, "sigma_share": 0.3})
    with pytest.raises(InputError, match=r"sigma_data 0\.5 and sigma_share 0\.3: both are set"):
        validate(Config, values, "mine.yaml")
    values = changed("low_res.unet", {"num_components": 8, "sigma_share": 0.3, "mean_volume": True})
    with pytest.raises(InputError, match=r"num_components 8 and sigma_share 0\.3: both are set"):
        validate(Config, values, "mine.yaml")
    values = changed("low_res.unet", {"num_text_kinds": 8, "num_components": 0})
    with pytest.raises(InputError, match=r"num_text_kinds 8 with num_components 0: expected 1 or more"):
        validate(Config, values, "mine.yaml")
    values = changed("super_res.text", True)
    values["methods"]["generic_lm"]["super_res_from"] = "medsyn"
    with pytest.raises(InputError, match=r"'medsyn' has text_encoder biomedical, this method has generic"):
        validate(Config, values, "mine.yaml")


def test_an_output_of_the_workflow_is_not_its_manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = changed("cohort", {"source": "manifest", "manifest": "results/test/cohort/cohort.csv"})
    with pytest.raises(InputError, match=r"cohort\.manifest: .* which the workflow writes"):
        validate(Config, values, "mine.yaml")
