"""Draw CT slices as a radiologist hangs them: the patient's right on the viewer's left, anterior and superior up.

Volumes are in model orientation, arrays (D, H, W) = (z inferior to superior, y posterior to anterior, x right to left),
spacing in millimetres (z, y, x), which sets the true aspect ratio. Slices are at fixed fractions of the field of view,
so that all volumes of a figure show the same level. PNGs hold no date and do not depend on a user's matplotlib style.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from medsyn.errors import InputError
from medsyn.files import atomic_path
from medsyn.volume import Volume, read_volume

Plane = Literal["axial", "coronal", "sagittal"]
Box = tuple[float, float, float, float]
"""Part of a slice: top, bottom, left, right as fractions of its height and width."""
FULL_WINDOW = (-1024.0, 600.0)
LUNG_DETAIL_WINDOW = (-1024.0, -250.0)
PHANTOM_NOTE = "All volumes, also those marked real, are or imitate procedural phantoms; none is of a patient."
INK, FAINT, ACCENTS = "#1f2933", "#6b7785", ("#2a6f97", "#c8553d", "#5b8e7d", "#8d6a9f")
FRAME = "#e8d8a0"
"""Of what is drawn on a slice: sides, and the part that a zoom shows."""
LOBE_COLOURS = ("#000000", "#4c9bd6", "#1d5c8f", "#f2a65a", "#e4572e", "#a63d2f")
"""Background and the lobes 1..5."""


def slice_of(array: NDArray, plane: Plane, fraction: float) -> NDArray:
    """Return the slice (rows downwards, columns to the viewer's right) at `fraction` of the axis that `plane` cuts.

    Fractions run inferior to superior, posterior to anterior, right to left.
    """
    axis = ("axial", "coronal", "sagittal").index(plane)
    index = min(int(fraction * array.shape[axis]), array.shape[axis] - 1)
    cut = np.take(array, index, axis=axis)
    if plane == "sagittal":
        return cut[::-1, ::-1]  # (z, y) -> superior up, anterior to the viewer's left
    return cut[::-1]  # (y, x) -> anterior up; (z, x) -> superior up; x already runs right to left


def aspect_of(volume: Volume, plane: Plane) -> float:
    """Return height over width of one displayed voxel."""
    z, y, x = volume.spacing_mm
    return {"axial": y / x, "coronal": z / x, "sagittal": z / y}[plane]


def show(
    axes: Axes,
    volume: Volume,
    plane: Plane,
    fraction: float,
    *,
    window_hu: tuple[float, float] = FULL_WINDOW,
    box: Box | None = None,
    frame: Box | None = None,
    contour: NDArray | None = None,
) -> None:
    """Draw one slice; `box` zooms into a part of it, `frame` outlines a part, `contour` outlines a mask (D, H, W)."""
    picture, aspect = slice_of(volume.array, plane, fraction), aspect_of(volume, plane)
    axes.imshow(picture, cmap="gray", vmin=window_hu[0], vmax=window_hu[1], aspect=aspect, interpolation="bilinear")
    if contour is not None:
        outline = slice_of(contour.astype(np.float32), plane, fraction)
        if 0 < outline.sum() < outline.size:
            axes.contour(outline, levels=[0.5], colors=[ACCENTS[1]], linewidths=0.6)
    rows, columns = picture.shape
    if frame is not None:
        corner = (frame[2] * columns - 0.5, frame[0] * rows - 0.5)
        size = ((frame[3] - frame[2]) * columns, (frame[1] - frame[0]) * rows)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=FRAME, linewidth=0.8))
    if box is not None:
        axes.set_ylim(box[1] * rows - 0.5, box[0] * rows - 0.5)
        axes.set_xlim(box[2] * columns - 0.5, box[3] * columns - 0.5)
    else:
        sides = ("A", "P") if plane == "sagittal" else ("R", "L")
        for x, side in zip((0.02, 0.98), sides, strict=True):
            place = {"ha": "left" if x < 0.5 else "right", "va": "center", "transform": axes.transAxes}
            axes.text(x, 0.5, side, color=FRAME, fontsize=6, **place)  # type: ignore[arg-type]
    blank(axes)


def show_mask(axes: Axes, mask: Volume, structure: str, fraction: float) -> None:
    """Draw a mask in the coronal plane: lobes as a coloured slice, airway and vessels as a projection."""
    aspect = aspect_of(mask, "coronal")
    if structure == "lobes":
        colours = matplotlib.colors.ListedColormap(LOBE_COLOURS)
        picture = slice_of(mask.array, "coronal", fraction)
        axes.imshow(picture, cmap=colours, vmin=-0.5, vmax=5.5, aspect=aspect, interpolation="nearest")
    else:
        depth = (mask.array > 0).sum(axis=1)[::-1]
        axes.imshow(depth, cmap="magma", vmin=0, vmax=max(1, int(depth.max())), aspect=aspect, interpolation="nearest")
    blank(axes)


def blank(axes: Axes) -> None:
    """Remove the ticks; draw a thin frame on black, with the upper edges of a row aligned."""
    axes.set_anchor("N")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor("black")
    for spine in axes.spines.values():
        spine.set_color("#9aa5b1")
        spine.set_linewidth(0.5)


def row_label(axes: Axes, text: str, width: int = 14) -> None:
    """Name a row at the left of its first panel."""
    wrapped = "\n".join(textwrap.wrap(text, width))
    axes.text(-0.06, 0.5, wrapped, transform=axes.transAxes, ha="right", va="center", fontsize=8, color=INK)


@contextmanager
def drawing(width: float, height: float, title: str, footer: str, dpi: int = 130) -> Iterator[Figure]:
    """Yield a white figure of width x height inches, which gets its title and footer at the end of the block."""
    with _own_style():
        figure = Figure(figsize=(width, height), facecolor="white", dpi=dpi)
        FigureCanvasAgg(figure)
        yield figure
        figure.text(0.012, 1 - 0.08 / height, title, ha="left", va="top", fontsize=11, color=INK, weight="bold")
        lines = "\n".join(textwrap.wrap(footer, int(width * 15.5)))
        figure.text(0.012, 0.06 / height, lines, ha="left", va="bottom", fontsize=7, color=FAINT, linespacing=1.35)


def write_figure(out: str | Path, figure: Figure) -> None:
    """Write a figure as PNG; its label, if it has one, becomes the description in the file."""
    metadata: dict[str, Any] = {"Software": None}
    if figure.get_label():
        metadata["Description"] = str(figure.get_label())
    with _own_style(), atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", metadata=metadata)


@contextmanager
def _own_style() -> Iterator[None]:
    """Draw in matplotlib's default style, whatever the user's is, and without formulas between dollar signs."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False  # a prompt may hold dollar signs
        yield


def grid(
    figure: Figure, rows: int, columns: int, *, left: float, top: float, bottom: float, gap: float = 0.04
) -> NDArray[Any]:
    """Add axes (rows, columns) with margins in inches and a small gap."""
    width, height = figure.get_size_inches()
    return figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": left / width,
            "right": 1 - 0.12 / width,
            "top": 1 - top / height,
            "bottom": bottom / height,
            "wspace": gap,
            "hspace": gap,
        },
    )


def first_volumes(files: dict[str, Path], names: Sequence[str], count: int, option: str) -> list[tuple[str, Volume]]:
    """Read the first `count` of `names` that have a file; none at all is an InputError that names `option`."""
    chosen = [name for name in names if name in files][:count]
    if not chosen:
        raise InputError(f"{option}: no volume to show in the folders given; name folders that hold accepted volumes")
    return [(name, read_volume(files[name])) for name in chosen]


def notes(text: str, phantom: bool) -> str:
    """Return a footer that says what the volumes are."""
    convention = "Patient's right on the viewer's left."
    return " ".join([text, convention, PHANTOM_NOTE] if phantom else [text, convention])
