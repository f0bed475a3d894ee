"""Exhibits as specifications: what each asks for, methods under other names, options that nothing reads, and a table
from outside the package."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, run_snakemake
from pages import example, packaged

from medsyn.cli import main
from medsyn.config import Config, MedSynConfig, load_config, stage_texts, validate
from medsyn.errors import InputError
from medsyn.evaluate.diagnosis import COLUMNS as DIAGNOSED
from medsyn.evaluate.measure_names import MEASURES
from medsyn.evaluate.memorisation import COLUMNS as NEAREST
from medsyn.evaluate.memorisation import NUMBERS as MEMORISATION_NUMBERS
from medsyn.evaluate.regions import CHANGES
from medsyn.evaluate.regions import MEASURES as REGIONAL
from medsyn.exhibits.base import EXHIBITS, Exhibit
from medsyn.exhibits.costs import cost_files, sampling_cost
from medsyn.exhibits.needs import inputs_of, words_of
from medsyn.exhibits.sources import Sources
from medsyn.files import read_csv, read_json, write_csv
from medsyn.layout import REAL, Layout
from medsyn.methods.cost import SamplingCost, write_cost
from medsyn.registry import METHODS
from medsyn.report.files import report_needs

OTHER_NAMES = {"medsyn": "ours", "without_shape": "bare", "generic_lm": "plain_words"}
SAMPLED = ("reports", "pairs", "segmentation", "augmentation", "controlled", "faithfulness")
TABLES = [name for name in EXHIBITS.builtin if EXHIBITS[name].kind == "table"]


def settings(names: dict[str, str] | None = None, **changes: object) -> dict:
    """Return the test configuration without baselines, its methods under other names, and other top-level values."""
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8")) | changes
    values["methods"] = {name: entry for name, entry in values["methods"].items() if "kind" not in entry}
    for name in ("figure3_methods", "training_budget"):
        values["evaluation"].pop(name, None)
    names = {name: (names or {}).get(name, name) for name in values["methods"]}
    values["methods"] = {names[name]: entry for name, entry in values["methods"].items()}
    for entry in values["methods"].values():
        if "super_res_from" in entry:
            entry["super_res_from"] = names[entry["super_res_from"]]
    for key in ("reference", "compare_with"):
        values[key] = names.get(values[key], values[key])
    return values


def sources_of(**changes: object) -> Sources:
    return Sources(validate(Config, settings(**changes), "test"))


# --- specifications ---


@pytest.mark.parametrize("name", EXHIBITS.builtin)
def test_a_specification_is_complete(name):
    exhibit, sources = EXHIBITS[name], sources_of()
    needs = exhibit.needs(sources)
    assert exhibit.name == name
    assert {need.option.replace("-", "_") for need in needs} <= set(exhibit.options)
    numbered = exhibit.number.isdigit() and name != "table8"
    in_paper = exhibit.kind == "table" and (numbered or exhibit.by_readers)
    assert (exhibit.paper is not None) == in_paper
    assert exhibit.title
    assert exhibit.caption.endswith(".")
    assert all(path.startswith("results/test/") for paths in inputs_of(needs).values() for path in paths)
    command = exhibit.command(sources)
    assert all(path in command for paths in exhibit.inputs(sources).values() for path in paths)


def test_asking_what_exhibits_need_imports_no_numbers_and_no_drawing():
    code = (
        "import sys; from medsyn.config import load_config; from medsyn.exhibits.base import exhibits_of;"
        "from medsyn.exhibits.sources import Sources; from medsyn.report.files import report_needs;"
        "report_needs(Sources(load_config('config/test.yaml')));"
        "print({'numpy', 'scipy', 'matplotlib', 'torch', 'jinja2'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert found.stdout.strip() == "set()"


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(InputError, match="exhibit 'My table': expected a name of lower-case letters"):
        Exhibit(name="My table", kind="table", title="", caption="", needs=list, options=(), make=lambda *_: ([], []))


def test_the_report_lists_the_samples_behind_every_table():
    needs = {need.option: need.paths for need in report_needs(sources_of())}
    behind = {path.removeprefix("results/test/samples/").rsplit("/", 1)[0] for path in needs["samples"]}
    assert behind == {
        *(f"medsyn/{name}" for name in SAMPLED),
        *("without_shape/reports", "generic_lm/effusion_pairs"),
    }
    assert "results/test/eval/table7.json" in needs["exhibits"]


# --- which methods stand where ---


def methods_of(name: str, sources: Sources) -> list[str]:
    """Return the methods whose samples an exhibit shows, in its order."""
    needs = EXHIBITS[name].needs(sources)
    return list(dict.fromkeys(need.sampled[0] for need in needs if need.sampled is not None))


def test_a_method_that_differs_in_channels_and_language_model_stands_in_both_tables():
    values = settings()
    values["methods"]["both"] = {"label": "B", "channels": ["image"], "text_encoder": "generic"}
    sources = Sources(validate(Config, values, "test"))
    assert methods_of("table1", sources) == methods_of("figure3", sources) == ["medsyn", "without_shape", "both"]
    assert methods_of("table7", sources) == ["medsyn", "generic_lm", "both"]
    names = [need.words for need in EXHIBITS["table7"].needs(sources) if need.option == "label"]
    assert names == [("medsyn", "biomedical"), ("generic_lm", "generic (generic_lm)"), ("both", "generic (both)")]


def test_a_language_model_stands_in_table_1_only_if_the_others_are_compared_with_it():
    assert methods_of("table1", sources_of()) == ["medsyn", "without_shape"]
    assert methods_of("table1", sources_of(compare_with="generic_lm")) == ["medsyn", "without_shape", "generic_lm"]


def test_another_reference_is_the_method_of_all_other_exhibits():
    sources = sources_of(reference="without_shape", compare_with=None)
    assert methods_of("table1", sources) == ["without_shape", "medsyn", "generic_lm"]
    by_readers = {name for name in EXHIBITS.builtin if EXHIBITS[name].by_readers}
    for name in set(EXHIBITS.builtin) - {"table1", "table7", "figure3", "memorisation_pairs"} - by_readers:
        assert methods_of(name, sources) == ["without_shape"], name
    assert "--against" not in EXHIBITS["table1"].command(sources)


# --- the same tables under other names ---


def write_run(folder: Path, names: dict[str, str]) -> Config:
    """Write the inputs of all tables, with made-up numbers and methods called as `names` says; return the settings."""
    config = validate(Config, settings(names), "test")
    layout = Layout(str(folder / config.results_dir))
    random = np.random.default_rng(0)
    texts = ("Large right pleural effusion. Cardiomegaly.", "There is emphysema. No pleural effusion.")
    subjects = [
        {"subject_id": f"s{k}", "split": "validation", "findings": "", "impression": texts[k % 2]} for k in range(8)
    ]
    write_csv(layout.cohort(), subjects, list(subjects[0]))
    pairs = [
        {"sample_id": f"{finding}{sign}{k}", "prompt_type": f"{finding}/{sign}", "text": sign, "seed": k}
        for finding in ("pleural_effusion", "emphysema", "cardiomegaly")
        for sign in ("with", "without")
        for k in range(4)
    ]
    for prompt_set in ("pairs", "effusion_pairs"):
        chosen = [row for row in pairs if prompt_set == "pairs" or row["prompt_type"].startswith("pleural")]
        write_csv(layout.prompts(prompt_set), chosen, list(pairs[0]))
    reports = [row | {"prompt_type": "report", "text": texts[k % 2]} for k, row in enumerate(pairs)]
    write_csv(layout.prompts("reports"), reports, list(pairs[0]))
    diagnosed = [
        {"part": part, "network": "super_res", "subject_id": k, "source": source, "t": t, "quantity": quantity}
        | {"value": random.uniform(1, 9)}
        for part, t, quantity in (("denoising", 0.5, "image"), ("super_resolution", "", "airway_volume_mm3"))
        for source in ("network", "mean_volume", "noisy_input", "enlarged", "real")
        for k in range(4)
    ]
    write_csv(layout.diagnostics(names.get("medsyn", "medsyn")), diagnosed, DIAGNOSED)

    nearest = [
        {"group": group, "volume": k} | {name: random.uniform(1, 9) for name in MEMORISATION_NUMBERS}
        for group in ("validation", *(names.get(method, method) for method in ("medsyn", "without_shape")))
        for k in range(20)
    ]
    write_csv(layout.nearest(), nearest, NEAREST)

    def write_numbers(measures: str, features: str, ids: list[str]) -> None:
        rows = [{"subject_id": i} | {name: random.uniform(1, 9) for name in MEASURES} for i in ids]
        write_csv(measures, rows, ["subject_id", *MEASURES])
        Path(features).parent.mkdir(parents=True, exist_ok=True)
        np.savez(features, ids=ids, features=random.normal(size=(len(ids), 3)).astype(np.float32), extractor="net")

    write_numbers(layout.real_measures("0"), layout.real_features("0"), [row["subject_id"] for row in subjects])
    ids = [row["sample_id"] for row in pairs]
    for method in ("medsyn", "without_shape", "generic_lm"):
        for prompt_set in ("reports", "pairs", "effusion_pairs"):
            place = (names.get(method, method), prompt_set, "0")
            write_numbers(layout.measures(*place), layout.features(*place), ids)
    for k, (method, entry) in enumerate(config.methods.items()):
        for table in METHODS[entry.kind].training_tables(config, method):
            path = folder / table if table.endswith(".csv") else folder / table / "metrics.csv"
            rows = [{"step": i, "training_eflop": 1e-9 * i, "training_hours": 0.5 * i} for i in (1, 2)]
            write_csv(path, rows, list(rows[0]))
        samples = Path(layout.samples(method, "reports", "0"))
        samples.mkdir(parents=True)
        facts = {"seconds_per_volume": 0.5 + k, "peak_memory_gib": 1.5, "device": "CPU", "num_parameters": 7}
        write_cost(samples, SamplingCost(num_volumes=4, **facts))
    write_regions(layout, names.get("medsyn", "medsyn"), [row["subject_id"] for row in subjects])
    dice = [
        {"sample_id": f"{text}{k}", "text": text, "subject_id": k, "seed": 0, "airway_dice": k / 9, "lobe_dice": k / 8}
        for text in ("with", "without")
        for k in range(5)
    ]
    write_csv(layout.segmentation_scores(), dice, list(dice[0]))
    for finding in config.evaluation.augmentation.findings:
        scores = [
            {"method": method, "finding": finding, "fold": k, "accuracy": k / 3, "f1": k / 4, "n_test": 3}
            | {"n_synthetic": 0}
            for method in ("baseline", f"augmented with {names.get('medsyn', 'medsyn')}")
            for k in range(3)
        ]
        write_csv(layout.classification(finding), scores, list(scores[0]))
    for stage, text in stage_texts(config).items():
        Path(layout.config(stage)).parent.mkdir(parents=True, exist_ok=True)
        Path(layout.config(stage)).write_text(text)
    return config


def write_regions(layout: Layout, method: str, subjects: list[str]) -> None:
    """Write the inputs of Table VIII that other tables do not have: prompts, labels and measures by side and lobe."""
    random = np.random.default_rng(1)
    grid = [
        {"sample_id": f"{side}{k}", "pair": str(k), "text": f"text {k}", "finding": "pleural_effusion"}
        | {"present": int(side == "with"), "place": place, "severity": "", "severity_rank": k + 1}
        for k, place in enumerate(("left", "right", "both"))
        for side in ("with", "without")
    ]
    write_csv(layout.prompts("faithfulness"), grid, list(grid[0]))
    labels = [{"id": i, "pleural_effusion": k % 2} for k, i in enumerate(subjects)]
    write_csv(layout.labels(), labels, list(labels[0]))
    for name, ids in ((REAL, subjects), (method, [row["sample_id"] for row in grid])):
        rows = [{"subject_id": i} | {m: random.uniform(1, 9) for m in (*REGIONAL, *CHANGES)} for i in ids]
        write_csv(layout.regions(name, "0"), rows, list(rows[0]))


def make_table(name: str, config: Config, *more: str) -> list[dict[str, str]]:
    """Make a table by its own command in the working directory and return its rows."""
    sources = Sources(config)
    out = EXHIBITS[name].files(sources.layout)["exhibit"]
    assert main([*EXHIBITS[name].command(sources), *more, "--out", out, "--quiet"]) == 0
    return read_csv(out)


def test_renamed_methods_give_the_same_tables_under_the_new_names(tmp_path, monkeypatch):
    tables = []
    for folder, names in ((tmp_path / "a", {}), (tmp_path / "b", OTHER_NAMES)):
        folder.mkdir()
        monkeypatch.chdir(folder)
        config = write_run(folder, names)
        tables.append({name: make_table(name, config) for name in TABLES})
    before, after = tables
    for row in (row for name in ("table1", "memorisation", "recognition", "ranking") for row in before[name]):
        row["method"] = OTHER_NAMES.get(row["method"], row["method"])
    for row in before["table1"]:
        row["p_value_versus"] = OTHER_NAMES.get(row["p_value_versus"], row["p_value_versus"])
    assert after == before
    ours, bare, _ = after["table1"]
    assert (ours["method"], ours["label"], ours["p_value_versus"]) == ("ours", "MedSyn", "bare")
    assert float(ours["p_value"]) > 0
    assert float(ours["p_paired"]) > 0
    assert bare["p_value"] == ""
    assert [row["language_model"] for row in after["table7"]] == ["biomedical"] * 2 + ["generic"] * 2


def test_renamed_methods_change_the_commands_of_the_workflow_in_their_names_alone(tmp_path):
    said = []
    for key, names in (("a", {}), ("b", OTHER_NAMES)):
        (tmp_path / key).mkdir()
        config = tmp_path / key / "c.yaml"
        config.write_text(yaml.safe_dump(settings(names), sort_keys=False))
        run = run_snakemake("-n", "-p", "all", directory=tmp_path / key, config=config)
        assert run.returncode == 0, run.stderr
        lines = [line.partition("python -m medsyn ")[2] for line in run.stdout.splitlines() if " -m medsyn " in line]
        said.append(sorted(map(shlex.split, lines)))
    name = re.compile(rf"(?<![a-z])({'|'.join(OTHER_NAMES)})(?![a-z])")

    def renamed(word: str) -> str:
        return name.sub(lambda match: OTHER_NAMES[match[0]], word)

    assert sorted([renamed(word) for word in words] for words in said[0]) == said[1]
    assert said[0] != said[1]


# --- words that nothing reads, and what is missing ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table", "2", "--scores", "s.csv"], "--scores is not read by table 2, which takes --prompts, --measures"),
        (["table", "5", "--against", "x"], "--against is not read by table 5, which takes --scores; leave it out"),
        (
            ["figure", "5", "--volumes", "a", "b"],
            "--volumes is not read by figure 5, which takes --prompts, --measures",
        ),
        (["figure", "hero", "--without-text", "a"], "--without-text is not read by figure hero"),
        (["table", "9"], "'table9' is not a known exhibit; expected one of table1, table2"),
        (["table", "hero"], "'hero' is a figure; run `medsyn figure hero`"),
        (["table", "5", "--scores", "s.csv"], "table 5: --config is needed"),
        (["figure", "3"], "figure 3: --volumes LABEL .. is needed"),
    ],
)
def test_a_word_that_an_exhibit_does_not_read_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--out", "out.csv"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_comparison_never_vanishes_silently(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = write_run(tmp_path, {})
    words = EXHIBITS["table1"].command(Sources(config))
    words[words.index("--against") + 1] = "somebody"
    assert main([*words, "--out", "t.csv"]) == 2
    assert (
        "--against somebody: no --measures with that label, only real, medsyn, without_shape" in capsys.readouterr().err
    )
    assert not Path("t.csv").exists()
    rows = make_table("table1", config.model_copy(update={"compare_with": None}))
    assert {row["p_value"] + row["p_paired"] + row["p_value_versus"] for row in rows} == {""}


COSTS = ("num_parameters", "training_eflop", "training_hours", "seconds_per_volume", "peak_memory_gib", "device")


def test_table_1_says_what_every_method_cost(tmp_path, monkeypatch):
    """Three tables of 2e-9 EFLOP and 1 h each; a method with another's super-resolution network counts that too."""
    monkeypatch.chdir(tmp_path)
    config = write_run(tmp_path, {}).model_copy(update={"compare_with": "generic_lm"})  # which adds it to the table
    rows = {row["method"]: [row[name] for name in COSTS] for row in make_table("table1", config)}
    assert rows == {
        "medsyn": ["7", "6e-09", "3", "0.5", "1.5", "CPU"],
        "without_shape": ["7", "6e-09", "3", "1.5", "1.5", "CPU"],
        "generic_lm": ["7", "6e-09", "3", "2.5", "1.5", "CPU"],
        "real": [""] * len(COSTS),
    }
    read = read_json(EXHIBITS["table1"].files(Sources(config).layout)["provenance"])["inputs"]
    for path in ("samples/medsyn/reports/0/cost.json", "text/generic/model/metrics.csv"):
        assert f"results/test/{path}" in read
    needs = EXHIBITS["table1"].needs(Sources(config))
    (shared,) = (need.paths for need in needs if need.option == "training" and need.words == ("generic_lm",))
    models = "results/test/models"
    assert shared == (
        f"{models}/generic_lm/low_res_metrics.csv",
        f"{models}/medsyn/super_res_metrics.csv",
        "results/test/text/generic/model",
    )


