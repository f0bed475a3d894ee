"""The golden set: what the seconds-scale run (`config/test.yaml`) makes, stored small in tests/golden.

`SET` has one entry per golden file. An entry is a function from a results folder to plain JSON values, and the
tolerance of its numbers. Four kinds of tolerance are used:

- EXACT: reports, labels and prompts. They are compared letter for letter.
- GRIDS: CTs on the model's grid and their masks. CPUs round a voxel in a million to the neighbouring HU, so not hashes
  but two sums are compared: of all voxels, and of all voxels weighted by their place. A shift, a flip or any change of
  more than a few voxels moves them beyond the tolerance.
- MEASURED: numbers computed from those arrays in floating point, which differ between CPUs in the last digits.
- TRAINED: everything that a trained network has made. CPUs and thread counts round differently, and training amplifies
  it. Sampled volumes are therefore compared by statistics.

The files are read here without the package, so that a change of its readers cannot hide a change of what it writes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib import image as pictures
from numpy.typing import NDArray
from safetensors.numpy import load_file

FIGURES = ("figure3", "figure4", "figure5", "figure6", "figure7", "figure8", "diagnostic_panels", "hero")
GOLDEN = Path(__file__).parent / "golden"
SECONDS = ("samples_per_second", "peak_memory_gib", "tflops_per_second", "flop_utilisation", "training_hours")
"""Columns of a loss curve that measure the machine."""
TIMINGS = ("training_hours", "seconds_per_volume", "peak_memory_gib", "device")
"""Columns of Table I that measure the machine, or name it."""
OBSERVED = (
    *("num_correct", "correct_mean", "correct_ci_low", "correct_ci_high", "said_cardiomegaly", "said_pleural_effusion"),
    *("said_no_abnormality", "said_other", "rank_mean", "rank_ci_low", "rank_ci_high", "rank_1", "rank_2", "rank_3"),
    *("rank_4", "chi2", "friedman_p", "kendall_w", "reader_chi2", "reader_friedman_p", "reader_kendall_w", "p_value"),
    *("p_wilcoxon", "reader_p_value", "reader_p_wilcoxon"),
)
"""Columns of recognition and ranking that hang on which side of a limit a trained network's measure falls."""


@dataclass(frozen=True)
class Tolerance:
    """How far a number may lie from its golden value: at most `relative` * |golden| + `absolute`.

    columns: (relative, absolute) of the numbers whose path matches the pattern, instead of the general ones.
    """

    relative: float = 0.0
    absolute: float = 0.0
    columns: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def at(self, path: str, golden: float) -> float:
        """Return the largest allowed distance from the golden value at `path`."""
        relative, absolute = self.relative, self.absolute
        for pattern, limits in self.columns.items():
            if re.search(pattern, path):
                relative, absolute = limits
        return relative * abs(golden) + absolute


@dataclass(frozen=True)
class Moved:
    """One value that is not the golden one; `allowed` where it lies within the tolerance."""

    path: str
    golden: Any
    found: Any
    allowed: bool

    def __str__(self) -> str:
        by = ""
        if isinstance(self.golden, float | int) and isinstance(self.found, float | int):
            distance = self.found - self.golden
            by = f" (moved by {distance:+.3g}" + (f", {distance / self.golden:+.2%})" if self.golden else ")")
        return f"{self.path}: golden {self.golden!r}, found {self.found!r}{by}"


def moved(golden: Any, found: Any, tolerance: Tolerance, path: str = "") -> Iterator[Moved]:
    """Yield every value of `found` that differs from `golden`, with its path in the JSON."""
    if isinstance(golden, dict) and isinstance(found, dict):
        if golden.keys() == found.keys() and list(golden) != list(found):
            yield Moved(f"{path}/order", list(golden), list(found), False)
        for key in golden | found:
            yield from moved(golden.get(key), found.get(key), tolerance, f"{path}/{key}")
    elif isinstance(golden, list) and isinstance(found, list):
        if len(golden) != len(found):
            yield Moved(f"{path}/length", len(golden), len(found), False)
        for index, (old, new) in enumerate(zip(golden, found, strict=False)):
            yield from moved(old, new, tolerance, f"{path}/{index}")
    elif golden != found or type(golden) is not type(found):
        numbers = isinstance(golden, float) and isinstance(found, float)
        allowed = numbers and abs(found - golden) <= tolerance.at(path, golden)
        yield Moved(path, golden, found, allowed)


