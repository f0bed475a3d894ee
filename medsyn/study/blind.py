"""Write volumes so that nothing but their voxels tells them apart: one grid, header, range of HU, size and time.

The gzip stream is stored, not compressed: its length follows from the grid alone, and so does every byte beside the
voxels. A compressed file would be the smaller the smoother its volume is, and methods differ in that. Every reader of
gzip takes stored blocks (RFC 1951, section 3.2.4).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsyn.config import PreprocessConfig
from medsyn.ct.generated import generated_on_grid, read_generated
from medsyn.ct.preprocess import lies_on_grid, model_grid
from medsyn.errors import InputError
from medsyn.header_hints import HeaderHints
from medsyn.orientation import reorient
from medsyn.volume import Volume, nifti_bytes

FILE_TIME = 315_532_800
"""Seconds since 1970 of the times of all files: 1 January 1980."""
SMALLEST_EXTENT = 0.9
"""Share of the grid's extent that a volume must have: beyond it there is padding, which tells methods apart."""


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


def stored_nifti(array: NDArray[np.int16], grid: PreprocessConfig) -> bytes:
    """Return int16 voxels (D, H, W) on the model's grid as the content of a .nii.gz file that is not compressed."""
    return nifti_bytes(Volume(array, *model_grid(grid)), compression=0)


def same_times(folder: Path) -> None:
    """Give all files and folders in `folder`, and the folder itself, the same times of access and modification."""
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (FILE_TIME, FILE_TIME))