def test_a_cost_that_is_not_known_is_an_empty_cell_and_never_a_zero_or_a_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_run(tmp_path, {})
    layout = Layout(config.results_dir)
    write_csv(
        layout.training_metrics("medsyn", "low_res"), [{"step": 2, "training_hours": 4}], ["step", "training_hours"]
    )
    Path(layout.training_metrics("without_shape", "super_res")).write_text("loss\n")
    Path(layout.samples("medsyn", "reports", "0"), "cost.json").unlink()
    write_cost(Path(layout.samples("without_shape", "reports", "0")), SamplingCost(num_volumes=3))
    rows = {row["method"]: [row[name] for name in COSTS] for row in make_table("table1", config)}
    assert rows == {"medsyn": ["", "", "6", *[""] * 3], "without_shape": [""] * 6, "real": [""] * 6}


def test_shards_of_samples_are_weighted_by_their_volumes(tmp_path):
    facts = {"num_parameters": 7, "peak_memory_gib": 2.0, "device": "H100"}
    shards = [
        SamplingCost(num_volumes=3, seconds_per_volume=1.0, **facts),
        SamplingCost(num_volumes=1, seconds_per_volume=5.0, **(facts | {"peak_memory_gib": 3.0, "device": "A100"})),
        SamplingCost(num_volumes=0, num_parameters=7),
    ]
    for name, cost in zip("abc", shards, strict=True):
        (tmp_path / name).mkdir()
        write_cost(tmp_path / name, cost)
    cost = sampling_cost(cost_files([tmp_path / name for name in "abcd"]))
    assert cost == {"num_parameters": 7, "seconds_per_volume": 2.0, "peak_memory_gib": 3.0, "device": "H100; A100"}
    (tmp_path / "a/cost.json").write_text('{"num_volumes": -1}')
    with pytest.raises(InputError, match=r"a/cost.json: num_volumes: .* greater than or equal to 0"):
        sampling_cost(cost_files([tmp_path / "a"]))


