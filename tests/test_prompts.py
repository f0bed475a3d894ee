"""The prompt sets: sizes, seeds, what is fixed, and labels that agree with what a prompt is called."""

import csv
from pathlib import Path

import pytest
from text_data import sample_reports

from medsyn.cli import main
from medsyn.cli.text import PROMPT_SETS
from medsyn.config import EvaluationConfig, PromptsStage, load_config, prompts_stage
from medsyn.files import read_csv
from medsyn.text.labels import default_labeler
from medsyn.text.pairs import paper_pairs
from medsyn.text.prompts import COLUMNS, SETS, build_prompts, read_sources

PAIRS = {
    "pleural_effusion": {
        "measure": "effusion_volume_ml",
        "with_finding": "There are large pleural effusions seen.",
        "without_finding": "There is no pleural effusion.",
    },
    "cardiomegaly": {
        "measure": "cardiothoracic_ratio",
        "with_finding": "There is cardiomegaly.",
        "without_finding": "There is no cardiomegaly.",
    },
}
EVALUATION = EvaluationConfig(
    num_fid_samples=20,
    num_per_prompt=4,
    num_segmentation_subjects=3,
    prompt_pairs=PAIRS,
    augmentation={"num_reports_per_class": 5},
    seed=1,
)
CONFIG = prompts_stage(EVALUATION)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("cohort")
    cohort, reports = folder / "cohort.csv", folder / "reports.csv"
    rows = [
        [
            f"s{number:03d}",
            f"r{number:03d}",
            report.findings,
            report.impression,
            "train" if number % 4 else "validation",
        ]
        for number, (_, report) in enumerate(sample_reports(60, seed=2))
    ]
    with cohort.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["subject_id", "report_id", "findings", "impression", "split"])
        writer.writerows(rows)
    with reports.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["report_id", "findings", "impression", "split"])
        writer.writerows(row[1:] for row in rows)
    return cohort, reports


def rows_of(name: str, tables: tuple[Path, Path], config: PromptsStage = CONFIG) -> list[dict[str, object]]:
    return build_prompts(name, read_sources(*tables, config))


def validation(tables: tuple[Path, Path]) -> list[dict[str, str]]:
    return [row for row in read_csv(tables[0]) if row["split"] == "validation"]


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_verb_writes_every_set_the_same_way_twice(name: str, tables: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(CONFIG.model_dump_json())
    outputs = []
    for run in ("a", "b"):
        out = tmp_path / f"{run}.csv"
        arguments = ["prompts", "--set", name, "--cohort", str(tables[0]), "--reports", str(tables[1])]
        assert main([*arguments, "--config", str(tmp_path / "prompts.json"), "--out", str(out), "--quiet"]) == 0
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1]
    rows = read_csv(tmp_path / "a.csv", COLUMNS)
    assert len({row["sample_id"] for row in rows}) == len(rows) > 0
    assert all(row["text"] and 0 <= int(row["seed"]) < 2**31 for row in rows)


def test_verb_and_module_know_the_same_sets() -> None:
    assert tuple(SETS) == PROMPT_SETS


def test_reports_come_from_the_validation_split_each_once_before_any_twice(tables: tuple[Path, Path]) -> None:
    rows = rows_of("reports", tables)
    known = {f"FINDINGS: {row['findings']} IMPRESSION: {row['impression']}" for row in validation(tables)}
    assert len(rows) == 20
    assert {row["text"] for row in rows} == known
    assert len({row["seed"] for row in rows}) == 20


def test_pairs_share_their_seeds_and_flip_their_label(tables: tuple[Path, Path]) -> None:
    rows = rows_of("pairs", tables)
    for finding in PAIRS:
        sides = {
            side: [row for row in rows if row["prompt_type"] == f"{finding}/{side}"] for side in ("with", "without")
        }
        assert [row["seed"] for row in sides["with"]] == [row["seed"] for row in sides["without"]]
        assert len({row["seed"] for row in sides["with"]}) == 4
        for side, label in (("with", 1), ("without", 0)):
            assert all(default_labeler().label(str(row["text"]))[finding] == label for row in sides[side])
    assert rows_of("effusion_pairs", tables) == [row for row in rows if str(row["prompt_type"]).startswith("pleural")]


def test_report_pairs_begin_with_the_papers_and_flip(tables: tuple[Path, Path]) -> None:
    rows = rows_of("report_pairs", tables)
    assert rows[0]["text"] == "There are large pleural effusions seen."
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        finding = str(first["prompt_type"]).split("/")[0]
        assert (first["prompt_type"], second["prompt_type"]) == (f"{finding}/with", f"{finding}/without")
        assert first["seed"] == second["seed"]
        labels = [default_labeler().label(str(row["text"]))[finding] for row in (first, second)]
        assert labels == [1, 0]


