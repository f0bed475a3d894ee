"""Random crops for super-resolution training: crops a second and size, from .nii.gz, plain .npy and the training store.

Run:  python benchmarks/store.py --subjects FOLDER [FOLDER ...] [--out table.csv]

Each FOLDER holds volume.nii.gz and lobes, airway, vessels (.nii.gz) on one grid, as `medsyn phantom --size 256` writes
them. A crop is four channels: the image, and lobes, airway and vessels in one label byte; MB are 3 bytes a voxel of it.
The files are in the page cache, so what is timed is the work, not the disk; disk_mb_per_crop is what a crop fetches
from the disk when nothing is cached (Linux: read_bytes of /proc/self/io).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsyn.ct.store import open_high, pack_labels, write_shard
from medsyn.files import write_csv
from medsyn.volume import STRUCTURES, read_volume

CROPS = ((64, 72, 72), (256, 72, 72))
SPEEDS = ("crops_per_s", "mb_per_s", "cpu_ms_per_crop", "disk_mb_per_crop")
COLUMNS = ("from", "crop", "processes", *SPEEDS, "mb_per_subject")
MB = 1e6
SPAWN = multiprocessing.get_context("spawn")
Reader = Callable[[int, tuple[slice, ...]], tuple[NDArray, NDArray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", required=True, type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each way is timed")
    parser.add_argument("--out", type=Path, help="CSV file")
    args = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.out.parent if args.out else None) as folder:
        shape, sizes = prepare(args.subjects, Path(folder))
        for crop in CROPS:
            if any(c > s for c, s in zip(crop, shape, strict=True)):
                continue
            for way in READERS:
                for processes in (1, 2):
                    row = measure(way, (args.subjects, Path(folder), shape, crop), processes, args.seconds)
                    rows.append(
                        {"from": way, "crop": crop, "processes": processes, "mb_per_subject": sizes[way], **row}
                    )
                    print(" | ".join(str(rows[-1][name]) for name in COLUMNS), flush=True)
    if args.out:
        write_csv(args.out, rows, COLUMNS)


def prepare(subjects: list[Path], folder: Path) -> tuple[tuple[int, ...], dict[str, float]]:
    """Write every subject as .npy and into a store; the grid (D, H, W) and MB a subject of each way."""
    started, arrays = time.process_time(), [read_subject(subject) for subject in subjects]
    print(f"reading .nii.gz: {(time.process_time() - started) / len(subjects):.2f} s of CPU a subject")
    for kind, stack in zip(("image", "label"), map(np.stack, zip(*arrays, strict=True)), strict=True):
        np.save(folder / f"{kind}.npy", stack)
    rows = [{"subject_id": f"s{k}", "report_id": f"s{k}", "split": "train"} for k in range(len(subjects))]
    shape = arrays[0][0].shape
    (folder / "store").mkdir()
    started = time.process_time()
    write_shard(folder / "store", rows, arrays, shape, 4)
    print(f"writing the store: {(time.process_time() - started) / len(subjects):.2f} s of CPU a subject")
    files = {
        ".nii.gz": [path / f"{name}.nii.gz" for path in subjects for name in ("volume", *STRUCTURES)],
        ".npy": list(folder.glob("*.npy")),
        "store": [path for path in (folder / "store").glob("high*/**/*") if path.is_file()],
    }
    sizes = {way: sum(path.stat().st_size for path in paths) / len(subjects) for way, paths in files.items()}
    return shape, {way: round(size / MB, 1) for way, size in sizes.items()}


def read_subject(folder: Path) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """HU and packed labels from the four .nii.gz of a subject."""
    labels = [read_volume(folder / f"{name}.nii.gz").array for name in STRUCTURES]
    return read_volume(folder / "volume.nii.gz").array.astype(np.int16), pack_labels(*labels)


def from_nifti(subjects: list[Path], folder: Path) -> Reader:
    """Four files read whole for each crop: NIfTI under gzip has no other way."""

    def read(row: int, window: tuple[slice, ...]) -> tuple[NDArray, NDArray]:
        image, label = read_subject(subjects[row])
        return image[window], label[window]

    return read


def from_npy(subjects: list[Path], folder: Path) -> Reader:
    """Memory maps of uncompressed arrays."""
    image, label = (np.load(folder / f"{kind}.npy", mmap_mode="r") for kind in ("image", "label"))
    return lambda row, window: (np.array(image[(row, *window)]), np.array(label[(row, *window)]))


def from_store(subjects: list[Path], folder: Path) -> Reader:
    """The training store."""
    image, label = open_high(folder / "store")
    return lambda row, window: (image[(row, *window)], label[(row, *window)])


READERS: dict[str, Callable[[list[Path], Path], Reader]] = {
    ".nii.gz": from_nifti, ".npy": from_npy, "store": from_store,
}  # fmt: skip


def measure(way: str, data: tuple[Any, ...], processes: int, seconds: float) -> dict[str, object]:
    """Crops a second of `processes` processes at once, processor time and disk reads of one crop."""
    with ProcessPoolExecutor(processes, SPAWN) as pool:
        list(pool.map(time_crops, [way] * processes, [data] * processes, range(processes), [0.0] * processes))
        results = list(
            pool.map(time_crops, [way] * processes, [data] * processes, range(processes), [seconds] * processes)
        )
    rate = sum(number / wall for number, wall, _ in results)
    with ProcessPoolExecutor(1, SPAWN) as pool:
        disk = pool.submit(disk_bytes, way, data).result()
    crop = data[-1]
    return {
        "crops_per_s": round(rate, 1),
        "mb_per_s": round(rate * 3 * float(np.prod(crop)) / MB),
        "cpu_ms_per_crop": round(1000 * float(np.mean([cpu / number for number, _, cpu in results])), 1),
        "disk_mb_per_crop": disk and round(disk / MB, 2),
    }


def time_crops(way: str, data: tuple[Any, ...], seed: int, seconds: float) -> tuple[int, float, float]:
    """Number of crops read in about `seconds` (two at least), wall time and processor time, s."""
    subjects, folder, shape, crop = data
    read, number = READERS[way](subjects, folder), 0
    started, cpu = time.perf_counter(), time.process_time()
    for row, window in windows(len(subjects), shape, crop, seed):
        read(row, window)
        number += 1
        if number >= 2 and time.perf_counter() - started > seconds:
            break
    return number, time.perf_counter() - started, time.process_time() - cpu


def disk_bytes(way: str, data: tuple[Any, ...]) -> float | None:
    """Bytes fetched from the disk for one crop when nothing is cached; None where the system does not say."""
    subjects, folder, shape, crop = data
    counter = Path("/proc/self/io")
    if not counter.exists():
        return None
    files = [path for place in (folder, *subjects) for path in place.rglob("*") if path.is_file()]
    number, total = (2 if way == ".nii.gz" else 16), 0
    for row, window in islice(windows(len(subjects), shape, crop, 99), number):
        read = READERS[way](subjects, folder)
        for path in files:
            forget(path)
        before = counter.read_text()
        read(row, window)
        total += _read_bytes(counter.read_text()) - _read_bytes(before)
    return total / number


def _read_bytes(text: str) -> int:
    return int(text.split("\nread_bytes:")[1].split()[0])


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def windows(
    count: int, shape: tuple[int, ...], crop: tuple[int, ...], seed: int
) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Random subjects and crops without end."""
    rng = np.random.default_rng(seed)
    while True:
        starts = [int(rng.integers(0, s - c + 1)) for s, c in zip(shape, crop, strict=True)]
        yield int(rng.integers(count)), tuple(slice(a, a + c) for a, c in zip(starts, crop, strict=True))


if __name__ == "__main__":
    main()
