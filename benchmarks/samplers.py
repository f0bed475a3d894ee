"""Table of docs/sampling.md: solver, calls of the network and guidance on a trained run, at low resolution.

    python benchmarks/samplers.py --weights results/models/medsyn --store results/store/* --labels results/labels.csv
        --embeddings results/text/biomedical/embeddings.json --out FOLDER

Every setting samples the same seeds with the texts of the validation volumes. FOLDER/samplers.csv gets a row after each
setting, and the same command goes on where it was stopped. Columns, with 95 % bounds (`*_ci_low`, `*_ci_high`):

error: root mean square difference from the reference, 64 calls of DPM-Solver++(2M) at the same guidance, in [-1, 1].
fid, coverage: to the validation volumes, of `block_features`, which need no trained network; comparable in this table.
area_<finding>: area under the ROC curve of a linear score of `block_features`, fitted to training volumes and their
labels, against the label of the prompt's report.
seconds: of the process's processor time per volume.

The first row holds the validation volumes themselves: the areas that a perfect model would reach. --distilled adds rows
of low-resolution networks of the kind `distilled`, sampled by their own calls. With --super-res N the low resolution is
refined in N calls; seconds, fid and what follows are then those of the refined volumes, which are reduced again to the
low resolution so that rows can be compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsyn.config import DistilledStage
from medsyn.diffusion.base import SOLVERS, Denoiser, Solver
from medsyn.diffusion.sampling import sample, times_until
from medsyn.diffusion.seeds import volume_noise
from medsyn.diffusion.solvers import DDIM
from medsyn.errors import InputError
from medsyn.evaluate.distances import checked_neighbour_measures, frechet_distance, metric_columns
from medsyn.evaluate.inputs import read_labels
from medsyn.evaluate.neighbours import NEIGHBOUR_MEASURES
from medsyn.evaluate.statistics import area_under_roc, area_under_roc_interval
from medsyn.files import read_csv, write_csv
from medsyn.methods.run import Run, open_run, run_files, sampling_with
from medsyn.models.fast.denoiser import prepared_denoiser
from medsyn.models.weights import load, read_stage
from medsyn.training.data import Embeddings, Store, TrainingData, reads_high
from medsyn.training.driver import tiles, write_picture

FINDINGS = ("pleural_effusion", "emphysema", "cardiomegaly")
MOST_TRAINING_VOLUMES = 300
PENALTY = 0.3  # of the linear scores, in units of the number of volumes
REFERENCE_CALLS = 64
NUM_BLOCKS = 4
BATCH = 4
KEYS = ("network", "solver", "calls", "guidance", "super_res")


@dataclass(frozen=True)
class Setting:
    """One row of the table; `super_res` is the number of calls of that network, 0: low resolution alone."""

    network: str  # "teacher", or the file of a distilled one
    solver: str
    calls: int
    guidance: float
    super_res: int = 0

    def key(self) -> tuple[str, ...]:
        """Return what tells its row from others, as a CSV holds it."""
        return tuple(str(getattr(self, name)) for name in KEYS)


def steps_for(solver: Solver, calls: int, end_time: float) -> int | None:
    """Return the fewest steps with which a solver makes so many calls as far as `end_time`, None if none does."""
    return next((n for n in range(1, 4 * calls) if len(times_until(solver.times(n), end_time)) == calls), None)


def block_features(volumes: NDArray) -> NDArray[np.float64]:
    """Return features (n, 2 * 64) of images (n, D, H, W): mean and standard deviation in each of 4 x 4 x 4 blocks."""
    count, *size = volumes.shape
    split = [part for edge in size for part in (NUM_BLOCKS, edge // NUM_BLOCKS)]
    blocks = volumes.reshape(count, *split).transpose(0, 1, 3, 5, 2, 4, 6).reshape(count, NUM_BLOCKS**3, -1)
    return np.concatenate([blocks.mean(axis=2), blocks.std(axis=2)], axis=1).astype(np.float64)


def ridge(features: NDArray, targets: NDArray) -> NDArray[np.float64]:
    """Return the weights (F, K) of a ridge regression of targets (n, K) on features (n, F), both with mean 0."""
    count, width = features.shape
    weights: NDArray[np.float64] = np.linalg.solve(
        features.T @ features + PENALTY * count * np.eye(width), features.T @ targets
    )
    return weights


class Validation:
    """The validation volumes of a run, their texts and labels."""

    def __init__(self, args: argparse.Namespace) -> None:
        _, stage = load(run_files(args.weights)["low_res"])
        embeddings = Embeddings(args.embeddings, stage.sections)
        resolution = "high" if reads_high(stage) else "low"
        training, store = (Store(args.store, resolution, split) for split in ("train", "validation"))
        self.data = TrainingData(stage, store, embeddings)
        self.count = min(args.num_volumes, len(store))
        _, by_id = read_labels(args.labels)
        self.labels = [by_id[report] for report in store.report_ids[: self.count]]
        seen = TrainingData(stage, training, embeddings)
        count = min(len(training), MOST_TRAINING_VOLUMES)
        features = block_features(np.stack([seen.clean(index)[0].numpy() for index in range(count)]))
        self.centre, self.spread = features.mean(axis=0), features.std(axis=0) + 1e-6
        truth = np.array([[by_id[name][finding] for finding in FINDINGS] for name in training.report_ids[:count]])
        self.scores = ridge((features - self.centre) / self.spread, truth - truth.mean(axis=0))
        self.texts = torch.stack([self.data.text(index) for index in range(self.count)])
        self.real = np.stack([self.data.clean(index)[0].numpy() for index in range(self.count)])

    def columns(self, images: NDArray) -> dict[str, Any]:
        """Return distances, coverage and areas of sampled images (n, D, H, W) in [-1, 1]."""
        real, made = block_features(self.real), block_features(images)
        row: dict[str, Any] = dict(metric_columns(("fid",), frechet_distance, real, made, 0)[0])
        neighbours, _ = metric_columns(NEIGHBOUR_MEASURES, checked_neighbour_measures, real, made, 0)
        row |= {name: value for name, value in neighbours.items() if name.startswith("coverage")}
        scores = (made - self.centre) / self.spread @ self.scores
        for place, finding in enumerate(FINDINGS):
            truth = [labels[finding] for labels in self.labels]
            area = area_under_roc(scores[:, place], truth)
            if area is not None:
                low, high = area_under_roc_interval(area, sum(truth), len(truth) - sum(truth))
                row |= {f"area_{finding}": area, f"area_{finding}_ci_low": low, f"area_{finding}_ci_high": high}
        return {name: float(f"{value:.4g}") for name, value in row.items()}


class Sampler:
    """Samples every setting with the same noise and texts."""

    def __init__(self, run: Run, validation: Validation, out: Path) -> None:
        self.run, self.validation, self.out = run, validation, out
        self.channels, self.end = len(run.channels), run.settings.sampling.end_time_low_res
        self.noise = volume_noise(range(validation.count), (self.channels, *validation.data.size), "low_res")

    def volumes(self, setting: Setting) -> tuple[NDArray, float | None]:
        """Return low-resolution volumes (n, C, D, H, W), sampled or kept from before, and seconds per new volume."""
        kept = self.out / "volumes" / ("_".join([Path(setting.network).stem, *setting.key()[1:4]]) + ".npy")
        if kept.exists():
            return np.load(kept).astype(np.float32), None
        began = time.process_time()
        draw_part = self._sample if setting.solver != "distilled" else self._sample_distilled
        parts = [draw_part(setting, slice(i, i + BATCH)) for i in range(0, self.validation.count, BATCH)]
        made = torch.cat(parts).numpy()
        seconds = (time.process_time() - began) / len(made)
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, made.astype(np.float16))
        return made, seconds

    @torch.no_grad()
    def _sample(self, setting: Setting, part: slice) -> Tensor:
        solver = SOLVERS[setting.solver]
        steps = steps_for(solver, setting.calls, self.end)
        assert steps is not None
        denoiser: Denoiser = prepared_denoiser(
            self.run.low_res, text=self.validation.texts[part], guidance_scale=setting.guidance
        )
        return sample(solver, denoiser, self.noise[part], steps, end_time=self.end)

    @torch.no_grad()
    def _sample_distilled(self, setting: Setting, part: slice) -> Tensor:
        network, stage = load(setting.network)
        assert isinstance(stage, DistilledStage)
        denoiser: Denoiser = prepared_denoiser(network, text=self.validation.texts[part])
        return sample(DDIM, denoiser, self.noise[part], setting.calls, times=stage.distillation.times)

    def refined(self, low: NDArray, calls: int) -> tuple[NDArray, float]:
        """Return refined images, reduced again (n, D, H, W), and seconds per volume."""
        sampling = self.run.settings.sampling
        steps = steps_for(SOLVERS[sampling.solver], calls, sampling.end_time_super_res)
        if steps is None:
            raise InputError(f"--super-res {calls}: {sampling.solver} cannot make so many calls; name another number")
        sampling.num_steps_super_res = steps
        began = time.process_time()
        volumes = [self.run.super_resolve(torch.from_numpy(low[i : i + 1]), [i]) for i in range(len(low))]
        seconds = (time.process_time() - began) / len(low)
        return np.concatenate([self.run.low_resolution.reduce(torch.from_numpy(v))[:, 0] for v in volumes]), seconds


def settings_of(args: argparse.Namespace, end_time: float) -> Iterator[Setting]:
    """Yield the settings: distilled networks, then for each guidance the reference and every solver and calls."""
    for path in args.distilled:
        stage = read_stage(path)
        if not isinstance(stage, DistilledStage):
            raise InputError(f"{path}: was not distilled, expected a network of kind distilled; leave it out")
        yield Setting(str(path), "distilled", len(stage.distillation.times), stage.distillation.guidance_scale)
    for guidance in args.guidance:
        yield Setting("teacher", "dpmpp_2m", REFERENCE_CALLS, guidance)
        for calls in args.calls:
            for solver in args.solvers:
                if steps_for(SOLVERS[solver], calls, end_time) is not None:
                    for super_res in (0, *args.super_res):
                        yield Setting("teacher", solver, calls, guidance, super_res)


def row_of(sampler: Sampler, setting: Setting) -> dict[str, Any]:
    """Return the row of a setting."""
    reference, _ = sampler.volumes(Setting("teacher", "dpmpp_2m", REFERENCE_CALLS, setting.guidance))
    low, seconds = sampler.volumes(setting)
    row: dict[str, Any] = dict(zip(KEYS, setting.key(), strict=True))
    row |= {"n": len(low), "seconds": None if seconds is None else float(f"{seconds:.3g}")}
    row["error"] = float(f"{np.sqrt(np.square(low - reference).mean()):.4g}")
    images = low[:, 0]
    if setting.super_res:
        images, seconds = sampler.refined(low, setting.super_res)
        row["seconds"] = float(f"{seconds:.3g}")
    return row | sampler.validation.columns(images)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table with the columns of all rows."""
    write_csv(path, rows, list(dict.fromkeys(name for row in rows for name in row)))