def test_a_method_that_trains_nothing_has_no_table_of_training():
    values = settings()
    values["methods"]["theirs"] = {"kind": "external", "label": "T", "command": "a {prompts} {out}"}
    needs = EXHIBITS["table1"].needs(Sources(validate(Config, values, "test")))
    assert {need.words[0] for need in needs if need.option == "training"} == {"medsyn", "without_shape"}
    assert {need.words[0] for need in needs if need.option == "samples"} == {"medsyn", "without_shape", "theirs"}


def test_the_budget_of_training_ends_the_caption_of_table_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_run(tmp_path, {})
    make_table("table1", config)
    plain = EXHIBITS["table1"].caption
    assert EXHIBITS["table1"].full_caption({"evaluation": config.evaluation.model_dump()}) == plain
    path = Path(Layout(config.results_dir).config("evaluation"))
    path.write_text(json.dumps(read_json(path) | {"training_budget": "7 minutes of one core each."}))
    assert main(["report", "--results", config.results_dir, "--out", "r.html", "--quiet"]) == 0
    page = Path("r.html").read_text(encoding="utf-8")
    assert page.count("Training budget: 7 minutes of one core each.</p>") == 1


def test_the_report_draws_the_losses_of_all_phases_and_says_what_a_picture_shows(tmp_path):
    layout = Layout(str(tmp_path / "results"))
    rows = [{"step": step, "critic_loss": -step, "critic_loss_ema": -2, "generator_loss": 1} for step in (1, 2)]
    write_csv(layout.training_metrics("wgan", "gan"), rows, rows[0])
    write_csv(
        layout.training_metrics("medsyn", "low_res"), [{"step": 1, "loss": 2}, {"step": 2, "loss": 1}], ["step", "loss"]
    )
    for method, network in (("wgan", "gan"), ("medsyn", "low_res")):
        Path(layout.training_preview(method, network)).write_bytes(b"picture")
    page = tmp_path / "r.html"
    assert main(["report", "--results", str(tmp_path / "results"), "--out", str(page), "--quiet"]) == 0
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"<div class='chart-title'>([^<]+)", text) == ["low-res loss (log scale)", "gan losses"]
    assert [word for word in ("critic", "generator", "critic loss ema") if f">{word}</text>" in text] == [
        "critic",
        "generator",
    ]
    captions = re.findall(r"<figcaption>((?:low-res|gan): [^,]+)", text)
    assert captions == ["low-res: one training volume per row", "gan: training volumes"]


