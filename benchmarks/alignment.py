"""Atlas alignment by finding and severity: phantoms off the model's grid, with true pleural cavities.

    python benchmarks/alignment.py --work FOLDER --out after.csv [--repeats 10] [--processes 2] [--code OTHER_CHECKOUT]
    python benchmarks/alignment.py --tables before.csv after.csv [--pictures DIR --work FOLDER]

The first call renders every case into FOLDER (kept: a second call renders nothing), preprocesses it with the settings
`alignment: atlas` and writes one row per case as it goes; run again, it continues. --code measures another checkout on
the same scans. The second call prints the table by finding and severity, and writes pictures of the five worst cases.

A scan is a phantom (`medsyn.phantom.extremes`) of 96^3 voxels, scaled by 0.88 to 1.12, turned by up to 5 degrees about
each axis, moved by up to 25 mm and sampled at a spacing of its own (2 to 5 mm along z, 1.6 to 3.2 mm in plane).
Columns: used (atlas, lung_centre or rejected); dice: overlap of the TRUE cavities with the atlas after the transform
found, on the atlas's voxels; ideal_dice: the same after registering the true cavities; shift_mm: mean distance between
both transforms over the atlas's lungs. Exits 1 when a finding and severity misses its goal.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsyn.config import PreprocessConfig
from medsyn.ct.atlas import load_atlas
from medsyn.ct.preprocess import preprocess
from medsyn.ct.register import affine_of, register
from medsyn.errors import InputError
from medsyn.orientation import reorient
from medsyn.volume import MODEL_DIRECTION, Volume, from_sitk, read_volume, to_sitk, write_volume

ROOT = Path(__file__).resolve().parents[1]
SEED, SIZE = 1177, 96
COLUMNS = (
    *("case", "finding", "severity", "side", "used", "reason", "dice", "ideal_dice", "shift_mm", "atlas_dice"),
    "seconds",
)
MINIMUM_SHARE, MAXIMUM_LOSS = 0.95, 0.05
"""Goals: share of scans registered; how much more Dice than in healthy chests may be lost against the ideal."""


@dataclass(frozen=True)
class Case:
    """One scan: what the table calls it, and the arguments of `medsyn.phantom.extremes.render_extreme`."""

    index: int
    finding: str
    severity: str
    side: str
    specs: tuple[tuple[str, float, str, str], ...] = ()
    extremes: tuple[dict[str, object], ...] = ()

    @property
    def name(self) -> str:
        """File name of the scan."""
        return f"{self.index:04d}"


def cases(repeats: int) -> Iterator[Case]:
    """Every finding and severity `repeats` times, each case another person."""
    index = 0
    for repeat in range(repeats):
        for finding, severity, side, specs, extremes in _conditions(repeat):
            yield Case(index, finding, severity, side, specs, extremes)
            index += 1


def _conditions(repeat: int) -> Iterator[tuple[str, str, str, tuple, tuple]]:
    """Finding, severity, side, specs and extremes of one round; sides take turns."""
    side = ("right", "left")[repeat % 2]
    other = "left" if side == "right" else "right"
    lobe = ("right_upper", "left_lower", "right_lower", "left_upper", "right_middle")[repeat % 5]
    yield "healthy", "", "", (), ()
    for amount in (200, 500, 800, 1200):
        sides = ((side,), (other,), (side, other))[repeat % 3]
        name = sides[0] if len(sides) == 1 else "both"
        yield "effusion", f"{amount} ml", name, tuple(("pleural_effusion", amount, s, "") for s in sides), ()
    both = tuple({"kind": "fluid", "side": s, "share": 0.7} for s in (side, other))
    yield "effusion", "70 % of both sides", "both", (), both
    for shift in (0, -25):
        full = ({"kind": "fluid", "side": side, "shift_mm": shift},)
        yield "white-out", "mediastinum pushed 25 mm" if shift else "no shift", side, (), full
    for amount in (150, 400):
        yield "consolidation", f"{amount} ml", "", (("consolidation", amount, "", lobe),), ()
    yield "consolidation", "lobe", lobe, (), ({"kind": "lobe", "side": lobe.split("_")[0], "lobe": lobe},)
    yield "consolidation", "lung", side, (), ({"kind": "consolidation", "side": side},)
    for shift, raised in ((15, 15), (35, 40)):
        removed = ({"kind": "pneumonectomy", "side": side, "shift_mm": shift, "raised_mm": raised},)
        yield "pneumonectomy", f"mediastinum moved {shift} mm", side, (), removed
    for share in (0.4, 0.8):
        bowel = ({"kind": "hernia", "side": side, "share": share, "shift_mm": -15},)
        yield "hernia", f"{share:.0%} of the side", side, (), bowel
    for amount in (15, 50):
        yield "emphysema", f"{amount} %", "", (("emphysema", amount, "", ""),), ()
    for ratio in (0.56, 0.68):
        yield "cardiomegaly", f"ratio {ratio}", "", (("cardiomegaly", ratio, "", ""),), ()
    mixed = (("cardiomegaly", 0.62, "", ""), ("pleural_effusion", 900, side, ""), ("pleural_effusion", 500, other, ""))
    yield "cardiomegaly and effusions", "0.62, 900 and 500 ml", "both", mixed, ()
    mixed = (("emphysema", 35, "", ""), ("pleural_effusion", 900, side, ""))
    yield "emphysema and effusion", "35 %, 900 ml", side, mixed, ()


def main() -> int:
    """Render and measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the scans")
    parser.add_argument("--out", type=Path, help="CSV file, one row per case")
    parser.add_argument("--repeats", type=int, default=10, help="cases of each finding and severity")
    parser.add_argument("--processes", type=int, default=1, help="scans at a time")
    parser.add_argument("--code", type=Path, default=ROOT, help="checkout that preprocesses the scans")
    parser.add_argument("--tables", type=Path, nargs="+", help="CSV files to compare, the last one is judged")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the five worst cases")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is None and (args.pictures or not args.tables):
        parser.error("--work is missing: name the folder of the scans")
    if args.out is None and not args.tables:
        parser.error("--out is missing: name the CSV file for the measurements")
    if args.tables:
        if args.pictures:
            write_pictures(args.tables[-1], args.work, args.pictures)
        return print_table([read_rows(path) for path in args.tables])
    if not args.measure:
        with pool(args.processes) as workers:
            list(workers.map(partial(render, args.work), cases(args.repeats)))
        path = os.pathsep.join([str(args.code.resolve()), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--measure", "--work", str(args.work), "--out", str(args.out)]
        command += ["--repeats", str(args.repeats), "--processes", str(args.processes)]
        return subprocess.run(command, env=environment, check=False).returncode
    with pool(args.processes) as workers:
        measure_all(args.work, args.out, args.repeats, workers)
    return 0


def pool(processes: int) -> ProcessPoolExecutor:
    """Processes of one thread each."""
    return ProcessPoolExecutor(processes, initializer=sitk.ProcessObject.SetGlobalDefaultNumberOfThreads, initargs=(1,))


# --- the scans ---


def render(work: Path, case: Case) -> None:
    """Write scan, true cavities and the ideal transform of a case unless they are there."""
    folder = work / case.name
    if (folder / "case.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    scan, cavities = scan_of(case)
    write_volume(folder / "scan.nii.gz", scan)
    write_volume(folder / "cavities.nii.gz", cavities)
    model = reorient(cavities)
    ideal = register(model.array > 0, model, load_atlas(None), middle_mm(model))
    matrix, offset = affine_of(ideal.transform)
    facts = asdict(case) | {"matrix": matrix.ravel().tolist(), "offset": offset.tolist()}
    (folder / "case.json").write_text(json.dumps(facts), encoding="utf-8")


def scan_of(case: Case) -> tuple[Volume, Volume]:
    """Scan in HU and true cavities of a case, on a scanner's grid: columns to the left, rows to the back."""
    from medsyn.phantom.extremes import Extreme, render_extreme
    from medsyn.phantom.findings import FindingSpec

    specs = [FindingSpec(kind, 1.0, amount, side, lobe) for kind, amount, side, lobe in case.specs]  # type: ignore[arg-type]
    subject = render_extreme(SEED, case.index, SIZE, specs, [Extreme(**e) for e in case.extremes])  # type: ignore[arg-type]
    rng = np.random.default_rng([SEED, case.index, 99])
    size_of_person = rng.uniform(0.9, 1.1)
    scale = size_of_person * rng.uniform(0.975, 1.025, 3)
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), *np.radians(rng.uniform(-5, 5, 3)))
    matrix = np.array(turn.GetMatrix()).reshape(3, 3) @ np.diag(scale)
    place = rng.uniform(-200, 200, 3)
    transform = sitk.AffineTransform(3)  # scanner to phantom
    inverse = np.linalg.inv(matrix)
    transform.SetMatrix(inverse.ravel().tolist())
    transform.SetTranslation((-inverse @ place).tolist())
    spacing = (float(rng.uniform(2, 5)), *[float(rng.uniform(1.6, 3.2))] * 2)
    extent = np.array([330.0, 330.0, 310.0]) * size_of_person
    size = np.ceil(extent / np.array(spacing[::-1])).astype(int)
    grid = sitk.Image(size.tolist(), sitk.sitkUInt8)
    grid.SetSpacing(spacing[::-1])
    direction = np.array(MODEL_DIRECTION).reshape(3, 3) @ np.diag([1, -1, 1])  # LPS, as scanners write
    grid.SetDirection(direction.ravel().tolist())
    middle = place + rng.uniform(-25, 25, 3) * (1, 1, 0.4)
    grid.SetOrigin((middle - direction @ ((size - 1) / 2 * np.array(spacing[::-1]))).tolist())
    images = (to_sitk(subject.volume), to_sitk(subject.volume.with_array(subject.cavities)))
    kinds = ((sitk.sitkLinear, -1000.0), (sitk.sitkNearestNeighbor, 0.0))
    scan, cavities = (
        from_sitk(sitk.Resample(image, grid, transform, kind, fill, image.GetPixelID()))
        for image, (kind, fill) in zip(images, kinds, strict=True)
    )
    return scan, cavities


def middle_mm(mask: Volume) -> NDArray:
    """LPS point in the middle of a mask's bounding box (model orientation)."""
    corners = [np.flatnonzero((mask.array > 0).any(axes)) for axes in ((0, 1), (0, 2), (1, 2))]  # x, y, z
    index = np.array([(c[0] + c[-1]) / 2 for c in corners]) * np.array(mask.spacing_mm[::-1])
    return np.asarray(np.array(mask.origin_mm) + np.array(mask.direction).reshape(3, 3) @ index)


# --- measuring ---


def measure_all(work: Path, out: Path, repeats: int, workers: ProcessPoolExecutor) -> None:
    """Write one row per case to `out`; rows that are there are kept."""
    done = {row["case"] for row in read_rows(out)} if out.exists() else set()
    with out.open("a", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        if not done:
            writer.writeheader()
        for row in workers.map(partial(measure, work), [case for case in cases(repeats) if case.name not in done]):
            writer.writerow(row)
            handle.flush()


def measure(work: Path, case: Case) -> dict[str, object]:
    """Preprocess one scan and compare its true cavities with the atlas."""
    folder = work / case.name
    facts = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    ideal = np.array(facts["matrix"]).reshape(3, 3), np.array(facts["offset"])
    scan, cavities = read_volume(folder / "scan.nii.gz"), read_volume(folder / "cavities.nii.gz")
    atlas = load_atlas(None)
    row: dict[str, object] = dict.fromkeys(COLUMNS, "")
    row |= {"case": case.name, "finding": case.finding, "severity": case.severity, "side": case.side}
    row["ideal_dice"] = round(dice(cavities, atlas, *ideal), 4)
    started = time.process_time()
    try:
        result = preprocess(scan, PreprocessConfig(alignment="atlas"), name=case.name)
    except InputError as error:
        return row | {"used": "rejected", "reason": str(error).split("rejected, ")[-1]}
    row["seconds"] = round(time.process_time() - started, 2)
    found = affine_of(result.transform)
    points = np.argwhere(atlas.array > 0)[::20, ::-1] * np.array(atlas.spacing_mm[::-1])
    points = points @ np.array(atlas.direction).reshape(3, 3).T + np.array(atlas.origin_mm)
    away = points @ (found[0] - ideal[0]).T + found[1] - ideal[1]
    return row | {
        "used": result.qc["alignment_used"],
        "reason": "; ".join(result.qc["registration_faults"]),
        "dice": round(dice(cavities, atlas, *found), 4),
        "shift_mm": round(float(np.linalg.norm(away, axis=1).mean()), 2),
        "atlas_dice": result.qc["atlas_dice"],
    }


def dice(cavities: Volume, atlas: Volume, matrix: NDArray, offset: NDArray) -> float:
    """Overlap of a mask with the atlas after a transform from model space to the scanner's."""
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix.ravel().tolist())
    transform.SetTranslation(offset.tolist())
    share = to_sitk(cavities.with_array((cavities.array > 0).astype(np.float32)))
    here = from_sitk(sitk.Resample(share, to_sitk(atlas), transform, sitk.sitkLinear, 0.0)).array > 0.5
    return float(2 * (here & (atlas.array > 0)).sum() / (here.sum() + (atlas.array > 0).sum()))


# --- the table ---


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def summary(rows: list[dict[str, str]]) -> dict[tuple[str, str], dict[str, float]]:
    """Return counts, and over the accepted scans the mean overlap and the mean and largest shift, by finding and
    severity; NaN where every scan was rejected.
    """
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["finding"], row["severity"]), []).append(row)
    out = {}
    for key, group in groups.items():
        counts = {used: sum(row["used"] == used for row in group) for used in ("atlas", "lung_centre", "rejected")}
        seen = [row for row in group if row["used"] != "rejected"]
        facts = {"n": len(group)} | counts
        for name in ("dice", "ideal_dice", "shift_mm"):
            facts[name] = float(np.mean([float(row[name]) for row in seen])) if seen else float("nan")
        facts["largest_mm"] = max((float(row["shift_mm"]) for row in seen), default=float("nan"))
        out[key] = facts
    return out


