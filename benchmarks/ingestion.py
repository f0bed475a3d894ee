"""The must-show cases of ingestion: what is accepted, what is refused and why, and whether copies agree.

    python benchmarks/ingestion.py --data FOLDER --out table.csv

FOLDER holds ct/chest_real_5mm.nii.gz, ct/abdomen_not_a_chest_3mm.nii.gz and a DICOM series (docs/real_ct.md names their
sources). Each case is written as a file and read as a user's would be; copies of the chest are made from every second
row and column of it, to keep the run short. Differences are those of the preprocessed volumes (64^3, atlas alignment)
in the middle of the grid, against the plain chest, in HU. Seconds are CPU seconds of one core. Exits 1 when a verdict
is not the expected one or a copy differs by more than its tolerance.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsyn.config import PreprocessConfig
from medsyn.ct.atlas import load_atlas
from medsyn.ct.preprocess import preprocess
from medsyn.ct.reading import read_ct, read_scan
from medsyn.ct.register import register
from medsyn.errors import InputError
from medsyn.files import write_csv
from medsyn.masks.lungs import segment_lungs
from medsyn.orientation import reorient
from medsyn.volume import Volume, from_sitk, to_sitk, write_volume

REFERENCE_SECONDS = 420.0
"""Seven minutes a scan, what registration at the paper's settings is said to take (its text gives no time)."""
COLUMNS = (
    *("case", "expected", "verdict", "reason", "alignment", "atlas_dice_centred", "atlas_dice"),
    *("mean_abs_diff_hu", "tolerance_hu", "seconds"),
)


@dataclass(frozen=True)
class Case:
    """A file, the verdict it must get and the largest mean difference in the lungs to the plain chest, HU."""

    name: str
    path: Path
    expected: str
    tolerance_hu: float | None = None


def main() -> None:
    """Run every case, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ct/")
    parser.add_argument("--out", type=Path, help="CSV file")
    args = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    atlas = load_atlas(None)
    rows, failed, plain = [], False, None
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(args.data / "ct", Path(folder)):
            row, array = run(case, plain)
            plain = array if plain is None else plain
            difference = row["mean_abs_diff_hu"]
            wrong = row["verdict"] != case.expected
            wrong |= case.tolerance_hu is not None and (difference is None or float(difference) > case.tolerance_hu)
            failed |= wrong
            rows.append(row)
            print(("WRONG " if wrong else "") + " | ".join(str(row[name]) for name in COLUMNS), flush=True)
    time_registration(args.data / "ct/chest_real_5mm.nii.gz", atlas)
    if args.out:
        write_csv(args.out, rows, COLUMNS)
    sys.exit(failed)


def run(case: Case, plain: NDArray | None) -> tuple[dict[str, object], NDArray | None]:
    """One row of the table and the preprocessed array."""
    row: dict[str, object] = dict.fromkeys(COLUMNS)
    row |= {"case": case.name, "expected": case.expected, "tolerance_hu": case.tolerance_hu}
    started, array = time.process_time(), None
    try:
        scan = read_scan(case.path)
        if scan.faults:
            raise InputError(f"{case.path}: rejected, {'; '.join(scan.faults)}")
        result = preprocess(scan.volume, PreprocessConfig(alignment="atlas"), name=str(case.path))
    except InputError as error:
        row |= {"verdict": "rejected", "reason": reason_of(error, case.path)}
    else:
        array = result.volume.array.astype(np.float32)
        row |= {"verdict": "ok", "alignment": result.qc["alignment_used"]}
        row |= {name: result.qc[name] for name in ("atlas_dice_centred", "atlas_dice")}
        if plain is not None:
            row["mean_abs_diff_hu"] = round(float(np.abs(array - plain)[_inside(plain)].mean()), 2)
    row["seconds"] = round(time.process_time() - started, 1)
    return row, array


def reason_of(error: InputError, path: Path) -> str:
    """The message without the file's place."""
    return str(error).removeprefix(f"{path}: ").removeprefix("rejected, ").replace(str(path.parent), "")


def time_registration(path: Path, atlas: Volume) -> None:
    """CPU seconds of the registration alone on one core, lungs given."""
    model = reorient(read_ct(path))
    lungs = segment_lungs(model.array, model.spacing_mm).mask
    middle = np.array(to_sitk(model).TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in lungs.shape[::-1]]))
    started = time.process_time()
    register(lungs, model, atlas, middle)
    seconds = time.process_time() - started
    times = REFERENCE_SECONDS / seconds
    print(f"registration: {seconds:.2f} s, {times:.0f} times less than {REFERENCE_SECONDS:.0f} s")


