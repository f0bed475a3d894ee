"""Find volumes to look at, with the masks, the text and the measures that belong to each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medsyn.errors import InputError
from medsyn.evaluate.measure_names import MEASURES
from medsyn.files import read_csv, read_json
from medsyn.layout import Layout
from medsyn.names import CT_SUFFIXES, VOLUME_SUFFIXES, split_suffix
from medsyn.volume_files import STRUCTURES, find_volumes

REAL = "real"
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Case:
    """A volume to look at.

    group: what it is one of, such as a method and a type of prompt; masks: structure -> file; measures: name -> value
    as the table of `medsyn measure` has it.
    """

    name: str
    path: Path
    group: str = ""
    text: str = ""
    masks: Mapping[str, Path] = field(default_factory=dict)
    measures: Mapping[str, str] = field(default_factory=dict)


def find_cases(
    paths: Sequence[Path], *, masks: Sequence[Path] = (), measures: Sequence[Path] = (), cohort: Path | None = None
) -> list[Case]:
    """Return the volumes of `paths`: results folders of a run, folders of volumes, or single volumes.

    masks: folders <id>/{lobes,airway,vessels}.nii.gz; measures: tables of `medsyn measure`; cohort: a table that has
    the report of every real CT, those of the training split are left out. A results folder brings its own. InputError
    where a path holds no volume.
    """
    cases: list[Case] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; name a results folder, a folder of volumes, or a volume")
        cases += _of_run(path) if _is_run(path) else _of_path(path)
    return _completed(cases, masks, measures, cohort)


def choose(cases: Sequence[Case], num: int) -> list[Case]:
    """Return at most `num` cases, in turn one of every group, in the order of the groups."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    ranked = sorted((k, place) for place, members in enumerate(groups.values()) for k in range(len(members)))[:num]
    kept = set(ranked)
    return [
        case for place, members in enumerate(groups.values()) for k, case in enumerate(members) if (k, place) in kept
    ]


def _is_run(path: Path) -> bool:
    return any((path / name).is_dir() for name in ("samples", "preprocessed"))


def _of_run(results: Path) -> list[Case]:
    """Return the real CTs of a run and what its methods sampled for the prompts `reports` and `pairs`."""
    layout = Layout(str(results))
    cohort = Path(layout.cohort())
    real = [case for folder in _folders(results, layout.preprocessed("*")) for case in _of_path(folder)]
    cases = _completed(
        [replace(case, group=REAL) for case in real],
        _folders(results, layout.masks("*")),
        _folders(results, layout.real_measures("*")),
        cohort if cohort.exists() else None,
    )
    for prompt_set in ("reports", "pairs"):
        for folder in _folders(results, layout.samples("*", prompt_set, "*")):
            method = folder.parts[-3]
            table = Path(layout.measures(method, prompt_set, folder.name))
            cases += _completed(_of_path(folder), (), [table] if table.exists() else [], None)
    return cases


def _folders(results: Path, pattern: str) -> list[Path]:
    found = results.glob(str(Path(pattern).relative_to(results)))
    return sorted(found, key=lambda path: [int(n) for n in _NUMBER.findall(path.name)] or [0])


def _of_path(path: Path) -> list[Case]:
    if not path.is_dir():
        stem, suffix = split_suffix(path.name, CT_SUFFIXES)
        if not suffix:
            raise InputError(f"{path}: is not a volume, expected {', '.join(CT_SUFFIXES)}; name another file")
        return [_case(stem, path)]
    found = find_volumes(path)
    volumes = set(found.values())
    cases = [_case(name, file) for name, file in found.items() if not _is_mask(file, volumes)]
    return [replace(case, group=case.group or path.name) for case in cases]


def _is_mask(path: Path, volumes: Iterable[Path]) -> bool:
    """Return whether a file found at any depth is a mask of another one beside it."""
    return any(path in _mask_files(volume).values() for volume in volumes if volume != path)


def _mask_files(path: Path) -> dict[str, Path]:
    """Return where the masks of a volume lie as `medsyn sample` and `medsyn generate` write them, by structure."""
    stem, suffix = split_suffix(path.name, VOLUME_SUFFIXES)
    if stem == "volume":
        return {structure: path.with_name(f"{structure}{suffix}") for structure in STRUCTURES}
    return {structure: path.with_name(f"{stem}_{structure}{suffix}") for structure in STRUCTURES}


def _case(name: str, path: Path) -> Case:
    masks = {structure: file for structure, file in _mask_files(path).items() if file.exists()}
    stem, _ = split_suffix(path.name, VOLUME_SUFFIXES)
    sidecar = path.with_name("provenance.json" if stem == "volume" else f"{stem}.json")
    record = read_json(sidecar) if sidecar.is_file() else {}
    record = record if isinstance(record, dict) else {}
    group = ": ".join(str(record[key]).replace("_", " ") for key in ("label", "prompt_type") if record.get(key))
    return Case(name, path, group, str(record.get("text") or ""), masks)


def _completed(
    cases: Sequence[Case], masks: Sequence[Path], measures: Sequence[Path], cohort: Path | None
) -> list[Case]:
    """Return the cases with what the given folders and tables hold about them, without real CTs of training."""
    rows = {row["subject_id"]: row for table in measures for row in read_csv(table, ["subject_id"])}
    subjects = {} if cohort is None else {row["subject_id"]: row for row in read_csv(cohort, ["subject_id"])}
    done = []
    for case in cases:
        subject = subjects.get(case.name)
        if subject is not None and subject.get("split") == "train":
            continue
        found = {
            s: file for s in STRUCTURES for folder in masks if (file := folder / case.name / f"{s}.nii.gz").exists()
        }
        row = rows.get(case.name, {})
        values = {name: row[name] for name in MEASURES if row.get(name)}
        if subject is not None:
            sections = [f"{name.upper()}: {subject[name]}" for name in ("findings", "impression") if subject.get(name)]
            case = replace(case, group=REAL, text=case.text or "\n".join(sections))
        done.append(replace(case, masks={**case.masks, **found}, measures=values or case.measures))
    return done
