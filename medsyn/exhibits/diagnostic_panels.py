"""The figure of the diagnostics: error against noise level, super-resolution from the truth, samples and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.exhibits.base import Exhibit
from medsyn.exhibits.diagnostics import HOW_TO_READ
from medsyn.exhibits.finding_tables import reference_takes_text
from medsyn.exhibits.inputs import Inputs
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, str]
TITLE = "Diagnostics: what each network has learned, and whether samples follow their prompts"
NETWORKS = {
    "low_res": "Low-resolution network",
    "super_res": "Super-resolution network",
}
LINES = {
    "value": ("network", "#2a6f97", "-", 2.0),
    "other_text": ("another's text", "#2a6f97", ":", 1.5),
    "no_text": ("no text", "#2a6f97", "--", 1.2),
    "mean_volume": ("mean volume", "#6b7785", "-", 1.2),
    "linear_estimate": ("linear estimate", "#e09f3e", "-", 1.2),
    "enlarged": ("low resolution enlarged", "#5b8e7d", "-", 1.2),
    "noisy_input": ("noisy input", "#c8553d", "-", 1.2),
}
"""Column of the table -> label, colour, style and width of its line."""
AMOUNT_LABELS = {"real": "real", "enlarged": "enlarged", "value": "super-res.", "sampled": "from text"}
"""Column of the table -> what the panels of amounts call it."""
_NUM_PANELS = 4
_ROW, _HEADING, _PANEL, _FOOT = 3.1, 0.78, 1.75, 1.05
"""Heights in inches: of a row, of its heading, of its panels, and below the last row."""


def needs(sources: Sources) -> list[Need]:
    """Return the table of the diagnostics."""
    sampled = (sources.reference, "reports")
    return [Need("file", ("diagnostics",), (sources.layout.table("diagnostics"),), sampled), *sources.phantom()]


def make(inputs: Inputs, _: EvaluationConfig) -> Figure:
    """Return the figure of the table that was given."""
    from medsyn.files import read_csv

    files = [path for paths in inputs.require_group("file").values() for path in paths]
    if len(files) != 1:
        raise InputError(f"{inputs.name}: --file names {len(files)} files, expected one: the table of the diagnostics")
    columns = ("part", "network", "quantity", "t", "real", "sampled", "n_positive", "n_negative", *LINES)
    return diagnostic_panels(read_csv(files[0], columns), inputs.phantom)


def diagnostic_panels(rows: Sequence[Row], phantom: bool) -> Figure:
    """Draw a row of panels per network, error against t by channel, and one of measures, Dice and areas."""
    from medsyn.exhibits.panels import drawing

    parts = {
        part: [row for row in rows if row["part"] == part] for part in ("denoising", "super_resolution", "prompts")
    }
    networks = [name for name in NETWORKS if any(row["network"] == name for row in parts["denoising"])]
    height = 0.45 + _ROW * len(networks) + _HEADING + _PANEL + _FOOT
    footer = "Bands and bars: 95 % interval of the mean over the volumes; of areas under the ROC curve Newcombe's."
    footer += " All volumes are, or imitate, procedural phantoms." if phantom else ""
    with drawing(12, height, TITLE, footer) as figure:
        top = height - 0.45
        for name in networks:
            lines = [row for row in parts["denoising"] if row["network"] == name]
            axes = _panels(figure, top, f"{NETWORKS[name]}: error of the predicted volume", HOW_TO_READ[name])
            for panel, channel in zip(axes, dict.fromkeys(row["quantity"] for row in lines), strict=False):
                _errors(panel, channel, [row for row in lines if row["quantity"] == channel])
            axes[0].set_ylabel("mean squared error", fontsize=7.5)
            style = {"frameon": False, "fontsize": 7.5, "columnspacing": 1.2, "ncols": len(LINES)}
            place = (0.995, (top + 0.07) / height)
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="upper right", bbox_to_anchor=place, **style)
            top -= _ROW
        title = "Super-resolution of true low-resolution volumes, and samples of random reports"
        axes = _panels(figure, top, title, f"{HOW_TO_READ['super_resolution']} {HOW_TO_READ['prompts']}")
        measured = {row["quantity"]: row for row in parts["super_resolution"]}
        _amounts(axes[0], "airway (ml)", measured.get("airway_volume_ml"))
        _amounts(axes[1], "effusion (ml)", measured.get("effusion_volume_ml"))
        _overlaps(axes[2], [row for name, row in measured.items() if name.endswith("_dice")])
        _areas(axes[3], parts["prompts"])
    return figure


def _panels(figure: Figure, top: float, title: str, reading: str) -> list[Axes]:
    """Add a heading at `top` (inches from the lower edge), and below it empty panels, which show nothing yet."""
    import textwrap

    from medsyn.exhibits.panels import FAINT, INK

    width, height = figure.get_size_inches()
    figure.text(0.012, top / height, title, va="top", fontsize=9.5, color=INK, weight="bold")
    lines = "\n".join(textwrap.wrap(f"How to read: {reading}", 190))
    figure.text(0.012, (top - 0.22) / height, lines, va="top", fontsize=7.5, color=FAINT, linespacing=1.3)
    margin, gap = 0.65, 0.62
    each = (width - margin - 0.15 - gap * (_NUM_PANELS - 1)) / _NUM_PANELS
    bottom = (top - _HEADING - _PANEL) / height
    edges = [(margin + k * (each + gap)) / width for k in range(_NUM_PANELS)]
    axes = [figure.add_axes((edge, bottom, each / width, _PANEL / height)) for edge in edges]
    for panel in axes:
        panel.set_axis_off()
    return axes


def _open(panel: Axes, title: str) -> None:
    """Show the axes of a panel under its title."""
    from medsyn.exhibits.panels import FAINT, INK

    panel.set_axis_on()
    panel.set_title(title, fontsize=8.5, color=INK, loc="left", pad=4)
    panel.tick_params(labelsize=7.5, colors=FAINT)
    panel.spines[["top", "right"]].set_visible(False)


def _number(row: Row, name: str) -> float:
    return float(row.get(name) or "nan")


def _errors(panel: Axes, channel: str, rows: Sequence[Row]) -> None:
    """Draw the errors of a channel against t; the axis leaves out those of the noisy input at large t."""
    import numpy as np
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    _open(panel, channel)
    times = [float(row["t"]) for row in rows]
    shown: list[float] = []
    for name, (label, colour, style, width) in LINES.items():
        values = [_number(row, name) for row in rows]
        if np.isnan(values).all():
            continue
        marker = "o" if name == "value" else None
        label += ", own text" if name == "value" and rows[0].get("no_text") else ""
        panel.plot(times, values, style, color=colour, linewidth=width, marker=marker, markersize=3.5, label=label)
        shown += values[:1] if name == "noisy_input" else values
    low, high = ([_number(row, f"value_ci_{side}") for row in rows] for side in ("low", "high"))
    panel.fill_between(times, low, high, color=LINES["value"][1], alpha=0.18, linewidth=0)
    positive = [value for value in shown if value > 0]
    if positive:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_ylim(min(positive) / 1.6, max(positive) * 1.6)
    panel.set_xlabel("noise level t", fontsize=7.5)
    panel.set_xticks(times)


def _point(panel: Axes, x: float, row: Row, name: str, colour: str, label: str | None = None) -> None:
    """Draw a value with its bounds, where it has any."""
    value, low, high = (_number(row, column) for column in (name, f"{name}_ci_low", f"{name}_ci_high"))
    panel.plot([x, x], [low, high], color=colour, linewidth=1.4)
    panel.plot([x], [value], "o", color=colour, markersize=5, label=label)


def _amounts(panel: Axes, title: str, row: Row | None) -> None:
    """Draw a measure of real, enlarged, super-resolved and sampled volumes."""
    from medsyn.exhibits.panels import ACCENTS, INK

    if row is None:
        return
    _open(panel, f"{title}, mean of the volumes")
    panel.axhline(_number(row, "real"), color=INK, linewidth=0.7, linestyle=":")
    for x, (name, colour) in enumerate(zip(AMOUNT_LABELS, (INK, ACCENTS[2], ACCENTS[0], ACCENTS[1]), strict=True)):
        _point(panel, x, row, name, colour)
    panel.set_xticks(range(len(AMOUNT_LABELS)), list(AMOUNT_LABELS.values()))
    panel.set_xlim(-0.5, len(AMOUNT_LABELS) - 0.5)
    panel.set_ylim(bottom=0)


def _overlaps(panel: Axes, rows: Sequence[Row]) -> None:
    """Draw the Dice of the super-resolved and of the enlarged masks."""
    from medsyn.exhibits.panels import ACCENTS

    if not rows:
        return
    _open(panel, "Dice of the masks with the real ones")
    for x, row in enumerate(rows):
        _point(panel, x - 0.08, row, "value", ACCENTS[0], "super-resolution" if x == 0 else None)
        _point(panel, x + 0.08, row, "enlarged", ACCENTS[2], "low resolution enlarged" if x == 0 else None)
    panel.set_xticks(range(len(rows)), [row["quantity"].removesuffix("_dice") for row in rows])
    panel.set_xlim(-0.5, len(rows) - 0.5)
    panel.set_ylim(0, 1)
    panel.legend(frameon=False, fontsize=7, loc="upper right")


def _areas(panel: Axes, rows: Sequence[Row]) -> None:
    """Draw the areas under the ROC curve of samples and real volumes, with the numbers of positives and negatives."""
    from medsyn.exhibits.panels import ACCENTS, FAINT, INK

    if not rows:
        return
    _open(panel, "area under ROC: measure against prompt")
    panel.axhline(0.5, color=FAINT, linewidth=0.8, linestyle=":")
    ticks = []
    for x, row in enumerate(rows):
        _point(panel, x - 0.08, row, "value", ACCENTS[0], "samples" if x == 0 else None)
        _point(panel, x + 0.08, row, "real", INK, "real volumes" if x == 0 else None)
        if not row["value"]:
            panel.text(x, 0.3, "one class\nonly", ha="center", va="center", fontsize=7, color=FAINT)
        words = row["quantity"].replace("_", "\n")
        ticks.append(f"{words}\n{row['n_positive']} with\n{row['n_negative']} without")
    panel.set_xticks(range(len(rows)), ticks)
    panel.tick_params(axis="x", labelsize=6.5)
    panel.set_xlim(-0.5, len(rows) - 0.5)
    panel.set_ylim(0, 1.05)
    panel.legend(frameon=False, fontsize=7, loc="lower left")


DIAGNOSTIC_PANELS = Exhibit(
    name="diagnostic_panels",
    kind="figure",
    title="Diagnostics. What each network has learned",
    caption=(
        "Upper rows: error of the clean volume that a network predicts from a validation volume noised to level t, by"
        f" channel. First network: {HOW_TO_READ['low_res']} Second network: {HOW_TO_READ['super_res']} Last row, left:"
        " measures of the image and Dice of the masks when the second network alone refines true low-resolution volumes"
        " (“super-res.”), of these volumes enlarged without a network (“enlarged”), and of the samples that both"
        f" networks make for random reports (“from text”). {HOW_TO_READ['super_resolution']} Right: how well a sample's"
        f" measure tells whether its prompt states the finding. {HOW_TO_READ['prompts']} The numbers are those of the"
        " table of diagnostics."
    ),
    needs=needs,
    options=("file", "phantom"),
    make=make,
    uses_settings=False,
    in_all=reference_takes_text,
)
