"""Sentences that the captions of several exhibits share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VERDICT = " “Not a chest”: share that `medsyn inspect` would reject; these volumes are scored as well."


def tests(unit: str) -> str:
    """Return what the tests of a table assume; unit: what was sampled independently, in the plural."""
    return (
        " p: the paper's one-tailed two-sample t-test (Welch's), which takes the two groups as independent. p, paired:"
        f" the one-tailed paired t-test over {unit}; it assumes independent {unit} and normal differences. p, Wilcoxon:"
        " the signed-rank test of the same differences, which are taken as symmetric, not as normal; differences of 0"
        " are left out. d_z: mean difference over the standard deviation of the differences (Cohen), with 95 % bounds"
        f" of the noncentral t distribution. Units needed: {unit} with which the paired t-test finds an effect of this"
        " size in 9 of 10 experiments at p < 0.05."
    )


def found(anatomy: str) -> str:
    """Return how volumes without the measured anatomy are counted; anatomy: subject and verb."""
    return f" Every generated volume is counted; “found”: those in which {anatomy} found."


BY_SEED = tests("seeds") + (
    " The samples with and without the finding share their seeds; several sentences of one seed count once."
)

AUTOMATIC = "automatic observers"
NO_RADIOLOGIST = "No radiologist has seen these volumes."


def readers_of(study: Mapping[str, Any]) -> tuple[str, str]:
    """Return what title and caption add about the readers, by the settings of the study (the content of study.json)."""
    if not study:
        return "", " The figure itself says who the readers were."
    if study.get("answers") is None:
        return f" by {AUTOMATIC}", f" The readers are {AUTOMATIC}, rules on the measures with noise. {NO_RADIOLOGIST}"
    return " by readers", " The answers are those of the readers of the study."
