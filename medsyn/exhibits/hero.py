"""The README's picture: a real and a generated volume in three planes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from medsyn.config import EvaluationConfig
from medsyn.exhibits.base import Exhibit
from medsyn.exhibits.inputs import Files, Inputs
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from medsyn.exhibits.panels import Plane


def needs(sources: Sources) -> list[Need]:
    """Return the real volumes and the reference's answers to the reports."""
    return [
        *sources.validation(),
        sources.real("volumes"),
        sources.made("volumes", sources.reference, "reports"),
        *sources.names([sources.reference]),
        *sources.phantom(),
    ]


def make(inputs: Inputs, _: EvaluationConfig) -> Figure:
    """Return the picture of the volumes that were given."""
    groups = inputs.volumes()
    return hero(groups, {label: inputs.full_name(label) for label in groups}, inputs.phantom)


def hero(groups: Mapping[str, Files], names: Mapping[str, str], phantom: bool) -> Figure:
    """Draw one volume of each group in three planes."""
    from medsyn.ct.preview import AXIAL_LEVEL, CORONAL_LEVEL, SAGITTAL_LEVEL
    from medsyn.exhibits.panels import (
        FAINT,
        drawing,
        first_volumes,
        grid,
        notes,
        row_label,
        show,
    )

    planes: tuple[tuple[Plane, float], ...] = (
        ("axial", AXIAL_LEVEL),
        ("coronal", CORONAL_LEVEL),
        ("sagittal", SAGITTAL_LEVEL),
    )
    footer = notes("HU window [-1024, 600].", phantom)
    with drawing(8.2, 0.9 + 2.3 * len(groups), "Real and generated chest CT", footer, dpi=160) as figure:
        axes = grid(figure, len(groups), 3, left=1.1, top=0.55, bottom=0.4)
        for row, (name, files) in zip(axes, groups.items(), strict=True):
            volume = first_volumes(files, list(files), 1, f"--volumes {name}")[0][1]
            row_label(row[0], names.get(name, name))
            for panel, (plane, level) in zip(row, planes, strict=True):
                show(panel, volume, plane, level)
        for panel, (plane, _) in zip(axes[0], planes, strict=True):
            panel.set_title(plane, fontsize=8, color=FAINT, pad=3)
    return figure


HERO = Exhibit(
    name="hero",
    kind="figure",
    title="Real and generated chest CT",
    caption="A real and a generated volume in axial, coronal and sagittal slices.",
    needs=needs,
    options=("cohort", "split", "volumes", "label", "phantom"),
    make=make,
    uses_settings=False,
)
