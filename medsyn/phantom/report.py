"""A radiology report for one phantom: says what is there, what is not, and some things that do not matter.

Takes the list of findings that the phantom was built from and a random generator, gives a Findings and an Impression
section. The severity word follows from the amount alone (unit: `medsyn.phantom.findings.UNITS`):

| finding              | amount           | below     | between   | from         | words                        |
|----------------------|------------------|-----------|-----------|--------------|------------------------------|
| pleural_effusion     | ml, per side     | 300       | 300-1000  | 1000         | small, moderate, large       |
| cardiomegaly         | CTR              | 0.55      | 0.55-0.60 | 0.60         | mild, moderate, severe       |
| emphysema            | % below -950 HU  | 10        | 10-25     | 25           | mild, moderate, severe       |
| consolidation        | ml               | 80        | 80-250    | 250          | focal, patchy, extensive     |
| ground_glass_opacity | ml               | 80        | 80-250    | 250          | focal, patchy, extensive     |
| nodule               | mm               | 6         | 6-30      | 30           | tiny, solid, (called a mass) |

A sentence may leave the severity out, never get it wrong. Two effusions are one sentence, with one word when both sides
have the same grade. The Impression names every finding of the subject, and often something that is absent ("There is no
pleural effusion."), sometimes nothing else, so that short prompts of that kind are among what the model learns from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medsyn.phantom import phrases
from medsyn.phantom.findings import FindingSpec, Kind

GRADES: dict[Kind, tuple[tuple[float, float], tuple[str, str, str]]] = {
    "pleural_effusion": ((300.0, 1000.0), ("small", "moderate", "large")),
    "cardiomegaly": ((0.55, 0.60), ("mild", "moderate", "severe")),
    "emphysema": ((10.0, 25.0), ("mild", "moderate", "severe")),
    "consolidation": ((80.0, 250.0), ("focal", "patchy", "extensive")),
    "ground_glass_opacity": ((80.0, 250.0), ("focal", "patchy", "extensive")),
    "nodule": ((6.0, 30.0), ("tiny", "solid", "large")),
}
"""Thresholds of the amount and the words below, between and from them."""

POSITIVE: dict[Kind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cardiomegaly": (phrases.CARDIOMEGALY, phrases.CARDIOMEGALY_OPEN),
    "emphysema": (phrases.EMPHYSEMA, phrases.EMPHYSEMA_OPEN),
    "consolidation": (phrases.CONSOLIDATION, phrases.CONSOLIDATION_OPEN),
    "ground_glass_opacity": (phrases.GROUND_GLASS, phrases.GROUND_GLASS_OPEN),
    "nodule": (phrases.NODULE, phrases.NODULE_OPEN),
}
"""Sentences with and without the severity; effusions have their own rule because of the two sides."""

LUNG: tuple[Kind, ...] = ("emphysema", "consolidation", "ground_glass_opacity", "nodule")
LOBES = ("left upper lobe", "left lower lobe", "right upper lobe", "right middle lobe", "right lower lobe")
OPEN_PROBABILITY = 0.2
"""How often a sentence leaves the severity out."""
Pool = Sequence[str]


@dataclass(frozen=True)
class Report:
    """The two sections of a report, plain text without headers."""

    findings: str
    impression: str


def severity_word(kind: Kind, amount: float) -> str:
    """Return the word for `amount` of `kind` (table in the module's docstring)."""
    thresholds, words = GRADES[kind]
    return words[int(np.searchsorted(thresholds, amount, side="right"))]


def write_report(findings: Sequence[FindingSpec], rng: np.random.Generator) -> Report:
    """Return the report of a subject with exactly `findings` (none: a normal chest).

    rng: the only source of variation; the same findings and generator state give the same words.
    """
    order = [_lungs, _pleura, _heart] if rng.random() < 0.6 else [_heart, _pleura, _lungs]
    granuloma = not _has(findings, "nodule") and rng.random() < 0.08
    sentences: list[str] = []
    if rng.random() < 0.4:
        sentences.append(_pick(phrases.AIRWAYS, rng))
    for part in order:
        sentences += part(findings, rng, granuloma)
    if granuloma:
        sentences.append(_pick(phrases.GRANULOMA, rng).format(lobe=_pick(LOBES, rng)))
    if rng.random() < 0.5:
        sentences.append(_pick(phrases.MEDIASTINUM, rng))
    for index in rng.permutation(len(phrases.INCIDENTAL))[: rng.integers(0, 3)]:
        sentences.append(phrases.INCIDENTAL[index])
    return Report(_join(sentences), _impression(findings, rng))


def _lungs(findings: Sequence[FindingSpec], rng: np.random.Generator, granuloma: bool) -> list[str]:
    present = [spec for kind in LUNG for spec in findings if spec.kind == kind]
    if not present and not granuloma and not _has(findings, "pleural_effusion") and rng.random() < 0.3:
        sentences = [_pick(phrases.LUNGS_CLEAR, rng)]
    else:
        sentences = [_positive(spec, rng) for spec in present]
    for pool in _lung_negatives(findings):
        if rng.random() < 0.65:
            sentences.append(_pick(pool, rng))
    return sentences


def _pleura(findings: Sequence[FindingSpec], rng: np.random.Generator, granuloma: bool) -> list[str]:
    effusions = [spec for spec in findings if spec.kind == "pleural_effusion"]
    if not effusions:
        return [_pick(phrases.EFFUSION_NONE, rng)] if rng.random() < 0.9 else []
    sentences = [_effusion(effusions, rng)]
    if max(spec.amount for spec in effusions) >= GRADES["pleural_effusion"][0][0] and rng.random() < 0.4:
        sentences.append(_pick(phrases.EFFUSION_COMPRESSION, rng))
    return sentences


def _heart(findings: Sequence[FindingSpec], rng: np.random.Generator, granuloma: bool) -> list[str]:
    hearts = [spec for spec in findings if spec.kind == "cardiomegaly"]
    if hearts:
        return [_positive(hearts[0], rng)]
    return [_pick(phrases.CARDIOMEGALY_NONE, rng)] if rng.random() < 0.9 else []


def _impression(findings: Sequence[FindingSpec], rng: np.random.Generator) -> str:
    items: list[str] = []
    effusions = [spec for spec in findings if spec.kind == "pleural_effusion"]
    if effusions:
        items.append(_effusion(effusions, rng))
    items += [_positive(spec, rng) for spec in findings if spec.kind != "pleural_effusion"]
    items = [items[index] for index in rng.permutation(len(items))]
    negatives = _pertinent_negatives(findings)
    alone = not items and rng.random() < 0.5
    if not items and not alone:
        items.append(_pick(phrases.NORMAL, rng))
    count = int(rng.integers(1, 3)) if alone else int(rng.choice(3, p=(0.4, 0.4, 0.2)))
    items += [_pick(negatives[index], rng) for index in rng.permutation(len(negatives))[:count]]
    if len(items) > 1 and rng.random() < 0.3:
        return " ".join(f"{number}. {_sentence(item)}" for number, item in enumerate(items, start=1))
    return _join(items)


def _lung_negatives(findings: Sequence[FindingSpec]) -> list[Pool]:
    """Return pools of sentences that deny what the lungs of this subject do not have."""
    pools: list[Pool] = [] if _has(findings, "emphysema") else [phrases.EMPHYSEMA_NONE]
    consolidation, ground_glass = _has(findings, "consolidation"), _has(findings, "ground_glass_opacity")
    if not consolidation and not ground_glass:
        pools.append(phrases.OPACITY_NONE + phrases.CONSOLIDATION_NONE)
    elif not consolidation:
        pools.append(phrases.CONSOLIDATION_NONE)
    elif not ground_glass:
        pools.append(phrases.GROUND_GLASS_NONE)
    if not _has(findings, "nodule"):
        pools.append(phrases.NODULE_NONE)
    return pools


def _pertinent_negatives(findings: Sequence[FindingSpec]) -> list[Pool]:
    pools = _lung_negatives(findings)
    if not _has(findings, "pleural_effusion"):
        pools.append(phrases.EFFUSION_NONE)
    if not _has(findings, "cardiomegaly"):
        pools.append(phrases.CARDIOMEGALY_NONE)
    return pools


def _effusion(effusions: Sequence[FindingSpec], rng: np.random.Generator) -> str:
    """Return one sentence for one or two effusions."""
    grades = {spec.side: severity_word("pleural_effusion", spec.amount) for spec in effusions}
    left_open = rng.random() < OPEN_PROBABILITY
    if len(grades) == 1:
        side, grade = next(iter(grades.items()))
        pool = phrases.EFFUSION_ONE_SIDE_OPEN if left_open else phrases.EFFUSION_ONE_SIDE
        return _pick(pool, rng).format(grade=grade, side=side)
    if left_open:
        return _pick(phrases.EFFUSION_BOTH_OPEN, rng)
    if grades["left"] == grades["right"]:
        return _pick(phrases.EFFUSION_BOTH, rng).format(grade=grades["left"])
    return _pick(phrases.EFFUSION_UNEQUAL, rng).format(**grades)


def _positive(spec: FindingSpec, rng: np.random.Generator) -> str:
    graded, left_open = POSITIVE[spec.kind]
    if spec.kind == "nodule" and spec.amount >= GRADES["nodule"][0][1]:
        pool: Pool = phrases.MASS
    else:
        pool = left_open if rng.random() < OPEN_PROBABILITY else graded
    grade = severity_word(spec.kind, spec.amount)
    lobe = f"{spec.lobe.replace('_', ' ')} lobe" if spec.lobe else f"{spec.side} lung".strip()
    sentence = _pick(pool, rng).format(grade=grade, lobe=lobe, mm=max(1, round(spec.amount)), ctr=f"{spec.amount:.2f}")
    return sentence.replace("a extensive", "an extensive")


def _has(findings: Sequence[FindingSpec], kind: Kind) -> bool:
    return any(spec.kind == kind for spec in findings)


def _pick(pool: Pool, rng: np.random.Generator) -> str:
    return pool[int(rng.integers(len(pool)))]


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def _join(sentences: Sequence[str]) -> str:
    return " ".join(_sentence(sentence) for sentence in sentences)