def draw(sampler: Sampler, settings: Sequence[Setting], path: Path, num_volumes: int = 4) -> None:
    """Write a PNG: one row per setting, middle coronal slices of the first volumes, superior up."""
    rows = []
    for setting in settings:
        volumes = sampler.volumes(setting)[0][:num_volumes, 0]
        rows.append(tiles([volume[::-1, volume.shape[1] // 2] for volume in volumes]))
    write_picture(path, np.concatenate(rows))


def main() -> None:
    """Fill in what the table lacks, then draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="run.json, or the folder that holds it")
    parser.add_argument("--store", type=Path, nargs="+", required=True, help="shard folders of the training store")
    parser.add_argument("--embeddings", type=Path, required=True, help="text embeddings of the run's encoder")
    parser.add_argument("--labels", type=Path, required=True, help="labels of the reports")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-volumes", type=int, default=72, help="validation volumes, and samples per setting")
    parser.add_argument("--calls", type=int, nargs="+", default=[2, 4, 8, 16, 32], help="of the low-resolution network")
    parser.add_argument("--solvers", nargs="+", default=["ddim", "dpmpp_2m", "unipc"])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 3.5])
    parser.add_argument("--distilled", type=Path, nargs="*", default=[], help="files of distilled low-res networks")
    parser.add_argument("--super-res", type=int, nargs="*", default=[], help="calls of super-resolution")
    args = parser.parse_args()
    run = open_run(args.weights, sampling_with(args.weights, None))
    validation = Validation(args)
    sampler = Sampler(run, validation, args.out)
    path = args.out / "samplers.csv"
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = list(read_csv(path)) if path.exists() else []
    if not rows:
        rows.append({"network": "real", "n": validation.count, **validation.columns(validation.real)})
    done = {tuple(row[name] for name in KEYS) for row in rows[1:]}
    settings = list(settings_of(args, sampler.end))
    for setting in settings:
        if setting.key() not in done:
            rows.append(row_of(sampler, setting))
            done.add(setting.key())
            write_rows(path, rows)
            print(rows[-1], flush=True)
    draw(sampler, [s for s in settings if s.guidance == args.guidance[0]], args.out / "samplers.png")


if __name__ == "__main__":
    main()
