"""Table VIII: whether volumes show what their prompts state, over a grid of findings, places and severities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.exhibits.base import Exhibit, Table
from medsyn.exhibits.finding_tables import reference_takes_text
from medsyn.exhibits.inputs import Inputs
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources
from medsyn.layout import REAL

if TYPE_CHECKING:
    from medsyn.evaluate.faithfulness import Answer, Row, Trial, Yardstick

OPTIONS = ("cohort", "labels", "prompts", "file", "label", "phantom")
QUESTIONS = ("presence", "side", "lobe", "amount", "denied", "swap")
PromptPair = tuple[Mapping[str, str], Mapping[str, str]]
"""The rows of two prompts of one seed: the one that states the finding and the one that denies it."""
_PARTS = ("", "_ci_low", "_ci_high", "_chance", "_n")
COLUMNS = (
    *("method", "finding", "n", *(f"{question}{part}" for question in QUESTIONS for part in _PARTS)),
    *("threshold", "n_threshold_with", "n_threshold_without", "note"),
)


@dataclass(frozen=True)
class RealVolumes:
    """The real volumes of one finding: the yardstick of the training split, rows and labels of the validation split."""

    scale: Yardstick
    num_with: int
    num_without: int
    rows: Sequence[Row]
    labels: Sequence[bool]


@dataclass(frozen=True)
class Measured:
    """The real volumes by finding, and the trials by method and finding."""

    real: Mapping[str, RealVolumes]
    methods: Mapping[str, Mapping[str, Sequence[Trial]]]


def needs(sources: Sources) -> list[Need]:
    """Return the regions of the real volumes and of each method's answers to the grid, prompts, cohort and labels."""
    config = sources.config
    return needs_of(sources, list(dict.fromkeys([sources.reference, *config.evaluation.faithfulness_methods])))


def needs_of(sources: Sources, methods: Sequence[str]) -> list[Need]:
    """Return what the table of these methods is made from."""
    return [
        sources.cohort(),
        sources.findings(),
        sources.prompts("faithfulness"),
        sources.real_regions(),
        *(sources.regions(method) for method in methods),
        *sources.names(methods),
        *sources.phantom(),
    ]


def make(inputs: Inputs, _: EvaluationConfig) -> Table:
    """Return Table VIII of the prompts and regions that were given: --file real .., and --file LABEL .. per method."""
    from medsyn.evaluate.faithfulness import answers, answers_of_real

    measured = read_measured(inputs)
    rows = []
    for finding, real in measured.real.items():
        found = answers_of_real(finding, real.rows, real.labels, real.scale)
        rows.append(_row(REAL, inputs, finding, len(real.rows), found, real))
        for method, by_finding in measured.methods.items():
            trials = by_finding[finding]
            rows.append(_row(method, inputs, finding, len(trials), answers(finding, trials, real.scale), real))
    return list(COLUMNS), rows


def _row(
    method: str, inputs: Inputs, finding: str, n: int, found: Mapping[str, Answer], real: RealVolumes
) -> dict[str, Any]:
    row: dict[str, Any] = {"method": inputs.full_name(method), "finding": finding, "n": n}
    for question in QUESTIONS:
        answer = found[question]
        parts = (answer.value, answer.low, answer.high, answer.chance, answer.n)
        row |= dict(zip((f"{question}{part}" for part in _PARTS), parts, strict=True))
    row |= {"threshold": real.scale.threshold, "n_threshold_with": real.num_with}
    reasons = [f"no {question}: {found[question].reason}" for question in QUESTIONS if found[question].reason]
    return row | {"n_threshold_without": real.num_without, "note": "; ".join(reasons)}


def read_measured(inputs: Inputs) -> Measured:
    """Read all that was given; InputError for files that do not belong together."""
    from medsyn.evaluate.inputs import labels_of, read_labels
    from medsyn.files import read_csv

    groups = inputs.require_group("file")
    if REAL not in groups or len(groups) < 2:
        raise InputError(
            f"{inputs.name}: give --file {REAL} .. and --file LABEL .. of a method: CSVs of `medsyn regions`"
        )
    (prompts,), (cohort,), (labels,) = (inputs.require(option) for option in ("prompts", "cohort", "labels"))
    pairs = _read_pairs(prompts)
    measured = {label: _read_regions(files) for label, files in groups.items()}
    by_id = read_labels(labels)[1]
    subjects = {row["subject_id"]: (row["split"], labels_of(row, by_id)) for row in read_csv(cohort, ["split"])}
    real = {finding: _real_volumes(finding, measured[REAL], subjects, labels) for finding in pairs}
    methods = {
        label: {finding: [_trial(pair, rows) for pair in pairs[finding]] for finding in pairs}
        for label, rows in measured.items()
        if label != REAL
    }
    return Measured(real, methods)


def _trial(pair: PromptPair, rows: Mapping[str, Row]) -> Trial:
    from medsyn.evaluate.faithfulness import Trial

    stated, denied = (rows.get(prompt["sample_id"], {}) for prompt in pair)
    return Trial(pair[0]["place"], int(pair[0]["severity_rank"]), stated, denied)


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


def _read_pairs(path: str) -> dict[str, list[PromptPair]]:
    """Return the prompts of each pair by finding: the one that states it and the one that denies it."""
    from medsyn.evaluate.faithfulness import MEASURES_OF
    from medsyn.files import read_csv

    remedy = "write the prompts with `medsyn prompts --set faithfulness`"
    by_pair: dict[tuple[str, str], dict[str, Mapping[str, str]]] = {}
    for row in read_csv(path, ("sample_id", "pair", "finding", "present", "place", "severity_rank")):
        if row["finding"] not in MEASURES_OF:
            known = ", ".join(MEASURES_OF)
            raise InputError(f"{path}: no measure of '{row['finding']}', expected a finding out of {known}; {remedy}")
        sides = by_pair.setdefault((row["finding"], row["pair"]), {})
        if row["present"] not in ("0", "1") or row["present"] in sides:
            raise InputError(
                f"{path}: '{row['sample_id']}' has present {row['present'] or 'empty'}, expected 1 once and 0 once in"
                f" pair '{row['pair']}'; {remedy}"
            )
        sides[row["present"]] = row
    found: dict[str, list[PromptPair]] = {}
    for (finding, pair), sides in by_pair.items():
        if len(sides) < 2:
            raise InputError(f"{path}: pair '{pair}' has one prompt, expected two; {remedy}")
        found.setdefault(finding, []).append((sides["1"], sides["0"]))
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
        "Whether volumes show what their prompts state, over a grid of finding, place and severity. Each seed answers a"
        " text that states the finding and one that denies it. Presence: balanced accuracy of the finding being shown."
        " Side, lobe: of the texts that name one, share in which the largest amount lies there. Amount: rank"
        " correlation (Somers' D) of stated severity and measured amount. Denied: share of the texts that deny the"
        " finding whose volume shows it anyway; lower is better. Swap: change in the named place over that in the"
        " others when the text that denies the finding is replaced, with the same seed. Chance: the value without"
        " skill. Shown: above a threshold that was chosen on real training volumes. The rows of real volumes are of the"
        " validation split and its reports: what this measure can reach. Bounds: 95 %, over independent seeds."
    ),
    needs=needs,
    options=OPTIONS,
    make=make,
    uses_settings=False,
    in_all=reference_takes_text,
    headers={
        "denied": "Denied, shown anyway",
        "n_threshold_with": "Training volumes with",
        "n_threshold_without": "Training volumes without",
    },
)
