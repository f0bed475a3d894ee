"""Two folders of volumes from any system compared (the verb `evaluate`): FID, MMD and the anatomical measures.

Files are CTs in HU on any grid. For FID and MMD each is brought to the model's grid as the cohort's volumes are; the
measures are taken on the file's own grid with the classical tools. A file that cannot be used costs only itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsyn.config import PreprocessConfig
from medsyn.ct.preprocess import preprocess
from medsyn.ct.reading import read_ct
from medsyn.errors import InputError
from medsyn.evaluate.distances import equal_numbers, frechet_distance, jackknife_interval, maximum_mean_discrepancy
from medsyn.evaluate.features import features_of, load_extractor
from medsyn.evaluate.inputs import list_volumes, text_fields
from medsyn.evaluate.measures import MEASURES
from medsyn.evaluate.statistics import known_values, summarise
from medsyn.files import sha256, write_csv, write_json
from medsyn.progress import log, track
from medsyn.provenance import provenance
from medsyn.stages.tables import measure_one

NUM_BOOTSTRAP = 1000
_PARTS = ("mean", "std", "ci_low", "ci_high")
COLUMNS = ("metric", "value", "ci_low", "ci_high", "n_real", "n_synthetic", "num_missing_real", "num_missing_synthetic")
COLUMNS += tuple(f"{group}_{part}" for group in ("real", "synthetic") for part in _PARTS)  # type: ignore[assignment]
COLUMNS += ("feature_extractor", "note")  # type: ignore[assignment]


def evaluate_folders(
    real: str, synthetic: str, weights: str | None, config: PreprocessConfig, seed: int, out: str
) -> None:
    """Write one row a metric: FID and MMD with jackknife bounds; for every measure its means and, as `value`, the
    difference synthetic - real of the means with bootstrap bounds (95 %). Provenance goes to `out` with .json.
    """
    files = {"real": list_volumes([real]), "synthetic": list_volumes([synthetic])}
    for group, folder in (("real", real), ("synthetic", synthetic)):
        if not files[group]:
            raise InputError(
                f"{folder}: no volume in it; give .nii.gz, .nii, .mha or .nrrd files, or <id>/volume.nii.gz"
            )
    rejects: list[dict[str, str]] = []
    rows = _distance_rows(files, weights, config, seed, rejects)
    rows += _measure_rows(files, seed, rejects)
    write_csv(out, (text_fields(row, COLUMNS) for row in rows), COLUMNS)
    inputs = {str(path): sha256(path) for group in files.values() for path in group.values()}
    facts = {"inputs": inputs, "rejects": rejects, "seed": seed}
    if weights is not None:
        facts["weights_sha256"] = sha256(weights)
    write_json(Path(out).with_suffix(".json"), provenance(config, **facts))


def _distance_rows(
    files: dict[str, dict[str, Path]],
    weights: str | None,
    config: PreprocessConfig,
    seed: int,
    rejects: list[dict[str, str]],
) -> list[dict[str, Any]]:
    metrics: dict[str, Callable[[NDArray, NDArray], float]] = {
        "fid": frechet_distance,
        "mmd": maximum_mean_discrepancy,
    }
    if weights is None:
        reason = "no feature extractor given (--weights)"
        return [{"metric": name, "n_real": 0, "n_synthetic": 0, "note": reason} for name in metrics]
    net, info = load_extractor(weights, config.window_hu)
    features = {
        group: features_of(net, _on_grid(paths, config, group, rejects), config.window_hu)
        for group, paths in files.items()
    }
    a, b = equal_numbers(features["real"], features["synthetic"], 10**9, seed)
    rows = []
    for name, distance in metrics.items():
        row: dict[str, Any] = {"metric": name, "n_real": len(a), "n_synthetic": len(b)}
        row |= {f"num_missing_{group}": len(paths) - len(features[group]) for group, paths in files.items()}
        row["feature_extractor"] = info["name"]
        try:
            row["value"] = distance(a, b)
            low, high = jackknife_interval(distance, a, b, seed=seed)
            row |= {"ci_low": max(0.0, low) if name == "fid" else low, "ci_high": high}
        except ValueError as error:
            row["note"] = str(error)
        rows.append(row)
    return rows


def _on_grid(
    files: dict[str, Path], config: PreprocessConfig, group: str, rejects: list[dict[str, str]]
) -> Iterator[NDArray]:
    for name, path in track(files.items(), what=f"features, {group}", total=len(files)):
        try:
            yield preprocess(read_ct(path), config, name=name).volume.array
        except (InputError, RuntimeError) as error:
            _reject(rejects, path, "features", error)


def _measure_rows(files: dict[str, dict[str, Path]], seed: int, rejects: list[dict[str, str]]) -> list[dict[str, Any]]:
    values: dict[str, dict[str, list[float | None]]] = {}
    for group, paths in files.items():
        values[group] = {name: [] for name in MEASURES}
        for path in track(paths.values(), what=f"measure, {group}", total=len(paths)):
            try:
                found: dict[str, float | None] = measure_one(path).values
            except (InputError, RuntimeError) as error:
                _reject(rejects, path, "measure", error)
                found = dict.fromkeys(MEASURES)
            for name in MEASURES:
                values[group][name].append(found[name])
    rows = []
    for name in MEASURES:
        row: dict[str, Any] = {"metric": name}
        for group in ("real", "synthetic"):
            summary = summarise(values[group][name], num_bootstrap=NUM_BOOTSTRAP, seed=seed)
            row |= {f"n_{group}": summary.n, f"num_missing_{group}": summary.num_missing}
            row |= {f"{group}_{part}": getattr(summary, part) for part in _PARTS}
        row |= _difference(known_values(values["synthetic"][name]), known_values(values["real"][name]), seed)
        rows.append(row)
    return rows


def _difference(synthetic: NDArray, real: NDArray, seed: int) -> dict[str, float]:
    """Difference of the means and its bootstrap bounds, both samples resampled."""
    if min(len(synthetic), len(real)) == 0:
        return {}
    result = {"value": float(synthetic.mean() - real.mean())}
    if min(len(synthetic), len(real)) > 1:
        generator = np.random.default_rng(seed)
        means = [
            sample[generator.integers(0, len(sample), size=(NUM_BOOTSTRAP, len(sample)))].mean(axis=1)
            for sample in (synthetic, real)
        ]
        low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
        result |= {"ci_low": float(low), "ci_high": float(high)}
    return result


def _reject(rejects: list[dict[str, str]], path: Path, stage: str, error: Exception) -> None:
    reason = " ".join(str(error).split())
    log.warning("evaluate: %s left out of the %s: %s", path, stage, reason)
    rejects.append({"file": str(path), "stage": stage, "reason": reason})
