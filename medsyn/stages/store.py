"""Make the training store of a shard from its preprocessed volumes and masks; export a subject of it as NIfTI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsyn.cohort import Subject
from medsyn.config import PreprocessConfig
from medsyn.ct.preprocess import lies_on_grid, model_grid
from medsyn.ct.store import checksum, open_high, pack_labels, read_index, unpack_labels, write_shard
from medsyn.errors import InputError
from medsyn.files import atomic_dir, read_json, write_json
from medsyn.masks.labels import as_labels
from medsyn.progress import log, track
from medsyn.provenance import provenance
from medsyn.stages.shards import VOLUME, accepted_ids
from medsyn.volume import MODEL_DIRECTION, STRUCTURES, Volume, read_volume, write_volume

_TOLERANCE_MM = 0.01


def store_shard(volumes: Path, masks: Path, subjects: list[Subject], out: Path, config: PreprocessConfig) -> None:
    """Write the store of the subjects that both preprocessing and segmentation accepted."""
    ready = set(accepted_ids(volumes)) & set(accepted_ids(masks))
    chosen = [subject for subject in subjects if subject.subject_id in ready]
    unknown = ready - {subject.subject_id for subject in subjects}
    if unknown:
        raise InputError(
            f"{volumes}: subject {min(unknown)} is not in the cohort; give the cohort.csv it was made from"
        )
    if not chosen:
        log.warning("%s: no subject to store; see %s and %s", volumes, volumes / "index.csv", masks / "index.csv")
    rows = [{"subject_id": s.subject_id, "report_id": s.report_id, "split": s.split} for s in chosen]
    arrays = (
        read_subject(volumes / s.subject_id / VOLUME, masks / s.subject_id, config)
        for s in track(chosen, description="store", total=len(chosen))
    )
    spacing, origin = model_grid(config)
    with atomic_dir(out) as folder:
        write_shard(folder, rows, arrays, config.size, config.low_res_factor)
        grid = {"spacing_mm": spacing, "origin_mm": origin, "direction": MODEL_DIRECTION}
        write_json(folder / "store.json", provenance(config, subjects=len(rows), grid=grid))


def read_subject(volume: Path, masks: Path, config: PreprocessConfig) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Return HU and packed labels (D, H, W) of a subject; another grid than the model's is an InputError."""
    files = [volume, *(masks / f"{name}.nii.gz" for name in STRUCTURES)]
    image, *labels = (read_volume(path) for path in files)
    for path, found in zip(files, (image, *labels), strict=True):
        if not lies_on_grid(found, config) or not np.allclose(
            found.origin_mm, model_grid(config)[1], atol=_TOLERANCE_MM
        ):
            raise InputError(
                f"{path}: its grid (shape {found.array.shape}, spacing {found.spacing_mm} mm, origin"
                f" {found.origin_mm} mm) is not the model's {tuple(config.size)}; preprocess and segment it again"
            )
    masks_of = zip(labels, STRUCTURES, files[1:], strict=True)
    return image.array.astype(np.int16), pack_labels(
        *(as_labels(v.array, name, str(path)) for v, name, path in masks_of)
    )


def export_subject(shards: Sequence[Path], subject_id: str, out: Path) -> None:
    """Write a subject of the store as volume.nii.gz and masks on the model's grid into folder `out`.

    A checksum that differs from the one in index.csv is an InputError.
    """
    for shard in shards:
        for row, entry in enumerate(read_index(shard)):
            if entry["subject_id"] == subject_id:
                _export(shard, row, entry, out)
                return
    raise InputError(f"{subject_id}: no such subject in {', '.join(map(str, shards))}; index.csv in each lists them")


def _export(shard: Path, row: int, entry: dict[str, str], out: Path) -> None:
    image, label = (array[row] for array in open_high(shard))
    if checksum(image, label) != entry["high_sha256"]:
        raise InputError(
            f"{shard}: subject {entry['subject_id']} is damaged (its checksum differs from index.csv);"
            " remove this shard and make it again"
        )
    grid = read_json(shard / "store.json")["grid"]
    volume = Volume(image, *(tuple(grid[name]) for name in ("spacing_mm", "origin_mm", "direction")))
    write_volume(out / VOLUME, volume)
    for name, array in zip(STRUCTURES, unpack_labels(label), strict=True):
        write_volume(out / f"{name}.nii.gz", volume.with_array(array))