def test_report_pairs_keep_severity_and_side_as_configured(tables: tuple[Path, Path]) -> None:
    words = {"large", "small", "severe", "left", "right", "bilateral"}

    def said(**settings: bool) -> set[str]:
        texts = {str(row["text"]) for row in rows_of("report_pairs", tables, CONFIG.model_copy(update=settings))}
        return words & set(" ".join(texts - {"There are large pleural effusions seen."}).lower().split())

    assert {"left", "right"} <= said()
    assert said(pairs_keep_severity=False) <= {"left", "right", "bilateral"}
    assert not said(pairs_keep_severity=False, pairs_keep_side=False)


def test_a_larger_set_begins_with_the_smaller_one(tables: tuple[Path, Path]) -> None:
    larger = CONFIG.model_copy(update={"num_fid_samples": 33})
    assert rows_of("reports", tables, larger)[:20] == rows_of("reports", tables)
    other_seed = CONFIG.model_copy(update={"seed": 2})
    assert rows_of("reports", tables, other_seed) != rows_of("reports", tables)


def test_augmentation_prompts_have_the_label_of_their_name(tables: tuple[Path, Path]) -> None:
    rows = rows_of("augmentation", tables)
    assert len(rows) == 2 * 2 * 5
    for row in rows:
        finding, side = str(row["prompt_type"]).split("/")
        assert default_labeler().label(str(row["text"]))[finding] == int(side == "with")
    members = {row["subject_id"] for row in validation(tables)}
    assert {row["patient_id"] for row in rows} <= members, "the paper parses the reports of the validation set"
    texts = {
        row["subject_id"]: f"FINDINGS: {row['findings']} IMPRESSION: {row['impression']}" for row in validation(tables)
    }
    assert all(row["text"] == texts[str(row["patient_id"])] for row in rows)


def test_pairs_of_reports_begin_with_those_of_the_settings_and_share_pair_and_seed(tables: tuple[Path, Path]) -> None:
    chosen = CONFIG.model_copy(update={"prompt_source": "reports", "num_report_sentences": 2})
    rows, few = rows_of("pairs", tables, chosen), rows_of("pairs", tables)
    texts = [report["findings"] + report["impression"] for report in validation(tables)]
    for finding in PAIRS:
        sides = [[row for row in rows if row["prompt_type"] == f"{finding}/{side}"] for side in ("with", "without")]
        prompts = list(dict.fromkeys(str(row["text"]) for row in sides[0]))
        assert prompts[0] == PAIRS[finding]["with_finding"]
        assert len(prompts) == 3
        for sentence in prompts[1:]:
            assert any(sentence.strip(".").lower() in text.lower() for text in texts), "not of a validation report"
        assert len(sides[0]) == len(sides[1]) == 3 * 4
        for present, absent in zip(*sides, strict=True):
            assert (present["pair"], present["seed"]) == (absent["pair"], absent["seed"])
            assert [default_labeler().label(str(row["text"]))[finding] for row in (present, absent)] == [1, 0]
        assert len({row["pair"] for row in sides[0]}) == len({row["seed"] for row in sides[0]}) == 12
        assert [row for row in rows if row in few and str(row["prompt_type"]).startswith(finding)] == [
            row for row in few if str(row["prompt_type"]).startswith(finding)
        ]
    more = rows_of("pairs", tables, chosen.model_copy(update={"num_report_sentences": 3}))
    assert [row for row in more if row in rows] == rows
    assert rows_of("effusion_pairs", tables, chosen) == [r for r in rows if str(r["prompt_type"]).startswith("pleural")]


