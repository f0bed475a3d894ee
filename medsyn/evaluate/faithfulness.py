"""Judge whether volumes show what their prompts state: presence, place, amount, denial, and a swap of the text.

Rows in, answers out. `amounts` are the measures of a finding by place (`medsyn.evaluate.regions`): fluid by side, solid
tissue by lobe, one number without place. A yardstick from real volumes turns them into a verdict: the median of real
volumes without the finding is subtracted place by place, the place with the largest excess is where the finding is
shown, and it is shown at all if this excess is above a threshold. Baseline and threshold come from the training split
of the real volumes, never from samples.

Chance of a share of agreement is what the same verdicts would agree with texts in random order:
sum over answers c of P(stated c) P(shown c), as in Cohen's kappa (Educ Psychol Meas 1960; 20: 37-46).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medsyn.evaluate.distances import share_interval
from medsyn.evaluate.statistics import best_threshold, rank_correlation, ratio_of_means
from medsyn.names import BOTH
from medsyn.volume import LOBE_NAMES

MEASURES_OF: Mapping[str, Mapping[str, str]] = {
    "pleural_effusion": {side: f"effusion_ml_{side}" for side in ("left", "right")},
    "emphysema": {"": "laa950_percent"},
    "cardiomegaly": {"": "cardiothoracic_ratio"},
    "consolidation": {lobe: f"solid_ml_{lobe}" for lobe in LOBE_NAMES},
}
"""Finding -> place -> its measure."""
Row = Mapping[str, float | None]
Amounts = Mapping[str, float]


@dataclass(frozen=True)
class Stated:
    """What a prompt states of one finding. place: left, right, both, a lobe or empty; rank: of the severity, from 1."""

    finding: str
    present: bool
    place: str
    rank: int
    text: str

    @property
    def has_one_place(self) -> bool:
        """Return whether the text names one place out of several."""
        return self.present and self.place not in ("", BOTH)


@dataclass(frozen=True)
class Yardstick:
    """What real volumes say of a finding's measure.

    baseline: median without the finding by place; threshold: of the largest excess, None where the volumes do not have
    both classes.
    """

    baseline: Amounts
    threshold: float | None


@dataclass(frozen=True)
class Answer:
    """A number of Table VIII. n: volumes that it is of; num_missing: those without value; bounds: 95 %."""

    n: int
    num_missing: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None


def amounts(finding: str, row: Row) -> Amounts | None:
    """Return the measures of a finding by place; None where one has no value."""
    values = {place: row.get(column) for place, column in MEASURES_OF[finding].items()}
    known = {place: value for place, value in values.items() if value is not None}
    return known if len(known) == len(values) else None


def yardstick(finding: str, rows: Sequence[Row], labels: Sequence[bool]) -> Yardstick:
    """Return the yardstick of real volumes with known labels; those without value are left out."""
    known = [(found, label) for row, label in zip(rows, labels, strict=True) if (found := amounts(finding, row))]
    absent = [found for found, label in known if not label] or [found for found, _ in known]
    baseline = {
        place: float(np.median([found[place] for found in absent])) if absent else 0.0 for place in MEASURES_OF[finding]
    }
    unlimited = Yardstick(baseline, None)
    excesses = [largest_excess(found, unlimited) for found, _ in known]
    return Yardstick(baseline, best_threshold(excesses, [label for _, label in known]) if known else None)


def largest_excess(found: Amounts, scale: Yardstick) -> float:
    """Return the largest amount beyond the baseline of its place."""
    return max(value - scale.baseline[place] for place, value in found.items())


def shows(finding: str, row: Row, scale: Yardstick) -> bool | None:
    """Return whether a volume shows a finding; None without value or threshold."""
    found = amounts(finding, row)
    if found is None or scale.threshold is None:
        return None
    return largest_excess(found, scale) > scale.threshold


def shown_place(finding: str, row: Row, scale: Yardstick) -> str | None:
    """Return where a volume shows the most of a finding, "" where two places tie for the most; None without value."""
    found = amounts(finding, row)
    if found is None:
        return None
    most = largest_excess(found, scale)
    places = [place for place, value in found.items() if value - scale.baseline[place] == most]
    return places[0] if len(places) == 1 else ""


def stated_amount(prompt: Stated, row: Row) -> float | None:
    """Return the amount in the place that the text names; without a place the mean over all places."""
    found = amounts(prompt.finding, row)
    if found is None:
        return None
    return found[prompt.place] if prompt.has_one_place and prompt.place in found else float(np.mean([*found.values()]))


def agreement(pairs: Sequence[tuple[object, object | None]]) -> Answer:
    """Return the share of (stated, shown) that are equal, with Wilson bounds and chance; shown None is missing."""
    known = [(stated, shown) for stated, shown in pairs if shown is not None]
    n, missing = len(known), len(pairs) - len(known)
    if not n:
        return Answer(0, missing)
    share = sum(stated == shown for stated, shown in known) / n
    stated, shown = Counter(a for a, _ in known), Counter(b for _, b in known)
    chance = sum(stated[answer] * shown[answer] for answer in stated) / n**2
    return Answer(n, missing, share, *share_interval(share, 0.0, n), chance)


def share_shown(verdicts: Sequence[bool | None], chance: float | None) -> Answer:
    """Return the share of volumes that show the finding, with Wilson bounds; None is missing."""
    known = [verdict for verdict in verdicts if verdict is not None]
    if not known:
        return Answer(0, len(verdicts))
    share = sum(known) / len(known)
    return Answer(len(known), len(verdicts) - len(known), share, *share_interval(share, 0.0, len(known)), chance)


def severity_correlation(prompts: Sequence[Stated], rows: Sequence[Row]) -> Answer:
    """Return Spearman's rho of the stated severity and the measured amount, over the prompts that state a finding."""
    pairs = [(p.rank, stated_amount(p, row)) for p, row in zip(prompts, rows, strict=True) if p.present]
    known = [(rank, amount) for rank, amount in pairs if amount is not None]
    rho, low, high = rank_correlation([r for r, _ in known], [a for _, a in known])
    return Answer(len(known), len(pairs) - len(known), rho, low, high, 0.0)


def swap_ratio(prompts: Sequence[Stated], rows: Sequence[Row], *, num_bootstrap: int, seed: int) -> Answer:
    """Return how much more a swap of the text changes the named place than the others, as a ratio of mean changes.

    Over the prompts that name one place: mean |HU| change there over the mean of the other places of its kind (the
    other side, the other lobes). 1 where the change does not depend on the name and all places are named equally often.
    """
    pairs: list[tuple[float, float]] = []
    named = [(p, row) for p, row in zip(prompts, rows, strict=True) if p.has_one_place]
    for prompt, row in named:
        there = row.get(f"change_hu_{prompt.place}")
        others = [row.get(f"change_hu_{place}") for place in MEASURES_OF[prompt.finding] if place != prompt.place]
        elsewhere = [value for value in others if value is not None]
        if there is not None and len(elsewhere) == len(others):
            pairs.append((there, float(np.mean(elsewhere))))
    ratio, low, high = ratio_of_means(pairs, num_bootstrap=num_bootstrap, seed=seed)
    return Answer(len(pairs), len(named) - len(pairs), ratio, low, high, 1.0)
