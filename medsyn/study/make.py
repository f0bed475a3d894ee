"""Make a study: a folder whose bytes do not say which method a volume is of, and the sealed key beside it."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from medsyn.config import StudyStage
from medsyn.errors import InputError
from medsyn.files import atomic_dir, sha256, write_json
from medsyn.layout import REAL
from medsyn.outputs import Outputs, check_outputs
from medsyn.progress import log, track
from medsyn.study.blind import clipped, read_on_grid, same_times, stored_nifti
from medsyn.study.cases import Case, find_cases
from medsyn.study.definition import (
    STUDY_FILE,
    SUMS_FILE,
    VOLUMES_FOLDER,
    Key,
    default_key,
    lies_in,
    to_json,
    volume_file,
)
from medsyn.study.design import Design, design

Range = tuple[int, int]


def make_study(
    stage: StudyStage, results: Path | None, out: Path, key: Path | None = None, secret: str | None = None
) -> Design:
    """Write the study `out` and its key (default: OUT.key.json beside it); nothing that exists is ever replaced.

    results: folder of a run, for its CTs and the volumes of its methods; None: the settings name plain folders only.
    secret: what names and orders follow from, together with the seed (default: a new one), which the key keeps.
    Raises InputError for settings that the volumes cannot meet, and for an output that exists.
    """
    key = key or default_key(out)
    _check_places(out, key)
    secret = secret or secrets.token_hex(16)
    made = design(stage, find_cases(stage, results), secret)
    _check_words(made, stage)
    with atomic_dir(out) as folder:
        (folder / VOLUMES_FOLDER).mkdir()
        _write_volumes(folder, made.cases, stage)
        # Plain writes: `write_json` signs a file by an attribute that holds its time.
        (folder / STUDY_FILE).write_text(made.study.model_dump_json(indent=1) + "\n", encoding="utf-8")
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        sums = "".join(f"{sha256(folder / name)}  {name}\n" for name in names)
        (folder / SUMS_FILE).write_text(sums, encoding="utf-8")
        entries = made.key_entries()
        write_json(key, to_json(Key(study=sha256(folder / STUDY_FILE), secret=secret, volumes=entries)))
        key.chmod(0o600)
        same_times(folder)
    same_times(out)
    log.info("study: %d items, %d volumes, %d readers", *map(len, (made.study.items, made.cases, made.study.readers)))
    return made


def _check_places(out: Path, key: Path) -> None:
    """Raise InputError unless the study and its key are new, and the key is not in the study."""
    if lies_in(key, out):
        raise InputError(f"{key}: the key lies in the study {out}, which is given to readers; name another --key")
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists, and a study is never replaced; name another --out, or move it away")
    if os.path.lexists(key):
        raise InputError(f"{key}: exists, and a key is never replaced; name another --key, or move it away")
    check_outputs(Outputs(files=[key], folders=[out]))


def _check_words(made: Design, stage: StudyStage) -> None:
    """Raise InputError if the words that readers see name a method."""
    text = made.study.model_dump_json()
    for name in {*(case.method for case in made.cases.values()), *(case.label for case in made.cases.values())}:
        if name != REAL and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE):
            raise InputError(f"study: title, introduction, questions or options name '{name}', a method; reword them")


def _write_volumes(folder: Path, cases: Mapping[str, Case], stage: StudyStage) -> None:
    """Write all volumes, in the order of their random names: the order of writing shows in a file system."""
    bounds: dict[str, Range] = {}
    for name in track(sorted(cases), description="volumes of the study"):
        case = cases[name]
        if case.path is None:
            raise InputError(f"{case.method}, {case.sample}: has no file; name the folder that holds it")
        volume = read_on_grid(case.path, case.hints, stage.preprocess, f"'{case.sample}' of {case.label}")
        array = clipped(volume.array, stage.range_hu)
        bounds[name] = int(array.min()), int(array.max())
        volume_file(folder, name).write_bytes(stored_nifti(array, stage.preprocess))
    _warn_of_ranges(cases, bounds, stage.range_hu)


def _warn_of_ranges(cases: Mapping[str, Case], bounds: Mapping[str, Range], range_hu: tuple[float, float]) -> None:
    """Warn of methods all of whose volumes end within the range of HU while those of others reach its end."""
    ends = (
        ("lowest", 0, max(low for low, _ in bounds.values())),
        ("highest", 1, min(top for _, top in bounds.values())),
    )
    for word, side, inner in ends:
        reached: dict[str, set[bool]] = {}
        for name, case in cases.items():
            reached.setdefault(case.label, set()).add(bounds[name][side] == round(range_hu[side]))
        never = sorted(label for label, found in reached.items() if found == {False})
        if never and len(never) < len(reached):
            log.warning(
                "study: no volume of %s reaches the %s value of study.range_hu, %g HU, as others do; a range that ends"
                " at %d HU hides that",
                *(", ".join(never), word, range_hu[side], inner),
            )
