"""Figures 3 to 6 of the paper and the README's picture, drawn from the files of a run.

Every function takes volume files by id (see `inputs.list_volumes`), writes one PNG and says in its footer which window
is shown and, with `phantom`, that the volumes are procedural phantoms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import gaussian_kde

from medsyn.errors import InputError
from medsyn.evaluate.inputs import read_prompts, split_prompt_type
from medsyn.evaluate.panels import (
    ACCENTS,
    FAINT,
    INK,
    LUNG_DETAIL_WINDOW,
    Plane,
    drawing,
    first_volumes,
    grid,
    notes,
    row_label,
    show,
    show_mask,
)
from medsyn.evaluate.segmentation import subject_of
from medsyn.evaluate.statistics import known_values, one_tailed_p_value
from medsyn.volume import STRUCTURES, Volume, read_volume

Files = dict[str, Path]
AXIAL_LEVEL, CORONAL_LEVEL, SAGITTAL_LEVEL = 0.5, 0.52, 0.3
ZOOM_BOX = (0.3, 0.72, 0.12, 0.54)
FINDINGS: dict[str, tuple[str, float, float, tuple[float, float]]] = {
    "pleural_effusion": ("Pleural effusion", 0.32, 0.36, (-1024.0, 600.0)),
    "emphysema": ("Bullous emphysema", 0.62, 0.5, (-1024.0, -600.0)),
    "cardiomegaly": ("Cardiomegaly", 0.4, 0.6, (-1024.0, 600.0)),
}
"""Title, axial level, coronal level and HU window of each row of Figure 4."""


def figure3(out: Path, groups: Mapping[str, Files], labels: Mapping[str, str], num: int, phantom: bool) -> None:
    """Real and generated volumes, one method a row: axial, coronal, and a zoom in the lung-detail window."""
    columns = 3 * num
    footer = (
        "Axial and coronal slices: HU window [-1024, 600]. Zoom into the right lung of the axial slice: [-1024, -250]."
    )
    height = 1.0 + 1.5 * len(groups)
    with drawing(out, 1.25 + 1.5 * columns, height, "Generated and real volumes", notes(footer, phantom)) as figure:
        axes = grid(figure, len(groups), columns, left=1.1, top=0.6, bottom=0.45)
        for row, (name, files) in zip(axes, groups.items(), strict=True):
            volumes = first_volumes(files, list(files), num, f"--volumes {name}")
            row_label(row[0], labels.get(name, name))
            for k in range(num):
                if k >= len(volumes):
                    for panel in row[3 * k : 3 * k + 3]:
                        panel.set_axis_off()
                    continue
                volume = volumes[k][1]
                show(row[3 * k], volume, "axial", AXIAL_LEVEL)
                show(row[3 * k + 1], volume, "coronal", CORONAL_LEVEL)
                show(row[3 * k + 2], volume, "axial", AXIAL_LEVEL, window_hu=LUNG_DETAIL_WINDOW, box=ZOOM_BOX)
        for k, panel in enumerate(axes[0]):
            panel.set_title(("axial", "coronal", "zoom")[k % 3], fontsize=8, color=FAINT, pad=3)


def figure4(
    out: Path,
    real: Files,
    samples: Files,
    positives: Mapping[str, Sequence[str]],
    prompts: Sequence[str],
    phantom: bool,
) -> None:
    """Per finding: a real subject with it, samples prompted with it, samples prompted with the reverse.

    positives: real subject ids by finding. Every subject is an axial and a coronal slice at the finding's level.
    """
    table = read_prompts(prompts)
    shown = [finding for finding in FINDINGS if _samples(table, samples, finding, True)]
    if not shown:
        raise InputError(f"{', '.join(prompts)}: no generated volume of a prompt pair; this is not the set 'pairs'")
    footer = "Each subject: axial and coronal slice. HU window: " + ", ".join(
        f"{FINDINGS[f][0].lower()} [{FINDINGS[f][3][0]:.0f}, {FINDINGS[f][3][1]:.0f}]" for f in shown
    )
    title = "Real subjects with a finding, samples prompted with it, samples prompted with its reverse"
    with drawing(out, 16.4, 0.85 + 1.85 * len(shown), title, notes(footer + ".", phantom)) as figure:
        axes = grid(figure, len(shown), 10, left=1.1, top=0.8, bottom=0.4)
        figure.subplots_adjust(hspace=0.2)
        for row, finding in zip(axes, shown, strict=True):
            name, axial, coronal, window = FINDINGS[finding]
            row_label(row[0], name)
            _show_subjects(
                row[0:2],
                [read_volume(real[i]) for i in positives.get(finding, ()) if i in real][:1],
                axial,
                coronal,
                window,
            )
            for start, sign in ((2, True), (6, False)):
                names = _samples(table, samples, finding, sign)
                _show_subjects(
                    row[start : start + 4], [read_volume(samples[i]) for i in names[:2]], axial, coronal, window
                )
                text = table[names[0]]["text"] if names else ""
                row[start].set_title(f"“{_shorten(text, 108)}”", fontsize=7, color=INK, loc="left", pad=4)
            row[0].set_title("real subject with the finding", fontsize=7, color=INK, loc="left", pad=4)
        for start, word in ((0, "Real"), (2, "Prompted with the finding"), (6, "Prompted with its reverse")):
            box = axes[0][start].get_position()
            figure.text(box.x0, 1 - 0.42 / figure.get_size_inches()[1], word, fontsize=9, color=ACCENTS[0], va="top")


def figure5(out: Path, values: Mapping[str, Sequence[float | None]], phantom: bool) -> None:
    """Distribution of the cardiothoracic ratio by prompt: every volume as a tick, density, and mean.

    values: CTRs by "negative" and "positive"; None where no heart was found, which the legend counts.
    """
    footer = "Ticks: one volume each; curves: Gaussian kernel density; dashed lines: means. "
    p_value = one_tailed_p_value(values["positive"], values["negative"])
    if p_value is not None:
        footer += f"One-tailed Welch t-test: p = {p_value:.2g}."
    with drawing(out, 6.6, 4.2, "Cardiothoracic ratio by prompt", _plain(footer, phantom)) as figure:
        axes = grid(figure, 1, 1, left=0.7, top=0.7, bottom=0.95)[0, 0]
        known = {word: known_values(values[word]) for word in ("negative", "positive")}
        pooled = np.concatenate(list(known.values()))
        if len(pooled) == 0:
            raise InputError("figure 5: no volume has a cardiothoracic ratio; see the reasons in the measures")
        margin = max(0.05, 0.25 * float(np.ptp(pooled)))
        x = np.linspace(pooled.min() - margin, pooled.max() + margin, 400)
        labels = {"negative": "prompt without cardiomegaly", "positive": "prompt with cardiomegaly"}
        for k, (word, sample) in enumerate(known.items()):
            count = f"{len(sample)} of {len(values[word])}"
            _density(axes, x, sample, ACCENTS[k], f"{labels[word]} (n = {count})", level=k)
        axes.set_xlabel("cardiothoracic ratio", fontsize=9, color=INK)
        axes.set_ylabel("density", fontsize=9, color=INK)
        axes.tick_params(labelsize=8, colors=FAINT)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
        axes.set_xlim(x[0], x[-1])
        axes.set_ylim(0, axes.get_ylim()[1] * 1.05)


def figure6(
    out: Path, prompts: Sequence[str], real: Files, samples: Files, masks: Sequence[str], phantom: bool
) -> None:
    """Anatomical control: the fixed mask, the real image it comes from, and samples with several seeds.

    One row per structure (lobes, airway, vessels) that a prompt row fixes; its outline is drawn on the samples.
    """
    table = read_prompts(prompts)
    rows: list[tuple[str, str, list[str]]] = []
    for structure in STRUCTURES:
        fixed = {i: row.get(f"fix_{structure}", "") for i, row in table.items() if row.get(f"fix_{structure}")}
        subjects = [subject_of(value) for i, value in fixed.items() if i in samples and subject_of(value) in real]
        if subjects:
            names = [i for i, value in fixed.items() if i in samples and subject_of(value) == subjects[0]]
            rows.append((structure, subjects[0], names[:3]))
    if not rows:
        raise InputError(f"{', '.join(prompts)}: no sample with fix_lobes, fix_airway or fix_vessels of a real subject")
    footer = "Coronal slices, HU window [-1024, 600]; outline: the fixed mask. Airway and vessel masks are projections."
    title = "Volumes generated around a fixed anatomical mask"
    with drawing(out, 9.2, 0.95 + 1.62 * len(rows), title, notes(footer, phantom)) as figure:
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


def hero(out: Path, groups: Mapping[str, Files], labels: Mapping[str, str], phantom: bool) -> None:
    """One volume a row in three planes: the picture of the README."""
    planes: tuple[tuple[Plane, float], ...] = (
        ("axial", AXIAL_LEVEL),
        ("coronal", CORONAL_LEVEL),
        ("sagittal", SAGITTAL_LEVEL),
    )
    with drawing(
        out,
        8.2,
        0.9 + 2.3 * len(groups),
        "Real and generated chest CT",
        notes("HU window [-1024, 600].", phantom),
        dpi=160,
    ) as figure:
        axes = grid(figure, len(groups), 3, left=1.1, top=0.55, bottom=0.4)
        for row, (name, files) in zip(axes, groups.items(), strict=True):
            volume = first_volumes(files, list(files), 1, f"--volumes {name}")[0][1]
            row_label(row[0], labels.get(name, name))
            for panel, (plane, level) in zip(row, planes, strict=True):
                show(panel, volume, plane, level)
        for panel, (plane, _) in zip(axes[0], planes, strict=True):
            panel.set_title(plane, fontsize=8, color=FAINT, pad=3)


def _show_subjects(
    panels: Sequence[Axes], volumes: Sequence[Volume], axial: float, coronal: float, window: tuple[float, float]
) -> None:
    for k in range(len(panels) // 2):
        if k >= len(volumes):
            panels[2 * k].set_axis_off()
            panels[2 * k + 1].set_axis_off()
            continue
        show(panels[2 * k], volumes[k], "axial", axial, window_hu=window)
        show(panels[2 * k + 1], volumes[k], "coronal", coronal, window_hu=window)


def _density(axes: Axes, x: np.ndarray, sample: np.ndarray, colour: str, label: str, level: int) -> None:
    """One group: kernel density where it varies, ticks below, a dashed line at the mean."""
    if len(sample) > 2 and np.ptp(sample) > 0:
        density = gaussian_kde(sample)(x)
        axes.plot(x, density, color=colour, linewidth=1.6)
        axes.fill_between(x, density, color=colour, alpha=0.18, linewidth=0)
    if len(sample):
        axes.axvline(float(sample.mean()), color=colour, linestyle="--", linewidth=1)
    height = np.full(len(sample), 0.012 + 0.035 * level)
    axes.plot(sample, height, "|", color=colour, markersize=9, transform=axes.get_xaxis_transform(), label=label)


def _samples(table: Mapping[str, Mapping[str, str]], samples: Files, finding: str, sign: bool) -> list[str]:
    return [i for i, row in table.items() if i in samples and split_prompt_type(row["prompt_type"]) == (finding, sign)]


def _mask_of(masks: Sequence[str], subject: str, structure: str) -> Volume:
    for root in masks:
        path = Path(root) / subject / f"{structure}.nii.gz"
        if path.exists():
            return read_volume(path)
    raise InputError(f"{subject}: no {structure}.nii.gz in {', '.join(masks)}; run `medsyn segment` on it")


def _level_of(mask: Volume) -> float:
    """Coronal level (fraction of the y axis) through the middle of the mask."""
    weights = (mask.array > 0).sum(axis=(0, 2))
    if weights.sum() == 0:
        return CORONAL_LEVEL
    return float((np.arange(len(weights)) * weights).sum() / weights.sum() + 0.5) / len(weights)


def _shorten(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1].rsplit(" ", 1)[0] + " …"


def _plain(text: str, phantom: bool) -> str:
    return text + (" Generated volumes imitate procedural phantoms, not patients." if phantom else "")
