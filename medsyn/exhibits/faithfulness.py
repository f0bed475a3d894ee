"""The heat map of Table VIII: what the text of each row changes in every measure, against the same seeds' denials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.exhibits.base import Exhibit
from medsyn.exhibits.finding_tables import reference_takes_text
from medsyn.exhibits.inputs import Inputs
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources
from medsyn.exhibits.table8 import OPTIONS, needs_of, read_measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from medsyn.evaluate.faithfulness import Row, Trial

LIMIT = 2.0
_ROW, _COLUMN, _LEFT, _RIGHT, _TOP, _BOTTOM = 0.27, 0.5, 2.0, 0.8, 1.5, 0.75
"""Inches: of a row, of a column, and around the map."""
TITLE = "Faithfulness: what a text (row) changes in the image (column)"
Trials = Mapping[str, Sequence["Trial"]]


def needs(sources: Sources) -> list[Need]:
    """Return what Table VIII of the reference alone is made from."""
    return needs_of(sources, [sources.reference])


def make(inputs: Inputs, _: EvaluationConfig) -> Figure:
    """Return the heat map of the one method that was given beside the real volumes."""
    measured = read_measured(inputs)
    if len(measured.methods) != 1:
        names = ", ".join(measured.methods)
        raise InputError(f"{inputs.name}: is of one method, --file names {names}; give one beside real")
    method, trials = next(iter(measured.methods.items()))
    real = next(iter(measured.real.values())).rows
    return heat_map(trials, real, inputs.full_name(method), inputs.phantom)


def texts_of(trials: Trials) -> list[tuple[str, str]]:
    """Return (finding, place) of each row: what the texts of the grid state, severities together."""
    return [(finding, place) for finding, each in trials.items() for place in dict.fromkeys(t.place for t in each)]


def measures_of(trials: Trials) -> list[tuple[str, str, str]]:
    """Return (finding, place, measure) of each column: the places of every finding that the texts state."""
    from medsyn.evaluate.faithfulness import MEASURES_OF

    return [(finding, place, name) for finding in trials for place, name in MEASURES_OF[finding].items()]


def mean_changes(trials: Trials) -> NDArray:
    """Return the mean change (texts, measures) from the denial to the text, over seeds; NaN where none has a value."""
    import numpy as np

    texts, names = texts_of(trials), [name for *_, name in measures_of(trials)]
    means = np.full((len(texts), len(names)), np.nan)
    for i, (finding, place) in enumerate(texts):
        for k, name in enumerate(names):
            both = [(t.stated.get(name), t.denied.get(name)) for t in trials[finding] if t.place == place]
            known = [stated - denied for stated, denied in both if stated is not None and denied is not None]
            if known:
                means[i, k] = float(np.mean(known))
    return means


def heat_map(trials: Trials, real: Sequence[Row], method: str, phantom: bool) -> Figure:
    """Draw the mean changes; colours are in standard deviations of the real volumes.

    real: rows of the real validation volumes. Without two of them that differ in a measure, its column has no colour.
    """
    import numpy as np
    from matplotlib.patches import Rectangle

    from medsyn.exhibits.numbers import number
    from medsyn.exhibits.panels import INK, drawing

    texts, columns, means = texts_of(trials), measures_of(trials), mean_changes(trials)
    known = [[v for row in real if (v := row.get(name)) is not None] for *_, name in columns]
    spread = np.array([np.std(values, ddof=1) if len(values) > 1 else np.nan for values in known])
    scores = means / np.where(spread > 0, spread, np.nan)
    width, height = _LEFT + _COLUMN * len(columns) + _RIGHT, _TOP + _ROW * len(texts) + _BOTTOM
    footer = (
        f"Numbers: mean change of the measure (ml, %, ratio, HU) in the volumes of {method}, from the text that denies"
        " the finding to the one that states it, with the same seed. Colours: the same in standard deviations of the"
        f" real validation volumes, red more, blue less, full at {LIMIT:.0f}; grey: no value."
        " Framed: the measures of what the text states."
    ) + (" All volumes are, or imitate, procedural phantoms." if phantom else "")
    with drawing(width, height, TITLE, footer) as figure:
        box = (_LEFT / width, _BOTTOM / height, _COLUMN * len(columns) / width, _ROW * len(texts) / height)
        axes = figure.add_axes(box)
        axes.set_facecolor("#d5dae0")
        axes.imshow(scores, cmap="RdBu_r", vmin=-LIMIT, vmax=LIMIT, aspect="auto", interpolation="nearest")
        axes.set_yticks(range(len(texts)), [_title(*text) for text in texts], fontsize=7, color=INK)
        titles = [_title(finding, place) for finding, place, _ in columns]
        axes.set_xticks(range(len(columns)), titles, fontsize=7, color=INK, rotation=40, ha="left")
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        for i, (finding, place) in enumerate(texts):
            for k, (measured, where, _) in enumerate(columns):
                if np.isfinite(means[i, k]):
                    colour = "white" if abs(scores[i, k]) > 0.7 * LIMIT else INK
                    axes.text(
                        k, i, number(f"{round(means[i, k], 3):.3g}"), ha="center", va="center", fontsize=6, color=colour
                    )
                if finding == measured and (place == where or place in ("", "both")):
                    axes.add_patch(Rectangle((k - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.0))
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def _title(finding: str, place: str) -> str:
    short = finding.removeprefix("pleural_").removesuffix("_opacity")
    return f"{short} {place}".replace("_", " ").strip()


FAITHFULNESS = Exhibit(
    name="faithfulness",
    kind="figure",
    title="Faithfulness. What a text changes in the image",
    caption=(
        "Mean change of each measure from the text that denies a finding to the text that states it, with the same"
        " seed. Where the text is followed, the framed cells are red and the others of their row are white."
    ),
    needs=needs,
    options=OPTIONS,
    make=make,
    uses_settings=False,
    in_all=reference_takes_text,
)