def cases(data: Path, folder: Path) -> Iterator[Case]:
    """The plain chest first; every other file is made from it or lies beside it."""
    chest = data / "chest_real_5mm.nii.gz"
    volume = read_ct(chest)
    volume = halved(volume)
    yield Case("chest, every second row and column", written(folder, volume), "ok")
    yield Case("chest, all voxels", chest, "ok", 25.0)
    yield Case("abdomen", data / "abdomen_not_a_chest_3mm.nii.gz", "rejected")
    yield Case("DICOM series, 20 slices of the upper abdomen", next(data.glob("dicom*")), "rejected")
    copies = {
        "flipped (RAI)": (reorient(volume, "RAI"), 1.0),
        "axes permuted (SLP)": (reorient(volume, "SLP"), 1.0),
        "oblique, 9 degrees": (oblique(volume), 60.0),
        "without its last ten slices": (Volume(volume.array[:-10], *geometry(volume)), 40.0),
        "air at -970": (volume.with_array(np.rint(volume.array * 0.97).astype(np.int16)), 40.0),
    }
    for name, (copy, tolerance) in copies.items():
        yield Case(name, written(folder, copy), "ok", tolerance)
    array = volume.array.astype(np.int32)
    wrong = {
        "rescaled twice": array - 1024,
        "raw values (no intercept)": array.clip(-1024) + 1024,
        "air at -700": np.rint(array * 0.7).astype(np.int32),
        "scaled to [-1, 1]": (array.clip(-1024, 600) + 212).astype(np.float32) / 812,
        "constant": np.full_like(array, -1000),
        "NaN": np.where(array > 2000, np.nan, array).astype(np.float32),
        "feet called head": array[::-1],
    }
    for name, values in wrong.items():
        yield Case(name, written(folder, volume.with_array(values)), "rejected")
    thick = Volume(volume.array[::3], (15.0, *volume.spacing_mm[1:]), volume.origin_mm, volume.direction)
    yield Case("15 mm slices", written(folder, thick), "rejected")
    yield Case("one slice", written(folder, Volume(volume.array[:1], *geometry(volume))), "rejected")
    four = folder / "four.nii.gz"
    small = to_sitk(Volume(volume.array[::4, ::8, ::8], (20.0, 4.6, 4.6)))
    sitk.WriteImage(sitk.JoinSeries([small, small]), str(four))
    yield Case("4-D", four, "rejected")
    yield from damaged(chest, folder)
    plain = folder / "plain.nii"
    write_volume(plain, volume)
    plain.write_bytes(plain.read_bytes()[: plain.stat().st_size // 2])
    yield Case("truncated .nii", plain, "rejected")


def damaged(chest: Path, folder: Path) -> Iterator[Case]:
    """Files that cannot be read."""
    for name, content in (
        ("truncated file", chest.read_bytes()[: chest.stat().st_size // 2]),
        ("empty file", b""),
        ("not an image", gzip.compress(b"text")),
    ):
        path = folder / f"{name.replace(' ', '_')}.nii.gz"
        path.write_bytes(content)
        yield Case(name, path, "rejected")


def halved(volume: Volume) -> Volume:
    """Every second row and column."""
    z, y, x = volume.spacing_mm
    return Volume(volume.array[:, ::2, ::2], (z, 2 * y, 2 * x), volume.origin_mm, volume.direction)


def geometry(volume: Volume) -> tuple:
    """What stands beside the array."""
    return volume.spacing_mm, volume.origin_mm, volume.direction


def oblique(volume: Volume) -> Volume:
    """The scan resampled to a grid turned by 8 degrees about the body's axis and 4 across it, 2.5 mm voxels."""
    model = reorient(volume)
    image = to_sitk(model)
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.0, np.radians(4), np.radians(8))
    direction = np.array(turn.GetMatrix()).reshape(3, 3) @ np.array(model.direction).reshape(3, 3)
    size = np.array([150, 150, 108])
    middle = np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    grid = sitk.Image(size.tolist(), sitk.sitkInt16)
    grid.SetSpacing((2.5, 2.5, 2.5))
    grid.SetDirection(direction.ravel().tolist())
    grid.SetOrigin((middle - direction @ ((size - 1) / 2 * 2.5)).tolist())
    return from_sitk(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, -1024.0))


def written(folder: Path, volume: Volume) -> Path:
    """The volume as a file of its own."""
    path = folder / "case.nii.gz"
    write_volume(path, volume)
    return path


def _inside(plain: NDArray) -> NDArray[np.bool_]:
    """The body's middle: lungs and what lies between them."""
    z, y, x = (slice(n // 5, n - n // 5) for n in plain.shape)
    out = np.zeros(plain.shape, bool)
    out[z, y, x] = True
    return out


if __name__ == "__main__":
    main()