def test_too_few_sentences_are_named(
    tables: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = CONFIG.model_copy(update={"prompt_source": "reports", "num_report_sentences": 500})
    (tmp_path / "prompts.json").write_text(chosen.model_dump_json())
    inputs = ["--cohort", str(tables[0]), "--reports", str(tables[1]), "--config", str(tmp_path / "prompts.json")]
    assert main(["prompts", "--set", "pairs", *inputs, "--out", str(tmp_path / "pairs.csv")]) == 0
    said = capsys.readouterr().err
    for finding in PAIRS:
        assert f"prompts: {finding}: " in said
    assert "num_report_sentences asks for 500" in said


def test_the_papers_configuration_prompts_with_the_published_pairs_and_with_reports() -> None:
    evaluation = load_config(Path(__file__).parents[1] / "config/paper.yaml").evaluation
    assert evaluation.prompt_source == "reports"
    published = {pair.finding: (pair.with_finding, pair.without_finding) for pair in paper_pairs()}
    assert {f: (p.with_finding, p.without_finding) for f, p in evaluation.prompt_pairs.items()} == published


def test_a_report_without_impression_is_prompted_by_its_findings(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("subject_id,findings,impression,split\ns1,Clear lungs.,,validation\n")
    (tmp_path / "reports.csv").write_text("report_id,findings,impression,split\ns1,Clear lungs.,,validation\n")
    config = CONFIG.model_copy(update={"prompt_section": "impression"})
    sources = read_sources(tmp_path / "cohort.csv", tmp_path / "reports.csv", config)
    assert {(r["section"], r["text"]) for r in build_prompts("controlled", sources)} == {("findings", "Clear lungs.")}
    for name in ("reports", "segmentation"):
        assert {(r["section"], r["text"]) for r in build_prompts(name, sources)} == {
            ("report", "FINDINGS: Clear lungs.")
        }


def test_subjects_without_masks_are_not_fixed(tables: tuple[Path, Path]) -> None:
    some = {row["subject_id"] for row in validation(tables)[:2]}
    for name in ("segmentation", "controlled"):
        rows = build_prompts(name, read_sources(*tables, CONFIG, some))
        fixed = {row[key] for row in rows for key in row if key.startswith("fix_")}
        assert fixed
        assert fixed <= some


def test_segmentation_fixes_the_image_with_and_without_text(tables: tuple[Path, Path]) -> None:
    rows = rows_of("segmentation", tables)
    members = {row["subject_id"] for row in validation(tables)}
    assert len(rows) == 6
    for text, none in zip(rows[::2], rows[1::2], strict=True):
        assert (text["text_mode"], none["text_mode"]) == ("text", "none")
        assert text["fix_image"] == none["fix_image"]
        assert text["fix_image"] in members
        assert text["seed"] == none["seed"]
        assert text["guidance_scale"] == none["guidance_scale"] == 1.0  # the arms differ in the text alone


def test_a_finding_that_the_prompt_leaves_out_is_no_label(tmp_path: Path) -> None:
    told, silent = ("Left pleural effusion.", "Effusion on the left."), ("Right pleural effusion.", "As before.")
    lines = [f"r{k},{findings},{impression},validation\n" for k, (findings, impression) in enumerate((told, silent))]
    for name, key in (("cohort", "subject_id"), ("reports", "report_id")):
        (tmp_path / f"{name}.csv").write_text(f"{key},findings,impression,split\n{''.join(lines)}")
    for section, expected in (("report", {"r0", "r1"}), ("impression", {"r0"})):
        config = CONFIG.model_copy(update={"prompt_section": section, "augmentation_findings": ("pleural_effusion",)})
        rows = build_prompts("augmentation", read_sources(tmp_path / "cohort.csv", tmp_path / "reports.csv", config))
        assert {(row["prompt_type"], row["patient_id"]) for row in rows} == {
            ("pleural_effusion/with", name) for name in expected
        }


def test_the_cohort_says_whose_a_report_is(tmp_path: Path) -> None:
    """`classify` compares the prompts' patients with the cohort's: a table of reports may not know them."""
    (tmp_path / "cohort.csv").write_text(
        "subject_id,patient_id,report_id,findings,impression,split\n"
        "s1,p1,r1,Small right pleural effusion.,,validation\ns2,p1,r2,No pleural effusion.,,validation\n"
    )
    (tmp_path / "reports.csv").write_text(
        "report_id,findings,impression,split\n"
        "r1,Small right pleural effusion.,,validation\nr2,No pleural effusion.,,validation\n"
    )
    sources = read_sources(tmp_path / "cohort.csv", tmp_path / "reports.csv", CONFIG)
    assert {row["patient_id"] for row in build_prompts("augmentation", sources)} == {"p1"}


def test_only_segmentation_names_its_guidance(tables: tuple[Path, Path]) -> None:
    settings = prompts_stage(EVALUATION.model_copy(update={"segmentation_guidance_scale": 3.0}))
    for name in SETS:
        scales = {row.get("guidance_scale") for row in build_prompts(name, read_sources(*tables, settings))}
        assert scales == ({3.0} if name == "segmentation" else {None})


def test_controlled_fixes_one_structure_and_varies_the_seed(tables: tuple[Path, Path]) -> None:
    rows = rows_of("controlled", tables)
    for structure in ("lobes", "airway", "vessels"):
        chosen = [row for row in rows if row.get(f"fix_{structure}")]
        assert len(chosen) == 3
        assert len({row["seed"] for row in chosen}) == 3
        subject = next(row for row in validation(tables) if row["subject_id"] == chosen[0][f"fix_{structure}"])
        assert {row["text"] for row in chosen} == {subject["impression"]}


def test_bad_input_is_one_line(tables: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = CONFIG.model_dump() | {"augmentation_findings": ["fracture"]}
    (tmp_path / "prompts.json").write_text(PromptsStage(**unknown).model_dump_json())
    arguments = ["prompts", "--config", str(tmp_path / "prompts.json"), "--out", str(tmp_path / "out.csv")]
    inputs = ["--cohort", str(tables[0]), "--reports", str(tables[1])]
    assert main([*arguments, *inputs, "--set", "augmentation"]) == 2
    assert "the labeler knows no 'fracture'" in capsys.readouterr().err
    (tmp_path / "cohort.csv").write_text("subject_id,findings,impression,split\ns1,a,b,train\n")
    assert (
        main([*arguments, "--cohort", str(tmp_path / "cohort.csv"), "--reports", str(tables[1]), "--set", "pairs"]) == 2
    )
    assert "nothing in split validation" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
