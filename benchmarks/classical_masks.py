"""The classical masks against real anatomies that are rendered to HU: Dice, leak and time of each.

Run:  OMP_NUM_THREADS=1 python benchmarks/classical_masks.py --data FOLDER [--out table.csv] [--pictures DIR]

FOLDER holds anatomy/<patient>/{pleuralBoundary,vessels,bronchialTree}.nii.gz (LIDC-IDRI scans segmented by Med-MPD) and
may hold ct/chest*.nii.gz, real scans without truth. Leak is the share of the lung that is labelled airway; without
truth it is the whole airway's share of lungs and airway. Exits 1 when a goal is missed.

`render` makes a CT of an anatomy: soft tissue 40 HU, 15 mm of it around the hull of the lungs, air outside; lung
-850 HU; vessels 40 (no contrast agent); the airway's lumen -980 in a wall of 1.2 mm, of 0.7 mm where the lumen is
narrower than 3.6 mm (HRCT of healthy people: 0.44 mm at 3.2 mm, doi:10.1186/s12890-017-0363-0). Every voxel is the mean
over its own width behind a point spread of 1.2 mm FWHM, with white noise of 25 HU (standard deviation). Voxels measure
1.14 x 1.23 x 1.23 mm, as 256^3 of them fill 292 x 316 x 316 mm; there are as many as the anatomy needs, since the
widest of the three does not fit into 316 mm. Seconds are CPU time on one core, brought to 256^3 voxels.
A voxel is true where more than half of it lies in the structure. Scored is the whole volume: a vessel found outside the
pleural boundary is wrong. The vessels end, as in the anatomies, at the pleural boundary in the hilum, and cavities
inside of them, left by their segmentation, are filled. The rendering has no fissures, no disease and even vessels, and
nothing finer than the trees of the anatomies, so it flatters thresholds.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage, sparse
from skimage.morphology import convex_hull_image

from medsyn.config import MasksConfig
from medsyn.ct.preview import combine, three_views, write_png
from medsyn.files import write_csv
from medsyn.masks.labels import dice
from medsyn.masks.morphology import Spacing, dilate, open_
from medsyn.masks.segment import segment
from medsyn.orientation import reorient
from medsyn.volume import Volume, read_volume

AIR_HU, TISSUE_HU, LUNG_HU, LUMEN_HU = -1000.0, 40.0, -850.0, -980.0
CHEST_WALL_MM, FWHM_MM, NOISE_HU = 15.0, 1.2, 25.0
WALL_MM, THIN_WALL_MM, WIDE_MM = 1.2, 0.7, 1.8
"""Airway's wall where a ball of WIDE_MM radius fits into the lumen, and elsewhere."""
VOXEL_MM: Spacing = (292 / 256, 316 / 256, 316 / 256)
FILES = {"lungs": "pleuralBoundary", "vessels": "vessels", "airway": "bronchialTree"}
GOALS = {"lungs": 0.985, "vessels": 0.88, "airway": 0.82}
"""Lowest Dice."""
LEAK_PERCENT, SECONDS = 2.0, 30.0
"""Largest share of the lung that is labelled airway; longest CPU time of the whole tool for 256^3 voxels."""
COLUMNS = ("case", "grid", "structure", "dice", "precision", "recall", "ml", "truth_ml", "leak_percent", "seconds")


@dataclass(frozen=True)
class Rendered:
    """A CT in HU in model orientation and its true masks (bool, same grid)."""

    volume: Volume
    truth: dict[str, NDArray[np.bool_]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", type=Path, help="CSV file")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each case")
    args = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    rows: list[dict[str, object]] = []
    print(" | ".join(COLUMNS))
    for folder in sorted((args.data / "anatomy").iterdir()):
        rendered = render(folder)
        rows += score(folder.name, rendered.volume, rendered.truth, args.pictures)
    for path in sorted((args.data / "ct").glob("chest*.nii.gz")):
        rows += score(path.name.removesuffix(".nii.gz"), reorient(read_volume(path)), {}, args.pictures)
    if args.out:
        write_csv(args.out, rows, COLUMNS)
    faults = missed(rows)
    print("\n".join(faults) or "every goal is met")
    return 1 if faults else 0


