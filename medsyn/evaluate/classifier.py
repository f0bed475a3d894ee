"""Data augmentation (Table VI): does a classifier of a finding improve when generated volumes join its training set?

A small 3-D CNN (the ResNet-10 of `models.resnet3d` with few channels) tells volumes with a finding from those without.
k-fold cross-validation over the real labelled volumes, split by patient; in every fold the baseline trains on the real
volumes of the other folds, the augmented classifier on these and the synthetic ones, from the same initial weights and
for the same number of optimiser steps, so that longer training cannot pass for better data. Both are tested on the
fold's real volumes. A synthetic volume that the report of a patient prompted takes no part in the fold that is tested
on this patient.

Volumes (D, H, W) in HU are average-pooled to at most `input_size` voxels per axis. They lie in one memory-mapped file
beside the output while the verb runs, so that memory does not grow with their number or size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsyn.config import AugmentationConfig, AugmentationStage
from medsyn.errors import InputError
from medsyn.evaluate.inputs import labels_of, list_volumes, read_labels, read_prompts, split_prompt_type
from medsyn.evaluate.statistics import accuracy_and_f1
from medsyn.files import read_csv, write_csv
from medsyn.models.resnet3d import one_finding_classifier
from medsyn.progress import log, track
from medsyn.scratch import beside, claim_state, remove_state
from medsyn.training.findings import Rows, classifier_config, num_batches, scores_of, train_classifier
from medsyn.volume import read_volume

ALL_SPLITS = "all"
COLUMNS = ("method", "finding", "fold", "accuracy", "f1", "n_train_real", "n_test", "n_synthetic")


@dataclass(frozen=True)
class Labelled:
    """Volumes with a label: files, labels of 0 and 1, and the patient of each ("" if there is none)."""

    files: list[Path]
    labels: NDArray[np.int64]
    patients: list[str]

    def __len__(self) -> int:
        return len(self.files)


def classify(
    finding: str,
    stage: AugmentationStage,
    *,
    cohort: Path,
    labels: Path,
    volumes: Sequence[str],
    split: str,
    prompts: Path,
    samples: Sequence[str],
    method_label: str,
    out: Path,
    state: Path | None = None,
) -> None:
    """Cross-validate both classifiers of `finding` and write one row per method and fold.

    Real volumes are those of `split` (or "all") in cohort.csv that have a label; synthetic ones those whose prompt_type
    is `<finding>/with` or `<finding>/without`, made by the model `method_label`. The column patient_id of the
    prompts names whose report prompted a volume. Real volumes of fewer than two patients leave the table empty, with a
    warning.

    state: where the checkpoints of all classifiers lie until the end, by default a hidden folder beside `out`. The same
    command continues where it was stopped.
    """
    real = _real(finding, cohort, labels, volumes, split)
    synthetic = _synthetic(finding, prompts, samples)
    rows: list[dict[str, Any]] = []
    if len(set(real.patients)) < 2:
        log.warning("classify: %d labelled volumes in the split %s, nothing to cross-validate", len(real), split)
    else:
        state = claim_state(state or out.with_name(f".{out.name}.state"), out)
        with beside(out, clean=True) as folder:
            files, size = [*real.files, *synthetic.files], stage.augmentation.input_size
            pool = pool_volumes(files, size, folder / "volumes.npy")
            rows = cross_validate(pool, real, synthetic, finding, stage.augmentation, stage.window_hu, state)
        for row in rows:
            row["method"] += f" with {method_label}" if row["method"] == "augmented" else ""
    write_csv(out, rows, COLUMNS)
    if state is not None:
        remove_state(state)


def cross_validate(
    volumes: NDArray,
    real: Labelled,
    synthetic: Labelled,
    finding: str,
    config: AugmentationConfig,
    window_hu: tuple[float, float],
    state: Path,
) -> list[dict[str, Any]]:
    """Return rows (COLUMNS) of baseline and augmented classifier.

    volumes: (n, D, H, W) in HU, those of `real` and then those of `synthetic`; state: for the checkpoints.
    """
    labels = np.concatenate([real.labels, synthetic.labels])
    data = hashlib.sha256(np.ascontiguousarray(volumes).data).hexdigest()
    folds = stratified_folds(real.labels, config.num_folds, config.seed, real.patients)
    rows = []
    for fold, test in enumerate(folds):
        train = np.setdiff1d(np.arange(len(real)), test)
        tested = {real.patients[index] for index in test}
        usable = [len(real) + k for k, patient in enumerate(synthetic.patients) if not patient or patient not in tested]
        num_steps = config.num_epochs * num_batches(len(train) + len(usable), config.batch_size)
        for method, extra in (("baseline", []), ("augmented", usable)):
            chosen = np.concatenate([train, np.asarray(extra, dtype=np.int64)])
            result = train_classifier(
                lambda: one_finding_classifier(config.base_width),
                Subset(volumes, chosen),
                torch.from_numpy(labels[chosen].astype(np.float32))[:, None],
                window_hu=window_hu,
                config=classifier_config(
                    num_steps,
                    batch_size=min(config.batch_size, len(chosen)),
                    learning_rate=config.learning_rate,
                    seed=config.seed + fold,
                    log_every=num_steps,
                ),
                name=f"{finding} {method} fold {fold + 1}/{len(folds)}",
                identity={"base_width": config.base_width, "volumes": data, "chosen": chosen.tolist()}
                | {"labels": labels[chosen].tolist()},
                state=state,
            )
            predicted = scores_of(result.network, Subset(volumes, test), window_hu)[:, 0] > 0
            accuracy, f1 = accuracy_and_f1(predicted, real.labels[test])
            rows.append(
                {
                    "method": method,
                    "finding": finding,
                    "fold": fold,
                    "accuracy": round(accuracy, 6),
                    "f1": round(f1, 6),
                    "n_train_real": len(train),
                    "n_test": len(test),
                    "n_synthetic": len(extra),
                }
            )
    return sorted(rows, key=lambda row: (row["method"] != "baseline", row["fold"]))


def stratified_folds(
    labels: NDArray, num_folds: int, seed: int, patients: Sequence[str] = ()
) -> list[NDArray[np.int64]]:
    """Return disjoint index sets that cover everything and share out positives and negatives evenly; none is empty.

    patients: whose each volume is; all volumes of a patient are in one set, which counts as positive if one of them is.
    """
    generator = np.random.default_rng(seed)
    groups: dict[str, list[int]] = {}
    for index in range(len(labels)):
        groups.setdefault(patients[index] if patients else str(index), []).append(index)
    members = list(groups.values())
    positive = np.array([int(labels[group].max()) for group in members])
    dealt = np.concatenate([generator.permutation(np.flatnonzero(positive == value)) for value in (1, 0)])
    num_folds = min(num_folds, len(members))
    return [
        np.sort(np.concatenate([members[group] for group in dealt[start::num_folds]])).astype(np.int64)
        for start in range(num_folds)
    ]


def pooling_factors(shape: Sequence[int], size: int) -> list[int]:
    """Return the whole factor per axis that leaves at most `size` voxels."""
    return [-(-length // size) for length in shape]


def pooled(array: NDArray, size: int = 32) -> NDArray[np.float32]:
    """Average-pool (D, H, W) by whole factors until no axis is longer than `size` voxels.

    Margins that do not fill a block are cut.
    """
    factors = pooling_factors(array.shape, size)
    cut = array[tuple(slice(0, length // f * f) for length, f in zip(array.shape, factors, strict=True))]
    (d, h, w), (i, j, k) = cut.shape, factors
    return cut.reshape(d // i, i, h // j, j, w // k, k).mean(axis=(1, 3, 5), dtype=np.float32)


def pool_volumes(files: Sequence[Path], size: int | None, out: Path) -> NDArray:
    """Write the volumes, pooled to `size`, to the file `out` and return it as a memory map (n, D, H, W) in HU.

    Volumes of another grid than the first's are an InputError. Where the first volume holds int16 and is not pooled,
    the others are rounded to int16 as well.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: NDArray | None = None
    shape: tuple[int, ...] = ()
    for number, path in enumerate(track(files, description="classify: read", total=len(files))):
        array = read_volume(path).array
        shape = shape or array.shape
        if array.shape != shape:
            raise InputError(
                f"{path}: {array.shape} voxels, another grid than {files[0]} with {shape}; preprocess all to one grid"
            )
        if size is not None and max(shape) > size:
            array = pooled(array, size)
        if rows is None:
            kind = array.dtype if array.dtype == np.int16 else np.dtype(np.float32)
            rows = np.lib.format.open_memmap(out, mode="w+", dtype=kind, shape=(len(files), *array.shape))
        rows[number] = np.rint(array) if rows.dtype == np.int16 else array
    assert rows is not None
    return rows


