"""Read headers of NIfTI-1 and NIfTI-2 files, and the voxels that ITK's reader does not accept.

ITK reads NIfTI-1 files within its own rules. This module reads what a header says, so that a fault can be named before
ITK meets it, and it reads the rest: NIfTI-2, a gzip file named .nii, a plain file named .nii.gz, .hdr/.img pairs, an
sform whose axes are not at right angles. Layouts: nifti1.h and nifti2.h of the NIfTI data format working group.

Affines are (4, 4), voxel index (x, y, z) to RAS millimetres.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from medsyn.errors import InputError
from medsyn.names import NIFTI_SUFFIXES

DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
"""NIfTI data types of one real number per voxel."""
SCANNER = 1
"""Transform code of scanner coordinates."""
_GZIP = b"\x1f\x8b"
_LARGEST_RATIO = 1032
"""Deflate makes a file at most this many times smaller (zlib's documentation)."""
_LAYOUTS = {
    348: {
        "dim": ("i2", 8, 40), "datatype": ("i2", 1, 70), "pixdim": ("f4", 8, 76), "vox_offset": ("f4", 1, 108),
        "scale": ("f4", 2, 112), "codes": ("i2", 2, 252), "quaternion": ("f4", 3, 256), "offset": ("f4", 3, 268),
        "sform": ("f4", 12, 280),
    },
    540: {
        "dim": ("i8", 8, 16), "datatype": ("i2", 1, 12), "pixdim": ("f8", 8, 104), "vox_offset": ("i8", 1, 168),
        "scale": ("f8", 2, 176), "codes": ("i4", 2, 344), "quaternion": ("f8", 3, 352), "offset": ("f8", 3, 376),
        "sform": ("f8", 12, 400),
    },
}  # fmt: skip
"""Field -> type, count and offset in bytes, by the size of the header, which is its first number."""


@dataclass(frozen=True)
class Header:
    """What a NIfTI header says.

    version: 1 or 2; order: "<" or ">"; shape: (x, y, z, ...); dtype: numpy's, with byte order, None: not one real
    number per voxel; slope, intercept: of the stored values, (1, 0) without scaling; spacing_mm: (x, y, z) as stored;
    qform, sform: affines, None where their code is 0; codes: of qform and sform; data: the file of the voxels;
    start: offset of the first voxel in it; num_axes: as stored, axes of one voxel at the end included.
    """

    version: int
    order: str
    shape: tuple[int, ...]
    dtype: str | None
    slope: float
    intercept: float
    spacing_mm: tuple[float, float, float]
    qform: NDArray[np.float64] | None
    sform: NDArray[np.float64] | None
    codes: tuple[int, int]
    data: Path
    start: int
    num_axes: int

    @property
    def num_bytes(self) -> int:
        """Return the length of the voxels."""
        return math.prod(self.shape) * np.dtype(self.dtype or "u1").itemsize

    @property
    def affine(self) -> NDArray[np.float64] | None:
        """Return the transform in use, chosen as by ITK 5.4: the scanner's or only sform, else the qform."""
        if self.sform is not None and (self.codes[1] == SCANNER or self.qform is None):
            return self.sform
        return self.qform


def is_nifti(path: Path) -> bool:
    """Return whether the name says that a file is a NIfTI image."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def files_of(path: Path) -> list[Path]:
    """Return the files that an image lies in: both of a NIfTI pair, else the one that is named."""
    try:
        return list(dict.fromkeys(_pair(path))) if is_nifti(path) else [path]
    except InputError:  # one is missing, which the reader names
        return [path]


def is_gzip(path: Path) -> bool:
    """Return whether the content of a file is a gzip stream, whatever its name says."""
    with path.open("rb") as handle:
        return handle.read(2) == _GZIP


@contextmanager
def open_content(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed if its content is a gzip stream."""
    with gzip.open(path) if is_gzip(path) else path.open("rb") as handle:
        yield cast(BinaryIO, handle)


def read_header(path: Path) -> Header:
    """Read the header of a NIfTI file or pair; no NIfTI header, or one that cannot be true, is an InputError.

    OSError, EOFError or zlib.error where the file cannot be read.
    """
    header_path, data_path = _pair(path)
    with open_content(header_path) as handle:
        raw = handle.read(540)
    size = next((s for s in _LAYOUTS for o in ("little", "big") if raw[:4] == s.to_bytes(4, o)), 0)
    if not size or len(raw) < size:
        seen = f"begins with the bytes {raw[:4].hex()}" if raw else "is empty"
        raise InputError(f"{path}: cannot be read, it {seen}, expected a NIfTI header; replace it")
    order = "<" if raw[:4] == size.to_bytes(4, "little") else ">"
    fields = {
        name: np.frombuffer(raw, order + kind, count, offset) for name, (kind, count, offset) in _LAYOUTS[size].items()
    }
    magic = raw[344:348] if size == 348 else raw[4:8]
    if magic[:1] != b"n":
        raise InputError(f"{path}: an Analyze 7.5 image, which carries no orientation; convert it to NIfTI")
    separate = magic[1:2] == b"i"
    if separate and data_path == header_path:
        raise InputError(f"{path}: a NIfTI header without voxels, which lie in an .img file; give the .hdr file")
    with np.errstate(all="ignore"):
        return _header(path, size, order, fields, data_path if separate else header_path)


def _pair(path: Path) -> tuple[Path, Path]:
    """Return the files of the header and of the voxels, the same one for .nii; a missing one is an InputError."""
    name = path.name
    stem = name[:-3] if name.lower().endswith(".gz") else name
    if not stem.lower().endswith((".hdr", ".img")):
        return path, path
    files = []
    for suffix in (".hdr", ".img"):
        found = [path.with_name(stem[:-4] + s + gz) for s in (suffix, suffix.upper()) for gz in ("", ".gz")]
        exists = [file for file in found if file.is_file()]
        if not exists:
            raise InputError(f"{path}: the file {found[0].name} of this pair is missing; copy it beside")
        files.append(exists[0])
    return files[0], files[1]


def _header(path: Path, size: int, order: str, fields: dict[str, NDArray], data: Path) -> Header:
    dim = [int(count) for count in fields["dim"]]
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise InputError(f"{path}: damaged, its header says {dim[0]} axes of {dim[1:]} voxels; copy it again")
    start = float(fields["vox_offset"][0])
    if not math.isfinite(start) or start < 0 or start > 2**62:
        raise InputError(f"{path}: damaged, its voxels begin at byte {start:g} (vox_offset); copy it again")
    if data == _pair(path)[0]:
        start = max(start, 352.0 if size == 348 else 544.0)
    slope, intercept = (float(value) for value in fields["scale"])
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        slope, intercept = 1.0, 0.0
    kind = DTYPES.get(int(fields["datatype"][0]))
    x, y, z = (abs(float(step)) for step in fields["pixdim"][1:4])
    codes = (int(fields["codes"][0]), int(fields["codes"][1]))
    sform = np.vstack([fields["sform"].reshape(3, 4).astype(float), [0, 0, 0, 1]])
    shape = tuple(dim[1 : dim[0] + 1])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return Header(
        1 if size == 348 else 2, order, shape, None if kind is None else order + kind, slope, intercept, (x, y, z),
        _qform(path, fields) if codes[0] > 0 else None, _checked(path, sform) if codes[1] > 0 else None, codes, data,
        int(start), dim[0],
    )  # fmt: skip


def _checked(path: Path, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise InputError(f"{path}: damaged, its sform has no volume ({affine[:3].round(3).tolist()}); write it again")
    return affine


def _qform(path: Path, fields: dict[str, NDArray]) -> NDArray[np.float64]:
    """Return the affine of the quaternion (b, c, d), the spacing, the sign qfac of the third axis, and the offset."""
    b, c, d = (float(value) for value in fields["quaternion"])
    if not math.isfinite(b + c + d):
        raise InputError(f"{path}: damaged, its qform has the quaternion ({b:g}, {c:g}, {d:g}); write it again")
    a = math.sqrt(max(1.0 - b * b - c * c - d * d, 0.0))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    steps = np.abs(fields["pixdim"][1:4].astype(float))
    steps[2] *= -1 if fields["pixdim"][0] < 0 else 1
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * steps, fields["offset"]
    return affine


def check_size(path: Path, header: Header) -> None:
    """Raise InputError for a file shorter than its header says, so that nothing is allocated for a false header."""
    length = header.data.stat().st_size
    needed = header.start + header.num_bytes
    if is_gzip(header.data):
        if needed > length * _LARGEST_RATIO + 1024:
            raise InputError(
                f"{path}: damaged, its header claims {' x '.join(map(str, header.shape))} voxels ({needed:,} bytes),"
                f" more than {length:,} compressed bytes can hold; copy it again"
            )
    elif needed > length:
        raise InputError(
            f"{path}: cannot be read, truncated or damaged ({needed - length} bytes are missing); copy it again"
        )


def read_voxels(path: Path, header: Header) -> NDArray:
    """Return the voxels (z, y, x) in the header's type, scaled as it says; EOFError where some are missing."""
    if header.dtype is None or len(header.shape) != 3:
        kind = "one real number per voxel" if header.dtype else "a data type other than one real number per voxel"
        raise InputError(f"{path}: {len(header.shape)}-D with {kind}; give one 3-D scalar volume")
    array = np.empty(header.shape[::-1], header.dtype)
    with open_content(header.data) as handle:
        handle.read(header.start)
        if handle.readinto(array.data.cast("B")) != array.nbytes:  # type: ignore[attr-defined]
            raise EOFError("voxels are missing")
        if is_gzip(header.data):
            while handle.read(1 << 22):  # to the checksum at the end
                pass
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if (header.slope, header.intercept) == (1.0, 0.0):
        return array
    scaled = array.astype(np.float64) * header.slope + header.intercept
    return scaled if array.dtype.itemsize > 4 else scaled.astype(np.float32)


def count_non_finite(header: Header) -> int:
    """Return the number of voxels of a file of floats that are NaN or infinite: ITK's reader turns them into 0."""
    if header.dtype is None or header.dtype[1] != "f":
        return 0
    kind = np.dtype(header.dtype)
    count = 0
    with open_content(header.data) as handle:
        handle.read(header.start)
        left = header.num_bytes  # what follows the voxels is not read
        while block := handle.read(min(left, 1 << 22)):
            left -= len(block)
            values = np.frombuffer(block[: len(block) // kind.itemsize * kind.itemsize], kind)
            count += int(values.size - np.isfinite(values).sum())
    return count
