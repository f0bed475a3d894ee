"""Find the training and the validation volume that every generated volume is nearest to: behind the verb `nearest`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsyn.errors import InputError
from medsyn.evaluate.inputs import FeatureSet, text_fields
from medsyn.evaluate.memorisation import COLUMNS, KEY, VALIDATION, Row, match_columns, validation_columns
from medsyn.evaluate.nearest import Match, VoxelSearch, nearest_by_features, reduce
from medsyn.files import write_csv
from medsyn.progress import track
from medsyn.volume import read_volume

TRAINING = "training"
Named = tuple[list[str], NDArray]
"""Names of volumes, and their reduced volumes or features, one row each."""


def find_nearest(groups: Mapping[str, Mapping[str, Path]], features: Mapping[str, FeatureSet], out: Path) -> None:
    """Write COLUMNS of the volumes of all groups but TRAINING, which must be there, as VALIDATION must.

    groups: label -> volumes in HU on one grid, by name; features: of the same labels, or none. Volumes are read one at
    a time, and 64 KiB of each is kept. Raises InputError for an empty group and for features of other extractors.
    """
    for label in (TRAINING, VALIDATION):
        if not groups.get(label):
            raise InputError(f"nearest: no {label} volumes in the folders given; give --volumes, --cohort of a run")
    if len(found := {part.extractor for part in features.values()}) > 1:
        raise InputError(f"nearest: features of different extractors cannot be compared: {'; '.join(sorted(found))}")
    voxels = {label: (list(files), _reduced(label, files)) for label, files in groups.items() if files}
    spaces = [nearest_rows("voxel", voxels)]
    if features:
        spaces.append(nearest_rows("feature", {label: (part.ids, part.features) for label, part in features.items()}))
    write_csv(out, (text_fields(row, COLUMNS) for row in joined(spaces)), COLUMNS)


def nearest_rows(space: str, groups: Mapping[str, Named]) -> list[Row]:
    """Return KEY and the columns of one space, for every volume of all groups but TRAINING."""
    names, training = groups[TRAINING]
    validation_names, validation = groups[VALIDATION]
    rows = []
    for label, (ids, values) in groups.items():
        if label == TRAINING:
            continue
        matches = _nearest(space, values, training)
        others = None if label == VALIDATION else _nearest(space, values, validation)
        for k, (name, match) in enumerate(zip(ids, matches, strict=True)):
            row = dict(zip(KEY, (label, name), strict=True)) | match_columns(space, match, names)
            rows.append(row | (validation_columns(space, others[k], validation_names) if others else {}))
    return rows


def joined(spaces: Iterable[list[Row]]) -> list[Row]:
    """Return one row per volume with the columns of all spaces, in the order of the first one."""
    rows: dict[tuple[str, ...], Row] = {}
    for row in (row for part in spaces for row in part):
        rows.setdefault(tuple(row[name] for name in KEY), {}).update(row)
    return list(rows.values())


def _nearest(space: str, values: NDArray, real: NDArray) -> list[Match]:
    return nearest_by_features(values, real) if space == "feature" else VoxelSearch(real).nearest(values)


def _reduced(label: str, files: Mapping[str, Path]) -> NDArray[np.int16]:
    """Return the reduced volumes (n, d, h, w); another grid than the first one's is an InputError."""
    parts: list[NDArray[np.int16]] = []
    for path in track(files.values(), description=f"nearest, {label}", total=len(files)):
        parts.append(reduce(read_volume(path).array))
        if parts[-1].shape != parts[0].shape:
            raise InputError(
                f"{path}: reduces to {parts[-1].shape} voxels, the first to {parts[0].shape}; preprocess it"
            )
    return np.stack(parts)
