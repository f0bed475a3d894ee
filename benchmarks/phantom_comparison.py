"""Pictures and table of docs/phantom.md: phantoms beside a real CT and beside three real lung anatomies.

    python benchmarks/phantom_comparison.py --data FOLDER --out docs/images

Needs a folder with a real chest CT in ct/ and real anatomies in anatomy/; see docs/phantom.md for their sources.
Arrays are (z, y, x) in model orientation (inferior-superior, posterior-anterior, right-left), spacing in mm.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.config import PreprocessConfig
from medsyn.ct.preprocess import preprocess
from medsyn.ct.reading import read_ct
from medsyn.files import write_csv
from medsyn.masks.lungs import segment_lungs
from medsyn.phantom.findings import FindingSpec
from medsyn.phantom.grid import FIELD_OF_VIEW_MM
from medsyn.phantom.subject import RenderedSubject, render_subject
from medsyn.volume import MODEL_DIRECTION, Volume, centred_origin_mm, from_sitk, grid_spacing_mm

LUNG, SOFT, EMPHYSEMA = (-1350, 150), (-160, 240), (-1050, -650)
SEED = 2024
EXAMPLES = {
    "normal": (),
    "effusion, 900 ml left": (FindingSpec("pleural_effusion", 0.58, 900.0, "left"),),
    "emphysema, 35 % below -950 HU": (FindingSpec("emphysema", 0.57, 35.0),),
    "cardiomegaly, CTR 0.62": (FindingSpec("cardiomegaly", 0.62, 0.62),),
    "consolidation, 220 ml right lower lobe": (FindingSpec("consolidation", 0.45, 220.0, "right", "right_lower"),),
    "ground glass, 350 ml left upper lobe": (FindingSpec("ground_glass_opacity", 0.45, 350.0, "left", "left_upper"),),
    "nodule, 24 mm right upper lobe": (FindingSpec("nodule", 0.75, 24.0, "right", "right_upper"),),
}


def main() -> None:
    """Make every picture and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ct/ and anatomy/")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--size", type=int, default=256, help="voxels along each axis of the pictured phantoms")
    parser.add_argument("--count", type=int, default=20, help="phantoms in the table")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    normal = render_subject(SEED, 1, args.size, ())
    beside_real(normal, real_ct(args.data / "ct" / "chest_real_5mm.nii.gz"), args.out / "phantom_vs_real.png")
    examples(min(args.size, 192), args.out / "phantom_findings.png")
    trees(normal, args.data / "anatomy", args.out / "phantom_trees.png")
    sizes(args.out / "phantom_sizes.png", normal)
    table(args.count, args.data, args.out / "phantom_table.csv")


def real_ct(path: Path) -> Volume:
    """The real CT on a 1.5 mm grid of the phantoms' field of view, centred on the lungs."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkFloat32), "LAS")
    array = sitk.GetArrayFromImage(image)
    parts, count = ndimage.label(ndimage.binary_opening(array < -500, iterations=2))
    outside = set(np.unique(np.concatenate([parts[:, i, :].ravel() for i in (0, -1)])))
    outside |= set(np.unique(np.concatenate([parts[:, :, i].ravel() for i in (0, -1)])))
    volumes = [(parts == label).sum() if label not in outside else 0 for label in range(1, count + 1)]
    lungs = np.argwhere(np.isin(parts, 1 + np.argsort(volumes)[-2:]))
    index = [float(v) for v in ((lungs.min(0) + lungs.max(0)) / 2)[::-1]]
    centre = image.TransformContinuousIndexToPhysicalPoint(index)
    size = tuple(round(extent / 1.5) for extent in FIELD_OF_VIEW_MM)
    spacing = grid_spacing_mm(size, FIELD_OF_VIEW_MM)
    origin = centred_origin_mm(size, spacing, centre)
    grid = sitk.ResampleImageFilter()
    grid.SetSize([int(n) for n in reversed(size)])
    grid.SetOutputSpacing([float(v) for v in reversed(spacing)])
    grid.SetOutputOrigin(origin)
    grid.SetOutputDirection(MODEL_DIRECTION)
    grid.SetDefaultPixelValue(-1024)
    return from_sitk(grid.Execute(image))


def show(axis: plt.Axes, plane: NDArray, spacing: tuple[float, float], window: tuple[float, float]) -> None:
    """One plane, rows upwards, patient's right on the left of the picture, as radiologists look at it."""
    axis.imshow(plane, origin="lower", cmap="gray", vmin=window[0], vmax=window[1], aspect=spacing[0] / spacing[1])
    axis.set_axis_off()


