"""Data augmentation (Table VI): does a classifier of a finding improve when generated volumes join its training set?

A small 3-D CNN (the ResNet-10 of `models.resnet3d` with few channels) tells volumes with a finding from those without.
k-fold cross-validation over the real labelled volumes; in every fold the baseline trains on the real volumes of the
other folds, the augmented classifier on these and all synthetic ones, from the same initial weights and for the same
number of optimiser steps, so that longer training cannot pass for better data. Both are tested on the fold's real
volumes. Volumes (D, H, W) in HU are average-pooled to at most 32 voxels an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsyn.config import AugmentationConfig, AugmentationStage
from medsyn.errors import InputError
from medsyn.evaluate.features import fit, num_batches, scores_of
from medsyn.evaluate.inputs import labels_of, list_volumes, read_labels, read_prompts, split_prompt_type
from medsyn.evaluate.statistics import accuracy_and_f1
from medsyn.files import read_csv, write_csv
from medsyn.models.resnet3d import ResNet3d, ResNetClassifier
from medsyn.progress import log
from medsyn.volume import read_volume

COLUMNS = ("method", "finding", "fold", "accuracy", "f1", "n_train_real", "n_test", "n_synthetic")
MAX_SIZE = 32


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
) -> None:
    """Cross-validate both classifiers of `finding` and write one row per method and fold.

    Real volumes are those of `split` in cohort.csv that have a label; synthetic ones those whose prompt_type is
    `<finding>/positive` or `<finding>/negative`, made by the model `method_label`.
    Fewer than two real volumes leave the table empty, with a warning.
    """
    real, real_labels = _real(finding, cohort, labels, volumes, split)
    synthetic, synthetic_labels = _synthetic(finding, prompts, samples)
    rows: list[dict[str, Any]] = []
    if len(real) < 2:
        log.warning("classify: %d labelled volumes in the split %s, nothing to cross-validate", len(real), split)
    else:
        rows = cross_validate(
            real, real_labels, synthetic, synthetic_labels, finding, stage.augmentation, stage.window_hu
        )
        for row in rows:
            row["method"] += f" with {method_label}" if row["method"] == "augmented" else ""
    write_csv(out, rows, COLUMNS)


def cross_validate(
    real: NDArray,
    real_labels: NDArray,
    synthetic: NDArray,
    synthetic_labels: NDArray,
    finding: str,
    config: AugmentationConfig,
    window_hu: tuple[float, float],
) -> list[dict[str, Any]]:
    """Rows (COLUMNS) of baseline and augmented classifier; volumes (n, D, H, W) in HU, labels (n) of 0 and 1."""
    folds = stratified_folds(real_labels, config.num_folds, config.seed)
    rows = []
    for fold, test in enumerate(folds):
        train = np.setdiff1d(np.arange(len(real)), test)
        num_steps = config.num_epochs * num_batches(len(train) + len(synthetic), config.batch_size)
        for method, extra in (("baseline", synthetic[:0]), ("augmented", synthetic)):
            x = np.concatenate([real[train], extra])
            y = np.concatenate([real_labels[train], synthetic_labels[: len(extra)]])
            model = _new_classifier(config, seed=config.seed + fold)
            batch_size = min(config.batch_size, len(x))
            fit(
                model,
                x,
                torch.from_numpy(y.astype(np.float32))[:, None],
                window_hu=window_hu,
                num_steps=num_steps,
                batch_size=batch_size,
                learning_rate=config.learning_rate,
                seed=config.seed + fold,
                what=f"{finding} {method} fold {fold + 1}/{len(folds)}",
            )
            predicted = scores_of(model, real[test], window_hu)[:, 0] > 0
            accuracy, f1 = accuracy_and_f1(predicted, real_labels[test])
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


def stratified_folds(labels: NDArray, num_folds: int, seed: int) -> list[NDArray[np.int64]]:
    """Disjoint index sets that cover everything and share out positives and negatives evenly; none is empty."""
    generator = np.random.default_rng(seed)
    dealt = np.concatenate([generator.permutation(np.flatnonzero(labels == value)) for value in (1, 0)])
    num_folds = min(num_folds, len(labels))
    return [np.sort(dealt[start::num_folds]) for start in range(num_folds)]


def pooled(array: NDArray) -> NDArray[np.float32]:
    """(D, H, W) average-pooled by whole factors until no axis is longer than 32 voxels (margins that do not fill
    a block are cut)."""
    factors = [-(-size // MAX_SIZE) for size in array.shape]
    cut = array[tuple(slice(0, size // f * f) for size, f in zip(array.shape, factors, strict=True))]
    (d, h, w), (i, j, k) = cut.shape, factors
    return cut.reshape(d // i, i, h // j, j, w // k, k).mean(axis=(1, 3, 5), dtype=np.float32)


def _new_classifier(config: AugmentationConfig, seed: int) -> ResNetClassifier:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNetClassifier(ResNet3d(10, config.base_width), 1).to(device)


def _real(
    finding: str, cohort: Path, labels: Path, volumes: Sequence[str], split: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    names, by_id = read_labels(labels)
    if finding not in names:
        raise InputError(f"{labels}: no column {finding}; it has {', '.join(names)}")
    files = list_volumes(volumes)
    paths, values = [], []
    for row in read_csv(cohort, ["subject_id", "split"]):
        known = labels_of(row, by_id)
        if row["split"] == split and row["subject_id"] in files and known is not None:
            paths.append(files[row["subject_id"]])
            values.append(known[finding])
    return _load(paths), np.array(values, dtype=np.int64)


def _synthetic(finding: str, prompts: Path, samples: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    files = list_volumes(samples)
    paths, values = [], []
    for sample_id, row in read_prompts([prompts]).items():
        kind = split_prompt_type(row["prompt_type"])
        if kind is not None and kind[0] == finding and sample_id in files:
            paths.append(files[sample_id])
            values.append(int(kind[1]))
    if not paths:
        raise InputError(f"{prompts}: no generated volume for {finding}/positive or {finding}/negative in {samples}")
    return _load(paths), np.array(values, dtype=np.int64)


def _load(paths: Sequence[Path]) -> NDArray[np.float32]:
    arrays = []
    for path in paths:
        arrays.append(pooled(read_volume(path).array))
        if arrays[-1].shape != arrays[0].shape:
            raise InputError(f"{path}: another grid than {paths[0]}; preprocess all volumes to one grid")
    return np.stack(arrays) if arrays else np.empty((0, 1, 1, 1), dtype=np.float32)