def print_table(runs: list[list[dict[str, str]]]) -> int:
    """Print Markdown by finding and severity, one group of columns per run; return 1 if the last run misses a goal."""
    tables = [summary(rows) for rows in runs]
    heads = {1: ["now"], 2: ["before", "now"]}.get(len(runs), [str(i) for i in range(len(runs))])
    names = ("registered / centre / rejected", "Dice", "error, mm: mean, largest")
    columns = " | ".join(f"{head}: {name}" for head in heads for name in names)
    print(f"| finding | severity | n | {columns} | Dice, ideal |")
    print("|" + " --- |" * (4 + len(names) * len(runs)))
    healthy, missed = tables[-1]["healthy", ""], []
    for key, last in tables[-1].items():
        cells = []
        for facts in (table.get(key) for table in tables):
            if facts is None:
                cells += [""] * len(names)
                continue
            cells.append(f"{facts['atlas']} / {facts['lung_centre']} / {facts['rejected']}")
            accepted = facts["n"] > facts["rejected"]
            cells.append(f"{facts['dice']:.3f}" if accepted else "")
            cells.append(f"{facts['shift_mm']:.1f}, {facts['largest_mm']:.1f}" if accepted else "")
        print(f"| {key[0]} | {key[1]} | {last['n']} | " + " | ".join(cells) + f" | {last['ideal_dice']:.3f} |")
        share = last["atlas"] / last["n"]
        loss = (last["ideal_dice"] - last["dice"]) - (healthy["ideal_dice"] - healthy["dice"])
        if share < MINIMUM_SHARE or loss > MAXIMUM_LOSS:
            missed.append(f"{key[0]} {key[1]}: {share:.0%} registered, Dice {loss:.3f} further from ideal than healthy")
    print("\n".join(missed) or "every goal is met", file=sys.stderr)
    return 1 if missed else 0