def planes(volume: Volume, depth: tuple[float, float, float]) -> list[tuple[NDArray, tuple[float, float]]]:
    """Axial, coronal and sagittal plane at fractions (z, y, x), with row and column spacing."""
    z, y, x = (int(n * d) for n, d in zip(volume.array.shape, depth, strict=True))
    sz, sy, sx = volume.spacing_mm
    # anterior at the top of an axial picture, at the left of a sagittal one
    return [
        (volume.array[z], (sy, sx)),
        (volume.array[:, y], (sz, sx)),
        (volume.array[:, ::-1, x], (sz, sy)),
    ]


def beside_real(phantom: RenderedSubject, real: Volume, path: Path) -> None:
    """Phantom (left three) and real CT (right three) at three levels in lung and soft window."""
    figure, axes = plt.subplots(4, 6, figsize=(18, 11.6), facecolor="black")
    levels = ((0.62, 0.46, 0.30), (0.42, 0.60, 0.70))
    for row, level in enumerate(levels):
        for half, volume in enumerate((phantom.volume, real)):
            for column, (plane, spacing) in enumerate(planes(volume, level)):
                show(axes[2 * row, 3 * half + column], plane, spacing, LUNG)
                show(axes[2 * row + 1, 3 * half + column], plane, spacing, SOFT)
    axes[0, 1].set_title("phantom", color="white", fontsize=16)
    axes[0, 4].set_title("real CT (5 mm slices)", color="white", fontsize=16)
    save(figure, path)


def examples(size: int, path: Path) -> None:
    """Every finding in the same person: axial and coronal."""
    normal = render_subject(SEED, 1, size, ())
    figure, axes = plt.subplots(2, len(EXAMPLES), figsize=(3.1 * len(EXAMPLES), 6.4), facecolor="black")
    for column, (name, specs) in enumerate(EXAMPLES.items()):
        subject = render_subject(SEED, 1, size, specs) if specs else normal
        soft, dark = name.startswith(("effusion", "cardiomegaly")), name.startswith("emphysema")
        window = SOFT if soft else EMPHYSEMA if dark else LUNG
        z, y = _where(subject, normal, name)
        array, (sz, sy, sx) = subject.volume.array, subject.volume.spacing_mm
        show(axes[0, column], array[z], (sy, sx), window)
        show(axes[1, column], array[:, y], (sz, sx), window)
        axes[0, column].set_title(name, color="white", fontsize=9)
    save(figure, path)


def _where(subject: RenderedSubject, normal: RenderedSubject, name: str) -> tuple[int, int]:
    """Axial and coronal index at which the finding is seen best."""
    if name == "normal":
        return int(0.5 * normal.volume.array.shape[0]), int(0.5 * normal.volume.array.shape[1])
    change = np.abs(subject.volume.array.astype(np.float32) - normal.volume.array) > 120
    if name.startswith("emphysema"):
        change = (subject.volume.array < -950) & (subject.masks["lobes"] > 0)
    if "CTR" in name:
        change = (subject.masks["heart"] > 0) & (normal.masks["heart"] == 0)
    return int(change.sum((1, 2)).argmax()), int(change.sum((0, 2)).argmax())


def trees(phantom: RenderedSubject, anatomy: Path, path: Path) -> None:
    """Airways and vessels of the phantom and of the real anatomies, projected from the front."""
    figure, axes = plt.subplots(2, 4, figsize=(16, 8), facecolor="black")
    columns = [("phantom", phantom.masks["airway"], phantom.masks["vessels"], phantom.volume.spacing_mm)]
    for folder in sorted(anatomy.iterdir()):
        airway, vessels = (real_mask(folder / f"{name}.nii.gz") for name in ("bronchialTree", "vessels"))
        columns.append((f"real, {folder.name}", airway.array, vessels.array, airway.spacing_mm))
    for column, (name, airway, vessels, spacing) in enumerate(columns):
        for row, mask in enumerate((airway, vessels)):
            thickness = mask.sum(1, dtype=np.float32) * spacing[1]
            show(axes[row, column], np.sqrt(thickness), (spacing[0], spacing[2]), (0, 5.0 if row == 0 else 4.0))
        axes[0, column].set_title(name, color="white", fontsize=14)
    save(figure, path)