def cell(text: str) -> Any:
    """Return a table's cell as a float where it is a finite number, else as it stands."""
    return float(text) if re.fullmatch(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", text) else text


def rows(path: Path, key: Sequence[str], leave_out: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the rows of a CSV table by the values of their `key` columns."""
    with path.open(newline="", encoding="utf-8") as handle:
        table = list(csv.DictReader(handle))
    named = {
        " ".join(row[name] for name in key): {
            name: cell(value) for name, value in row.items() if name not in (*key, *leave_out)
        }
        for row in table
    }
    assert len(named) == len(table), f"{path}: two rows have the same {key}"
    return named


def digest(data: bytes) -> str:
    """Return a short SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def blocks(array: NDArray, count: int, digits: int) -> Any:
    """Return the means of `count` blocks per axis, rounded."""
    means = np.asarray(array, np.float64)
    for axis in range(means.ndim):
        means = np.stack([part.mean(axis) for part in np.array_split(means, count, axis)], axis)
    return np.round(means, digits).tolist()


def image(path: Path) -> sitk.Image:
    """Read a NIfTI file."""
    return sitk.ReadImage(str(path))


def place(array: NDArray) -> NDArray:
    """Return a number for the place of each voxel, its index modulo 251, a prime."""
    return np.arange(array.size) % 251


def sums(array: NDArray) -> dict[str, float]:
    """Return the sum of all voxels, and that of all voxels times their place."""
    values = array.ravel().astype(np.int64)
    return {"sum": float(values.sum()), "weighted": float(values @ place(array))}


def label_sums(array: NDArray) -> dict[str, list[float]]:
    """Return the number of voxels of the labels 1, 2, ... and the sums of their places."""
    values = array.ravel()
    counts, places = np.bincount(values), np.bincount(values, place(array))
    return {"voxels": counts[1:].astype(float).tolist(), "weighted": places[1:].tolist()}


def statistics(array: NDArray, digits: int = 5) -> dict[str, float]:
    """Return the mean, the standard deviation and three percentiles of an array."""
    array = np.asarray(array, np.float64)
    low, middle, high = np.percentile(array, (5, 50, 95))
    values = {"mean": array.mean(), "std": array.std(), "p05": low, "p50": middle, "p95": high}
    return {name: round(float(value), digits) for name, value in values.items()}


def sampled_volume(folder: Path) -> dict[str, Any]:
    """Return the statistics of a sampled volume, and the fraction of each label in its masks."""
    summary: dict[str, Any] = {}
    for path in sorted(folder.glob("*.nii.gz")):
        array = sitk.GetArrayFromImage(image(path))
        name = path.name.removesuffix(".nii.gz")
        if name == "volume":
            summary[name] = statistics(array, 2) | {"coarse": blocks(array, 2, 2)}
        else:
            counts = np.bincount(array.ravel(), minlength=2) / array.size
            summary[name] = {"fractions": np.round(counts[1:], 5).tolist()}
    return summary


def folders(parent: Path) -> Iterator[Path]:
    """Yield the subfolders in order."""
    yield from sorted(path for path in parent.iterdir() if path.is_dir())


def cohort(results: Path) -> Any:
    """Return who is in the cohort, with hashes of the reports, and the hash of all reports."""
    table = rows(results / "cohort/cohort.csv", ["subject_id"], ("image", "truth"))
    for row in table.values():
        for name in ("findings", "impression"):
            row[name] = digest(row[name].encode())
    return {"cohort": table, "reports": digest((results / "cohort/reports.csv").read_bytes())}


def preprocessed(results: Path) -> Any:
    """Return the sums of every subject's CT, and the geometry and coarse grid of the first."""
    summary = {}
    for path in folders(results / "preprocessed/0"):
        read = image(path / "volume.nii.gz")
        array = sitk.GetArrayFromImage(read)
        summary[path.name] = sums(array)
        if len(summary) == 1:
            summary["geometry"] = {
                "type": str(array.dtype),
                "size": list(read.GetSize()),
                "spacing_mm": list(read.GetSpacing()),
                "origin_mm": list(read.GetOrigin()),
                "direction": list(read.GetDirection()),
                "coarse": blocks(array, 4, 3),
            }
    return summary


def masks(results: Path) -> Any:
    """Return the sums of every label, per subject and structure."""
    return {
        path.name: {
            name: label_sums(sitk.GetArrayFromImage(image(path / f"{name}.nii.gz")))
            for name in ("lobes", "airway", "vessels")
        }
        for path in folders(results / "masks/0")
    }


def labels(results: Path) -> Any:
    """Return each report's findings, in the order of the columns."""
    head, *lines = (results / "labels.csv").read_text(encoding="utf-8").splitlines()
    return {"findings": head.split(",")[1:], **dict(line.split(",", 1) for line in lines)}


def prompts(results: Path) -> Any:
    """Return every prompt of every set."""
    return {path.stem: rows(path, ["sample_id"]) for path in sorted((results / "prompts").glob("*.csv"))}


def embeddings(results: Path) -> Any:
    """Return the statistics of the embeddings of the texts, per encoder."""
    found = {}
    for encoder in ("biomedical", "generic"):
        paths = sorted((results / f"text/{encoder}/embeddings").glob("*.safetensors"))
        states = [load_file(path)["states"].astype(np.float32) for path in paths]
        found[encoder] = {"shape": list(np.concatenate(states).shape), **statistics(np.concatenate(states))}
    return found


def loss_curves(network: str) -> Callable[[Path], Any]:
    """Return a reader of the loss curves of one network, per method, without the columns that measure the machine."""

    def read(results: Path) -> Any:
        paths = sorted((results / "models").glob(f"*/{network}_metrics.csv"))
        return {path.parent.name: rows(path, ["step"], SECONDS) for path in paths}

    return read


def weights(results: Path) -> Any:
    """Return the number of parameters and the norm of all weights, per trained network."""
    paths = [*sorted((results / "models").glob("*/*.safetensors")), results / "features/extractor.safetensors"]
    summary = {}
    for path in paths:
        tensors = [np.asarray(tensor, np.float64).ravel() for tensor in load_file(path).values()]
        summary[f"{path.parent.name}/{path.stem}"] = {
            "num_numbers": int(sum(map(len, tensors))),
            "norm": math.sqrt(sum(float(tensor @ tensor) for tensor in tensors)),
        }
    return summary


def samples(results: Path) -> Any:
    """Return the statistics of the first two sampled volumes of every set of prompts."""
    return {
        f"{method.name}/{prompt_set.name}": {
            path.name: sampled_volume(path) for path in islice(folders(prompt_set / "0"), 2)
        }
        for method in folders(results / "samples")
        for prompt_set in folders(method)
    }


def features(results: Path) -> Any:
    """Return the statistics of the features of the real and of the sampled volumes."""
    summary = {}
    for path in sorted((results / "features").rglob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        summary[str(path.relative_to(results / "features").with_suffix(""))] = {
            name: {"shape": list(array.shape), **statistics(array)} if array.dtype.kind == "f" else array.tolist()
            for name, array in arrays.items()
        }
    return summary


def measures(results: Path) -> Any:
    """Return the measures of every sampled volume, and its warnings without their numbers."""
    root = results / "measures"
    tables = {
        str(path.relative_to(root).with_suffix("")): rows(path, ["subject_id"])
        for path in sorted(root.rglob("*.csv"))
        if path.parent.name != "real"
    }
    for row in (row for table in tables.values() for row in table.values()):
        row["warnings"] = re.sub(r"-?\d[\d.]*", "#", row["warnings"])
    return tables


def classifiers(results: Path) -> Any:
    """Return the scores of every fold of the classifiers."""
    return {path.stem: rows(path, ["method", "fold"]) for path in sorted((results / "classify").glob("*.csv"))}


def figure(name: str) -> Callable[[Path], Any]:
    """Return a reader of one figure: its size in pixels and its coarse brightness, 0 to 1."""

    def read(results: Path) -> Any:
        picture = pictures.imread(results / f"eval/figures/{name}.png")
        return {"size": list(picture.shape[:2]), "coarse": blocks(picture[..., :3].mean(-1), 6, 3)}

    return read


def table(path: str, *key: str, leave_out: Sequence[str] = ()) -> Callable[[Path], Any]:
    """Return a reader of the table `path` in the results folder, its rows named by the columns `key`."""
    return lambda results: rows(results / path, key, leave_out)


EXACT = Tolerance()
GRIDS = Tolerance(absolute=8, columns={"/weighted": (0, 2000), "/geometry/.*_mm": (1e-6, 0), "/coarse": (0, 0.003)})
"""8 HU or voxels in all; 251 times as much where a voxel counts up to 251 times; 8 HU of the 4096 voxels of a block."""
MEASURED = Tolerance(relative=1e-4, absolute=1e-4)
LOSS = Tolerance(relative=1e-3)
TRAINED = Tolerance(
    relative=2e-2,
    absolute=1e-4,
    columns={
        "airway_volume_mm3": (0.25, 4000),
        "airway_volume_ml": (0.25, 4),
        "(super_resolution.*_(dice|found) |^/prompts .*)/": (0.0, 0.1),
        "text_share": (0.0, 0.01),
        "(p_value|p_paired)$": (0.0, 0.1),
        "effect_size": (0.1, 0.25),
        "(training_eflop|num_parameters)$": (1e-9, 0),
    },
)
"""Twice what moves at the most between AVX2 with one thread and SSE2 with two: 0.5% in most columns. In the volumes of
networks that had no time to learn, an airway is found or not, and two pairs make an effect size: those move more.
"""

SET: dict[str, tuple[Callable[[Path], Any], Tolerance]] = {
    "cohort": (cohort, EXACT),
    "labels": (labels, EXACT),
    "prompts": (prompts, EXACT),
    "preprocessed": (preprocessed, GRIDS),
    "masks": (masks, GRIDS),
    "mask_scores": (table("qc/masks.csv", "subject_id"), MEASURED),
    "alignment": (table("qc/alignment.csv", "finding"), MEASURED),
    "real_measures": (table("measures/real/0.csv", "subject_id"), MEASURED),
    "embeddings": (embeddings, TRAINED),
    "low_res_loss": (loss_curves("low_res"), LOSS),
    "super_res_loss": (loss_curves("super_res"), LOSS),
    "weights": (weights, LOSS),
    "samples": (samples, TRAINED),
    "features": (features, TRAINED),
    "sample_measures": (measures, TRAINED),
    "classifiers": (classifiers, TRAINED),
    "segmentation_scores": (table("segmentation_scores.csv", "sample_id"), TRAINED),
    "table1": (table("eval/table1.csv", "method", leave_out=TIMINGS), TRAINED),
    "table2": (table("eval/table2.csv", "prompt_type"), TRAINED),
    "table3": (table("eval/table3.csv", "prompt_type"), TRAINED),
    "table4": (table("eval/table4.csv", "prompt_type"), TRAINED),
    "table5": (table("eval/table5.csv", "text"), TRAINED),
    "table6": (table("eval/table6.csv", "method", "finding"), TRAINED),
    "table7": (table("eval/table7.csv", "language_model", "prompt_type"), TRAINED),
    "recognition": (table("eval/recognition.csv", "item", leave_out=OBSERVED), TRAINED),
    "ranking": (table("eval/ranking.csv", "structure", "method", leave_out=OBSERVED), TRAINED),
    "diagnostics": (table("eval/diagnostics.csv", "part", "network", "quantity", "t"), TRAINED),
    **{name: (figure(name), TRAINED) for name in FIGURES},
}


def stored(name: str) -> Any:
    """Return the golden values of one entry."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def compare(name: str, results: Path) -> list[Moved]:
    """Return every value of one entry of a results folder that is not the golden one, also those within tolerance."""
    summarise, tolerance = SET[name]
    return list(moved(stored(name), json.loads(json.dumps(summarise(results))), tolerance))
