"""Judge whether volumes show what their prompts state: presence, place, amount, denial, and a swap of the text.

Rows in, answers out. The unit is a seed: a trial is two volumes of one seed, of which the text of one states a finding
and that of the other one denies it. Trials are independent of each other, and so are the terms of every answer.

`amounts` are the measures of a finding by place (`medsyn.evaluate.regions`): fluid by side, solid tissue by lobe, one
number without place. A yardstick from real volumes turns them into a verdict: the median of real volumes without the
finding is subtracted place by place, the place with the largest excess is where the finding is shown, and it is shown
at all if this excess is above a threshold. Baseline and threshold come from the training split of the real volumes,
never from samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medsyn.evaluate.distances import share_interval
from medsyn.evaluate.intervals import best_threshold, difference_of_shares, mean_interval, somers_d
from medsyn.names import BOTH
from medsyn.volume import LOBE_NAMES

MEASURES_OF: Mapping[str, Mapping[str, str]] = {
    "pleural_effusion": {side: f"effusion_ml_{side}" for side in ("left", "right")},
    "emphysema": {lobe: f"laa950_percent_{lobe}" for lobe in LOBE_NAMES},
    "cardiomegaly": {"": "cardiothoracic_ratio"},
    "consolidation": {lobe: f"solid_ml_{lobe}" for lobe in LOBE_NAMES},
    "ground_glass_opacity": {lobe: f"density_hu_{lobe}" for lobe in LOBE_NAMES},
}
"""Finding -> place -> its measure."""
Row = Mapping[str, float | None]
Amounts = Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """The measures of two volumes of one seed: `stated` answers a text with the finding, `denied` one without it.

    place: what the text names: left, right, both, a lobe or nothing; rank: of its severity, from 1. A volume that was
    not measured has an empty row.
    """

    place: str
    rank: int
    stated: Row
    denied: Row

    @property
    def has_one_place(self) -> bool:
        """Return whether the text names one place out of several."""
        return self.place not in ("", BOTH)


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
    """A number of Table VIII with its 95 % bounds and the value without any skill; n: seeds or real volumes behind it.

    reason: why there is no value.
    """

    n: int = 0
    value: float | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    reason: str = ""


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
    largest = [max(_excess(found, baseline).values()) for found, _ in known]
    return Yardstick(baseline, best_threshold(largest, [label for _, label in known]) if known else None)


def excess(finding: str, row: Row, scale: Yardstick) -> Amounts | None:
    """Return the amounts beyond the baseline by place; None without value."""
    found = amounts(finding, row)
    return None if found is None else _excess(found, scale.baseline)


def shows(finding: str, row: Row, scale: Yardstick) -> bool | None:
    """Return whether a volume shows a finding; None without value or threshold."""
    found = excess(finding, row, scale)
    return None if found is None or scale.threshold is None else max(found.values()) > scale.threshold


def shown_place(finding: str, row: Row, scale: Yardstick) -> str | None:
    """Return where a volume shows the most of a finding, "" where two places tie for the most; None without value."""
    found = excess(finding, row, scale)
    if found is None:
        return None
    places = [place for place, value in found.items() if value == max(found.values())]
    return places[0] if len(places) == 1 else ""


def answers(finding: str, trials: Sequence[Trial], scale: Yardstick) -> dict[str, Answer]:
    """Return presence, side, lobe, amount, denied and swap; an answer that the finding cannot have says why."""
    verdicts = [(shows(finding, t.stated, scale), shows(finding, t.denied, scale)) for t in trials]
    known = [(stated, denied) for stated, denied in verdicts if stated is not None and denied is not None]
    found = _presence([stated for stated, _ in known], [denied for _, denied in known], scale, paired=True)
    places = tuple(MEASURES_OF[finding])
    absent = f"texts about {finding.replace('_', ' ')} name no"
    for question, own in (("side", places == ("left", "right")), ("lobe", places == LOBE_NAMES)):
        found[question] = _place(finding, trials, scale) if own else Answer(reason=f"{absent} {question}")
    found["amount"] = _amount(finding, trials, scale)
    found["swap"] = _swap(trials, places) if len(places) > 1 else Answer(reason=f"{absent} place")
    return found


def answers_of_real(finding: str, rows: Sequence[Row], labels: Sequence[bool], scale: Yardstick) -> dict[str, Answer]:
    """Return the answers that real volumes and the labels of their reports give: presence, and denied by the report."""
    verdicts = [(shows(finding, row, scale), label) for row, label in zip(rows, labels, strict=True)]
    present, absent = ([v for v, label in verdicts if v is not None and label == group] for group in (True, False))
    found = _presence(present, absent, scale, paired=False)
    for question in ("side", "lobe", "amount"):
        found[question] = Answer(reason="labels of reports say only whether there is a finding")
    found["swap"] = Answer(reason="real volumes have no text that could be replaced")
    return found


def _presence(present: Sequence[bool], absent: Sequence[bool], scale: Yardstick, *, paired: bool) -> dict[str, Answer]:
    """Return presence, the balanced accuracy of the verdicts of two groups, and denied, the share in the second one.

    By chance a finding that is denied is shown as often as over all volumes of both groups.
    """
    if not present or not absent:
        reason = "the measured volumes do not have both classes"
        if scale.threshold is None:
            reason = "no threshold, because the measured training volumes do not have both classes"
        return {"presence": Answer(reason=reason), "denied": Answer(reason=reason)}
    sensitivity, wrong = float(np.mean(present)), float(np.mean(absent))
    low, high = difference_of_shares(present, absent, paired=paired)
    n = len(present) if paired else len(present) + len(absent)
    bounds = share_interval(wrong, 0.0, len(absent))
    return {
        "presence": Answer(n, (1 + sensitivity - wrong) / 2, (1 + low) / 2, (1 + high) / 2, 0.5),
        "denied": Answer(len(absent), wrong, *bounds, float(np.mean([*present, *absent]))),
    }


def _place(finding: str, trials: Sequence[Trial], scale: Yardstick) -> Answer:
    """Return the share of the texts that name one place whose volume shows the most there."""
    shown = [(t.place, shown_place(finding, t.stated, scale)) for t in trials if t.has_one_place]
    right = [stated == place for stated, place in shown if place is not None]
    if not right:
        return Answer(reason="no measured volume of a text that names one place")
    share = float(np.mean(right))
    return Answer(len(right), share, *share_interval(share, 0.0, len(right)), 1 / len(MEASURES_OF[finding]))


def _amount(finding: str, trials: Sequence[Trial], scale: Yardstick) -> Answer:
    """Return Somers' D of the excess in the named place, or its mean over all places, by the stated severity."""
    pairs = []
    for trial in trials:
        found = excess(finding, trial.stated, scale)
        if found is not None:
            amount = found[trial.place] if trial.has_one_place else float(np.mean([*found.values()]))
            pairs.append((trial.rank, amount))
    association = somers_d([rank for rank, _ in pairs], [amount for _, amount in pairs])
    if association is None:
        return Answer(len(pairs), reason="fewer than two measured volumes of different stated severity")
    return Answer(len(pairs), *association, 0.0)


def _swap(trials: Sequence[Trial], places: Sequence[str]) -> Answer:
    """Return the change in the named place over that in the others: the geometric mean over seeds, with t bounds.

    The others count by their geometric mean. Where the change does not depend on the text, and every place is named
    equally often, the expectation of the logarithm is 0 whatever the places are like: the ratio is 1.
    """
    logs = []
    for trial in trials:
        changes = {place: trial.stated.get(f"change_hu_{place}") for place in places}
        known = {place: float(np.log(value)) for place, value in changes.items() if value}
        if trial.has_one_place and len(known) == len(places):
            others = [value for place, value in known.items() if place != trial.place]
            logs.append(known[trial.place] - float(np.mean(others)))
    if not logs:
        return Answer(reason="no two measured volumes of a seed that differ, of a text that names one place")
    low, high = (None if bound is None else float(np.exp(bound)) for bound in mean_interval(logs))
    return Answer(len(logs), float(np.exp(np.mean(logs))), low, high, 1.0)


def _excess(found: Amounts, baseline: Amounts) -> dict[str, float]:
    return {place: value - baseline[place] for place, value in found.items()}