def real_mask(path: Path) -> Volume:
    """A real mask in model orientation."""
    return from_sitk(sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkUInt8), "LAS"))


def sizes(path: Path, fine: RenderedSubject) -> None:
    """The same person at 64^3 and at the fine size."""
    coarse = render_subject(SEED, 1, 64, ())
    figure, axes = plt.subplots(1, 4, figsize=(16, 4), facecolor="black")
    for half, volume in enumerate((coarse.volume, fine.volume)):
        for column, (plane, spacing) in enumerate(planes(volume, (0.5, 0.5, 0.3))[:2]):
            show(axes[2 * half + column], plane, spacing, LUNG)
        axes[2 * half].set_title(f"{volume.array.shape[0]}^3", color="white", fontsize=14)
    save(figure, path)


def lung_values(volume: Volume, lung: NDArray[np.bool_]) -> dict[str, float]:
    """Median and spread of the HU inside the lungs, 10 mm off their border, share of vessels, and the local spread."""
    inner = ndimage.binary_erosion(lung, iterations=round(10 / volume.spacing_mm[1]))
    hu = volume.array.astype(np.float32)
    square = ndimage.uniform_filter(hu * hu, 3) - ndimage.uniform_filter(hu, 3) ** 2
    values = hu[inner]
    return {
        "lung_median_hu": float(np.median(values)),
        "lung_sd_hu": float(values.std()),
        "above_-700_percent": 100 * float((values > -700).mean()),
        "local_sd_hu": float(np.sqrt(np.median(square[inner]))),
    }


def real_on_grid(path: Path) -> dict[str, float]:
    """`lung_values` of the real CT, brought to the phantoms' grid of 128^3 as the package brings its scans."""
    volume = preprocess(read_ct(path), PreprocessConfig(size=(128, 128, 128))).volume
    return lung_values(volume, segment_lungs(volume.array, volume.spacing_mm).mask)


def table(count: int, data: Path, path: Path) -> None:
    """Means of normal phantoms at 128^3 and values of the real CT and anatomies, as CSV and on the terminal."""
    rows = []
    for index in range(count):
        subject = render_subject(SEED, index, 128, ())
        truth = subject.truth
        volumes = truth["volumes_ml"]
        lung = volumes["lung"]
        row = {"subject": truth["subject_id"], "lung_l": lung / 1000}
        row |= {f"{name}_percent": 100 * volumes[name] / lung for name in list(volumes)[:5]}
        row |= {"airway_ml": volumes["airway"], "vessel_percent": 100 * volumes["vessels"] / lung}
        row |= {"laa950_percent": truth["laa950_percent"], "ctr": truth["cardiothoracic_ratio"]}
        lungs = (subject.masks["lobes"] > 0) | (subject.masks["airway"] > 0)
        rows.append(row | {"heart_ml": volumes["heart"]} | lung_values(subject.volume, lungs))
    columns = list(rows[0])
    rows.append({"subject": "real CT"} | real_on_grid(data / "ct" / "chest_real_5mm.nii.gz"))
    for folder in sorted((data / "anatomy").iterdir()):
        lung, airway, vessels = (
            (lambda v: float(v.array.sum()) * v.voxel_mm3 / 1000)(real_mask(folder / f"{name}.nii.gz"))
            for name in ("pleuralBoundary", "bronchialTree", "vessels")
        )
        rows.append(
            {"subject": folder.name, "lung_l": lung / 1000, "airway_ml": airway, "vessel_percent": 100 * vessels / lung}
        )
    rounded = [{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    write_csv(path, rounded, columns)
    for name in columns[1:]:
        values = np.array([row[name] for row in rows[:count]], float)
        print(f"{name:24s} {values.mean():8.2f} +- {values.std():5.2f}   {values.min():7.2f} to {values.max():7.2f}")


def save(figure: plt.Figure, path: Path) -> None:
    """Write a figure without margins."""
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=70, facecolor=figure.get_facecolor(), metadata={"Software": None})
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
