"""Tables II to IV: a measure of volumes that were prompted with a finding and with its reverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medsyn.config import Config, EvaluationConfig
from medsyn.errors import InputError
from medsyn.exhibits.base import Card, Exhibit, PaperTable, Rows, Table
from medsyn.exhibits.captions import BY_SEED, VERDICT, found
from medsyn.exhibits.inputs import Inputs, MeasureRows
from medsyn.exhibits.needs import Need
from medsyn.exhibits.numbers import equation, number
from medsyn.exhibits.sources import Sources

MEASURE_OF_FINDING = {
    "pleural_effusion": "effusion_volume_ml",
    "emphysema": "laa950_percent",
    "cardiomegaly": "cardiothoracic_ratio",
}
ROMAN = {2: "II", 3: "III", 4: "IV"}
OPTIONS = ("prompts", "measures", "finding")


def needs(sources: Sources) -> list[Need]:
    """Return the prompt pairs and the measures of the reference's answers."""
    return [sources.prompts("pairs"), sources.made("measures", sources.reference, "pairs")]


def reference_takes_text(config: Config) -> bool:
    """Return whether the reference can answer prompts at all."""
    return config.methods[config.reference].takes_text


def measures_of_one(inputs: Inputs, beside: str | None = None) -> tuple[str, MeasureRows]:
    """Return the label and the measures of the one method that was given; several or none are an InputError.

    beside: a label that may be given as well and is not a method.
    """
    inputs.require_group("measures")
    measures = {label: rows for label, rows in inputs.measures().items() if label != beside}
    if len(measures) != 1:
        names = ", ".join(measures) or "none"
        raise InputError(f"{inputs.name}: is of one method, --measures names {names}; give one")
    return next(iter(measures.items()))


def prompt_pair_table(
    finding: str,
    prompts: Sequence[str],
    measures: Mapping[str, MeasureRows],
    config: EvaluationConfig,
    *,
    method_column: str | None = None,
) -> Table:
    """Return the measure of volumes prompted without and with `finding`, two rows per method.

    p_value and p_paired stand in the row with the finding: its measure is larger than without it. A pair are the
    samples with and without of one seed. method_column: name of a further column that holds the labels of `measures`.
    Raises InputError for a finding without measure, and for prompts none of which was measured.
    """
    from medsyn.evaluate.pairing import paired_columns
    from medsyn.exhibits.rows import summary_columns

    pair = config.prompt_pairs.get(finding)  # type: ignore[call-overload]
    measure = pair.measure if pair is not None else MEASURE_OF_FINDING.get(finding)
    if measure is None:
        raise InputError(f"no measure is defined for '{finding}'; add it to evaluation.prompt_pairs")
    columns = [*([method_column] if method_column else []), "prompt_type", "n", *summary_columns(measure)]
    columns += ["p_value", *paired_columns(), "num_missing", "num_found", "num_volumes", "num_failed"]
    columns += ["not_chest_fraction", "prompt"]
    rows: Rows = []
    for method, table in measures.items():
        named = {method_column: method} if method_column else {}
        rows += [named | row for row in _pair_rows(finding, prompts, table, method, measure, config)]
    return columns, rows


def _pair_rows(
    finding: str, prompts: Sequence[str], table: MeasureRows, method: str, measure: str, config: EvaluationConfig
) -> Rows:
    from medsyn.evaluate.pairing import pair_by_seed, paired_test
    from medsyn.evaluate.statistics import one_tailed_p_value
    from medsyn.exhibits.rows import summary, validity

    samples = _samples_of(finding, prompts, table, method)
    measured = {sign: [table.get(row["sample_id"], {}) for row in chosen] for sign, chosen in samples.items()}
    values = {sign: [entry.get(measure) for entry in entries] for sign, entries in measured.items()}
    rows: Rows = []
    for sign, word in ((False, "without"), (True, "with")):
        row: dict[str, Any] = summary(values[sign], measure, config) | validity(measured[sign], measure)
        row |= {"prompt_type": f"{finding}/{word}", "n": row.pop("n_used")}
        row["prompt"] = " | ".join(dict.fromkeys(entry["text"] for entry in samples[sign]))
        rows.append(row)
    pairs = pair_by_seed(samples[True], samples[False])
    test = paired_test(
        (s, table.get(a or "", {}).get(measure), table.get(b or "", {}).get(measure)) for s, a, b in pairs
    )
    rows[1] |= {"p_value": one_tailed_p_value(values[True], values[False])} | test.columns()
    return rows


