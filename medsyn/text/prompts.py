"""Which volumes are drawn for which evaluation: sets of prompts as tables that `generate` reads.

Takes the cohort, its reports and the evaluation settings, gives rows of COLUMNS. The sets are
- `reports` (Table I): reports of the validation split;
- `pairs` and `effusion_pairs` (Tables II to IV and VII): a prompt and its reversal with the same seeds;
- `report_pairs`: the same with sentences of the validation reports, reversed by rules, after the paper's own examples;
- `augmentation` (Table VI): training reports that the labeler calls positive or negative;
- `segmentation` (Table V): the image is fixed, once with its report and once without, both with the same guidance;
- `controlled` (Figure 6): one structure is fixed, seeds vary.

A row's seed follows from the evaluation's seed and what the row is for, so a larger set begins with the smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsyn.config import PromptsStage
from medsyn.errors import InputError
from medsyn.files import read_csv, write_csv
from medsyn.progress import log
from medsyn.text.corpus import ReportRow, of_split, read_reports
from medsyn.text.labels import default_labeler
from medsyn.text.pairs import Pair, paper_pairs, report_pairs
from medsyn.text.sections import section_text
from medsyn.volume import STRUCTURES

COLUMNS = (
    *("sample_id", "prompt_type", "text", "seed", "section", "text_mode", "guidance_scale"),
    *("fix_image", "fix_lobes", "fix_airway", "fix_vessels"),
)
NUM_CONTROLLED_SEEDS = 3
Row = dict[str, Any]


@dataclass(frozen=True)
class Sources:
    """What prompts are made of: settings, reports, and the validation subjects as rows of cohort.csv."""

    config: PromptsStage
    reports: Sequence[ReportRow]
    subjects: Sequence[Mapping[str, str]]

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
    write_csv(out, [dict.fromkeys(COLUMNS, "") | row for row in rows], COLUMNS)
    return len(rows)


def build_prompts(name: str, sources: Sources) -> list[Row]:
    """The rows of one of `SETS`."""
    return SETS[name](sources)


def read_sources(
    cohort: str | Path, reports: str | Path, config: PromptsStage, segmented: Set[str] | None = None
) -> Sources:
    """Read both tables; the validation split must not be empty."""
    rows = read_csv(cohort, ("subject_id", "findings", "impression", "split"))
    subjects = [row for row in rows if row["split"] == "validation"]
    if segmented is not None:
        subjects = [row for row in subjects if row["subject_id"] in segmented]
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
    keep = {"keep_severity": sources.config.pairs_keep_severity, "keep_side": sources.config.pairs_keep_side}
    for pair in (*paper_pairs(), *report_pairs(texts, **keep)):
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
    """Reports per finding and label from the training split: the classifiers are tested on validation subjects."""
    settings, labeler = sources.config, default_labeler()
    unknown = [finding for finding in settings.augmentation_findings if finding not in labeler.findings]
    if unknown:
        raise InputError(
            f"evaluation.augmentation.findings: the labeler knows no '{unknown[0]}';"
            f" it knows {', '.join(labeler.findings)}"
        )
    labelled = [(report, labeler.label(report.text("report"))) for report in of_split(sources.reports, "train")]
    rows: list[Row] = []
    for finding in settings.augmentation_findings:
        for side, label in (("positive", 1), ("negative", 0)):
            pool = [report for report, labels in labelled if labels[finding] == label]
            kind = f"{finding}/{side}"
            if not pool:
                log.warning("augmentation: no training report is %s for %s", side, finding)
            for number, report in enumerate(sources.draw(pool, settings.num_reports_per_class if pool else 0, kind)):
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
            scale = sources.config.segmentation_guidance_scale
            rows.append(row | {"text_mode": mode, "guidance_scale": scale, "fix_image": name})
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
