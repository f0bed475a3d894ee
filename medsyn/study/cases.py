"""Find the volumes that a study can show: of a run's results folder, and of the folders that its settings name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medsyn.config import StudyStage
from medsyn.config.study import OTHER, STUDY_PROMPTS, StudyFolder
from medsyn.errors import InputError
from medsyn.evaluate.inputs import keep_split, labels_of, list_volumes, read_labels
from medsyn.files import read_csv, write_csv
from medsyn.header_hints import HeaderHints
from medsyn.layout import REAL, Layout
from medsyn.text.prompts import COLUMNS
from medsyn.volume_files import find_volumes

NO_ABNORMALITY = "no_abnormality"


@dataclass(frozen=True)
class Case:
    """A volume that a study can show.

    truth: the option that is the right answer, None where it is not known; hints: what is known of the file's geometry.
    """

    method: str
    label: str
    real: bool
    prompt_set: str
    sample: str
    truth: str | None = None
    path: Path | None = None
    hints: HeaderHints = field(default_factory=HeaderHints)


@dataclass(frozen=True)
class Pools:
    """Volumes to choose from: those of recognition items, generated and real, and those of ranking items by method."""

    generated: Sequence[Case]
    real: Sequence[Case]
    ranked: Mapping[str, Sequence[Case]]


def find_cases(stage: StudyStage, results: Path | None) -> Pools:
    """Return all volumes that the settings ask for; a method without any is an InputError that says where to get it."""
    layout = None if results is None else Layout(str(results))
    real = _folders(stage, real=True) + ([] if layout is None else _real(stage, layout))
    ranked = {
        name: real if name == REAL else _of_method(stage, layout, name, stage.ranking.prompt_set)
        for name in stage.ranked
    }
    generated = _of_method(stage, layout, stage.shown, STUDY_PROMPTS) if stage.recognition.cases else []
    return Pools(generated, real, ranked)


def write_study_prompts(stage: StudyStage, out: Path) -> int:
    """Write the prompts of the generated CTs of recognition items; returns the number of rows.

    One more per finding than the items show leaves volumes for the practice items.
    """
    rows = []
    for finding, count in stage.recognition.counts.items():
        for number in range(count + 1):
            digest = hashlib.sha256(repr((stage.seed, STUDY_PROMPTS, finding, number)).encode()).digest()
            row = {
                "sample_id": f"{finding}_{number:03d}",
                "prompt_type": finding,
                "text": stage.recognition.prompts[finding],
                "seed": int.from_bytes(digest[:4], "little") >> 1,
                "section": "impression",
                "text_mode": "text",
            }
            rows.append(dict.fromkeys(COLUMNS, "") | row)
    if not rows:
        raise InputError("study.recognition.cases: is empty, so there is nothing to sample; name findings")
    write_csv(out, rows, COLUMNS)
    return len(rows)


def truth_of(prompt_type: str, options: Iterable[str]) -> str:
    """Return the right answer to a volume that was sampled with a finding: the finding, or OTHER if it is no option."""
    return prompt_type if prompt_type in options else OTHER


def truth_of_labels(labels: Mapping[str, int], options: Sequence[str]) -> str | None:
    """Return the right answer to a CT by its labels: its only finding among the options, or NO_ABNORMALITY.

    None where it has several of them, or only findings that are not among the options.
    """
    found = [name for name, value in labels.items() if value and name in options]
    if len(found) == 1:
        return found[0]
    return NO_ABNORMALITY if not any(labels.values()) else None


def _of_method(stage: StudyStage, layout: Layout | None, name: str, prompt_set: str) -> list[Case]:
    if name in stage.folders:
        return _folder_cases(name, stage.folders[name], tuple(stage.recognition.options))
    if layout is None:
        raise InputError(f"{name}: is a method of a run; name the run's folder with --results, or leave it out")
    folders = sorted(Path(layout.samples(name, prompt_set, "0")).parent.glob("*"))
    files = list_volumes(folder for folder in folders if folder.is_dir())
    if not files:
        raise InputError(
            f"{layout.samples(name, prompt_set, '*')}: no volume of '{name}'; sample the prompts '{prompt_set}' with it"
            " (`snakemake` with this folder as target), or change the section study of the configuration"
        )
    truths = _prompted(layout, tuple(stage.recognition.options)) if prompt_set == STUDY_PROMPTS else {}
    return [
        Case(name, stage.methods[name], False, prompt_set, sample, truths.get(sample), path)
        for sample, path in files.items()
    ]


def _prompted(layout: Layout, options: Sequence[str]) -> dict[str, str]:
    rows = read_csv(layout.prompts(STUDY_PROMPTS), ["sample_id", "prompt_type"])
    return {row["sample_id"]: truth_of(row["prompt_type"], options) for row in rows}


def _real(stage: StudyStage, layout: Layout) -> list[Case]:
    """Return the CTs of the validation split, which no network was trained on."""
    files = list_volumes(sorted(Path(layout.preprocessed("0")).parent.glob("*")))
    kept = keep_split(files, layout.cohort(), "validation")
    by_subject = real_truths(layout.cohort(), layout.labels(), tuple(stage.recognition.options))
    return [
        Case(REAL, "real", True, "", name, by_subject.get(name), path) for name, path in files.items() if name in kept
    ]


def real_truths(cohort: str, labels: str, options: Sequence[str]) -> dict[str, str | None]:
    """Return the right answer per subject of cohort.csv, from the labels of its report."""
    _, by_id = read_labels(labels)
    known = {row["subject_id"]: labels_of(row, by_id) for row in read_csv(cohort, ["subject_id"])}
    return {name: truth_of_labels(found, options) for name, found in known.items() if found is not None}


def _folders(stage: StudyStage, *, real: bool) -> list[Case]:
    options = tuple(stage.recognition.options)
    return [
        case
        for name, entry in stage.folders.items()
        if entry.real == real
        for case in _folder_cases(name, entry, options)
    ]


def _folder_cases(name: str, entry: StudyFolder, options: Sequence[str]) -> list[Case]:
    truths = {}
    if entry.truth is not None:
        for row in read_csv(entry.truth, ["id", "truth"]):
            if row["truth"] not in (*options, ""):
                raise InputError(
                    f"{entry.truth}: '{row['truth']}' of {row['id']} is not an answer of the study; expected one of"
                    f" {', '.join(options)}"
                )
            truths[row["id"]] = row["truth"] or None
    return [
        Case(
            REAL if entry.real else name,
            "real" if entry.real else entry.label,
            entry.real,
            f"folder {name}",
            sample,
            truths.get(sample),
            path,
            entry.hints(),
        )
        for sample, path in find_volumes(entry.path).items()
    ]
