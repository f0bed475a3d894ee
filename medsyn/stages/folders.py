"""Two folders of volumes from any system compared (the verb `evaluate`): FID, MMD and the anatomical measures.

Files are CTs in HU on any grid. For FID and MMD each is brought to the model's grid as the cohort's volumes are; the
measures are taken on the file's own grid with the classical tools. A real file that is not a chest CT is left
out of FID and MMD. A generated one never is: it is brought to the grid by its middle and scored like the others;
`not_chest_fraction_synthetic` is their share. A file that cannot be read, or is not in HU, is refused, counted in
`num_refused_*`, and costs only itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsyn.config import PreprocessConfig
from medsyn.ct.inspect import judge, read_hu, scale_faults
from medsyn.ct.preprocess import preprocess
from medsyn.ct.reading import read_ct
from medsyn.errors import InputError
from medsyn.evaluate.distances import equal_numbers, frechet_distance, jackknife_interval, maximum_mean_discrepancy
from medsyn.evaluate.features import features_of, load_extractor
from medsyn.evaluate.inputs import list_volumes, text_fields
from medsyn.evaluate.measures import MEASURES, NEEDS, Measured
from medsyn.evaluate.statistics import known_values, summarise
from medsyn.files import sha256, write_csv, write_json
from medsyn.progress import log, track
from medsyn.provenance import provenance
from medsyn.stages.tables import measure_volume
from medsyn.volume import Volume

NUM_BOOTSTRAP = 1000
_PARTS = ("mean", "std", "ci_low", "ci_high")
COLUMNS = ("metric", "value", "ci_low", "ci_high", "n_real", "n_synthetic", "num_missing_real", "num_missing_synthetic")
COLUMNS += tuple(f"{group}_{part}" for group in ("real", "synthetic") for part in _PARTS)  # type: ignore[assignment]
_COUNTS = ("num_volumes", "num_refused", "num_found", "not_chest_fraction")
COLUMNS += tuple(f"{name}_{group}" for name in _COUNTS for group in ("real", "synthetic"))  # type: ignore[assignment]
COLUMNS += ("feature_extractor", "note")  # type: ignore[assignment]


@dataclass(frozen=True)
class _Group:
    """The volumes of one folder: files in HU by id, and of all files the measures (None: refused or failed)."""

    files: dict[str, Path]
    measured: list[Measured | None]
    num_not_chest: int

    def counts(self, name: str) -> dict[str, Any]:
        """Return the columns that count the volumes of the group `name`."""
        return {
            f"num_volumes_{name}": len(self.measured),
            f"num_refused_{name}": len(self.measured) - len(self.files),
            f"not_chest_fraction_{name}": self.num_not_chest / len(self.files) if self.files else None,
        }


def evaluate_folders(
    real: str, synthetic: str, weights: str | None, config: PreprocessConfig, seed: int, out: str
) -> None:
    """Write one row per metric: FID and MMD with jackknife bounds; for every measure its means and, as `value`, the
    difference synthetic - real of the means with bootstrap bounds (95 %). Provenance goes to `out` with .json.
    """
    files = {"real": list_volumes([real]), "synthetic": list_volumes([synthetic])}
    for group, folder in (("real", real), ("synthetic", synthetic)):
        if not files[group]:
            raise InputError(
                f"{folder}: no volume in it; give .nii.gz, .nii, .mha or .nrrd files, or <id>/volume.nii.gz"
            )
    rejects: list[dict[str, str]] = []
    groups = {group: _measure_group(paths, group, rejects) for group, paths in files.items()}
    rows = _distance_rows(groups, weights, config, seed, rejects) + _measure_rows(groups, seed)
    counts = groups["real"].counts("real") | groups["synthetic"].counts("synthetic")
    write_csv(out, (text_fields(row | counts, COLUMNS) for row in rows), COLUMNS)
    inputs = {str(path): sha256(path) for group in files.values() for path in group.values()}
    facts = {"inputs": inputs, "rejects": rejects, "seed": seed}
    if weights is not None:
        facts["weights_sha256"] = sha256(weights)
    write_json(Path(out).with_suffix(".json"), provenance(config, **facts))


def _measure_group(paths: dict[str, Path], group: str, rejects: list[dict[str, str]]) -> _Group:
    files: dict[str, Path] = {}
    measured: list[Measured | None] = []
    num_not_chest = 0
    for name, path in track(paths.items(), what=f"measure, {group}", total=len(paths)):
        stage = "evaluation"
        result = None
        try:
            volume = read_hu(path) if group == "real" else _read_generated(path)
            files[name] = path
            stage = "measures"
            num_not_chest += bool(judge(volume)[0])
            result = measure_volume(volume)
        except (InputError, RuntimeError, ValueError) as error:
            _reject(rejects, path, stage, error)
        measured.append(result)
    return _Group(files, measured, num_not_chest)


def _read_generated(path: Path) -> Volume:
    """Read a generated volume, whatever it shows; one that is not on the scale of HU is an InputError."""
    volume = read_ct(path)
    if faults := scale_faults(volume.array):
        raise InputError(f"{path}: {'; '.join(faults)}; give volumes in HU")
    return volume


def _distance_rows(
    groups: dict[str, _Group],
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
        name: features_of(net, _on_grid(group.files, config, name, rejects), config.window_hu)
        for name, group in groups.items()
    }
    a, b = equal_numbers(features["real"], features["synthetic"], 10**9, seed)
    rows = []
    for name, distance in metrics.items():
        row: dict[str, Any] = {"metric": name, "n_real": len(a), "n_synthetic": len(b)}
        row |= {f"num_missing_{key}": len(group.measured) - len(features[key]) for key, group in groups.items()}
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
            yield preprocess(read_ct(path), config, name=name, require_chest=group == "real").volume.array
        except (InputError, RuntimeError, ValueError) as error:
            _reject(rejects, path, "features", error)


def _measure_rows(groups: dict[str, _Group], seed: int) -> list[dict[str, Any]]:
    rows = []
    for name in MEASURES:
        row: dict[str, Any] = {"metric": name}
        values: dict[str, list[float | None]] = {}
        for key, group in groups.items():
            values[key] = [None if result is None else result.values[name] for result in group.measured]
            summary = summarise(values[key], num_bootstrap=NUM_BOOTSTRAP, seed=seed)
            row |= {f"n_{key}": summary.n, f"num_missing_{key}": summary.num_missing}
            row |= {f"{key}_{part}": getattr(summary, part) for part in _PARTS}
            row[f"num_found_{key}"] = sum(
                result is not None and bool(result.found[NEEDS[name]]) for result in group.measured
            )
        row |= _difference(known_values(values["synthetic"]), known_values(values["real"]), seed)
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