def _samples_of(
    finding: str, prompts: Sequence[str], table: MeasureRows, method: str
) -> dict[bool, list[dict[str, str]]]:
    """Return the prompt rows by sign; only of prompt files from which `table` holds at least one sample."""
    from medsyn.evaluate.inputs import read_prompts, split_prompt_type

    chosen: dict[bool, dict[str, dict[str, str]]] = {True: {}, False: {}}
    for path in prompts:
        rows = read_prompts([path])
        if not any(name in table for name in rows):
            continue
        for name, row in rows.items():
            kind = split_prompt_type(row["prompt_type"])
            if kind is not None and kind[0] == finding:
                chosen[kind[1]].setdefault(name, row)
    for sign in (True, False):
        if not chosen[sign]:
            word = "with" if sign else "without"
            raise InputError(f"{', '.join(prompts)}: no measured sample of '{method}' has prompt_type {finding}/{word}")
    return {sign: list(rows.values()) for sign, rows in chosen.items()}


def finding_card(title: str, rows: Sequence[Mapping[str, str]]) -> Card | None:
    """Return both means of a table of two rows, and the test between them."""
    if len(rows) != 2:
        return None
    mean = next(name for name in rows[0] if name.endswith("_mean"))
    without, with_it = sorted(rows, key=lambda row: row["prompt_type"].endswith("/with"))
    unit = "ml" if "_ml_" in mean else "%" if "_percent_" in mean else ""
    return Card(
        f"{title}: with against without",
        f"{number(with_it[mean])} / {number(without[mean])} {unit}".strip(),
        f"p {equation(with_it['p_value'])} · n = {with_it['n']} and {without['n']}",
    )


def _exhibit(rank: int, finding: str, title: str, caption: str, anatomy: str, paper: PaperTable) -> Exhibit:
    def make(inputs: Inputs, config: EvaluationConfig) -> Table:
        prompts, (label, measures) = inputs.require("prompts"), measures_of_one(inputs)
        return prompt_pair_table(inputs.finding or finding, prompts, {label: measures}, config)

    return Exhibit(
        name=f"table{rank}",
        kind="table",
        title=f"Table {ROMAN[rank]}. {title}",
        caption=caption + found(anatomy) + BY_SEED + VERDICT,
        needs=needs,
        options=OPTIONS,
        make=make,
        paper=paper,
        in_all=reference_takes_text,
        card=lambda rows: finding_card(title, rows),
    )


TABLE2 = _exhibit(
    2,
    "pleural_effusion",
    "Pleural effusion",
    "Segmented effusion (ml) in volumes generated with a prompt and with its reverse; a volume without lungs counts as"
    " 0 ml.",
    "lungs were",
    PaperTable(("Prompt", "Pleural effusion (L)"), (("No effusion", "0.00 ± 0.00"), ("Large effusion", "1.73 ± 0.22"))),
)
TABLE3 = _exhibit(
    3,
    "emphysema",
    "Bullous emphysema",
    "Share of lung voxels below −950 HU (%LAA-950) by prompt; a volume without lungs has no value and is counted as"
    " missing.",
    "lungs were",
    PaperTable(("Prompt", "%LAA-950"), (("No bullae", "0.019 ± 0.018"), ("With bullae", "1.4 ± 3.5"))),
)
TABLE4 = _exhibit(
    4,
    "cardiomegaly",
    "Cardiomegaly",
    "Cardiothoracic ratio (widest heart over widest inner thorax on one axial level) by prompt; a volume without heart"
    " between two lungs has no value and is counted as missing.",
    "a heart was",
    PaperTable(("Prompt", "CTR"), (("No cardiomegaly", "0.48 ± 0.06"), ("With cardiomegaly", "0.75 ± 0.24"))),
)
