"""The heat map of Table VIII: each prompt of the grid against the measures of its volumes."""

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
from medsyn.exhibits.table8 import OPTIONS, read_inputs
from medsyn.exhibits.table8 import needs as table_needs

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from medsyn.evaluate.faithfulness import Row, Stated

LIMIT = 3.0
_ROW, _COLUMN, _LEFT, _RIGHT, _TOP, _BOTTOM = 0.19, 0.55, 3.7, 0.9, 1.25, 0.75
"""Inches: of a row, of a column, and around the map."""
TITLE = "Faithfulness: what the text states (rows) and what the image shows (columns)"


def needs(sources: Sources) -> list[Need]:
    """Return what Table VIII is made from."""
    return [*table_needs(sources), *sources.phantom()]


def make(inputs: Inputs, _: EvaluationConfig) -> Figure:
    """Return the heat map of the one method that was given beside the real volumes."""
    prompts, real, methods = read_inputs(inputs)
    if len(methods) != 1:
        raise InputError(f"{inputs.name}: is of one method, --file names {', '.join(methods)}; give one beside real")
    method, measured = next(iter(methods.items()))
    reference = next(iter(real.values())).rows
    return heat_map(prompts, measured, reference, inputs.full_name(method), inputs.phantom)


def columns_of(prompts: Mapping[str, Stated]) -> list[tuple[str, str, str]]:
    """Return (finding, place, measure) of each column: the places of every finding that the prompts state."""
    from medsyn.evaluate.faithfulness import MEASURES_OF

    findings = dict.fromkeys(prompt.finding for prompt in prompts.values())
    return [(finding, place, name) for finding in findings for place, name in MEASURES_OF[finding].items()]


def cell_means(prompts: Mapping[str, Stated], measured: Mapping[str, Row], names: Sequence[str]) -> NDArray:
    """Return the means (texts, names) over the volumes of each text; NaN where none has a value."""
    import numpy as np

    texts = list(dict.fromkeys(prompt.text for prompt in prompts.values()))
    means = np.full((len(texts), len(names)), np.nan)
    for i, text in enumerate(texts):
        rows = [measured.get(sample, {}) for sample, prompt in prompts.items() if prompt.text == text]
        for k, name in enumerate(names):
            known = [value for row in rows if (value := row.get(name)) is not None]
            if known:
                means[i, k] = float(np.mean(known))
    return means


def heat_map(
    prompts: Mapping[str, Stated], measured: Mapping[str, Row], real: Sequence[Row], method: str, phantom: bool
) -> Figure:
    """Draw the mean measure per text; colours are standard deviations of the real volumes from their mean.

    real: rows of the real validation volumes. Without two of them that differ in a measure, its column has no colour.
    """
    import numpy as np
    from matplotlib.patches import Rectangle

    from medsyn.exhibits.numbers import number
    from medsyn.exhibits.panels import INK, drawing

    columns = columns_of(prompts)
    means = cell_means(prompts, measured, [name for *_, name in columns])
    known = [[v for row in real if (v := row.get(name)) is not None] for *_, name in columns]
    centre = np.array([np.mean(values) if values else np.nan for values in known])
    spread = np.array([np.std(values, ddof=1) if len(values) > 1 else np.nan for values in known])
    scores = (means - centre) / np.where(spread > 0, spread, np.nan)
    stated = {prompt.text: prompt for prompt in prompts.values()}
    width, height = _LEFT + _COLUMN * len(columns) + _RIGHT, _TOP + _ROW * len(stated) + _BOTTOM
    footer = (
        f"Numbers: mean over the volumes of {method}. Colours: distance from the mean of the real validation volumes in"
        f" their standard deviations, red above, blue below, full at {LIMIT:.0f}; grey: no value. Framed: where the"
        " text states the finding."
    ) + (" All volumes are, or imitate, procedural phantoms." if phantom else "")
    with drawing(width, height, TITLE, footer) as figure:
        box = (_LEFT / width, _BOTTOM / height, _COLUMN * len(columns) / width, _ROW * len(stated) / height)
        axes = figure.add_axes(box)
        axes.set_facecolor("#d5dae0")
        axes.imshow(scores, cmap="RdBu_r", vmin=-LIMIT, vmax=LIMIT, aspect="auto", interpolation="nearest")
        axes.set_yticks(range(len(stated)), list(stated), fontsize=6.5, color=INK)
        titles = [
            f"{finding} {place}".replace("_", " ").replace("pleural ", "").strip() for finding, place, _ in columns
        ]
        axes.set_xticks(range(len(columns)), titles, fontsize=6.5, color=INK, rotation=35, ha="left")
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        for i, prompt in enumerate(stated.values()):
            for k, (finding, place, _) in enumerate(columns):
                if np.isfinite(means[i, k]):
                    colour = "white" if abs(scores[i, k]) > 0.7 * LIMIT else INK
                    axes.text(k, i, number(str(means[i, k])), ha="center", va="center", fontsize=5.5, color=colour)
                if prompt.present and finding == prompt.finding and place in _places(prompt):
                    axes.add_patch(Rectangle((k - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.0))
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def _places(prompt: Stated) -> list[str]:
    """Return the places of the measures that the text names; all of them where it names several or none."""
    from medsyn.evaluate.faithfulness import MEASURES_OF

    return [prompt.place] if prompt.has_one_place else list(MEASURES_OF[prompt.finding])


FAITHFULNESS = Exhibit(
    name="faithfulness",
    kind="figure",
    title="Faithfulness. What texts state and images show",
    caption=(
        "Mean of each measure over the volumes of each prompt of Table VIII's grid, coloured by its distance from real"
        " validation volumes. Where the text is followed, the framed cells are red and the others of their row are not."
    ),
    needs=needs,
    options=(*OPTIONS, "phantom"),
    make=make,
    uses_settings=False,
    in_all=reference_takes_text,
)
