"""Table V: generated masks of a given image, without and with the report as the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsyn.config import EvaluationConfig
from medsyn.exhibits.base import Exhibit, PaperTable, Rows, Table
from medsyn.exhibits.captions import tests
from medsyn.exhibits.finding_tables import reference_takes_text
from medsyn.exhibits.inputs import Inputs
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources

STRUCTURES = ("airway_dice", "lobe_dice")


def needs(sources: Sources) -> list[Need]:
    """Return the scores of the reference's masks."""
    sampled = (sources.reference, "segmentation")
    return [Need("scores", (), (sources.layout.segmentation_scores(),), sampled)]


def make(inputs: Inputs, config: EvaluationConfig) -> Table:
    """Return Table V of the score files that were given."""
    return table5(inputs.require("scores"), config)


def table5(scores: Sequence[str | Path], config: EvaluationConfig) -> Table:
    """Return the Dice of airway and lobes without and with text, from files of `medsyn score-segmentation`.

    A pair are the samples of one subject and seed. `n` is the smaller of the structures' counts.
    """
    from medsyn.evaluate.pairing import paired_columns
    from medsyn.exhibits.rows import read_scores, summary_columns

    entries = [row for part in read_scores(scores, ("sample_id", "text"), STRUCTURES) for row in part]
    columns = ["text", "n", *(name for s in STRUCTURES for name in summary_columns(s))]
    columns += [*(f"{s}_p_value" for s in STRUCTURES), "num_missing", "num_volumes", *(f"{s}_n" for s in STRUCTURES)]
    columns += [name for s in STRUCTURES for name in paired_columns(f"{s}_")]
    return columns, [_row(entries, text, config) for text in ("without", "with")]


def _row(entries: Rows, text: str, config: EvaluationConfig) -> dict[str, Any]:
    from medsyn.evaluate.statistics import one_tailed_p_value
    from medsyn.exhibits.rows import summary

    row: dict[str, Any] = {"text": text}
    chosen = [entry for entry in entries if entry["text"] == text]
    for structure in STRUCTURES:
        values = [entry[structure] for entry in chosen]
        row |= summary(values, structure, config)
        row[f"{structure}_n"] = row.pop("n_used")
        row["n"] = min(row.get("n", len(values)), row[f"{structure}_n"])
        if text == "with":
            other = [entry[structure] for entry in entries if entry["text"] == "without"]
            row[f"{structure}_p_value"] = one_tailed_p_value(values, other)
            row |= _paired_columns(entries, structure)
    return row | {"num_missing": len(chosen) - row["n"], "num_volumes": len(chosen)}


def _paired_columns(entries: Sequence[Mapping[str, Any]], structure: str) -> dict[str, Any]:
    """Compare the samples with text to those without of the same subject and seed."""
    from medsyn.evaluate.pairing import paired_test

    pairs: dict[tuple[str, str], dict[str, float | None]] = {}
    for entry in entries:
        if entry.get("subject_id"):
            pairs.setdefault((entry["subject_id"], entry.get("seed", "")), {})[entry["text"]] = entry[structure]
    test = paired_test((subject, pair.get("with"), pair.get("without")) for (subject, _), pair in pairs.items())
    return test.columns(f"{structure}_")


TABLE5 = Exhibit(
    name="table5",
    kind="table",
    title="Table V. Segmentation by generation",
    caption=(
        "The image is given and the model fills in the masks: Dice of airway and lobes (mean of five) with the tool's"
        " masks of the same image, without and with the patient's report as prompt. Both share subject, seed and"
        " guidance." + tests("subjects")
    ),
    needs=needs,
    options=("scores",),
    make=make,
    paper=PaperTable(
        ("Text", "Airway Dice", "Lobe Dice"),
        (("without", "0.70 ± 0.14", "0.69 ± 0.12"), ("with", "0.75 ± 0.10", "0.77 ± 0.12")),
    ),
    in_all=reference_takes_text,
)
