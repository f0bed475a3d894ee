"""Find the training and the validation volume that every generated volume is nearest to: behind the verb `nearest`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsyn.errors import InputError
from medsyn.evaluate.inputs import FeatureSet, text_fields
from medsyn.evaluate.memorisation import (
    COLUMNS,
    KEY,
    VALIDATION,
    Row,
    low_quantile,
    match_columns,
    validation_columns,
)
from medsyn.evaluate.nearest import FeatureSearch, Judge, Neighbours, Search, VoxelSearch, reduce
from medsyn.files import write_csv
from medsyn.progress import track
from medsyn.volume import read_volume

TRAINING = "training"
_SEARCHES: Mapping[str, type[VoxelSearch] | type[FeatureSearch]] = {"voxel": VoxelSearch, "feature": FeatureSearch}


@dataclass(frozen=True)
class Named:
    """Volumes by name: `values` (n, ...) are their reduced volumes, or their features."""

    names: list[str]
    values: NDArray


def find_nearest(groups: Mapping[str, Mapping[str, Path]], features: Mapping[str, FeatureSet], out: Path) -> None:
    """Write COLUMNS of the volumes of all groups but TRAINING, which must be there, as VALIDATION must.

    groups: label -> volumes in HU on one grid, by name; features: of the same labels, or none. Volumes are read one at
    a time and kept reduced, those of a method until its rows are made. Raises InputError for an empty group of real
    volumes and for features of other extractors.
    """
    for label in (TRAINING, VALIDATION):
        if not groups.get(label):
            raise InputError(f"nearest: no {label} volumes in the folders given; give --real, --cohort of a run")
    if len(found := {part.extractor for part in features.values()}) > 1:
        raise InputError(f"nearest: features of different extractors cannot be compared: {'; '.join(sorted(found))}")
    real = {label: _reduced(label, groups[label]) for label in (TRAINING, VALIDATION)}
    judged = (
        (label, _reduced(label, files, real[TRAINING]))
        for label, files in groups.items()
        if files and label not in real
    )
    spaces = [nearest_rows("voxel", real[TRAINING], real[VALIDATION], judged)]
    if features:
        of = {label: Named(part.ids, part.features) for label, part in features.items()}
        methods = ((label, part) for label, part in of.items() if label not in real)
        spaces.append(nearest_rows("feature", of[TRAINING], of[VALIDATION], methods))
    write_csv(out, (text_fields(row, COLUMNS) for row in joined(spaces)), COLUMNS)


def nearest_rows(space: str, training: Named, validation: Named, judged: Iterable[tuple[str, Named]]) -> list[Row]:
    """Return KEY and the columns of one space, for every validation volume and every volume that is judged.

    Two training volumes count as copies of each other where they are closer than the `low_quantile` of the distances
    between validation and training volumes.
    """
    search: Search = _SEARCHES[space](training.values)
    unseen = list(search.neighbours(validation.values))
    judge = Judge(search, low_quantile([found.distance for found in unseen]))

    def columns(label: str, group: Named, neighbours: Iterable[Neighbours]) -> Iterator[Row]:
        for name, found in zip(group.names, neighbours, strict=True):
            key = dict(zip(KEY, (label, name), strict=True))
            yield key | match_columns(space, judge.match(found), training.names)

    rows = list(columns(VALIDATION, validation, unseen))
    others: Search = _SEARCHES[space](validation.values)
    for label, group in judged:
        nearest = others.neighbours(group.values)
        for row, found in zip(columns(label, group, search.neighbours(group.values)), nearest, strict=True):
            rows.append(row | validation_columns(space, found, validation.names))
    return rows


def joined(spaces: Iterable[list[Row]]) -> list[Row]:
    """Return one row per volume with the columns of all spaces, in the order of the first one."""
    rows: dict[tuple[str, ...], Row] = {}
    for row in (row for part in spaces for row in part):
        rows.setdefault(tuple(row[name] for name in KEY), {}).update(row)
    return list(rows.values())


def _reduced(label: str, files: Mapping[str, Path], like: Named | None = None) -> Named:
    """Return the reduced volumes; another grid than that of `like` or of the first one is an InputError."""
    parts: list[NDArray[np.int16]] = []
    for path in track(files.values(), description=f"nearest, {label}", total=len(files)):
        parts.append(reduce(read_volume(path).array))
        expected = parts[0].shape if like is None else like.values.shape[1:]
        if parts[-1].shape != expected:
            raise InputError(
                f"{path}: reduces to {parts[-1].shape} voxels, expected {expected} as of the others; preprocess it"
            )
    return Named(list(files), np.stack(parts))