def render(folder: Path, seed: int = 0) -> Rendered:
    """The anatomy in `folder` as a CT."""
    fine = {name: reorient(read_volume(folder / f"{file}.nii.gz")) for name, file in FILES.items()}
    spacing_mm = fine["lungs"].spacing_mm
    masks = {name: volume.array > 0 for name, volume in fine.items()}
    masks["vessels"] = _without_cavities(masks["vessels"])
    room = _box(masks["airway"], 6)
    lung = masks["lungs"] & ~masks["vessels"]
    lung[room] &= ~_with_wall(masks["airway"][room], spacing_mm)
    masks["lungs"] &= ~masks["airway"]

    sharp = [_weights(count, step, new, 0.0) for count, step, new in _axes(lung.shape, spacing_mm)]
    blurred = [_weights(count, step, new, FWHM_MM / 2.355) for count, step, new in _axes(lung.shape, spacing_mm)]
    truth = {name: _resampled(mask, sharp) > 0.5 for name, mask in masks.items()}
    silhouette = (truth["lungs"] | truth["airway"]).any(0)
    body = ndimage.distance_transform_edt(~convex_hull_image(silhouette), sampling=VOXEL_MM[1:]) < CHEST_WALL_MM
    hu = np.where(body, np.float32(TISSUE_HU), np.float32(AIR_HU))[None]
    hu = hu + (LUNG_HU - TISSUE_HU) * _resampled(lung, blurred)
    hu += (LUMEN_HU - TISSUE_HU) * _resampled(masks["airway"], blurred)
    hu += np.random.default_rng(seed).standard_normal(hu.shape, np.float32) * np.float32(NOISE_HU)
    return Rendered(Volume(np.rint(hu).clip(-1024, 3071).astype(np.int16), VOXEL_MM), truth)