def test_figure_3_shows_the_methods_that_are_named_in_their_order():
    values = settings()
    values["evaluation"]["figure3_methods"] = ["generic_lm", "medsyn"]
    sources = Sources(validate(Config, values, "test"))
    assert methods_of("figure3", sources) == ["generic_lm", "medsyn"]
    assert methods_of("table1", sources) == ["medsyn", "without_shape"]
    assert [need.words[0] for need in EXHIBITS["figure3"].needs(sources) if need.option == "label"] == [
        "generic_lm",
        "medsyn",
    ]


def test_a_method_without_text_says_so_in_table_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_run(tmp_path, {})
    rows = make_table("table1", config, "--without-text", "without_shape")
    assert {row["method"]: row["takes_text"] for row in rows} == {"medsyn": "yes", "without_shape": "no", "real": ""}


def test_a_reference_without_text_has_no_exhibits_of_prompts(monkeypatch):
    monkeypatch.setattr(MedSynConfig, "takes_text", property(lambda entry: entry.label != "MedSyn"))
    sources = sources_of()
    made = [name for name in EXHIBITS.builtin if EXHIBITS[name].in_all(sources.config)]
    assert made == ["table1", "ranking", "memorisation", "figure3", "figure8", "memorisation_pairs", "hero"]
    assert words_of(EXHIBITS["table1"].needs(sources)).count("--without-text") == 1


