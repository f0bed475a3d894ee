"""Figure 4: real subjects with a finding, and samples prompted with it and with its reverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.exhibits.base import Exhibit
from medsyn.exhibits.finding_tables import reference_takes_text
from medsyn.exhibits.inputs import Files, Inputs
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medsyn.volume import Volume

FINDINGS: dict[str, tuple[str, float, float, tuple[float, float]]] = {
    "pleural_effusion": ("Pleural effusion", 0.32, 0.36, (-1024.0, 600.0)),
    "emphysema": ("Bullous emphysema", 0.62, 0.5, (-1024.0, -600.0)),
    "cardiomegaly": ("Cardiomegaly", 0.4, 0.6, (-1024.0, 600.0)),
}
"""Title, axial level, coronal level and HU window of each row."""


def needs(sources: Sources) -> list[Need]:
    """Return the real volumes with their findings, and the reference's answers to the prompt pairs."""
    return [
        sources.cohort(),
        sources.findings(),
        sources.real("volumes"),
        sources.made("volumes", sources.reference, "pairs"),
        sources.prompts("pairs"),
        *sources.phantom(),
    ]


def make(inputs: Inputs, _: EvaluationConfig) -> Figure:
    """Return Figure 4 of the volumes, prompts and labels that were given."""
    (labels,), (cohort,), prompts = (inputs.require(option) for option in ("labels", "cohort", "prompts"))
    real, samples = inputs.real_and_samples()
    return figure4(real, samples, subjects_with(labels, cohort, list(real)), prompts, inputs.phantom)


def subjects_with(labels: str, cohort: str, ids: Sequence[str]) -> dict[str, list[str]]:
    """Return the subjects among `ids` with each finding, those with the fewest other findings first."""
    from medsyn.evaluate.inputs import labels_of, read_labels
    from medsyn.files import read_csv

    names, by_id = read_labels(labels)
    known = {row["subject_id"]: labels_of(row, by_id) for row in read_csv(cohort, ["subject_id"])}
    found: dict[str, list[str]] = {}
    for finding in names:
        with_it = [(sum(entry.values()), i) for i in ids if (entry := known.get(i)) is not None and entry[finding]]
        found[finding] = [i for _, i in sorted(with_it)]
    return found


def figure4(
    real: Files, samples: Files, subjects: Mapping[str, Sequence[str]], prompts: Sequence[str], phantom: bool
) -> Figure:
    """Draw per finding a real subject with it, samples prompted with it, and samples prompted with the reverse.

    subjects: real subject ids by finding. Every subject is an axial and a coronal slice at the finding's level.
    """
    from medsyn.evaluate.inputs import read_prompts
    from medsyn.exhibits.panels import ACCENTS, drawing, grid, notes

    table = read_prompts(prompts)
    shown = [finding for finding in FINDINGS if _samples(table, samples, finding, True)]
    if not shown:
        raise InputError(f"{', '.join(prompts)}: no generated volume of a prompt pair; this is not the set 'pairs'")
    footer = "Each subject: axial and coronal slice. HU window: " + ", ".join(
        f"{FINDINGS[f][0].lower()} [{FINDINGS[f][3][0]:.0f}, {FINDINGS[f][3][1]:.0f}]" for f in shown
    )
    title = "Real subjects with a finding, samples prompted with it, samples prompted with its reverse"
    with drawing(16.4, 0.85 + 1.85 * len(shown), title, notes(footer + ".", phantom)) as figure:
        axes = grid(figure, len(shown), 10, left=1.1, top=0.8, bottom=0.4)
        figure.subplots_adjust(hspace=0.2)
        for row, finding in zip(axes, shown, strict=True):
            _draw_row(row, finding, real, samples, subjects, table)
        for start, word in ((0, "Real"), (2, "Prompted with the finding"), (6, "Prompted with its reverse")):
            box = axes[0][start].get_position()
            figure.text(box.x0, 1 - 0.42 / figure.get_size_inches()[1], word, fontsize=9, color=ACCENTS[0], va="top")
    return figure


def _draw_row(
    row: Sequence[Axes],
    finding: str,
    real: Files,
    samples: Files,
    subjects: Mapping[str, Sequence[str]],
    table: Mapping[str, Mapping[str, str]],
) -> None:
    from medsyn.exhibits.panels import INK, row_label
    from medsyn.volume import read_volume

    row_label(row[0], FINDINGS[finding][0])
    _show_subjects(row[0:2], [read_volume(real[i]) for i in subjects.get(finding, ()) if i in real][:1], finding)
    for start, sign in ((2, True), (6, False)):
        names = _samples(table, samples, finding, sign)
        _show_subjects(row[start : start + 4], [read_volume(samples[i]) for i in names[:2]], finding)
        text = table[names[0]]["text"] if names else ""
        row[start].set_title(f"“{_shorten(text, 108)}”", fontsize=7, color=INK, loc="left", pad=4)
    row[0].set_title("real subject with the finding", fontsize=7, color=INK, loc="left", pad=4)


def _show_subjects(panels: Sequence[Axes], volumes: Sequence[Volume], finding: str) -> None:
    from medsyn.exhibits.panels import show

    _, axial, coronal, window = FINDINGS[finding]
    for k in range(len(panels) // 2):
        if k >= len(volumes):
            panels[2 * k].set_axis_off()
            panels[2 * k + 1].set_axis_off()
            continue
        show(panels[2 * k], volumes[k], "axial", axial, window_hu=window)
        show(panels[2 * k + 1], volumes[k], "coronal", coronal, window_hu=window)


def _samples(table: Mapping[str, Mapping[str, str]], samples: Files, finding: str, sign: bool) -> list[str]:
    from medsyn.evaluate.inputs import split_prompt_type

    return [i for i, row in table.items() if i in samples and split_prompt_type(row["prompt_type"]) == (finding, sign)]


def _shorten(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1].rsplit(" ", 1)[0] + " …"


FIGURE4 = Exhibit(
    name="figure4",
    kind="figure",
    title="Figure 4. Prompts and their reverses",
    caption=(
        "Per finding: a real subject with it, samples prompted with it, and samples prompted with its reverse (axial"
        " and coronal slices)."
    ),
    needs=needs,
    options=("cohort", "split", "labels", "volumes", "prompts", "phantom"),
    make=make,
    uses_settings=False,
    in_all=reference_takes_text,
)
