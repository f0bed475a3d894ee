"""Which volumes are sampled for which evaluation: sets of prompts as tables that `generate` reads.

Takes the cohort, its reports and the evaluation settings, gives rows of COLUMNS. The sets are
- `reports` (Table I): reports of the validation split;
- `pairs` and `effusion_pairs` (Tables II to IV and VII): a prompt and its reversal with the same seeds; with
  `prompt_source: reports` several per finding, sentences of validation reports among them;
- `report_pairs`: the paper's pairs and sentences of validation reports for every finding that the rules can reverse;
- `augmentation` (Table VI): validation reports that the labeler calls positive or negative;
- `segmentation` (Table V): the image is fixed, once with its report and once without, both with the same guidance;
- `controlled` (Figure 6): one structure is fixed, seeds vary;
- `faithfulness` (Table VIII): the grid of `medsyn.text.grid`, whose rows also hold GRID_COLUMNS: what the text states.

Rows that differ in the finding alone share `pair` and `seed`. `patient_id` is whose report the text is; it is empty
where the text is a sentence. A row's seed follows from the evaluation's seed and what the row is for, so a larger set
begins with the smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medsyn.config import PromptsStage
from medsyn.errors import InputError
from medsyn.files import read_csv, write_csv
from medsyn.names import report_sample_id
from medsyn.progress import log
from medsyn.text.corpus import ReportRow, of_split, read_reports
from medsyn.text.grid import cells
from medsyn.text.labels import default_labeler
from medsyn.text.pairs import Pair, content, paper_pairs, report_pairs
from medsyn.text.sections import section_text
from medsyn.volume import STRUCTURES

COLUMNS = (
    *("sample_id", "prompt_type", "text", "seed", "section", "text_mode", "guidance_scale", "pair", "patient_id"),
    *("fix_image", "fix_lobes", "fix_airway", "fix_vessels"),
)
GRID_COLUMNS = ("finding", "present", "place", "severity", "severity_rank")
NUM_CONTROLLED_SEEDS = 3
_SHORTEST_FIRST = ("impression", "findings")
Row = dict[str, Any]


@dataclass(frozen=True)
class Sources:
    """What prompts are made of: settings, reports, and the validation subjects as rows of cohort.csv."""

    config: PromptsStage
    reports: Sequence[ReportRow]
    subjects: Sequence[Mapping[str, str]]

    def seed(self, *parts: object) -> int:
        """Return a seed in [0, 2^31) for the row that `parts` name."""
        digest = hashlib.sha256(repr((self.config.seed, *parts)).encode()).digest()
        return int.from_bytes(digest[:4], "little") >> 1

    def draw(self, pool: Sequence[ReportRow], count: int, name: str) -> list[ReportRow]:
        """Return `count` reports in random order; every one comes before any comes twice."""
        rng = np.random.default_rng(self.seed("draw", name))
        chosen: list[ReportRow] = []
        while len(chosen) < count:
            chosen += [pool[index] for index in rng.permutation(len(pool))]
        return chosen[:count]

    def prompt(self, report: ReportRow) -> tuple[str, str]:
        """Return (text, section): the configured section of `report`, or the whole report if that section is empty."""
        section = self.config.prompt_section
        text = report.text(section)
        return (text, section) if text else (report.text("report"), "report")

    def row(self, sample_id: str, prompt_type: str, report: ReportRow, seed: int) -> Row:
        """Return a row that prompts with `report`."""
        text, section = self.prompt(report)
        return _row(sample_id, prompt_type, text, seed, section) | {"patient_id": report.patient}


def write_prompts(
    name: str,
    cohort: str | Path,
    reports: str | Path,
    config: PromptsStage,
    out: str | Path,
    segmented: Set[str] | None = None,
) -> int:
    """Write prompt set `name` to `out`; returns the number of rows.

    segmented: subjects that have masks; others cannot be fixed in a prompt (None: all of the cohort).
    """
    rows = build_prompts(name, read_sources(cohort, reports, config, segmented))
    if not rows:
        raise InputError(f"{reports}: nothing in it can serve as a prompt of set '{name}'")
    columns = [*COLUMNS, *(GRID_COLUMNS if GRID_COLUMNS[0] in rows[0] else ())]
    write_csv(out, [dict.fromkeys(columns, "") | row for row in rows], columns)
    return len(rows)


def build_prompts(name: str, sources: Sources) -> list[Row]:
    """Return the rows of one of `SETS`."""
    return SETS[name](sources)


def read_sources(
    cohort: str | Path, reports: str | Path, config: PromptsStage, segmented: Set[str] | None = None
) -> Sources:
    """Read both tables; the validation split must not be empty.

    The cohort says whose the reports of its subjects are, because `classify` asks it whom a fold is tested on.
    """
    rows = read_csv(cohort, ("subject_id", "findings", "impression", "split"))
    subjects = [row for row in rows if row["split"] == "validation"]
    if segmented is not None:
        subjects = [row for row in subjects if row["subject_id"] in segmented]
    patients = {row.get("report_id") or row["subject_id"]: row.get("patient_id") or row["subject_id"] for row in rows}
    table = [replace(row, patient=patients.get(row.report_id, row.patient)) for row in read_reports(reports)]
    if not subjects or not of_split(table, "validation"):
        source = reports if subjects else cohort
        raise InputError(f"{source}: nothing in split validation; raise cohort.validation_fraction or name splits")
    return Sources(config, table, subjects)


def _reports(sources: Sources) -> list[Row]:
    pool = of_split(sources.reports, "validation")
    chosen = sources.draw(pool, sources.config.num_fid_samples, "reports")
    return [
        sources.row(report_sample_id(number), "report", report, sources.seed("reports", number))
        for number, report in enumerate(chosen)
    ]


def _pairs(sources: Sources, findings: Sequence[str] | None = None) -> list[Row]:
    """Return prompts with and without the finding and the same seeds in both, so that only the words of a pair differ.

    The pairs of the settings come first, so both values of prompt_source begin with the same prompts.
    """
    pairs = {
        finding: [Pair(finding, pair.with_finding, pair.without_finding, "settings")]
        for finding, pair in sources.config.prompt_pairs.items()
        if findings is None or finding in findings
    }
    if sources.config.prompt_source == "reports":
        sentences = _report_sentences(sources)
        for finding, given in pairs.items():
            given = [*given, *_published(finding, given)]
            pairs[finding] = [*given, *_drawn(sources, finding, sentences, given)]
    return [
        row
        for finding, each in pairs.items()
        for rows in _pair_rows(sources, "pairs", finding, each)
        for side in (0, 1)
        for row in rows[side::2]
    ]


def _effusion_pairs(sources: Sources) -> list[Row]:
    if "pleural_effusion" not in sources.config.prompt_pairs:
        raise InputError("evaluation.prompt_pairs: no pair pleural_effusion, which Table VII needs; add one")
    return _pairs(sources, ("pleural_effusion",))


def _report_pairs(sources: Sources) -> list[Row]:
    """Return the paper's pairs and sentences of reports for every finding of which there are any."""
    sentences = _report_sentences(sources)
    rows: list[Row] = []
    for finding in dict.fromkeys([*(pair.finding for pair in paper_pairs()), *sentences]):
        given = _published(finding)
        each = [*given, *_drawn(sources, finding, sentences, given)]
        rows += [row for part in _pair_rows(sources, "report_pairs", finding, each) for row in part]
    return rows


