"""Figure 5: the cardiothoracic ratio of generated volumes, by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.exhibits.base import Exhibit
from medsyn.exhibits.finding_tables import measures_of_one, reference_takes_text
from medsyn.exhibits.finding_tables import needs as needs_of_pairs
from medsyn.exhibits.inputs import Inputs, MeasureRows
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Ratios = dict[str, list[float | None]]
"""Cardiothoracic ratios of the volumes prompted "without" and "with" cardiomegaly; None where no heart was found."""


def needs(sources: Sources) -> list[Need]:
    """Return the prompt pairs and the measures of the reference's answers."""
    return [*needs_of_pairs(sources), *sources.phantom()]


def make(inputs: Inputs, _: EvaluationConfig) -> Figure:
    """Return Figure 5 of the prompts and measures that were given."""
    prompts, (_label, measures) = inputs.require("prompts"), measures_of_one(inputs)
    return figure5(ratios_by_prompt(prompts, measures), inputs.phantom)


def ratios_by_prompt(prompts: Sequence[str], measures: MeasureRows) -> Ratios:
    """Return the ratios of the volumes that were prompted with and without cardiomegaly."""
    from medsyn.evaluate.inputs import read_prompts, split_prompt_type

    ratios: Ratios = {"without": [], "with": []}
    for name, row in read_prompts(prompts).items():
        kind = split_prompt_type(row["prompt_type"])
        if kind is not None and kind[0] == "cardiomegaly":
            ratios["with" if kind[1] else "without"].append(measures.get(name, {}).get("cardiothoracic_ratio"))
    return ratios


def figure5(ratios: Ratios, phantom: bool) -> Figure:
    """Draw the distribution of the ratios by prompt: every volume as a tick, density, and mean."""
    import numpy as np

    from medsyn.evaluate.statistics import known_values, one_tailed_p_value
    from medsyn.exhibits.panels import ACCENTS, FAINT, INK, drawing, grid

    footer = "Ticks: one volume each; curves: Gaussian kernel density; dashed lines: means. "
    p_value = one_tailed_p_value(ratios["with"], ratios["without"])
    if p_value is not None:
        footer += f"One-tailed Welch t-test: p = {p_value:.2g}."
    footer += " Generated volumes imitate procedural phantoms, not patients." if phantom else ""
    with drawing(6.6, 4.2, "Cardiothoracic ratio by prompt", footer) as figure:
        axes = grid(figure, 1, 1, left=0.7, top=0.7, bottom=0.95)[0, 0]
        known = {word: known_values(ratios[word]) for word in ("without", "with")}
        pooled = np.concatenate(list(known.values()))
        if len(pooled) == 0:
            raise InputError("figure 5: no volume has a cardiothoracic ratio; see the reasons in the measures")
        margin = max(0.05, 0.25 * float(np.ptp(pooled)))
        x = np.linspace(pooled.min() - margin, pooled.max() + margin, 400)
        for k, (word, sample) in enumerate(known.items()):
            label = f"prompt {word} cardiomegaly (n = {len(sample)} of {len(ratios[word])})"
            _density(axes, x, sample, ACCENTS[k], label, level=k)
        axes.set_xlabel("cardiothoracic ratio", fontsize=9, color=INK)
        axes.set_ylabel("density", fontsize=9, color=INK)
        axes.tick_params(labelsize=8, colors=FAINT)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
        axes.set_xlim(x[0], x[-1])
        axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    return figure


def _density(axes: Axes, x: np.ndarray, sample: np.ndarray, colour: str, label: str, level: int) -> None:
    """Draw one group: kernel density where it varies, ticks below, a dashed line at the mean."""
    import numpy as np
    from scipy.stats import gaussian_kde

    if len(sample) > 2 and np.ptp(sample) > 0:
        density = gaussian_kde(sample)(x)
        axes.plot(x, density, color=colour, linewidth=1.6)
        axes.fill_between(x, density, color=colour, alpha=0.18, linewidth=0)
    if len(sample):
        axes.axvline(float(sample.mean()), color=colour, linestyle="--", linewidth=1)
    height = np.full(len(sample), 0.012 + 0.035 * level)
    axes.plot(sample, height, "|", color=colour, markersize=9, transform=axes.get_xaxis_transform(), label=label)


FIGURE5 = Exhibit(
    name="figure5",
    kind="figure",
    title="Figure 5. Cardiothoracic ratio by prompt",
    caption="Distribution of the cardiothoracic ratio of generated volumes by prompt. Every tick is one volume.",
    needs=needs,
    options=("prompts", "measures", "phantom"),
    make=make,
    uses_settings=False,
    in_all=reference_takes_text,
)
