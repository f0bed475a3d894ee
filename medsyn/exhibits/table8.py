"""Table VIII: whether volumes show what their prompts state, over a grid of findings, places and severities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.exhibits.base import Exhibit, Rows, Table
from medsyn.exhibits.finding_tables import reference_takes_text
from medsyn.exhibits.inputs import Inputs
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources
from medsyn.layout import REAL

if TYPE_CHECKING:
    from medsyn.evaluate.faithfulness import Answer, Row, Stated, Yardstick

COLUMNS = (
    *("method", "finding", "question", "wording", "n", "num_missing", "num_volumes", "value", "value_ci_low"),
    *("value_ci_high", "chance", "real", "real_ci_low", "real_ci_high", "n_real", "num_missing_real", "threshold"),
    *("n_threshold_with", "n_threshold_without", "note"),
)
OPTIONS = ("cohort", "labels", "prompts", "file", "label")


@dataclass(frozen=True)
class RealVolumes:
    """The real volumes of one finding: the yardstick of the training split, rows and labels of the validation split."""

    scale: Yardstick
    num_with: int
    num_without: int
    rows: Sequence[Row]
    labels: Sequence[bool]


def needs(sources: Sources) -> list[Need]:
    """Return regions of the real volumes and of the reference's answers to the grid, prompts, cohort and labels."""
    return [
        sources.cohort(),
        sources.findings(),
        sources.prompts("faithfulness"),
        sources.real_regions(),
        sources.regions(sources.reference),
        *sources.names([sources.reference]),
    ]


def make(inputs: Inputs, config: EvaluationConfig) -> Table:
    """Return Table VIII of the prompts and regions that were given: --file real .., and --file LABEL .. per method."""
    prompts, real, methods = read_inputs(inputs)
    rows: Rows = []
    for method, measured in methods.items():
        for finding in dict.fromkeys(prompt.finding for prompt in prompts.values()):
            chosen = {name: prompt for name, prompt in prompts.items() if prompt.finding == finding}
            answers = _answers(chosen, measured, real[finding], config)
            rows += [{"method": inputs.full_name(method), "finding": finding} | answer for answer in answers]
    return list(COLUMNS), rows


def read_inputs(inputs: Inputs) -> tuple[dict[str, Stated], dict[str, RealVolumes], dict[str, dict[str, Row]]]:
    """Return the prompts by sample, the real volumes by finding, and the measured samples by method and sample."""
    from medsyn.evaluate.inputs import labels_of, read_labels
    from medsyn.files import read_csv

    groups = inputs.require_group("file")
    if REAL not in groups or len(groups) < 2:
        raise InputError(
            f"{inputs.name}: give --file {REAL} .. and --file LABEL .. of a method: CSVs of `medsyn regions`"
        )
    prompts = _read_prompts(inputs.require("prompts"))
    (cohort,), (labels,) = inputs.require("cohort"), inputs.require("labels")
    measured = {label: _read_regions(files) for label, files in groups.items()}
    by_id = read_labels(labels)[1]
    subjects = {row["subject_id"]: (row["split"], labels_of(row, by_id)) for row in read_csv(cohort, ["split"])}
    findings = dict.fromkeys(prompt.finding for prompt in prompts.values())
    real = {finding: _real_volumes(finding, measured[REAL], subjects, labels) for finding in findings}
    return prompts, real, {label: rows for label, rows in measured.items() if label != REAL}


def _real_volumes(
    finding: str, rows: Mapping[str, Row], subjects: Mapping[str, tuple[str, Mapping[str, int] | None]], labels: str
) -> RealVolumes:
    from medsyn.evaluate.faithfulness import yardstick

    parts: dict[str, list[tuple[Row, bool]]] = {"train": [], "validation": []}
    for name, row in rows.items():
        split, known = subjects.get(name, ("", None))
        if split in parts and known is not None:
            if finding not in known:
                raise InputError(f"{labels}: no column {finding}, which the prompts state; run `medsyn label` again")
            parts[split].append((row, bool(known[finding])))
    training, validation = parts["train"], parts["validation"]
    num_with = sum(label for _, label in training)
    return RealVolumes(
        yardstick(finding, [row for row, _ in training], [label for _, label in training]),
        num_with,
        len(training) - num_with,
        [row for row, _ in validation],
        [label for _, label in validation],
    )