def _published(finding: str, known: Sequence[Pair] = ()) -> list[Pair]:
    """Return the paper's pairs of `finding` whose prompts are not in `known`."""
    said = {pair.with_finding for pair in known}
    return [pair for pair in paper_pairs() if pair.finding == finding and pair.with_finding not in said]


def _report_sentences(sources: Sources) -> dict[str, list[Pair]]:
    """Return all pairs that the rules find in the validation reports, by finding."""
    texts = [(report.report_id, report.text("report")) for report in of_split(sources.reports, "validation")]
    keep = {"keep_severity": sources.config.pairs_keep_severity, "keep_side": sources.config.pairs_keep_side}
    found: dict[str, list[Pair]] = {}
    for pair in report_pairs(texts, **keep):
        found.setdefault(pair.finding, []).append(pair)
    return found


def _drawn(
    sources: Sources, finding: str, sentences: Mapping[str, Sequence[Pair]], known: Sequence[Pair]
) -> list[Pair]:
    """Draw num_report_sentences pairs of `finding` by the seed that say other things than `known` and each other.

    The log lists them with their reports, and warns if there are too few.
    """
    asked = sources.config.num_report_sentences
    said = {content(pair.with_finding) for pair in known}
    pool: list[Pair] = []
    for pair in sentences.get(finding, ()):
        if content(pair.with_finding) not in said:
            said.add(content(pair.with_finding))
            pool.append(pair)
    order = np.random.default_rng(sources.seed("sentences", finding)).permutation(len(pool))
    drawn = [pool[index] for index in order[:asked]]
    for pair in drawn:
        log.info("prompts: %s, report %s: %s / %s", finding, pair.source, pair.with_finding, pair.without_finding)
    if len(drawn) < asked:
        log.warning(
            "prompts: %s: %d sentences of validation reports state it alone, num_report_sentences asks for %d;"
            " fewer prompts are sampled",
            *(finding, len(drawn), asked),
        )
    return drawn


def _pair_rows(sources: Sources, name: str, finding: str, pairs: Sequence[Pair]) -> list[list[Row]]:
    """Return the rows of every pair: num_per_prompt times one with the finding and one without, of the same seed."""
    count = sources.config.num_per_prompt
    result: list[list[Row]] = []
    for place, pair in enumerate(pairs):
        result.append([])
        for number in range(place * count, (place + 1) * count):
            seed = sources.seed(name, finding, number)
            for side, text in (("with", pair.with_finding), ("without", pair.without_finding)):
                row = _row(f"{finding}_{side}_{number:03d}", f"{finding}/{side}", text, seed, "impression")
                result[-1].append(row | {"pair": f"{finding}_{number:03d}"})
    return result


