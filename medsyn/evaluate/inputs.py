"""Reading what the evaluation takes: folders of volumes, prompt CSVs, measure CSVs, label CSVs, feature files.

Everything arrives in shards, so every function takes several files or folders. Wrong or contradicting files are
InputErrors that name the file.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsyn.errors import InputError
from medsyn.evaluate.measure_names import ANATOMIES, MEASURES
from medsyn.files import read_csv
from medsyn.progress import log
from medsyn.volume_files import volumes_in

VALIDITY = (*(f"{name}_found" for name in ANATOMIES), "chest")
"""Columns beside the measures: 1 yes, 0 no, empty where the measurement failed."""
_DAMAGED = (
    *(LookupError, ValueError, TypeError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error),
    RuntimeError,  # an encrypted member, or an unknown compression
)
"""What a damaged or foreign .npz raises."""


@dataclass(frozen=True)
class FeatureSet:
    """Features of volumes: `ids` (n), `features` (n, F) float32 and the description of the network that made them."""

    ids: list[str]
    features: NDArray[np.float32]
    extractor: str


def list_volumes(folders: Iterable[str | Path]) -> dict[str, Path]:
    """Return the volumes of several folders by id, sorted, as `volumes_in` finds them.

    The same id twice, or a folder that does not exist, is an InputError; an empty folder gives nothing.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for identity, path in volumes_in(Path(folder)).items():
            if identity in found:
                raise InputError(f"{path}: '{identity}' is also in {found[identity].parent}; give every id once")
            found[identity] = path
    return dict(sorted(found.items()))


def keep_split(ids: Iterable[str], cohort: str | Path | None, split: str | None) -> set[str]:
    """Return the ids that cohort.csv puts into `split`, or all of them without a split; a split needs a cohort."""
    if split is not None and cohort is None:
        raise InputError(f"--split {split}: no cohort that says what is in it; give --cohort cohort.csv as well")
    if cohort is None or split is None:
        return set(ids)
    members = {row["subject_id"] for row in read_csv(cohort, ["subject_id", "split"]) if row["split"] == split}
    return set(ids) & members


def read_prompts(paths: Iterable[str | Path]) -> dict[str, dict[str, str]]:
    """Return the prompt rows by sample_id; an id that occurs twice must say the same."""
    prompts: dict[str, dict[str, str]] = {}
    for path in paths:
        for row in read_csv(path, ["sample_id", "prompt_type", "text"]):
            known = prompts.setdefault(row["sample_id"], row)
            if (known["prompt_type"], known["text"]) != (row["prompt_type"], row["text"]):
                raise InputError(f"{path}: sample '{row['sample_id']}' has two different prompts; give ids once")
    return prompts


def is_prompted(row: dict[str, str]) -> bool:
    """Whether a prompt row conditions on text at all (its text is not empty and text_mode is not `none`)."""
    return bool(row["text"].strip()) and row.get("text_mode", "text") != "none"


def split_prompt_type(prompt_type: str) -> tuple[str, bool] | None:
    """Return ("pleural_effusion", True) for "pleural_effusion/with"; None for a type that is not of a pair."""
    finding, _, sign = prompt_type.partition("/")
    return (finding, sign == "with") if sign in ("with", "without") else None


def read_measures(paths: Iterable[str | Path]) -> dict[str, dict[str, float | None]]:
    """Return MEASURES and VALIDITY by subject (or sample) id; an empty field is None, another text an InputError.

    A file without columns of VALIDITY has no such entries: what is absent in it cannot be told from what failed.
    """
    table: dict[str, dict[str, float | None]] = {}
    for path in paths:
        rows = read_csv(path, ["subject_id", *MEASURES])
        absent = [name for name in VALIDITY if rows and name not in rows[0]]
        if absent:
            log.warning(
                "%s: no column %s; an empty measure counts as failed, not as absent anatomy; measure again with"
                " `medsyn measure`",
                path,
                ", ".join(absent),
            )
        for row in rows:
            if row["subject_id"] in table:
                raise InputError(f"{path}: '{row['subject_id']}' is measured twice; give every file once")
            names = [*MEASURES, *(name for name in VALIDITY if name in row)]
            table[row["subject_id"]] = {name: parse_number(row[name], name, path) for name in names}
    return table


def read_labels(path: str | Path) -> tuple[list[str], dict[str, dict[str, int]]]:
    """Return the names of the label columns, and 0/1 labels by id."""
    rows = read_csv(path, ["id"])
    if not rows:
        raise InputError(
            f"{path}: no labels in it; run `medsyn label` on the reports, or give the manifest labels (given_labels)"
        )
    names = [name for name in rows[0] if name != "id"]
    try:
        return names, {row["id"]: {name: int(row[name]) for name in names} for row in rows}
    except ValueError:
        raise InputError(f"{path}: labels must be 0 or 1; write it with `medsyn label`") from None


def labels_of(row: dict[str, str], labels: dict[str, dict[str, int]]) -> dict[str, int] | None:
    """Return the labels of a cohort or store row: by its report_id, else by its subject_id; None without any."""
    return labels.get(row.get("report_id", "")) or labels.get(row.get("subject_id", ""))


def read_features(paths: Sequence[str | Path]) -> FeatureSet:
    """Concatenate feature files of one extractor; different extractors or widths are an InputError."""
    parts: list[FeatureSet] = []
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as archive:
                names = [str(name) for name in archive["ids"]]
                part = FeatureSet(names, archive["features"].astype(np.float32), str(archive["extractor"]))
            if part.features.ndim != 2 or len(part.features) != len(names):
                raise ValueError(f"{len(names)} ids, features of shape {part.features.shape}, expected one row per id")
            if not np.isfinite(part.features).all():
                raise ValueError("features that are not finite")
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except _DAMAGED as error:
            raise InputError(f"{path}: no feature file ({error}); write it with `medsyn features`") from None
        if parts and part.features.shape[1:] != parts[0].features.shape[1:]:
            raise InputError(
                f"{path}: {part.features.shape[1]} features per volume, {paths[0]} has {parts[0].features.shape[1]};"
                " extract both with one extractor"
            )
        if parts and part.extractor != parts[0].extractor:
            raise InputError(f"{path}: made by another feature extractor than {paths[0]}; extract both with one")
        parts.append(part)
    if not parts:
        raise InputError("no feature file is given; pass the .npz files of `medsyn features`")
    features = np.concatenate([part.features for part in parts if len(part.ids)] or [parts[0].features])
    return FeatureSet([name for part in parts for name in part.ids], features, parts[0].extractor)


def grouped(groups: Sequence[Sequence[str]] | None, option: str) -> dict[str, list[str]]:
    """Return {LABEL: [FILE, ..]} of an option `--option LABEL FILE..` that is given several times."""
    result: dict[str, list[str]] = {}
    for label, *files in groups or ():
        if not files:
            raise InputError(f"{option} {label}: give the label and then its files")
        result.setdefault(label, []).extend(files)
    return result


def text_fields(record: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Return a row with exactly `columns`, floats to 6 significant digits, None as an empty field."""
    return {
        name: f"{record[name]:.6g}" if isinstance(record.get(name), float) else record.get(name) for name in columns
    }


def parse_number(text: str, name: str, path: str | Path) -> float | None:
    """Return the number in a field of column `name`, None if it is empty or not finite; other text is an InputError."""
    if text == "":
        return None
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{path}: {name} holds '{text}', which is not a number") from None
    return value if math.isfinite(value) else None
