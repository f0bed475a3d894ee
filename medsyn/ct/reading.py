"""Read a CT from disk, whatever its format: NIfTI, MetaImage, NRRD, npz, or a folder of DICOM slices.

Gives a `Volume`: array (D, H, W) in the file's own orientation, true spacing, origin and direction. What a file does
not say, or says wrongly, is given as `medsyn.header_hints.HeaderHints`: the DICOM series (by default the choice of
`medsyn.ct.dicom`), spacing, orientation, and a rescale slope and intercept that the file lacks. Slope and intercept are
applied only where the values show that they have not been applied yet.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsyn.ct.arrays import orient_by_anatomy, with_code
from medsyn.ct.dicom import read_dicom_file, read_series
from medsyn.ct.dicom_slices import is_dicom
from medsyn.ct.geometry import GIVE_SPACING, check_geometry, nifti_facts, text_facts, unsaid_geometry
from medsyn.ct.padding import clip_padding
from medsyn.ct.scan import Scan
from medsyn.errors import InputError
from medsyn.header_hints import HeaderHints
from medsyn.names import CT_SUFFIXES
from medsyn.nifti import count_non_finite, is_nifti, read_header
from medsyn.volume import Volume, check_regular, read_image

KNOWN_KEY = "ct"
"""Array of an .npz file that is taken if there are several (RAD-ChestCT's name)."""
AIR_BAND_HU, SOFT_BAND_HU = (-1100.0, -850.0), (-150.0, 150.0)
"""Where air, and fat with soft tissue, lie on the scale of Hounsfield: every chest CT holds much of both."""
MINIMUM_SHARE = 0.02


def read_ct(path: str | Path, hints: HeaderHints | None = None) -> Volume:
    """Read one CT; a file of no known format, a damaged one or a folder without a series is an InputError."""
    return read_scan(path, hints).volume


def read_scan(path: str | Path, hints: HeaderHints | None = None) -> Scan:
    """Read one CT with the faults and warnings that its file gives rise to."""
    path, hints = Path(path), hints or HeaderHints()
    if path.is_dir():
        scan = read_series(path, hints)
    elif path.name.lower().endswith(".npz"):
        unsaid = ("orientation",) if hints.orientation == "auto" else ()
        scan = Scan(_read_npz(path, hints), unsaid=unsaid)
    else:
        scan = _read_file(path, hints)
    volume = scan.volume
    if hints.spacing_mm is not None:
        volume = replace(volume, spacing_mm=hints.spacing_mm)
    if hints.slope is not None or hints.intercept is not None:
        array, _ = rescale_once(volume.array, 1.0 if hints.slope is None else hints.slope, hints.intercept or 0.0)
        volume = volume.with_array(array)
    if hints.orientation != "auto":
        volume = with_code(volume, hints.orientation)
    volume, facts = clip_padding(volume)
    if hints.orientation == "auto" and path.name.lower().endswith(".npz"):
        volume = orient_by_anatomy(volume, str(path))
    return replace(scan, volume=volume, facts=scan.facts | facts)


def rescale_once(values: NDArray, slope: float, intercept: float) -> tuple[NDArray, bool]:
    """Return HU, and whether slope and intercept were applied: only if the values then fit the scale of HU better.

    The fit is the smaller of two shares of the voxels, in AIR_BAND_HU and in SOFT_BAND_HU. Both count: an intercept of
    -1024 applied once too often puts soft tissue where air belongs, and nothing where soft tissue does. Where the
    values fit neither with nor without them, nothing is applied (inspection then refuses the values).
    """
    sample = values[:: max(1, values.shape[0] // 64), ::2, ::2].astype(np.float32)
    as_is, rescaled = _fit(sample), _fit(slope * sample + intercept)
    if rescaled <= as_is or rescaled < MINIMUM_SHARE:
        return values, False
    whole = float(slope).is_integer() and float(intercept).is_integer() and values.dtype.kind in "iu"
    kind = np.int32 if whole else np.float32
    return values.astype(kind) * kind(slope) + kind(intercept), True


def _fit(hu: NDArray) -> float:
    """Return the smaller of the shares of air and of soft tissue."""
    return min(float(((hu >= low) & (hu <= high)).mean()) for low, high in (AIR_BAND_HU, SOFT_BAND_HU))


def _read_file(path: Path, hints: HeaderHints) -> Scan:
    check_regular(path)
    if not path.name.lower().endswith(CT_SUFFIXES):
        if is_dicom(path):
            return read_dicom_file(path, hints)
        raise InputError(f"{path}: not a format read here; give {', '.join(CT_SUFFIXES)} or a folder of DICOM slices")
    volume = read_image(path)
    if is_nifti(path):
        header = read_header(path)
        count = count_non_finite(header)
        if count:
            raise InputError(f"{path}: {count} voxels are NaN or infinite; write the file again from its source")
        facts = nifti_facts(header)
    else:
        facts = text_facts(path)
    unsaid = unsaid_geometry(volume, facts, hints)
    return Scan(*check_geometry(volume, facts, hints, str(path)), unsaid=unsaid)


def _read_npz(path: Path, hints: HeaderHints) -> Volume:
    """Read the 3-D array of an .npz file, (D, H, W); its spacing must come with it."""
    check_regular(path)
    if hints.spacing_mm is None:
        raise InputError(f"{path}: npz arrays carry no spacing; {GIVE_SPACING}")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be read, the file is damaged or not an npz file ({error}); copy it again"
        ) from None
    found = {name: _without_single_axes(array) for name, array in arrays.items() if array.dtype.kind in "iuf"}
    volumes = {name: array for name, array in found.items() if array.ndim == 3 and array.size}
    if len(volumes) > 1 and KNOWN_KEY in volumes:
        volumes = {KNOWN_KEY: volumes[KNOWN_KEY]}
    if len(volumes) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise InputError(
            f"{path}: expected one 3-D array of numbers, or one named '{KNOWN_KEY}', found {shapes or 'nothing'}"
        )
    array = next(iter(volumes.values()))
    kind = np.dtype(np.float32) if array.dtype == np.float16 else array.dtype.newbyteorder("=")
    array = array.astype(kind, copy=False)
    return with_code(Volume(array, hints.spacing_mm), "LPS")


def _without_single_axes(array: NDArray) -> NDArray:
    """Drop leading axes of one: a batch or a channel around a volume."""
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    return array


def _check_members(archive: zipfile.ZipFile) -> None:
    """Raise ValueError where the header of an array claims another size than its member of the archive has.

    NumPy allocates what a header claims before it reads.
    """
    for member in archive.infolist():
        with archive.open(member) as handle:
            version = np.lib.format.read_magic(handle)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(handle)
        needed = math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds objects, not numbers")
        if not 0 <= member.file_size - needed <= 1 << 16:
            raise ValueError(
                f"the header of {member.filename} claims {' x '.join(map(str, shape))} numbers, {needed:,} bytes,"
                f" and its data are {member.file_size:,}"
            )