def write_pictures(table: Path, work: Path, out: Path) -> None:
    """The five cases with the largest error: three views, the atlas green, the true cavities pink."""
    from medsyn.ct.preview import three_views, write_png

    rows = sorted((row for row in read_rows(table) if row["shift_mm"]), key=lambda row: -float(row["shift_mm"]))
    pictures = []
    for row in rows[:5]:
        folder = work / row["case"]
        scan, cavities = read_volume(folder / "scan.nii.gz"), read_volume(folder / "cavities.nii.gz")
        config = PreprocessConfig(alignment="atlas", size=(128, 128, 128))
        result = preprocess(scan, config, name=row["case"])
        pictures.append(three_views(result.volume, outlines(result.volume, result.transform, cavities), height=288))
        print(row["case"], row["finding"], row["severity"], row["side"], row["dice"], row["shift_mm"], file=sys.stderr)
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, 6), (0, width - p.shape[1]), (0, 0))) for p in pictures]
    write_png(out / "alignment_worst.png", np.concatenate(padded))


def outlines(grid: Volume, transform: sitk.Transform, cavities: Volume) -> NDArray[np.uint8]:
    """Outlines of atlas (6) and cavities (7) on the slices that `three_views` shows."""
    from scipy import ndimage

    painted = np.zeros(grid.array.shape, np.uint8)
    identity = sitk.Transform(3, sitk.sitkIdentity)
    for colour, mask, move in ((6, load_atlas(None), identity), (7, cavities, transform)):
        share = to_sitk(mask.with_array((mask.array > 0).astype(np.float32)))
        here = from_sitk(sitk.Resample(share, to_sitk(grid), move, sitk.sitkLinear, 0.0)).array > 0.5
        for axis in range(3):
            plane = np.ones((3, 3, 3), bool)
            plane = np.take(plane, [1], axis)
            painted[here & ~ndimage.binary_erosion(here, plane)] = colour
    return painted


if __name__ == "__main__":
    sys.exit(main())
