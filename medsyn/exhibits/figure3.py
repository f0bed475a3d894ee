"""Figure 3: real and generated volumes, one method per row."""

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

NUM_VOLUMES = 2
"""Volumes per method."""
ZOOM_BOX = (0.34, 0.68, 0.12, 0.46)
"""Of the axial slice: top, bottom, left, right as fractions; the middle of the right lung."""


def needs(sources: Sources) -> list[Need]:
    """Return the real volumes and the answers to the reports of the methods that are shown."""
    methods = sources.config.evaluation.figure3_methods or sources.compared()
    return [
        *sources.validation(),
        sources.real("volumes"),
        *(sources.made("volumes", method, "reports") for method in methods),
        *sources.names(methods),
        *sources.phantom(),
    ]


def make(inputs: Inputs, _: EvaluationConfig) -> Figure:
    """Return Figure 3 of the volumes that were given."""
    groups = inputs.volumes()
    names = {label: inputs.full_name(label) for label in groups}
    return figure3(groups, names, inputs.num or NUM_VOLUMES, inputs.phantom)


def figure3(groups: Mapping[str, Files], names: Mapping[str, str], num: int, phantom: bool) -> Figure:
    """Draw `num` volumes of each group: axial, coronal, and a zoom in the lung-detail window."""
    from medsyn.ct.preview import AXIAL_LEVEL, CORONAL_LEVEL
    from medsyn.exhibits.panels import (
        FAINT,
        LUNG_DETAIL_WINDOW,
        drawing,
        first_volumes,
        grid,
        notes,
        row_label,
        show,
    )

    columns = 3 * num
    footer = (
        "Axial and coronal slices: HU window [-1024, 600]. Zoom into the frame on the axial slice, at the same place in"
        " all volumes: [-1024, -250]."
    )
    height = 1.0 + 1.5 * len(groups)
    with drawing(1.25 + 1.5 * columns, height, "Generated and real volumes", notes(footer, phantom)) as figure:
        axes = grid(figure, len(groups), columns, left=1.1, top=0.6, bottom=0.45)
        for row, (name, files) in zip(axes, groups.items(), strict=True):
            volumes = first_volumes(files, list(files), num, f"--volumes {name}")
            row_label(row[0], names.get(name, name))
            for k in range(num):
                if k >= len(volumes):
                    for panel in row[3 * k : 3 * k + 3]:
                        panel.set_axis_off()
                    continue
                volume = volumes[k][1]
                show(row[3 * k], volume, "axial", AXIAL_LEVEL, frame=ZOOM_BOX)
                show(row[3 * k + 1], volume, "coronal", CORONAL_LEVEL)
                show(row[3 * k + 2], volume, "axial", AXIAL_LEVEL, window_hu=LUNG_DETAIL_WINDOW, box=ZOOM_BOX)
        for k, panel in enumerate(axes[0]):
            panel.set_title(("axial", "coronal", "zoom")[k % 3], fontsize=8, color=FAINT, pad=3)
    return figure


FIGURE3 = Exhibit(
    name="figure3",
    kind="figure",
    title="Figure 3. Generated and real volumes",
    caption=(
        "Real and generated volumes, one method per row: axial, coronal, and a zoom into the frame on the axial slice"
        " in the lung-detail window [−1024, −250] HU. The patient's right is on the viewer's left."
    ),
    needs=needs,
    options=("cohort", "split", "volumes", "label", "num", "phantom"),
    make=make,
    uses_settings=False,
)
