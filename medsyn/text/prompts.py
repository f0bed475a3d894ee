"""Which volumes are drawn for which evaluation: sets of prompts as tables that `generate` reads.

Takes the cohort, its reports and the evaluation settings, gives rows of COLUMNS. The sets are
- `reports` (Table I): reports of the validation split;
- `pairs` and `effusion_pairs` (Tables II to IV and VII): a prompt and its reversal with the same seeds;
- `report_pairs`: the same with sentences of the validation reports, reversed by rules, after the paper's own examples;
- `augmentation` (Table VI): reports that the labeler calls positive or negative;
- `segmentation` (Table V): the image is fixed, once with its report and once without;
- `controlled` (Figure 6): one structure is fixed, seeds vary.

A row's seed follows from the evaluation's seed and what the row is for, so a larger set begins with the smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.files import read_csv, write_csv
from medsyn.progress import log
from medsyn.text.corpus import ReportRow, of_split, read_reports
from medsyn.text.labels import default_labeler
from medsyn.text.pairs import Pair, paper_pairs, report_pairs
from medsyn.text.sections import section_text
from medsyn.volume import STRUCTURES

COLUMNS = (
    *("sample_id", "prompt_type", "text", "seed", "section", "text_mode"),
    *("fix_image", "fix_lobes", "fix_airway", "fix_vessels"),
)
NUM_CONTROLLED_SEEDS = 3
Row = dict[str, Any]


@dataclass(frozen=True)
class Sources:
    """What prompts are made of: settings, reports, and the validation subjects as rows of cohort.csv.

    keep_severity, keep_side: whether the sentences of `report_pairs` say how much and on which side.
    """

    config: EvaluationConfig
    reports: Sequence[ReportRow]
    subjects: Sequence[Mapping[str, str]]
    keep_severity: bool = True
    keep_side: bool = True

    def seed(self, *parts: object) -> int:
        """A seed in [0, 2^31) for the row that `parts` name."""
        digest = hashlib.sha256(repr((self.config.seed, *parts)).encode()).digest()
        return int.from_bytes(digest[:4], "little") >> 1

    def draw(self, pool: Sequence[ReportRow], count: int, name: str) -> list[ReportRow]:
        """`count` reports in random order; every one comes before any comes twice."""
        rng = np.random.default_rng(self.seed("draw", name))
        chosen: list[ReportRow] = []
        while len(chosen) < count:
            chosen += [pool[index] for index in rng.permutation(len(pool))]
        return chosen[:count]

    def row(self, sample_id: str, prompt_type: str, report: ReportRow, seed: int) -> Row:
        """A row whose prompt is the configured section of `report`, or the whole report if that section is empty."""
        section = self.config.prompt_section
        text = report.text(section)
        return _row(sample_id, prompt_type, text or report.text("report"), seed, section if text else "report")


def write_prompts(
    name: str,
    cohort: str | Path,
    reports: str | Path,
    config: EvaluationConfig,
    out: str | Path,
    *,
    keep_severity: bool = True,
    keep_side: bool = True,
) -> int:
    """Write prompt set `name` to `out`; returns the number of rows."""
    sources = replace(read_sources(cohort, reports, config), keep_severity=keep_severity, keep_side=keep_side)
    rows = build_prompts(name, sources)
    if not rows:
        raise InputError(f"{reports}: nothing in it can serve as a prompt of set '{name}'")
    write_csv(out, [dict.fromkeys(COLUMNS, "") | row for row in rows], COLUMNS)
    return len(rows)


def build_prompts(name: str, sources: Sources) -> list[Row]:
    """The rows of one of `SETS`."""
    return SETS[name](sources)


def read_sources(cohort: str | Path, reports: str | Path, config: EvaluationConfig) -> Sources:
    """Read both tables; the validation split must not be empty."""
    rows = read_csv(cohort, ("subject_id", "findings", "impression", "split"))
    subjects = [row for row in rows if row["split"] == "validation"]
    table = read_reports(reports)
    if not subjects or not of_split(table, "validation"):
        source = reports if subjects else cohort
        raise InputError(f"{source}: nothing in split validation; raise cohort.validation_fraction or name splits")
    return Sources(config, table, subjects)


def _reports(sources: Sources) -> list[Row]:
    pool = of_split(sources.reports, "validation")
    chosen = sources.draw(pool, sources.config.num_fid_samples, "reports")
    return [
        sources.row(f"report_{number:05d}", "report", report, sources.seed("reports", number))
        for number, report in enumerate(chosen)
    ]


def _pairs(sources: Sources, findings: Sequence[str] | None = None) -> list[Row]:
    """With and without the finding, the same seeds in both, so that a pair differs in its words only."""
    rows: list[Row] = []
    for finding, pair in sources.config.prompt_pairs.items():
        if findings is not None and finding not in findings:
            continue
        for side, text in (("with", pair.with_finding), ("without", pair.without_finding)):
            for number in range(sources.config.num_per_prompt):
                seed = sources.seed("pairs", finding, number)
                name = f"{finding}_{side}_{number:03d}"
                rows.append(_row(name, f"{finding}/{side}", text, seed, "impression"))
    return rows


def _effusion_pairs(sources: Sources) -> list[Row]:
    if "pleural_effusion" not in sources.config.prompt_pairs:
        raise InputError("evaluation.prompt_pairs: no pair pleural_effusion, which Table VII needs; add one")
    return _pairs(sources, ("pleural_effusion",))


def _report_pairs(sources: Sources) -> list[Row]:
    """Sentences in turn until every finding has `num_per_prompt` volumes a side; a pair shares its seed."""
    texts = [(report.report_id, report.text("report")) for report in of_split(sources.reports, "validation")]
    pairs: dict[str, list[Pair]] = {}
    for pair in (
        *paper_pairs(),
        *report_pairs(texts, keep_severity=sources.keep_severity, keep_side=sources.keep_side),
    ):
        pairs.setdefault(pair.finding, []).append(pair)
    rows: list[Row] = []
    for finding, found in pairs.items():
        for number in range(sources.config.num_per_prompt):
            pair = found[number % len(found)]
            seed = sources.seed("report_pairs", finding, number)
            for side, text in (("with", pair.with_finding), ("without", pair.without_finding)):
                rows.append(_row(f"{finding}_{side}_{number:03d}", f"{finding}/{side}", text, seed, "impression"))
    return rows


def _augmentation(sources: Sources) -> list[Row]:
    """Reports per finding and label from the validation split, from the training split where it has none."""
    settings, labeler = sources.config.augmentation, default_labeler()
    unknown = [finding for finding in settings.findings if finding not in labeler.findings]
    if unknown:
        raise InputError(
            f"evaluation.augmentation.findings: the labeler knows no '{unknown[0]}';"
            f" it knows {', '.join(labeler.findings)}"
        )
    labelled = {
        split: [(report, labeler.label(report.text("report"))) for report in of_split(sources.reports, split)]
        for split in ("validation", "train")
    }
    rows: list[Row] = []
    for finding in settings.findings:
        for side, label in (("positive", 1), ("negative", 0)):
            pools = {
                split: [report for report, labels in pairs if labels[finding] == label]
                for split, pairs in labelled.items()
            }
            split = "validation" if pools["validation"] else "train"
            if split == "train":
                log.warning("augmentation: no validation report is %s for %s, train is used", side, finding)
            kind = f"{finding}/{side}"
            count = settings.num_reports_per_class if pools[split] else 0
            for number, report in enumerate(sources.draw(pools[split], count, kind)):
                name = f"{finding}_{side}_{number:03d}"
                rows.append(sources.row(name, kind, report, sources.seed("augmentation", name)))
    return rows


def _segmentation(sources: Sources) -> list[Row]:
    order = np.random.default_rng(sources.seed("segmentation")).permutation(len(sources.subjects))
    rows: list[Row] = []
    for index in order[: sources.config.num_segmentation_subjects]:
        subject = sources.subjects[index]
        name = subject["subject_id"]
        report = ReportRow(name, subject["findings"], subject["impression"], "validation", name)
        for mode in ("text", "none"):
            seed = sources.seed("segmentation", name)
            row = sources.row(f"{name}_{mode}", f"segmentation/{mode}", report, seed)
            rows.append(row | {"text_mode": mode, "fix_image": name})
    return rows


def _controlled(sources: Sources) -> list[Row]:
    order = np.random.default_rng(sources.seed("controlled")).permutation(len(sources.subjects))
    rows: list[Row] = []
    for place, structure in enumerate(STRUCTURES):
        subject = sources.subjects[order[place % len(order)]]
        text = section_text(subject["findings"], subject["impression"], "impression") or subject["findings"]
        for number in range(NUM_CONTROLLED_SEEDS):
            name = f"{structure}_{subject['subject_id']}_{number}"
            row = _row(
                name, f"controlled/{structure}", text, sources.seed("controlled", structure, number), "impression"
            )
            rows.append(row | {f"fix_{structure}": subject["subject_id"]})
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
}
