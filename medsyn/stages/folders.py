"""Compare two folders of volumes from any system (the verb `evaluate`): FID, MMD and the anatomical measures.

Files are CTs in HU on any grid. For FID and MMD each is brought to the model's grid like the cohort's volumes; the
measures are taken on the file's own grid with the classical tools. A real file that is not a chest CT is left out of
FID and MMD. A generated file is never left out for that: it is brought to the grid by its middle and scored like the
others; `not_chest_fraction_synthetic` is the share of such files.

A file that cannot be read, is not in HU, or cannot be brought to the grid is refused alone. A system whose failed
volumes are refused would be scored on its better ones, so `refused_fraction_*` stands beside every number, and more
refused volumes than a limit make the comparison an error.

With the folder of the volumes that the system was trained on, the table also says how many generated volumes stand out
as copies of one. The real volumes set the threshold for that, so the system must not have seen them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medsyn.config import PreprocessConfig
from medsyn.ct.generated import read_generated
from medsyn.ct.inspect import judge, read_hu_scan
from medsyn.ct.preprocess import preprocess
from medsyn.ct.reading import read_ct
from medsyn.ct.scan import Scan
from medsyn.errors import InputError
from medsyn.evaluate.distances import METRIC_NAMES, METRICS, equal_numbers, metric_columns
from medsyn.evaluate.features import features_of, load_extractor
from medsyn.evaluate.inputs import text_fields
from medsyn.evaluate.measure_names import MEASURES, NEEDS
from medsyn.evaluate.measures import Measured
from medsyn.evaluate.memorisation import Row
from medsyn.evaluate.nearest import reduce
from medsyn.evaluate.statistics import known_values, summarise
from medsyn.files import sha256, write_csv, write_json
from medsyn.header_hints import HeaderHints
from medsyn.nifti import files_of
from medsyn.progress import log, track
from medsyn.provenance import provenance
from medsyn.scan_warnings import count_topics, of_measures
from medsyn.stages.copies import copies
from medsyn.stages.measures import measure_volume
from medsyn.stages.nearest import TRAINING, Named
from medsyn.stages.shards import SUBJECT_FAULTS, is_machine_fault
from medsyn.volume_files import find_volumes

if TYPE_CHECKING:
    from medsyn.models.resnet3d import ResNet3d

NUM_BOOTSTRAP = 1000
GROUPS = ("real", "synthetic")
_PARTS = ("mean", "std", "ci_low", "ci_high")
_COUNTS = (
    "num_volumes",
    "num_refused",
    "refused_fraction",
    "num_found",
    "not_chest_fraction",
    "num_warned",
    "warnings",
)
COLUMNS = (
    *("metric", "value", "ci_low", "ci_high", "n_real", "n_synthetic", "num_missing_real", "num_missing_synthetic"),
    *(f"{group}_{part}" for group in GROUPS for part in _PARTS),
    *(f"{name}_{group}" for name in _COUNTS for group in GROUPS),
    *("feature_extractor", "note"),
)
_VOLUME_FAULTS = (*SUBJECT_FAULTS, ArithmeticError, EOFError, MemoryError)
"""What a volume may raise that is damaged or whose header claims nonsense."""


@dataclass(frozen=True)
class Folder:
    """Volumes to compare, and what their files do not say themselves or say wrongly."""

    path: str | Path
    hints: HeaderHints = field(default_factory=HeaderHints)


@dataclass
class _Entry:
    """One file: whether it is refused, what failed by stage, and why `medsyn inspect` would reject it."""

    path: Path
    hashes: dict[str, str | None] = field(default_factory=dict)
    refused: bool = False
    faults: dict[str, str] = field(default_factory=dict)
    not_chest: str = ""
    warnings: list[str] = field(default_factory=list)
    measured: Measured | None = None

    def note(self, stage: str, error: Exception) -> None:
        """Keep and log why the file is left out of a stage; a fault of the machine is raised again."""
        if is_machine_fault(error):
            raise error
        reason = " ".join(str(error).split()) or type(error).__name__
        self.faults[stage] = reason.removeprefix(f"{self.path}: ")
        log.warning("evaluate: %s left out of the %s: %s", self.path, stage, self.faults[stage])


@dataclass(frozen=True)
class _Group:
    """The volumes of one folder by id."""

    name: str
    folder: Folder
    entries: dict[str, _Entry]

    def used(self) -> dict[str, _Entry]:
        """Return the entries that are not refused."""
        return {name: entry for name, entry in self.entries.items() if not entry.refused}

    def counts(self) -> dict[str, Any]:
        """Return the columns that count the volumes."""
        used = self.used()
        num_refused = len(self.entries) - len(used)
        warnings = [of_measures(entry.warnings) for entry in used.values()]
        counts = {
            "num_volumes": len(self.entries),
            "num_refused": num_refused,
            "refused_fraction": num_refused / len(self.entries),
            "not_chest_fraction": sum(bool(e.not_chest) for e in used.values()) / len(used) if used else None,
            "num_warned": sum(map(bool, warnings)),
            "warnings": ", ".join(f"{topic} ({count})" for topic, count in count_topics(warnings).items()),
        }
        return {f"{key}_{self.name}": value for key, value in counts.items()}


def evaluate_folders(
    real: Folder,
    synthetic: Folder,
    weights: str | None,
    config: PreprocessConfig,
    seed: int,
    out: str,
    max_refused_fraction: float,
    training: Folder | None = None,
) -> None:
    """Write one row per metric: FID and MMD with jackknife bounds; for every measure its means and, as `value`, the
    difference synthetic - real of the means with bootstrap bounds (95 %). Provenance goes to `out` with .json.

    training: adds the numbers of `medsyn.evaluate.memorisation`, as metrics `memorisation_*`; the sidecar names the
    closest pairs. A folder of which more than `max_refused_fraction` (and more than one volume) is refused is an
    InputError.
    """
    if not 0 <= max_refused_fraction <= 1:
        raise InputError(f"--max-refused-fraction {max_refused_fraction:g}: expected a share from 0 to 1")
    extractor = None if weights is None else load_extractor(weights, config.window_hu)
    groups = {
        name: _Group(name, folder, _entries(folder)) for name, folder in zip(GROUPS, (real, synthetic), strict=True)
    }
    for group in groups.values():
        _measure_group(group)
        _check_refused(group, max_refused_fraction)
    on_grid = {}
    if training is not None:
        groups[TRAINING] = _Group(TRAINING, training, _entries(training))
    if extractor is not None or training is not None:
        for name, group in groups.items():
            on_grid[name] = _gather(group, config, extractor)
            _check_refused(group, max_refused_fraction)
    described = extractor[1]["name"] if extractor else None
    rows = _distance_rows(groups, {key: on_grid[key].features for key in GROUPS} if extractor else {}, described, seed)
    rows += _measure_rows(groups, seed)
    closest: list[Row] = []
    if training is not None:
        more, closest = copies(_spaces(on_grid, extractor is not None))
        rows += more
    counts = groups["real"].counts() | groups["synthetic"].counts()
    for key in GROUPS:
        if topics := counts[f"warnings_{key}"]:
            log.warning("evaluate: %s: volumes with warnings: %s", groups[key].folder.path, topics)
    write_csv(out, (text_fields(row | counts, COLUMNS) for row in rows), COLUMNS)
    facts = _facts(groups) | {"closest_pairs": closest} if training is not None else _facts(groups)
    facts |= {"seed": seed, "max_refused_fraction": max_refused_fraction}
    if weights is not None:
        facts["weights_sha256"] = sha256(weights)
    write_json(Path(out).with_suffix(".json"), provenance(config, **facts))


def _entries(folder: Folder) -> dict[str, _Entry]:
    return {key: _Entry(path) for key, path in find_volumes(folder.path).items()}


def _measure_group(group: _Group) -> None:
    """Read and measure every volume of a group; one that cannot be read is refused."""
    for entry in track(group.entries.values(), description=f"measure, {group.name}", total=len(group.entries)):
        try:
            scan = _read(entry.path, group)
            entry.hashes = {str(file): sha256(file) for file in files_of(entry.path)}
        except _VOLUME_FAULTS as error:
            entry.refused = True
            entry.note("evaluation", error)
            continue
        entry.warnings = list(scan.warnings)
        try:
            reasons, chest, warnings = judge(scan.volume)
            entry.not_chest = "; ".join(reasons)
            entry.warnings += warnings
            entry.measured = measure_volume(scan.volume, chest=chest)
        except _VOLUME_FAULTS as error:
            entry.note("measures", error)


def _read(path: Path, group: _Group) -> Scan:
    """Read a real CT, or a generated volume whatever it shows; one that is not on the scale of HU is an InputError."""
    if group.name == "real":
        return read_hu_scan(path, group.folder.hints)
    return read_generated(path, group.folder.hints)


def _check_refused(group: _Group, limit: float) -> None:
    """Raise InputError if nothing of a group is left, or more of it is refused than `limit` and than one volume."""
    total = len(group.entries)
    refused = [entry for entry in group.entries.values() if entry.refused]
    if len(refused) == total or len(refused) > max(1, limit * total):
        path, reason = refused[0].path, next(iter(refused[0].faults.values()))
        raise InputError(
            f"{group.folder.path}: {len(refused)} of {total} {group.name} volumes are refused"
            f" ({len(refused) / total:.0%}), at most {limit:.0%} may be; first: {path}:"
            f" {reason}; repair them, or raise --max-refused-fraction and say so where the"
            " numbers are shown"
        )


@dataclass
class _OnGrid:
    """The volumes of a group on the model's grid: their ids, features (n, F) and reduced volumes (n, d, h, w)."""

    names: list[str] = field(default_factory=list)
    features: NDArray = field(default_factory=lambda: np.empty(0))
    reduced: list[NDArray] = field(default_factory=list)


