"""A CT from disk, whatever its format: NIfTI, MetaImage, NRRD, npz, or a folder of DICOM slices.

Gives a `Volume`: array (D, H, W) in the file's own orientation, true spacing, origin and direction. What a file does
not say itself, or says wrongly, comes with it as `medsyn.reading.Reading`: which DICOM series (else `medsyn.ct.dicom`
chooses), spacing and orientation, a rescale slope and intercept that were left out of the file. The last are applied
only where the values show that they have not been applied yet.
"""

from __future__ import annotations

import gzip
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsyn.ct.arrays import orient_by_anatomy, with_code
from medsyn.ct.dicom import read_series
from medsyn.errors import InputError
from medsyn.reading import Reading
from medsyn.volume import Volume, read_volume

SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".npz")
AIR_BAND_HU, SOFT_BAND_HU = (-1100.0, -850.0), (-150.0, 150.0)
"""Where air, and fat with soft tissue, lie on the scale of Hounsfield: every chest CT holds much of both."""
MINIMUM_SHARE = 0.02


@dataclass(frozen=True)
class Scan:
    """A CT as its file gives it.

    faults: reasons to refuse it that were found while reading; warnings: lines of `medsyn.scan_warnings`; facts: what
    was changed while reading, for qc.json.
    """

    volume: Volume
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def read_ct(path: str | Path, reading: Reading | None = None) -> Volume:
    """Read one CT; a file of no known format, a damaged one or a folder without a series is an InputError."""
    return read_scan(path, reading).volume


def read_scan(path: str | Path, reading: Reading | None = None) -> Scan:
    """Read one CT with the faults and warnings that its file gives rise to."""
    path, reading = Path(path), reading or Reading()
    faults: list[str] = []
    if path.is_dir():
        volume, faults = read_series(path, reading.series)
    elif path.name.lower().endswith(".npz"):
        volume = _read_npz(path, reading)
    else:
        volume = _read_file(path)
    if reading.spacing_mm is not None:
        volume = Volume(volume.array, reading.spacing_mm, volume.origin_mm, volume.direction)
    if reading.slope is not None or reading.intercept is not None:
        array, _ = rescale_once(volume.array, 1.0 if reading.slope is None else reading.slope, reading.intercept or 0.0)
        volume = volume.with_array(array)
    if reading.orientation != "auto":
        volume = with_code(volume, reading.orientation)
    elif path.name.lower().endswith(".npz"):
        volume = orient_by_anatomy(volume, str(path))
    return Scan(volume, faults)


def rescale_once(values: NDArray, slope: float, intercept: float) -> tuple[NDArray, bool]:
    """HU and whether slope and intercept were applied: only if the values fit the scale of Hounsfield better with them.

    How well values fit is the smaller of two shares of the voxels, in AIR_BAND_HU and in SOFT_BAND_HU. Both count: an
    intercept of -1024 applied once too often puts soft tissue where air belongs, and nothing where soft tissue does.
    Where neither reading fits, nothing is applied (inspection then refuses the values).
    """
    sample = values[:: max(1, values.shape[0] // 64), ::2, ::2].astype(np.float32)
    as_is, rescaled = _fit(sample), _fit(slope * sample + intercept)
    if rescaled <= as_is or rescaled < MINIMUM_SHARE:
        return values, False
    whole = float(slope).is_integer() and float(intercept).is_integer() and values.dtype.kind in "iu"
    kind = np.int32 if whole else np.float32
    return values.astype(kind) * kind(slope) + kind(intercept), True


def _fit(hu: NDArray) -> float:
    """The smaller of the shares of air and of soft tissue."""
    return min(float(((hu >= low) & (hu <= high)).mean()) for low, high in (AIR_BAND_HU, SOFT_BAND_HU))


def _read_file(path: Path) -> Volume:
    if path.exists() and not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path}: not a format read here; give {', '.join(SUFFIXES)} or a folder of DICOM slices")
    volume = read_volume(path)
    if path.name.lower().endswith(SUFFIXES[:2]):
        count = nifti_non_finite(path)
        if count:
            raise InputError(f"{path}: {count} voxels are NaN or infinite; write the file again from its source")
    return volume


def _read_npz(path: Path, reading: Reading) -> Volume:
    """The one 3-D array of an .npz file, (D, H, W); its spacing must come with it."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if reading.spacing_mm is None:
        raise InputError(f"{path}: npz arrays carry no spacing; give spacing_mm 'z y x' (manifest or --spacing-mm)")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read, the file is damaged or no npz ({error}); copy it again") from None
    volumes = [array for array in arrays.values() if array.ndim == 3 and array.dtype.kind in "iuf"]
    if len(volumes) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise InputError(f"{path}: expected one 3-D array of numbers, found {shapes or 'nothing'}")
    array = volumes[0].astype(np.float32) if volumes[0].dtype == np.float16 else volumes[0]
    return with_code(Volume(array, reading.spacing_mm), "LPS")


def nifti_non_finite(path: Path) -> int:
    """Voxels of a NIfTI file of floats that are NaN or infinite: ITK's reader turns them into 0 in silence.

    NIfTI-1 header: its size (348) tells the byte order, the data type is at byte 70 (16 float32, 64 float64), the
    offset of the voxels a float at byte 108.
    """
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as handle:
        header = handle.read(348)
        order = "<" if header[:4] == (348).to_bytes(4, "little") else ">"
        kind = {16: "f4", 64: "f8"}.get(int(np.frombuffer(header, f"{order}i2", 1, 70)[0]))
        if kind is None:
            return 0
        handle.read(max(int(np.frombuffer(header, f"{order}f4", 1, 108)[0]) - len(header), 0))
        count = 0
        while block := handle.read(1 << 22):
            values = np.frombuffer(block[: len(block) // int(kind[1]) * int(kind[1])], order + kind)
            count += int(values.size - np.isfinite(values).sum())
    return count