def _without_cavities(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without closed cavities of axial slices up to 3 x 3 pixels."""
    out = mask.copy()
    for z in np.flatnonzero(mask.any((1, 2))):
        box = _box(mask[z], 2)
        closed = ndimage.binary_closing(mask[z][box], np.ones((3, 3)))
        out[z][box] |= closed & ndimage.binary_fill_holes(mask[z][box])
    return out


def _with_wall(lumen: NDArray[np.bool_], spacing_mm: Spacing) -> NDArray[np.bool_]:
    """The airway's lumen and its wall."""
    wide = open_(lumen, WIDE_MM, spacing_mm)
    return dilate(lumen, THIN_WALL_MM, spacing_mm) | dilate(wide, WALL_MM, spacing_mm)


def _box(mask: NDArray[np.bool_], margin: int) -> tuple[slice, ...]:
    axes = range(mask.ndim)
    ends = [np.flatnonzero(mask.any(tuple(set(axes) - {axis})))[[0, -1]] for axis in axes]
    return tuple(slice(max(int(a) - margin, 0), int(b) + margin + 1) for a, b in ends)


def _axes(shape: tuple[int, ...], spacing_mm: Spacing) -> list[tuple[int, float, float]]:
    return list(zip(shape, spacing_mm, VOXEL_MM, strict=True))


def _weights(count: int, step: float, new: float, sigma: float) -> sparse.csr_array:
    """Matrix (new voxels, voxels) along one axis: mean over a voxel's width behind a Gaussian point spread of `sigma`.

    The new axis is centred on the old one and longer by the chest wall and 5 mm of air on both sides.
    """
    length = int(np.ceil((count * step + 2 * (CHEST_WALL_MM + 5)) / new))
    centres = (np.arange(length) - (length - 1) / 2) * new
    at = np.linspace(-0.5, 0.5, 24, endpoint=False) + 0.5 / 24
    spread = np.exp(-0.5 * (np.arange(-3, 3.1, 0.25)) ** 2) if sigma else np.ones(1)
    offsets = np.add.outer(np.arange(-3, 3.1, 0.25) * sigma if sigma else np.zeros(1), at * new).ravel()
    parts = np.repeat(spread / spread.sum() / len(at), len(at))
    index = np.floor((centres[:, None] + offsets) / step + count / 2).astype(int)
    row = np.repeat(np.arange(length), len(offsets))
    inside = ((index >= 0) & (index < count)).ravel()
    values = np.tile(parts, length)[inside].astype(np.float32)
    return sparse.coo_array((values, (row[inside], index.ravel()[inside])), (length, count)).tocsr()


def _resampled(mask: NDArray[np.bool_], weights: list[sparse.csr_array]) -> NDArray[np.float32]:
    """Share of the mask in every voxel of the new grid, axis after axis."""
    box = _box(mask, 0)
    array = mask[box].astype(np.float32)
    for matrix, part in zip(weights, box, strict=True):
        flat = matrix[:, part] @ array.reshape(array.shape[0], -1)
        array = np.moveaxis(flat.reshape(-1, *array.shape[1:]), 0, -1)
        array = np.ascontiguousarray(array)
    return array


def score(
    name: str, volume: Volume, truth: dict[str, NDArray[np.bool_]], pictures: Path | None = None
) -> list[dict[str, object]]:
    """Rows of the table, one for each structure; without truth only volume, leak and time."""
    started = time.process_time()
    labels = segment(volume, MasksConfig(), name=name).labels
    seconds = (time.process_time() - started) * 256**3 / volume.array.size
    found = {"lungs": labels["lobes"].array > 0} | {key: labels[key].array > 0 for key in ("vessels", "airway")}
    lungs = truth.get("lungs", found["lungs"] | found["airway"])
    rows: list[dict[str, object]] = []
    for key, mask in found.items():
        row: dict[str, object] = dict.fromkeys(COLUMNS)
        row |= {"case": name, "grid": "x".join(map(str, mask.shape)), "structure": key, "seconds": round(seconds, 1)}
        row["ml"] = round(float(mask.sum()) * volume.voxel_mm3 / 1000, 1)
        if key == "airway":
            row["leak_percent"] = round(100 * float((mask & lungs).sum() / lungs.sum()), 2)
        if key in truth:
            common = float((mask & truth[key]).sum())
            row["dice"] = round(dice(mask, truth[key]) or 0.0, 4)
            row |= {"precision": round(common / mask.sum(), 3), "recall": round(common / truth[key].sum(), 3)}
            row["truth_ml"] = round(float(truth[key].sum()) * volume.voxel_mm3 / 1000, 1)
        print(" | ".join("" if row[column] is None else str(row[column]) for column in COLUMNS), flush=True)
        rows.append(row)
    if pictures is not None:
        painted = combine({key: label.array for key, label in labels.items()})
        write_png(pictures / f"{name}.png", three_views(volume, painted, 512))
    return rows


def missed(rows: list[dict[str, object]]) -> list[str]:
    """The goals that a table misses, one line each."""
    faults = []
    for row in rows:
        where = f"{row['case']} {row['structure']}"
        if row["dice"] is not None and float(str(row["dice"])) < GOALS[str(row["structure"])]:
            faults.append(f"{where}: Dice {row['dice']}, goal {GOALS[str(row['structure'])]}")
        if row["leak_percent"] is not None and float(str(row["leak_percent"])) > LEAK_PERCENT:
            faults.append(f"{where}: {row['leak_percent']} % of the lung, at most {LEAK_PERCENT}")
        if float(str(row["seconds"])) > SECONDS:
            faults.append(f"{where}: {row['seconds']} s for 256^3 voxels, at most {SECONDS}")
    return faults


if __name__ == "__main__":
    sys.exit(main())
