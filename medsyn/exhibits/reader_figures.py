"""Figures 7 and 8: the bar charts of recognition and ranking, drawn from the tables of medsyn.exhibits.reader_study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.exhibits.base import Exhibit
from medsyn.exhibits.inputs import Inputs
from medsyn.exhibits.needs import Need
from medsyn.exhibits.reader_study import RANKING, RECOGNITION
from medsyn.exhibits.sources import Sources
from medsyn.layout import REAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, str]
BAR = 0.8


def figure7_needs(sources: Sources) -> list[Need]:
    """Return the table of recognition."""
    return [Need("file", (RECOGNITION.name,), (sources.layout.table(RECOGNITION.name),)), *sources.phantom()]


def figure8_needs(sources: Sources) -> list[Need]:
    """Return the table of ranking."""
    return [Need("file", (RANKING.name,), (sources.layout.table(RANKING.name),)), *sources.phantom()]


def make_figure7(inputs: Inputs, _: EvaluationConfig) -> Figure:
    """Return Figure 7 of the table that was given."""
    return figure7(_rows(inputs, RECOGNITION), inputs.phantom)


def make_figure8(inputs: Inputs, _: EvaluationConfig) -> Figure:
    """Return Figure 8 of the table that was given."""
    return figure8(_rows(inputs, RANKING), inputs.phantom)


def figure7(rows: Sequence[Row], phantom: bool) -> Figure:
    """Draw one bar per CT, as high as the number of readers who named its finding, with exact 95 % bounds.

    rows: of the table `recognition`, as text; none: the figure says that there is nothing to draw.
    """
    from medsyn.exhibits.panels import ACCENTS, INK, drawing

    title = f"Recognition of findings by {_readers(rows)}"
    footer = "Bars: readers who named the finding. Whiskers: exact (Clopper-Pearson) 95 % bounds. " + _notes(
        rows, phantom
    )
    with drawing(max(6.4, 1.2 * len(rows) + 1.6), 3.9, title, footer) as figure:
        figure.set_label(f"{title}. {footer}")
        axes = _axes(figure, bottom=1.15)
        if not rows:
            _nothing(axes)
            return figure
        for place, row in enumerate(rows):
            n, right = int(row["n"]), int(row["num_correct"])
            bounds = [n * float(row[f"correct_ci_{end}"]) for end in ("low", "high")]
            colour = ACCENTS[0] if row["method"] == REAL else ACCENTS[1]
            axes.bar(place, right, BAR, color=colour)
            axes.errorbar(place, right, [[right - bounds[0]], [bounds[1] - right]], color=INK, capsize=3, linewidth=0.9)
            axes.text(place, bounds[1] + 0.02 * n, f"{right} of {n}", ha="center", va="bottom", fontsize=8, color=INK)
        names = [f"{row['truth'].replace('_', ' ')}\n({row['label']})" for row in rows]
        axes.set_xticks(range(len(rows)), names, fontsize=8, color=INK)
        axes.set_ylim(0, max(int(row["n"]) for row in rows) * 1.12 or 1)
        axes.set_ylabel("readers", fontsize=8, color=INK)
    return figure


def figure8(rows: Sequence[Row], phantom: bool) -> Figure:
    """Draw the mean rank of each method per structure, with 95 % bounds over readers, and p against the reference.

    rows: of the table `ranking`, as text; none: the figure says that there is nothing to draw.
    """
    from medsyn.exhibits.panels import ACCENTS, INK, drawing

    title = f"Ranking of anatomy by {_readers(rows)}"
    footer = (
        "Bars: mean rank, 1 is the best. Whiskers: 95 % bounds over readers. p: against the bar without p, Dunn's test"
        f" after Friedman's over all rankings, Bonferroni-corrected. {_notes(rows, phantom)}"
    )
    structures = list(dict.fromkeys(row["structure"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    colours = dict(zip(methods, (ACCENTS * 2)[: len(methods)], strict=True))
    with drawing(8.4, 4.6, title, footer) as figure:
        figure.set_label(f"{title}. {footer}")
        axes = _axes(figure, bottom=1.25)
        if not rows:
            _nothing(axes)
            return figure
        width = BAR / len(methods)
        for row in rows:
            number = methods.index(row["method"])
            place = structures.index(row["structure"]) + (number - (len(methods) - 1) / 2) * width
            first = row["structure"] == structures[0]
            _draw_rank(axes, row, place, width, colours[row["method"]], row["label"] if first else "")
        axes.set_xticks(range(len(structures)), [_heading(name, rows) for name in structures], fontsize=8, color=INK)
        axes.set_ylim(1, len(methods) + 0.75)
        axes.set_yticks(range(1, len(methods) + 1))
        axes.set_ylabel("mean rank", fontsize=8, color=INK)
        axes.legend(fontsize=8, frameon=False, ncols=len(methods), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _draw_rank(axes: Axes, row: Row, place: float, width: float, colour: str, label: str) -> None:
    from medsyn.exhibits.numbers import equation
    from medsyn.exhibits.panels import INK

    if not row["rank_mean"]:
        return
    mean = float(row["rank_mean"])
    axes.bar(place, mean - 1, 0.94 * width, bottom=1, color=colour, label=label)
    top = mean
    if row["rank_ci_low"]:
        low, top = float(row["rank_ci_low"]), float(row["rank_ci_high"])
        axes.errorbar(place, mean, [[mean - low], [top - mean]], color=INK, capsize=2, linewidth=0.9)
    words = f"{mean:.2f}" + (f"\np {equation(row['p_value'])}" if row["p_value"] else "")
    axes.text(place, top + 0.05, words, ha="center", va="bottom", fontsize=6.5, color=INK)


def _heading(structure: str, rows: Sequence[Row]) -> str:
    """Return a structure with its agreement and number of rankings."""
    row = next(row for row in rows if row["structure"] == structure)
    agreement = f", W = {float(row['kendall_w']):.3f}" if row["kendall_w"] else ""
    missing = f", {row['num_incomplete']} incomplete" if row["num_incomplete"] not in ("", "0") else ""
    return f"{structure}\n{row['n']} rankings{missing}{agreement}"


def _rows(inputs: Inputs, table: Exhibit) -> list[dict[str, str]]:
    from medsyn.files import read_csv

    paths = inputs.group("file").get(table.name, [])
    if len(paths) != 1:
        raise InputError(f"{inputs.name}: --file {table.name} FILE is needed, {table.name}.csv of `medsyn table`")
    return read_csv(paths[0], ["label", "n", "readers", "note"])


def _axes(figure: Figure, bottom: float) -> Axes:
    from medsyn.exhibits.panels import INK

    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.6 / width, bottom / height, 1 - 0.75 / width, 1 - (bottom + 0.65) / height))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    return axes


def _nothing(axes: Axes) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "Cannot be drawn: the table behind this figure has no rows.", ha="center", fontsize=10)


def _readers(rows: Sequence[Row]) -> str:
    return f"{rows[0]['num_readers']} {rows[0]['readers']}" if rows else "nobody"


def _notes(rows: Sequence[Row], phantom: bool) -> str:
    from medsyn.exhibits.panels import PHANTOM_NOTE

    notes = list(dict.fromkeys(row["note"] for row in rows))
    return " ".join([*notes, PHANTOM_NOTE] if phantom else notes)


FIGURE7 = Exhibit(
    name="figure7",
    kind="figure",
    title="Figure 7. Recognition of findings",
    caption="The number of readers who named the finding of each CT, generated and real.",
    needs=figure7_needs,
    options=("file", "phantom"),
    make=make_figure7,
    uses_settings=False,
    in_all=RECOGNITION.in_all,
    by_readers=True,
)
FIGURE8 = Exhibit(
    name="figure8",
    kind="figure",
    title="Figure 8. Ranking of anatomy",
    caption="The mean rank of each method and structure, with p of each method against the reference; 1 is the best.",
    needs=figure8_needs,
    options=("file", "phantom"),
    make=make_figure8,
    uses_settings=False,
    by_readers=True,
)