def _gather(group: _Group, config: PreprocessConfig, extractor: tuple[ResNet3d, Any] | None) -> _OnGrid:
    """Read the volumes of a group once, for features if there is an extractor, and for the search of copies."""
    found = _OnGrid()

    def arrays() -> Iterator[NDArray]:
        for name, array in _on_grid(group, config):
            found.names.append(name)
            found.reduced.append(reduce(array))
            yield array

    if extractor is None:
        deque(arrays(), maxlen=0)
    else:
        found.features = features_of(extractor[0], arrays(), config.window_hu)
    return found


def _spaces(on_grid: Mapping[str, _OnGrid], with_features: bool) -> dict[str, dict[str, Named]]:
    """Return reduced volumes, and features if there are any, by space and group."""
    spaces = {"voxel": {name: Named(part.names, np.array(part.reduced)) for name, part in on_grid.items()}}
    if with_features:
        spaces["feature"] = {name: Named(part.names, part.features) for name, part in on_grid.items()}
    return spaces


def _on_grid(group: _Group, config: PreprocessConfig) -> Iterator[tuple[str, NDArray]]:
    """Yield the ids and volumes of a group on the model's grid; one that cannot be brought there is refused.

    A real volume that is not a chest is left out; of the training volumes, which are not measured, it is refused.
    """
    used = group.used()
    for name, entry in track(used.items(), description=f"grid, {group.name}", total=len(used)):
        real = group.name != "synthetic"
        if real and entry.not_chest:
            entry.note("features", InputError(f"{name}: rejected, {entry.not_chest}"))
            continue
        try:
            if not entry.hashes:  # a training volume, which is not measured
                entry.hashes = {str(file): sha256(file) for file in files_of(entry.path)}
            volume = read_ct(entry.path, group.folder.hints)
            array = preprocess(volume, config, name=name, require_chest=real).volume.array
        except _VOLUME_FAULTS as error:
            entry.refused = True
            entry.note("features", error)
            continue
        yield name, array


