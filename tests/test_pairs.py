"""Prompt pairs out of reports: every pair flips its label and nothing else, severity and side as asked."""

import csv
from pathlib import Path

import pytest
import yaml
from text_data import sample_reports

from medsyn.text.labels import default_labeler
from medsyn.text.pairs import RULES_FILE, Pair, content, make_pair, paper_pairs, report_pairs, reversal

LABELER = default_labeler()
SEVERITY = {"small", "mild", "minimal", "moderate", "large", "severe", "massive", "slight"}
SIDE = {"left", "right", "bilateral", "both"}


def assert_flips(pairs: list[Pair]) -> None:
    for pair in pairs:
        stated = {name for name, label in LABELER.label(pair.with_finding).items() if label}
        assert pair.finding in stated, pair
        assert stated <= {pair.finding, "lung_opacity"}, pair
        assert not any(LABELER.label(pair.without_finding).values()), pair


def words(text: str) -> set[str]:
    return set(text.lower().replace(".", " ").replace(",", " ").replace("-", " ").split())


def test_the_papers_pairs_flip() -> None:
    pairs = paper_pairs()
    assert_flips(pairs)
    assert ("There are large pleural effusions seen.", "There is no pleural effusion.") in [
        (pair.with_finding, pair.without_finding) for pair in pairs
    ]


@pytest.mark.parametrize(
    ("finding", "sentence", "severity", "side", "expected"),
    [
        (
            "pleural_effusion",
            "large left pleural effusion is seen",
            True,
            True,
            ("Large left pleural effusion is seen.", "There is no pleural effusion on the left."),
        ),
        (
            "pleural_effusion",
            "large left pleural effusion is seen",
            True,
            False,
            ("Large pleural effusion is seen.", "There is no pleural effusion."),
        ),
        (
            "pleural_effusion",
            "there is a small effusion on the right",
            False,
            False,
            ("There is an effusion.", "There is no pleural effusion."),
        ),
        (
            "emphysema",
            "bullae in both lungs",
            True,
            True,
            ("Bullae in both lungs.", "There are no bullae on either side."),
        ),
        ("cardiomegaly", "the heart size is increased", True, True, None),
        ("pleural_effusion", "pleural effusion and consolidation", True, True, None),
        ("nodule", "the nodule has grown since the previous examination", True, True, None),
        ("nodule", "a 5 mm nodule", True, True, None),
    ],
)
def test_severity_and_side_are_kept_or_dropped(
    finding: str, sentence: str, severity: bool, side: bool, expected: tuple[str, str] | None
) -> None:
    pair = make_pair(finding, sentence, LABELER, "r1", severity, side)
    assert (None if pair is None else (pair.with_finding, pair.without_finding)) == expected


def test_a_reversal_uses_the_words_of_its_sentence() -> None:
    assert reversal("cardiomegaly", "the heart size is large", True) == "The heart size is normal."
    assert reversal("emphysema", "apical emphysema", True) == "There is no emphysema."


@pytest.mark.parametrize("keep_severity", [True, False])
@pytest.mark.parametrize("keep_side", [True, False])
def test_all_pairs_of_phantom_reports_flip(keep_severity: bool, keep_side: bool) -> None:
    reports = sample_reports(150, seed=4)
    texts = [(str(number), f"{report.findings} {report.impression}") for number, (_, report) in enumerate(reports)]
    pairs = report_pairs(texts, keep_severity=keep_severity, keep_side=keep_side)
    assert {"pleural_effusion", "emphysema", "cardiomegaly"} <= {pair.finding for pair in pairs}
    assert_flips(pairs)
    assert len({(pair.finding, pair.with_finding) for pair in pairs}) == len(pairs)
    if not keep_severity:
        assert not [pair for pair in pairs if words(pair.with_finding) & SEVERITY]
    if not keep_side:
        assert not [pair for pair in pairs if words(pair.with_finding + pair.without_finding) & SIDE]


def test_all_pairs_of_real_reports_flip(shared_data: Path) -> None:
    table = shared_data / "reports" / "ct_rate_labelled_800.csv"
    if not table.exists():
        pytest.skip(f"no labelled reports at {table}")
    with table.open(newline="", encoding="utf-8") as handle:
        texts = [(row["AccessionNo"], row["report_text"]) for row in csv.DictReader(handle)]
    pairs = report_pairs(texts)
    assert_flips(pairs)
    assert len({pair.finding for pair in pairs}) >= 17
    assert len(pairs) > 500


@pytest.mark.parametrize(
    ("finding", "sentence", "without"),
    [
        ("pleural_effusion", "small right pleural effusion", "There is no pleural effusion on the right."),
        ("pleural_effusion", "pleural effusion and pneumothorax on the left", None),
        ("pleural_effusion", "bilateral pleural effusion and calcified pleural thickening on the right", None),
        ("pleural_effusion", "there is effusion in the pericholecystic area", None),
        ("pleural_effusion", "suspicious minimal effusion in the right hemithorax", None),
        ("pleural_effusion", "bilateral newly developing pleural effusion", None),
        ("pleural_effusion", "the pleural effusion in the left hemithorax has just developed", None),
        (
            "pleural_effusion",
            "no significant changes in the areas of pleural effusion on the right",
            None,
        ),
        ("pleural_effusion", "more prominent bilateral pleural effusion on the left", None),
        ("emphysema", "emphysema is observed under the skin extending to the axilla", None),
        ("emphysema", "bleb formation in the right lung", "There are no blebs on the right."),
        ("emphysema", "bullous emphysema", "There are no bullae."),
        (
            "emphysema",
            "diffuse emphysematous changes in both lungs, bulla formations in the upper lobes",
            "There is no emphysema and there are no bullae on either side.",
        ),
        ("cardiomegaly", "ascending aortic aneurysm, cardiomegaly", None),
        ("cardiomegaly", "left heart chambers are dilated", None),
        (
            "ground_glass_opacity",
            "several ground-glass densities are observed, more prominently in the left lung",
            "There is no ground-glass opacity.",
        ),
        ("lymphadenopathy", "millimetric lymph nodes in the mediastinum", None),
        ("arterial_wall_calcification", "atheroma plaques in the aorta", None),
    ],
)
def test_a_pair_states_one_finding_and_denies_all_of_it(finding: str, sentence: str, without: str | None) -> None:
    pair = make_pair(finding, sentence, LABELER)
    assert (None if pair is None else pair.without_finding) == without


def test_sentences_that_differ_in_fillers_alone_say_the_same() -> None:
    assert content("There is cardiomegaly.") == content("Cardiomegaly is observed.")
    assert content("Bilateral pleural effusion.") != content("Bilateral minimal pleural effusion.")


def test_every_finding_of_the_pair_rules_has_words_and_a_reversal() -> None:
    rules = yaml.safe_load(RULES_FILE.read_text(encoding="utf-8"))
    assert set(rules["words"]) - {"any", "filler"} == set(rules["denials"])
    assert set(rules["needs"]) | (set(rules["excludes"]) - {"any"}) <= set(rules["denials"])
    for finding, denial in rules["denials"].items():
        for words in (denial["text"], *denial.get("except", {}).values()):
            assert not any(LABELER.label(words.format(side=" on the left")).values()), (finding, words)