# --- a stranger's table ---

CAPTION = "Kernel inception distance to the real volumes; lower is better."
ODD_CAPTION = "Kernel inception distance to the *real* volumes, lower_is better."
"""Signs that a caption in reStructuredText must not lose."""


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Return the kernel inception distance by the mean over all pairs of two different volumes."""

    def mean(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
        return float(np.mean([(a.astype(float) @ b / a.size + 1) ** 3 for a, b in pairs]))

    return mean(permutations(x, 2)) + mean(permutations(y, 2)) - 2 * mean(product(x, y))


def install_as_plugin(folder: Path, values: dict, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write the module and name it in the configuration; return the words that make other verbs know it."""
    (folder / "kid_table.py").write_text(example("kid.py").replace(CAPTION, ODD_CAPTION))
    values["plugins"] = ["kid_table.py"]
    return []


def install_as_package(folder: Path, values: dict, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write the module as an installed package with an entry point."""
    site = folder / "site"
    info = site / "kid_table-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "kid_table.py").write_text(packaged("kid.py").replace(CAPTION, ODD_CAPTION))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kid-table\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[medsyn.exhibits]\nkid = kid_table:KID\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    return []


@pytest.mark.parametrize("install", [install_as_plugin, install_as_package])
def test_a_table_from_outside_the_package_is_made_by_the_workflow_and_stands_in_the_report(
    install, tmp_path, monkeypatch
):
    write_run(tmp_path, {})
    given = {path for path in tmp_path.rglob("*") if path.is_file()}
    values = settings()
    install(tmp_path, values, monkeypatch)
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    needed = {path.relative_to(tmp_path).name for path in tmp_path.rglob("*") if path.is_file() and path not in given}
    assert needed - {"METADATA", "entry_points.txt"} == {"c.yaml", "kid_table.py"}, "one module and a line"

    plan = run_snakemake("-n", "-p", "results/test/report.html", directory=tmp_path, config=config)
    assert plan.returncode == 0, plan.stderr
    report = next(line for line in plan.stdout.splitlines() if "medsyn report" in line)
    assert {"results/test/eval/kid.csv", "results/test/eval/kid.json"} <= set(shlex.split(report))

    target = "results/test/eval/kid.csv"
    (tmp_path / "results/test/config/evaluation.json").unlink()  # of the configuration without the plugin
    only = (
        "--allowed-rules",
        "make_kid",
        "write_config",
        "--",
    )  # of what the features were made from, nothing is there
    run = run_snakemake("-p", *only, target, directory=tmp_path, config=config)
    assert run.returncode == 0, run.stderr + run.stdout
    rows = read_csv(tmp_path / target)
    assert [row["method"] for row in rows] == ["MedSyn", "MedSyn without shape"]
    features = [np.load(tmp_path / f"results/test/features/{name}/0.npz") for name in ("real", "medsyn/reports")]
    assert float(rows[0]["kid"]) == pytest.approx(kernel_distance(*(part["features"] for part in features)), rel=1e-4)
    sidecar = read_json(tmp_path / "results/test/eval/kid.json")
    assert (sidecar["table"], len(sidecar["inputs"])) == ("kid", 4)

    command = next(line for line in (run.stdout + run.stderr).splitlines() if "medsyn table kid" in line)
    words = shlex.split(command.removeprefix("Shell command: ").split(" 2> ")[0])
    words = [sys.executable, *words[1:-1], "by_hand.csv"]
    subprocess.run(words, cwd=tmp_path, check=True)
    assert (tmp_path / "by_hand.csv").read_bytes() == (tmp_path / target).read_bytes()

    page = tmp_path / "report.html"
    subprocess.run(
        [sys.executable, "-m", "medsyn", "report", "--results", "results/test", "--out", page], cwd=tmp_path, check=True
    )
    text = page.read_text(encoding="utf-8")
    assert ODD_CAPTION in text
    assert "<th>KID</th>" in text

    run = run_snakemake("--report", "page.html", *only, target, directory=tmp_path, config=config)
    assert run.returncode == 0, run.stderr
    assert ODD_CAPTION in (tmp_path / "page.html").read_text("utf-8")


def test_a_table_may_be_made_of_volumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(EXHIBITS, "_things", dict(EXHIBITS._things))
    exhibit = Exhibit(
        name="counts",
        kind="table",
        title="Counts",
        caption="Volumes per method.",
        needs=lambda sources: [sources.made("volumes", sources.reference, "reports")],
        options=("volumes",),
        make=lambda inputs, _: (["n"], [{"n": len(files)} for files in inputs.volumes().values()]),
        uses_settings=False,
    )
    EXHIBITS.register("counts", exhibit)
    volume = Path("volumes/0/a/volume.nii.gz")
    volume.parent.mkdir(parents=True)
    hashes = []
    for content in ("one", "other"):
        volume.write_text(content)
        assert main(["table", "counts", "--volumes", "ours", "volumes/0", "--out", "counts.csv", "--quiet"]) == 0
        hashes.append(read_json("counts.json")["inputs"][str(volume)])
    assert read_csv("counts.csv") == [{"n": "1"}]
    assert hashes[0] != hashes[1]


def test_the_report_of_a_run_with_a_strangers_network_of_our_networks_name(tmp_path):
    for name, stage in (("low_res_gan", {"kind": "gan", "width": 3}), ("cohort", {"source": "phantom"})):
        path = Path(Layout(str(tmp_path)).config(name))
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(stage))
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path / "r.html"), "--quiet"]) == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "embedded procedural phantoms" in page
    assert "low_res_gan" in page  # among the settings of every stage


def test_the_shipped_configurations_make_every_exhibit():
    for name in ("config", "test"):
        config = load_config(ROOT / f"config/{name}.yaml")
        assert all(EXHIBITS[exhibit].in_all(config) for exhibit in EXHIBITS.builtin)