class Subset:
    """Select rows of an array (n, D, H, W); they are read when they are indexed."""

    def __init__(self, volumes: Rows, rows: NDArray[np.int64]) -> None:
        self._volumes, self._rows = volumes, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> NDArray:
        return np.asarray(self._volumes[self._rows[index]])


def _real(finding: str, cohort: Path, labels: Path, volumes: Sequence[str], split: str) -> Labelled:
    names, by_id = read_labels(labels)
    if finding not in names:
        raise InputError(f"{labels}: no column {finding}; it has {', '.join(names)}")
    files = list_volumes(volumes)
    chosen = []
    for row in read_csv(cohort, ["subject_id", "split"]):
        known = labels_of(row, by_id)
        if split in (ALL_SPLITS, row["split"]) and row["subject_id"] in files and known is not None:
            chosen.append((files[row["subject_id"]], known[finding], row.get("patient_id") or row["subject_id"]))
    return _labelled(chosen)


def _synthetic(finding: str, prompts: Path, samples: Sequence[str]) -> Labelled:
    files = list_volumes(samples)
    rows = read_prompts([prompts])
    if any("patient_id" not in row for row in rows.values()):
        log.warning(
            "%s: no column patient_id; a patient may be tested by a classifier that saw volumes of his own report;"
            " write the prompts again with `medsyn prompts`",
            prompts,
        )
    chosen = []
    for sample_id, row in rows.items():
        kind = split_prompt_type(row["prompt_type"])
        if kind is not None and kind[0] == finding and sample_id in files:
            chosen.append((files[sample_id], int(kind[1]), row.get("patient_id", "")))
    if not chosen:
        raise InputError(f"{prompts}: no generated volume for {finding}/with or {finding}/without in {samples}")
    return _labelled(chosen)


def _labelled(chosen: Sequence[tuple[Path, int, str]]) -> Labelled:
    return Labelled(
        [path for path, _, _ in chosen],
        np.array([label for _, label, _ in chosen], dtype=np.int64),
        [patient for _, _, patient in chosen],
    )
