"""Write volumes so that nothing but their voxels tells them apart: one grid, header, range of HU, size and time.

The gzip stream is stored, not compressed: its length follows from the grid alone, and so does every byte beside the
voxels. A compressed file would be the smaller the smoother its volume is, and methods differ in that. Every reader of
gzip takes stored blocks (RFC 1951, section 3.2.4).
"""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsyn.config import PreprocessConfig
from medsyn.ct.generated import generated_on_grid, read_generated
from medsyn.ct.preprocess import lies_on_grid, model_grid
from medsyn.errors import InputError
from medsyn.header_hints import HeaderHints
from medsyn.orientation import reorient
from medsyn.volume import Volume

FILE_TIME = 315_532_800
"""Seconds since 1970 of the times of all files: 1 January 1980."""
SMALLEST_EXTENT = 0.9
"""Share of the grid's extent that a volume must have: beyond it there is padding, which tells methods apart."""
_HEADER, _VOXELS = 348, 352
_MILLIMETRES, _INT16, _SCANNER = 2, 4, 1


def read_on_grid(path: Path, hints: HeaderHints, grid: PreprocessConfig, name: str) -> Volume:
    """Return a volume in HU on the model's grid; the voxels are kept where the file has that grid already.

    name: how messages call the volume. One that is smaller than the grid's field of view is an InputError.
    """
    source = reorient(read_generated(path, hints).volume)
    if lies_on_grid(source, grid):
        spacing, origin = model_grid(grid)
        return Volume(source.array, spacing, origin)
    extents = [size * step for size, step in zip(source.array.shape, source.spacing_mm, strict=True)]
    for axis, extent, whole in zip("zyx", extents, grid.field_of_view_mm, strict=True):
        if extent < SMALLEST_EXTENT * whole:
            raise InputError(
                f"{path}: {name} covers {extent:.0f} mm along {axis}, expected the {whole:.0f} mm of"
                " preprocess.field_of_view_mm: the rest would be padding, which tells it from the others; leave it out"
                " or make that field of view smaller"
            )
    return generated_on_grid(source, grid, str(path))


def clipped(array: NDArray, range_hu: tuple[float, float]) -> NDArray[np.int16]:
    """Return HU as whole numbers within `range_hu`."""
    low, high = range_hu
    return np.clip(np.rint(array.astype(np.float32)), np.ceil(low), np.floor(high)).astype("<i2")


def nifti_bytes(array: NDArray[np.int16], grid: PreprocessConfig) -> bytes:
    """Return int16 voxels (D, H, W) on the model's grid as the content of a .nii.gz file without name and time."""
    payload = _header(grid) + array.astype("<i2").tobytes()
    return gzip.compress(payload, compresslevel=0, mtime=0)


def same_times(folder: Path) -> None:
    """Give all files and folders in `folder`, and the folder itself, the same times of access and modification."""
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (FILE_TIME, FILE_TIME))


def _header(grid: PreprocessConfig) -> bytes:
    """Return a NIfTI-1 header (nifti1.h) with qform and sform of the model's grid, and nothing that may be left out."""
    spacing, (left, back, up) = model_grid(grid)
    (depth, height, width), (z, y, x) = grid.size, spacing
    header = bytearray(_VOXELS)
    struct.pack_into("<i", header, 0, _HEADER)
    struct.pack_into("<8h", header, 40, 3, width, height, depth, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, _INT16, 16)
    struct.pack_into("<8f", header, 76, -1.0, x, y, z, 0, 0, 0, 0)  # -1: a left-handed grid
    struct.pack_into("<3f", header, 108, _VOXELS, 1.0, 0.0)
    header[123] = _MILLIMETRES
    struct.pack_into("<2h", header, 252, _SCANNER, _SCANNER)
    struct.pack_into("<6f", header, 256, 0, 1, 0, -left, -back, up)  # x runs to the left, y to the front, z up
    rows = (-x, 0, 0, -left), (0, y, 0, -back), (0, 0, z, up)
    struct.pack_into("<12f", header, 280, *(value for row in rows for value in row))
    header[344:348] = b"n+1\0"
    return bytes(header)
