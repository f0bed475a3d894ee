"""Figure 6: samples around a fixed mask of a real subject."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.exhibits.base import Exhibit
from medsyn.exhibits.finding_tables import reference_takes_text
from medsyn.exhibits.inputs import Files, Inputs
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from medsyn.volume import Volume


def needs(sources: Sources) -> list[Need]:
    """Return the prompts that fix a mask, the reference's answers, and the real volumes with their masks."""
    return [
        sources.prompts("controlled"),
        sources.real("volumes"),
        sources.made("volumes", sources.reference, "controlled"),
        sources.masks(),
        *sources.phantom(),
    ]


def make(inputs: Inputs, _: EvaluationConfig) -> Figure:
    """Return Figure 6 of the volumes, prompts and masks that were given."""
    prompts, masks = inputs.require("prompts"), inputs.get("masks")
    real, samples = inputs.real_and_samples()
    return figure6(prompts, real, samples, masks, inputs.phantom)


def figure6(prompts: Sequence[str], real: Files, samples: Files, masks: Sequence[str], phantom: bool) -> Figure:
    """Draw the fixed mask, the real image it comes from, and samples with several seeds.

    One row per structure (lobes, airway, vessels) that a prompt row fixes; the samples show its outline.
    """
    from medsyn.exhibits.panels import FAINT, drawing, grid, notes, row_label, show, show_mask
    from medsyn.volume import read_volume

    rows = _rows(prompts, real, samples)
    if not rows:
        raise InputError(f"{', '.join(prompts)}: no sample with fix_lobes, fix_airway or fix_vessels of a real subject")
    footer = "Coronal slices, HU window [-1024, 600]; outline: the fixed mask. Airway and vessel masks are projections."
    title = "Volumes generated around a fixed anatomical mask"
    with drawing(9.2, 0.95 + 1.62 * len(rows), title, notes(footer, phantom)) as figure:
        axes = grid(figure, len(rows), 5, left=0.95, top=0.6, bottom=0.45)
        for row, (structure, subject, names) in zip(axes, rows, strict=True):
            mask = _mask_of(masks, subject, structure)
            level = _level_of(mask)
            row_label(row[0], structure)
            show_mask(row[0], mask, structure, level)
            show(row[1], read_volume(real[subject]), "coronal", level)
            for k, panel in enumerate(row[2:]):
                if k < len(names):
                    show(panel, read_volume(samples[names[k]]), "coronal", level, contour=mask.array > 0)
                else:
                    panel.set_axis_off()
        for panel, word in zip(axes[0], ("fixed mask", "real image", "seed 1", "seed 2", "seed 3"), strict=True):
            panel.set_title(word, fontsize=8, color=FAINT, pad=3)
    return figure


def _rows(prompts: Sequence[str], real: Files, samples: Files) -> list[tuple[str, str, list[str]]]:
    """Return structure, subject and at most three samples of every row."""
    from medsyn.evaluate.inputs import read_prompts
    from medsyn.evaluate.segmentation import subject_of
    from medsyn.volume import STRUCTURES

    table = read_prompts(prompts)
    rows: list[tuple[str, str, list[str]]] = []
    for structure in STRUCTURES:
        fixed = {i: row.get(f"fix_{structure}", "") for i, row in table.items() if row.get(f"fix_{structure}")}
        subjects = [subject_of(value) for i, value in fixed.items() if i in samples and subject_of(value) in real]
        if subjects:
            names = [i for i, value in fixed.items() if i in samples and subject_of(value) == subjects[0]]
            rows.append((structure, subjects[0], names[:3]))
    return rows


def _mask_of(masks: Sequence[str], subject: str, structure: str) -> Volume:
    from medsyn.volume import read_volume

    for root in masks:
        path = Path(root) / subject / f"{structure}.nii.gz"
        if path.exists():
            return read_volume(path)
    raise InputError(f"{subject}: no {structure}.nii.gz in {', '.join(masks)}; run `medsyn segment` on it")


def _level_of(mask: Volume) -> float:
    """Return the coronal level (fraction of the y axis) through the middle of the mask."""
    import numpy as np

    from medsyn.ct.preview import CORONAL_LEVEL

    weights = (mask.array > 0).sum(axis=(0, 2))
    if weights.sum() == 0:
        return CORONAL_LEVEL
    return float((np.arange(len(weights)) * weights).sum() / weights.sum() + 0.5) / len(weights)


FIGURE6 = Exhibit(
    name="figure6",
    kind="figure",
    title="Figure 6. Fixed anatomy",
    caption=(
        "Samples generated around a fixed mask (lobes, airway, vessels) of a real subject with different seeds. The"
        " outline is the fixed mask."
    ),
    needs=needs,
    options=("cohort", "split", "prompts", "volumes", "masks", "phantom"),
    make=make,
    uses_settings=False,
    in_all=reference_takes_text,
)