def _distance_rows(
    groups: Mapping[str, _Group], features: Mapping[str, NDArray], extractor: str | None, seed: int
) -> list[dict[str, Any]]:
    if extractor is None:
        note = "no feature extractor given (--weights)"
        return [{"metric": name, "n_real": 0, "n_synthetic": 0, "note": note} for name in METRIC_NAMES]
    a, b = equal_numbers(features["real"], features["synthetic"], 10**9, seed)
    rows = []
    for names, distance in METRICS:
        values: dict[str, float] = {}
        reason: str | None
        try:
            values, reason = metric_columns(names, distance, a, b, seed)
        except ValueError as error:
            reason = str(error)
        for name in names:
            row: dict[str, Any] = {"metric": name, "n_real": len(a), "n_synthetic": len(b)}
            row |= {f"num_missing_{key}": len(groups[key].entries) - len(features[key]) for key in GROUPS}
            row |= {"feature_extractor": extractor, "value": values.get(name), "note": reason}
            row |= {bound: values.get(f"{name}_{bound}") for bound in ("ci_low", "ci_high")}
            rows.append(row)
    return rows


def _measure_rows(groups: Mapping[str, _Group], seed: int) -> list[dict[str, Any]]:
    rows = []
    for name in MEASURES:
        row: dict[str, Any] = {"metric": name}
        values: dict[str, list[float | None]] = {}
        for key in GROUPS:
            measured = [entry.measured for entry in groups[key].entries.values()]
            values[key] = [None if result is None else result.values[name] for result in measured]
            summary = summarise(values[key], num_bootstrap=NUM_BOOTSTRAP, seed=seed)
            row |= {f"n_{key}": summary.n, f"num_missing_{key}": summary.num_missing}
            row |= {f"{key}_{part}": getattr(summary, part) for part in _PARTS}
            row[f"num_found_{key}"] = sum(result is not None and bool(result.found[NEEDS[name]]) for result in measured)
        row |= _difference(known_values(values["synthetic"]), known_values(values["real"]), seed)
        rows.append(row)
    return rows


def _difference(synthetic: NDArray, real: NDArray, seed: int) -> dict[str, float]:
    """Return the difference of the means and its bootstrap bounds, both samples resampled."""
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


def _facts(groups: Mapping[str, _Group]) -> dict[str, Any]:
    """Return what the sidecar says of the files: hashes, what was given for them, faults and warnings."""
    entries = [entry for group in groups.values() for entry in group.entries.values()]
    return {
        "inputs": {file: digest for e in entries for file, digest in (e.hashes or {str(e.path): None}).items()},
        "reading": {name: asdict(group.folder.hints) for name, group in groups.items()},
        "rejects": [
            {"file": str(entry.path), "stage": stage, "reason": reason}
            for entry in entries
            for stage, reason in entry.faults.items()
        ],
        "warnings": {str(entry.path): entry.warnings for entry in entries if entry.warnings},
    }
