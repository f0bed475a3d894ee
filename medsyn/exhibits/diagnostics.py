"""The diagnostics: what each network of the reference has learned, and whether samples follow their prompts."""

from __future__ import annotations

from collections.abc import Sequence

from medsyn.config import EvaluationConfig
from medsyn.config.evaluation import MAX_MEAN_VOLUMES
from medsyn.errors import InputError
from medsyn.exhibits.base import Exhibit, Table
from medsyn.exhibits.finding_tables import measures_of_one, reference_takes_text
from medsyn.exhibits.inputs import Inputs
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources
from medsyn.layout import REAL

BOUNDED = ("value", "ratio", "text_share", "real", "sampled")
"""Columns with 95 % bounds."""
HOW_TO_READ = {
    "low_res": (
        "A line at or above the mean training volume: the network has not learned this channel. At the linear estimate:"
        " it knows no more than a regression. Above the noisy input at small t: it spoils what it is given. The closer"
        " own text, another's text and no text lie, the less the text tells the network."
    ),
    "super_res": (
        "This network is given the true low-resolution volume. A line at or above that volume enlarged: the network"
        " adds nothing to it. Above the noisy input at small t: it spoils what it is given."
    ),
    "super_resolution": (
        "What “super-res.” lacks beside real, the second network loses; what only “from text” lacks, the first network"
        " loses. No better than “enlarged”: the second network adds nothing."
    ),
    "prompts": (
        "An area of 0.5: the samples do not follow the prompt; as large as that of the real volumes: they follow it as"
        " closely as this measure can show."
    ),
}
"""Row of panels, or panel -> how it is read."""


def needs(sources: Sources) -> list[Need]:
    """Return what `medsyn diagnose` found, and prompts and measures of the reports' samples and of the real volumes."""
    reference = sources.reference
    return [
        *sources.validation(),
        sources.diagnostics(reference),
        sources.prompts("reports"),
        sources.real("measures"),
        sources.made("measures", reference, "reports"),
    ]


def make(inputs: Inputs, config: EvaluationConfig) -> Table:
    """Return the table of the file, the prompts and the measures that were given, of one method."""
    from medsyn.evaluate.diagnosis import denoising_rows, prompt_rows, read_diagnosis, super_resolution_rows

    files = [path for paths in inputs.require_group("file").values() for path in paths]
    if len(files) != 1:
        raise InputError(f"{inputs.name}: --file names {len(files)} files, expected one: that of `medsyn diagnose`")
    _, sampled = measures_of_one(inputs, beside=REAL)
    real = inputs.measures().get(REAL, {})
    found = read_diagnosis(files[0])
    rows = [*denoising_rows(found, config), *super_resolution_rows(found, sampled, config)]
    prompted = {i: labels for i, labels in labels_of_prompts(inputs.require("prompts")).items() if i in sampled}
    reported = labels_of_reports(inputs.require("cohort")[0], list(real), config)
    return columns(), [*rows, *prompt_rows(prompted, sampled, reported, real, config)]


def columns() -> list[str]:
    """Return the columns of the table."""
    names = ["part", "network", "quantity", "t", "n", "value", "mean_volume", "linear_estimate"]
    names += [
        "noisy_input",
        "enlarged",
        "ratio",
        "other_text",
        "no_text",
        "text_share",
        "real",
        "sampled",
        "n_positive",
        "n_negative",
    ]
    names += ["n_positive_real", "n_negative_real", "num_missing", "note"]
    return [
        column
        for name in names
        for column in ([name, f"{name}_ci_low", f"{name}_ci_high"] if name in BOUNDED else [name])
    ]


def labels_of_prompts(paths: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the findings that each prompt states, by sample."""
    from medsyn.evaluate.inputs import read_prompts
    from medsyn.text.labels import default_labeler

    return {i: default_labeler().label(row["text"]) for i, row in read_prompts(paths).items()}


def labels_of_reports(cohort: str, subjects: Sequence[str], config: EvaluationConfig) -> dict[str, dict[str, int]]:
    """Return the findings that the same section of the subjects' reports states, or the whole report without it."""
    from medsyn.files import read_csv
    from medsyn.text.labels import default_labeler
    from medsyn.text.sections import section_text

    rows = {row["subject_id"]: row for row in read_csv(cohort, ["subject_id", "findings", "impression"])}
    if unknown := [i for i in subjects if i not in rows]:
        raise InputError(
            f"{cohort}: no row for subject {unknown[0]} of --measures real ({len(unknown)} missing), expected one per"
            " subject; give the cohort of these measures, or --split"
        )
    texts = {i: (rows[i]["findings"], rows[i]["impression"]) for i in subjects}
    said = {i: section_text(*text, config.prompt_section) or section_text(*text, "report") for i, text in texts.items()}
    return {i: default_labeler().label(text) for i, text in said.items()}


DIAGNOSTICS = Exhibit(
    name="diagnostics",
    kind="table",
    title="Diagnostics. What each network has learned",
    caption=(
        "Denoising: squared error of the clean volume that a network of the reference predicts from validation"
        " volumes noised to level t (0 none, 1 all), per channel in units of [-1, 1], beside predictors without a"
        f" network: the mean of at most {MAX_MEAN_VOLUMES} training volumes, the linear estimate by their principal"
        " components and the text (low resolution), the noisy input divided by its scale, and the true low-resolution"
        " volume enlarged (super-resolution). Model / best of these: below 1 the network has learned more of the"
        " channel than they know. Removed by the text: share of the error without text"
        " that the volume's own text removes. Super resolution: the second network alone, given true low-resolution"
        " volumes, beside real volumes and the samples that both networks make from random reports; amounts are of"
        " the image, Dice of the masks; what the second network lacks beside real volumes it loses itself, and"
        " what only the samples lack the first network loses. Prompts: area under the ROC curve with which the"
        " measure of a sample tells whether its prompt states the finding (0.5: samples do not follow the prompt),"
        " and the same area of the real volumes. Intervals: bootstrap over volumes; of areas Newcombe's method 5."
    ),
    needs=needs,
    options=("cohort", "split", "file", "prompts", "measures"),
    make=make,
    in_all=reference_takes_text,
    headers={
        "part": "Part",
        "network": "Network",
        "quantity": "Of",
        "t": "Noise level t",
        "value": "Model",
        "mean_volume": "Mean volume",
        "linear_estimate": "Linear estimate",
        "noisy_input": "Noisy input",
        "enlarged": "Low resolution enlarged",
        "ratio": "Model / best of these",
        "other_text": "Another's text",
        "no_text": "No text",
        "text_share": "Removed by the text",
        "real": "Real volumes",
        "sampled": "Samples from text",
        "n_positive": "n with the finding",
        "n_negative": "n without",
        "n_positive_real": "n with, real",
        "n_negative_real": "n without, real",
    },
)
