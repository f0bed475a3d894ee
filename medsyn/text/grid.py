"""State the grid of prompts of Table VIII: finding x place x severity, each with a text that denies the finding.

The sentences are those of the phantoms' reports (`medsyn.phantom.phrases`), which the embedded cohort's model has read,
and those of the paper ("There are large pleural effusions seen.", "There is no pleural effusion.", "There is severe
bullous emphysema.", "There are no bullae.", "There is no cardiomegaly."). The lobe of an emphysema is in neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from medsyn.names import BOTH
from medsyn.volume import LOBE_NAMES


@dataclass(frozen=True)
class Wording:
    """How a finding is stated and denied.

    sentences: place -> sentence with {severity}; the place is left, right, BOTH, a name of LOBE_NAMES, or empty where
    the sentence names none. severities: words from the least to the largest amount. denials: sentences that deny it.
    """

    sentences: dict[str, str]
    severities: tuple[str, ...]
    denials: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One cell of the grid. rank: of the severity, 1 for the least; denial: a text that denies the finding."""

    text: str
    place: str
    severity: str
    rank: int
    denial: str


def _by_lobe(sentence: str) -> dict[str, str]:
    return {lobe: f"{sentence} in the {lobe.replace('_', ' ')} lobe." for lobe in LOBE_NAMES}


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
        {"": "There is {severity} bullous emphysema."} | _by_lobe("There is {severity} bullous emphysema"),
        ("mild", "moderate", "severe"),
        ("There are no bullae.", "There is no emphysema.", "No evidence of emphysema."),
    ),
    "cardiomegaly": Wording(
        {"": "There is {severity} cardiomegaly."},
        ("mild", "moderate", "severe"),
        ("There is no cardiomegaly.", "The heart is not enlarged.", "Heart size is normal."),
    ),
    "consolidation": Wording(
        _by_lobe("There is {severity} consolidation"),
        ("focal", "patchy", "extensive"),
        ("There is no consolidation.", "No focal consolidation.", "No airspace opacity."),
    ),
    "ground_glass_opacity": Wording(
        _by_lobe("There is {severity} ground-glass opacity"),
        ("focal", "patchy", "extensive"),
        ("There is no ground-glass opacity.", "No ground-glass opacities.", "No ground glass opacification."),
    ),
}
"""Finding -> its sentences; the findings are those that an image measure tells apart (`medsyn.evaluate.regions`)."""


def cells(finding: str, num_per_place: int) -> Iterator[Cell]:
    """Yield `num_per_place` cells for every place of a finding; severities and denials come in turn.

    Each round names every place once, so any number of rounds names all places equally often; as many rounds as there
    are severities make the whole grid.
    """
    wording = GRID[finding]
    places = list(wording.sentences)
    for number in range(num_per_place * len(places)):
        in_round, place = divmod(number, len(places))
        rank = (in_round + place) % len(wording.severities)
        severity = wording.severities[rank]
        yield Cell(
            wording.sentences[places[place]].format(severity=severity),
            places[place],
            severity,
            rank + 1,
            wording.denials[number % len(wording.denials)],
        )
