"""State the grid of prompts of Table VIII: finding x place x severity, and several wordings of the finding's absence.

The sentences are those of the phantoms' reports (`medsyn.phantom.phrases`), which the embedded cohort's model has read,
and those of the paper ("There are large pleural effusions seen.", "There is no pleural effusion.", "severe bullous
emphysema", "There are no bullae.", "There is no cardiomegaly."). Severity words rise with the amount.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medsyn.names import BOTH


@dataclass(frozen=True)
class Wording:
    """How a finding is stated and denied.

    sentences: place -> sentence with {severity}; the place is left, right, BOTH, a name of `medsyn.volume.LOBE_NAMES`,
    or empty where the finding has none. severities: words from the least to the largest amount. denials: sentences
    that deny the finding; the swap test compares with the first.
    """

    sentences: dict[str, str]
    severities: tuple[str, ...]
    denials: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One prompt of the grid. severity: its word, empty in a denial; rank: 1 for the least severity, 0 in a denial."""

    finding: str
    text: str
    present: bool
    place: str = ""
    severity: str = ""
    rank: int = 0


_LOBES = ("left_upper", "left_lower", "right_upper", "right_middle", "right_lower")
GRID: dict[str, Wording] = {
    "pleural_effusion": Wording(
        {
            "left": "There is a {severity} left pleural effusion.",
            "right": "There is a {severity} right pleural effusion.",
            BOTH: "There are {severity} pleural effusions seen.",
        },
        ("small", "moderate", "large"),
        (
            "There is no pleural effusion.",
            "There is no evidence of pleural effusion.",
            "No pleural effusion or pneumothorax.",
            "The pleural spaces are clear.",
        ),
    ),
    "emphysema": Wording(
        {"": "There is {severity} bullous emphysema."},
        ("mild", "moderate", "severe"),
        ("There are no bullae.", "There is no emphysema.", "No evidence of emphysema."),
    ),
    "cardiomegaly": Wording(
        {"": "There is {severity} cardiomegaly."},
        ("mild", "moderate", "severe"),
        ("There is no cardiomegaly.", "The heart is not enlarged.", "Heart size is normal."),
    ),
    "consolidation": Wording(
        {lobe: f"There is {{severity}} consolidation in the {lobe.replace('_', ' ')} lobe." for lobe in _LOBES},
        ("focal", "patchy", "extensive"),
        ("There is no consolidation.", "No focal consolidation.", "No airspace opacity."),
    ),
}
"""Finding -> its sentences; the findings are those that an image measure tells apart (`medsyn.evaluate.regions`)."""


def cells(findings: Sequence[str]) -> Iterator[Cell]:
    """Yield the cells of the grid, finding by finding: its denials, then places x severities."""
    for finding in findings:
        wording = GRID[finding]
        for text in wording.denials:
            yield Cell(finding, text, present=False)
        for place, sentence in wording.sentences.items():
            for rank, severity in enumerate(wording.severities, start=1):
                yield Cell(finding, sentence.format(severity=severity), True, place, severity, rank)
