"""The figure of memorisation: isolation and distances by method, and the pairs that look most like copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.exhibits.base import Exhibit
from medsyn.exhibits.inputs import Files, Inputs
from medsyn.exhibits.memorisation import methods_of, nearest_rows
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources
from medsyn.layout import REAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medsyn.evaluate.memorisation import Row

NUM_PAIRS = 10
_COLUMNS = 5
_CHARTS, _PAIR = 2.9, 4.5
"""Heights in inches: of the charts, and of a row of pairs."""


def needs(sources: Sources) -> list[Need]:
    """Return the nearest volumes of every method, and the volumes themselves."""
    methods = sources.compared()
    return [
        Need("file", ("nearest",), (sources.layout.nearest(),)),
        sources.real("volumes"),
        *(sources.made("volumes", method, "reports") for method in methods),
        *sources.names(methods),
        *sources.phantom(),
    ]


def make(inputs: Inputs, _: EvaluationConfig) -> Figure:
    """Return the figure of the rows and volumes that were given."""
    rows = nearest_rows(inputs)
    names = {method: inputs.full_name(method) for method in methods_of(rows)}
    return memorisation_pairs(rows, inputs.volumes(), names, inputs.phantom)


def memorisation_pairs(
    rows: Sequence[Row], volumes: Mapping[str, Files], names: Mapping[str, str], phantom: bool
) -> Figure:
    """Draw two charts, and below them the NUM_PAIRS pairs of smallest isolation: generated above, training below.

    volumes: files by method and REAL. Raises InputError where the file of a pair is missing.
    """
    from medsyn.ct.preview import CORONAL_LEVEL
    from medsyn.evaluate.memorisation import VALIDATION, threshold_of
    from medsyn.exhibits.panels import INK, drawing, notes, show
    from medsyn.volume import read_volume

    judged = [row for row in rows if row["group"] != VALIDATION and row["voxel_isolation"] is not None]
    pairs = sorted(judged, key=lambda row: row["voxel_isolation"])[:NUM_PAIRS]
    num_rows = -(-len(pairs) // _COLUMNS)
    footer = (
        "Left: dashed, the threshold; of unseen real volumes at most 5 % lie left of it. Right: medians and"
        " quartiles of the distances by voxels. Below: the pairs of smallest isolation,"
        " coronal slices, HU window [-1024, 600]; the"
        " training volume is drawn as it is, also where its flipped or shifted form is the nearest."
    )
    height = 0.5 + _CHARTS + _PAIR * num_rows + 0.5
    title = "Memorisation: generated volumes and the training volumes nearest to them"
    with drawing(12, height, title, notes(footer, phantom), dpi=110) as figure:
        charts = figure.subplots(
            1,
            2,
            gridspec_kw={"left": 0.2, "right": 0.985, "top": 1 - 0.5 / height, "wspace": 0.08}
            | {"bottom": 1 - (_CHARTS - 0.1) / height},
        )
        _isolations(charts[0], rows, names, threshold_of(rows, "voxel_isolation"))
        _distances(charts[1], rows, names)
        for k, row in enumerate(pairs):
            shown = ((row["group"], row["volume"], names[row["group"]]), (REAL, row["voxel_nearest"], "training"))
            for line, (label, name, words) in enumerate(shown):
                path = volumes.get(label, {}).get(name)
                if path is None:
                    raise InputError(f"--volumes {label}: no volume '{name}', which the nearest volumes name; give it")
                top = 0.5 + _CHARTS + _PAIR * (k // _COLUMNS) + 0.25 + 2.1 * line
                place = (0.01 + 0.198 * (k % _COLUMNS), 1 - (top + 1.85) / height, 0.19, 1.8 / height)
                axes = figure.add_axes(place)
                show(axes, read_volume(path), "coronal", CORONAL_LEVEL)
                axes.set_anchor("C")
                amounts = f"isolation {row['voxel_isolation']:.2f}, 1 - r = {row['voxel_distance']:.3f}"
                axes.set_title(f"{words}: {name}"[:34] + ("" if line else f"\n{amounts}"), fontsize=6.5, color=INK)
    return figure


def _isolations(axes: Axes, rows: Sequence[Row], names: Mapping[str, str], threshold: float | None) -> None:
    """Draw the isolation of every volume by voxels, one line of dots per method."""
    from medsyn.evaluate.memorisation import VALIDATION
    from medsyn.exhibits.panels import ACCENTS

    for line, method in enumerate(names):
        values = [r["voxel_isolation"] for r in rows if r["group"] == method and r["voxel_isolation"] is not None]
        colour = ACCENTS[2] if method == VALIDATION else ACCENTS[0]
        axes.plot(values, [line] * len(values), "|", color=colour, markersize=11, alpha=0.7)
    if threshold is not None:
        axes.axvline(threshold, color=ACCENTS[1], linestyle="--", linewidth=1)
    axes.set_yticks(range(len(names)), ["real, not seen" if m == VALIDATION else t for m, t in names.items()])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.tick_params(labelsize=7.5)
    axes.set_xlabel("isolation of the nearest training volume (voxels); small: a copy", fontsize=7.5)


def _distances(axes: Axes, rows: Sequence[Row], names: Mapping[str, str]) -> None:
    """Draw the distances to the nearest training and validation volume, one pair of boxes per method."""
    from medsyn.exhibits.panels import ACCENTS

    kinds = {
        "voxel_distance": ("training", ACCENTS[0], -0.18),
        "voxel_validation_distance": ("validation", ACCENTS[2], 0.18),
    }
    for name, (words, colour, offset) in kinds.items():
        style = {"color": colour}
        for line, method in enumerate(names):
            values = [row[name] for row in rows if row["group"] == method and row[name] is not None]
            if values:
                axes.boxplot(
                    [values],
                    positions=[line + offset],
                    widths=0.28,
                    orientation="horizontal",
                    sym="",
                    boxprops=style,
                    whiskerprops=style,
                    capprops=style,
                    medianprops=style,
                )
        axes.plot([], [], color=colour, label=f"to the nearest {words} volume")
    axes.set_yticks([])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(labelsize=7.5)
    axes.set_xlabel("distance 1 - r (voxels)", fontsize=7.5)
    axes.legend(frameon=False, fontsize=7, loc="best")


MEMORISATION_PAIRS = Exhibit(
    name="memorisation_pairs",
    kind="figure",
    title="Memorisation: closest pairs",
    caption=(
        "Above: isolation of every generated volume, and distances to the nearest training and validation volume."
        " Below: the ten generated volumes for which one training volume stands out most, each above that volume."
    ),
    needs=needs,
    options=("file", "volumes", "label", "phantom"),
    make=make,
    uses_settings=False,
)
