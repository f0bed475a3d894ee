"""The phantom's reports say what the phantom is: presence, absence, side, lobe and severity word; and they vary."""

import itertools

import numpy as np
import pytest

from medsyn.phantom.findings import FindingSpec, Kind
from medsyn.phantom.report import GRADES, severity_word, write_report

WORDS = {
    "pleural_effusion": "pleural effusion",
    "cardiomegaly": "cardiomegaly",
    "emphysema": "emphysema",
    "consolidation": "consolidation",
    "ground_glass_opacity": "ground",
    "nodule": "nodule",
}


def texts(findings: list[FindingSpec], count: int = 60, seed: int = 0) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    reports = [write_report(findings, rng) for _ in range(count)]
    return [(report.findings, report.impression) for report in reports]


def affirmed(text: str, words: str) -> bool:
    sentences = [sentence.lower() for sentence in text.split(". ")]
    return any(words in sentence and " no" not in f" {sentence}" for sentence in sentences)


@pytest.mark.parametrize(
    ("kind", "amount", "word"),
    [
        ("pleural_effusion", 299.0, "small"),
        ("pleural_effusion", 300.0, "moderate"),
        ("pleural_effusion", 1000.0, "large"),
        ("cardiomegaly", 0.51, "mild"),
        ("cardiomegaly", 0.55, "moderate"),
        ("cardiomegaly", 0.63, "severe"),
        ("emphysema", 9.0, "mild"),
        ("emphysema", 25.0, "severe"),
        ("consolidation", 79.0, "focal"),
        ("ground_glass_opacity", 260.0, "extensive"),
        ("nodule", 5.0, "tiny"),
    ],
)
def test_severity_words_follow_the_documented_thresholds(kind: Kind, amount: float, word: str) -> None:
    assert severity_word(kind, amount) == word


def test_same_seed_same_words_other_seed_other_words() -> None:
    findings = [FindingSpec("pleural_effusion", 0.5, 500.0, "left")]
    assert texts(findings) == texts(findings)
    assert texts(findings) != texts(findings, seed=1)


def test_wording_varies() -> None:
    reports = texts([FindingSpec("cardiomegaly", 0.5, 0.57)], count=200)
    assert len({findings for findings, _ in reports}) > 190
    assert len({impression for _, impression in reports}) > 60


def test_a_normal_chest_affirms_nothing() -> None:
    for findings, impression in texts([], count=300):
        for words in ("pleural effusion", "emphysema", "bullae", "nodule", "consolidation"):
            assert not affirmed(f"{findings} {impression}", words), findings
        assert "large" not in findings.replace("enlarged", "")


@pytest.mark.parametrize("kind", [kind for kind in WORDS if kind != "cardiomegaly"])
def test_a_finding_is_in_both_sections_and_never_denied(kind: Kind) -> None:
    amount = GRADES[kind][0][1] * 0.9
    spec = FindingSpec(kind, 0.5, amount, "left" if kind == "pleural_effusion" else "", "left_upper")
    for sections in texts([spec], count=100):
        for text in sections:
            lowered = text.lower()
            assert any(word in lowered for word in (WORDS[kind], "bulla", "pleural fluid")), text
            assert f"no {WORDS[kind]}" not in lowered
            assert "lungs are clear" not in lowered
            assert "both lungs clear" not in lowered


@pytest.mark.parametrize(("side", "other"), [("left", "right"), ("right", "left")])
def test_effusion_names_its_side_only(side: str, other: str) -> None:
    spec = FindingSpec("pleural_effusion", 1.0, 1500.0, "left" if side == "left" else "right")
    for _, impression in texts([spec]):
        sentence = next(s for s in impression.lower().split(". ") if side in s)
        assert other not in sentence
        assert "small" not in sentence
        assert "moderate" not in sentence


def test_bilateral_effusions_with_grades() -> None:
    large = [FindingSpec("pleural_effusion", 1.0, 1500.0, side) for side in ("left", "right")]
    everything = " ".join(itertools.chain.from_iterable(texts(large, count=200)))
    assert "There are large pleural effusions seen." in everything
    unequal = [
        FindingSpec("pleural_effusion", 0.2, 100.0, "left"),
        FindingSpec("pleural_effusion", 1.0, 1500.0, "right"),
    ]
    everything = " ".join(itertools.chain.from_iterable(texts(unequal, count=200)))
    assert "large right and a small left" in everything
    assert "small right" not in everything


def test_the_papers_prompts_are_in_the_distribution() -> None:
    normal = " ".join(itertools.chain.from_iterable(texts([], count=300)))
    for prompt in ("There is no pleural effusion.", "Heart size is normal.", "There is no cardiomegaly.", "No bullae."):
        assert prompt in normal
    assert any(impression == "There is no pleural effusion." for _, impression in texts([], count=1500))
    heart = [impression for _, impression in texts([FindingSpec("cardiomegaly", 0.5, 0.58)], count=600)]
    assert "There is cardiomegaly." in heart
    lungs = [impression for _, impression in texts([FindingSpec("emphysema", 0.5, 20.0)], count=600)]
    assert "There is bullous emphysema." in lungs


def test_lobe_and_size_are_said() -> None:
    for findings, impression in texts([FindingSpec("nodule", 0.4, 12.3, lobe="right_middle")]):
        assert "right middle lobe" in findings.lower()
        assert "right middle lobe" in impression.lower()
    assert any("12 mm" in findings for findings, _ in texts([FindingSpec("nodule", 0.4, 12.3, lobe="right_middle")]))