def _augmentation(sources: Sources) -> list[Row]:
    """Return reports of the validation split per finding and label, as in the paper.

    The report and the section of it that is the prompt must both have the label, because the model sees the prompt
    alone. `classify` keeps a volume out of the folds that are tested on the patient whose report prompted it.
    """
    settings, labeler = sources.config, default_labeler()
    unknown = [finding for finding in settings.augmentation_findings if finding not in labeler.findings]
    if unknown:
        raise InputError(
            f"evaluation.augmentation.findings: the labeler knows no '{unknown[0]}';"
            f" it knows {', '.join(labeler.findings)}"
        )
    labelled = [
        (report, [labeler.label(text) for text in {report.text("report"), sources.prompt(report)[0]}])
        for report in of_split(sources.reports, "validation")
    ]
    rows: list[Row] = []
    for finding in settings.augmentation_findings:
        for side, word, label in (("positive", "with", 1), ("negative", "without", 0)):
            pool = [report for report, labels in labelled if all(each[finding] == label for each in labels)]
            if not pool:
                log.warning("augmentation: no validation report is %s for %s", side, finding)
            if 0 < len(pool) < settings.num_reports_per_class:
                log.warning(
                    "augmentation: %d validation reports are %s for %s, num_reports_per_class asks for %d; they repeat",
                    *(len(pool), side, finding, settings.num_reports_per_class),
                )
            count = settings.num_reports_per_class if pool else 0
            for number, report in enumerate(sources.draw(pool, count, f"{finding}/{side}")):
                name = f"{finding}_{side}_{number:03d}"
                rows.append(sources.row(name, f"{finding}/{word}", report, sources.seed("augmentation", name)))
    return rows


def _segmentation(sources: Sources) -> list[Row]:
    order = np.random.default_rng(sources.seed("segmentation")).permutation(len(sources.subjects))
    rows: list[Row] = []
    for index in order[: sources.config.num_segmentation_subjects]:
        subject = sources.subjects[index]
        name = subject["subject_id"]
        patient = subject.get("patient_id") or name
        report = ReportRow(name, subject["findings"], subject["impression"], "validation", patient)
        for mode in ("text", "none"):
            seed = sources.seed("segmentation", name)
            row = sources.row(f"{name}_{mode}", f"segmentation/{mode}", report, seed)
            scale = sources.config.segmentation_guidance_scale
            facts = {"text_mode": mode, "guidance_scale": scale, "fix_image": name, "pair": f"segmentation_{name}"}
            rows.append(row | facts)
    return rows


def _controlled(sources: Sources) -> list[Row]:
    order = np.random.default_rng(sources.seed("controlled")).permutation(len(sources.subjects))
    rows: list[Row] = []
    for place, structure in enumerate(STRUCTURES):
        subject = sources.subjects[order[place % len(order)]]
        texts = {name: section_text(subject["findings"], subject["impression"], name) for name in _SHORTEST_FIRST}
        section = next(name for name in _SHORTEST_FIRST if texts[name])
        for number in range(NUM_CONTROLLED_SEEDS):
            name = f"{structure}_{subject['subject_id']}_{number}"
            seed = sources.seed("controlled", structure, number)
            row = _row(name, f"controlled/{structure}", texts[section], seed, section)
            patient = subject.get("patient_id") or subject["subject_id"]
            rows.append(row | {f"fix_{structure}": subject["subject_id"], "patient_id": patient})
    return rows


def _faithfulness(sources: Sources) -> list[Row]:
    """Return two rows per seed, one that states a finding and one that denies it; no other rows have this seed."""
    rows: list[Row] = []
    for finding, num_per_place in sources.config.faithfulness.items():
        for number, cell in enumerate(cells(finding, num_per_place)):
            seed = sources.seed("faithfulness", finding, number)
            for side, text, stated in (
                ("with", cell.text, (finding, 1, cell.place, cell.severity, cell.rank)),
                ("without", cell.denial, (finding, 0, "", "", 0)),
            ):
                row = _row(f"{finding}_{side}_{number:03d}", f"{finding}/{side}", text, seed, "impression")
                row |= {"pair": f"{finding}_{number:03d}"}
                rows.append(row | dict(zip(GRID_COLUMNS, stated, strict=True)))
    return rows


def _row(sample_id: str, prompt_type: str, text: str, seed: int, section: str) -> Row:
    return {
        "sample_id": sample_id,
        "prompt_type": prompt_type,
        "text": text,
        "seed": seed,
        "section": section,
        "text_mode": "text",
    }


SETS: dict[str, Callable[[Sources], list[Row]]] = {
    "reports": _reports,
    "pairs": _pairs,
    "effusion_pairs": _effusion_pairs,
    "report_pairs": _report_pairs,
    "augmentation": _augmentation,
    "segmentation": _segmentation,
    "controlled": _controlled,
    "faithfulness": _faithfulness,
}