def _answers(
    prompts: Mapping[str, Stated], measured: Mapping[str, Row], real: RealVolumes, config: EvaluationConfig
) -> list[dict[str, Any]]:
    """Return the rows of one method and finding."""
    from medsyn.evaluate.faithfulness import (
        agreement,
        severity_correlation,
        share_shown,
        shown_place,
        shows,
        swap_ratio,
    )

    stated = list(prompts.values())
    finding = stated[0].finding
    rows = [measured.get(name, {}) for name in prompts]
    verdicts = [shows(finding, row, real.scale) for row in rows]
    known = [verdict for verdict in verdicts if verdict is not None]
    overall = sum(known) / len(known) if known else None
    of_real = [shows(finding, row, real.scale) for row in real.rows]
    without = [verdict for verdict, label in zip(of_real, real.labels, strict=True) if not label]
    both = list(zip(stated, rows, verdicts, strict=True))
    places = [(p.place, shown_place(finding, row, real.scale)) for p, row, _ in both if p.has_one_place]
    denied = [(p.text, verdict) for p, _, verdict in both if not p.present]

    presence = agreement([(p.present, verdict) for p, _, verdict in both])
    result = [_row("presence", presence, agreement(list(zip(real.labels, of_real, strict=True))))]
    if places:
        result.append(_row("side" if finding == "pleural_effusion" else "lobe", agreement(places)))
    result.append(_row("amount", severity_correlation(stated, rows)))
    result.append(_row("denied", share_shown([v for _, v in denied], overall), share_shown(without, None)))
    for text in dict.fromkeys(text for text, _ in denied):
        result.append(_row("denied", share_shown([v for other, v in denied if other == text], overall), wording=text))
    if places:
        result.append(_row("swap", swap_ratio(stated, rows, num_bootstrap=config.num_bootstrap, seed=config.seed)))
    facts: dict[str, Any] = {"threshold": real.scale.threshold}
    facts |= {"n_threshold_with": real.num_with, "n_threshold_without": real.num_without}
    if real.scale.threshold is None:
        facts["note"] = f"{finding}: no threshold, because the measured training volumes do not have both classes"
    return [row | facts for row in result]


def _row(question: str, answer: Answer, real: Answer | None = None, wording: str = "") -> dict[str, Any]:
    row: dict[str, Any] = {"question": question, "wording": wording, "num_volumes": answer.n + answer.num_missing}
    found = asdict(answer)
    row |= {"n": answer.n, "num_missing": answer.num_missing, "chance": answer.chance}
    row |= {"value": found["value"], "value_ci_low": found["low"], "value_ci_high": found["high"]}
    if real is not None:
        row |= {"real": real.value, "real_ci_low": real.low, "real_ci_high": real.high}
        row |= {"n_real": real.n, "num_missing_real": real.num_missing}
    return row


def _read_prompts(paths: Sequence[str]) -> dict[str, Stated]:
    from medsyn.evaluate.faithfulness import MEASURES_OF, Stated
    from medsyn.files import read_csv

    columns = ("sample_id", "text", "finding", "present", "place", "severity_rank")
    found: dict[str, Stated] = {}
    for path in paths:
        for row in read_csv(path, columns):
            if row["finding"] not in MEASURES_OF:
                raise InputError(
                    f"{path}: no measure of '{row['finding']}', expected a finding out of {', '.join(MEASURES_OF)};"
                    " write the prompts with `medsyn prompts --set faithfulness`"
                )
            stated = Stated(row["finding"], row["present"] == "1", row["place"], int(row["severity_rank"]), row["text"])
            if row["sample_id"] in found:
                raise InputError(f"{path}: sample '{row['sample_id']}' occurs twice; give every file once")
            found[row["sample_id"]] = stated
    return found


def _read_regions(paths: Sequence[str]) -> dict[str, Row]:
    from medsyn.evaluate.inputs import parse_number
    from medsyn.evaluate.regions import CHANGES, MEASURES
    from medsyn.files import read_csv

    names = (*MEASURES, *CHANGES)
    table: dict[str, Row] = {}
    for path in paths:
        for row in read_csv(path, ["subject_id", *names]):
            if row["subject_id"] in table:
                raise InputError(f"{path}: '{row['subject_id']}' is measured twice; give every file once")
            table[row["subject_id"]] = {name: parse_number(row[name], name, path) for name in names}
    return table


TABLE8 = Exhibit(
    name="table8",
    kind="table",
    title="Table VIII. Faithfulness to the text",
    caption=(
        "Whether volumes show what their prompts state, over a grid of finding, place, severity and wordings of the"
        " absence. Presence: share of volumes in which the finding is shown if and only if the text states it. Side,"
        " lobe: of the texts that name one, share in which the largest amount lies there. Amount: Spearman correlation"
        " of stated severity and measured amount. Denied: share of the texts that deny the finding whose volume shows"
        " it anyway, over all wordings and for each. Swap: mean |HU| change in the named place over that in the others"
        " when the text that denies the finding is replaced, with the same seed. Chance: the value if the texts were"
        " in random order. Real: the same of real validation volumes and their reports, which is what this measure can"
        " reach. Shown: above a threshold that was chosen on real training volumes. Bounds (95 %): Wilson for shares,"
        " Bonett and Wright for correlations, bootstrap for ratios; they take volumes as independent, although those"
        " of one seed are not."
    ),
    needs=needs,
    options=OPTIONS,
    make=make,
    in_all=reference_takes_text,
    headers={
        "question": "Question",
        "wording": "Wording of the denial",
        "value": "Answer",
        "chance": "Chance",
        "real": "Real",
        "n_real": "n (real)",
        "num_missing_real": "missing (real)",
        "threshold": "Threshold",
        "n_threshold_with": "n with (threshold)",
        "n_threshold_without": "n without (threshold)",
    },
)
