"""A volume with its geometry, and the one place that reads and writes image files.

Arrays are (D, H, W) = (z, y, x). The model's orientation is "LAS": z runs inferior to superior, y posterior to
anterior, x right to left (the paper's data). World coordinates are ITK's LPS millimetres, so in model orientation the
direction matrix is diag(1, -1, 1).
"""

from __future__ import annotations

import errno
import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsyn.errors import InputError
from medsyn.files import atomic_path

if TYPE_CHECKING:
    import SimpleITK as sitk

MODEL_DIRECTION = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
LOBE_NAMES = ("left_upper", "left_lower", "right_upper", "right_middle", "right_lower")
"""Names of the lobe labels 1..5 (0 is background)."""
STRUCTURES = ("lobes", "airway", "vessels")
NIFTI_START = (348).to_bytes(4, "little")
"""The size of a NIfTI-1 header, its first number: what a file of this byte order begins with."""


@dataclass(frozen=True)
class Volume:
    """Voxels and where they lie.

    array: (D, H, W); spacing_mm: (z, y, x); origin_mm: LPS (x, y, z) of the centre of voxel [0, 0, 0];
    direction: row-major 3x3, columns are the LPS directions of the x, y and z index.
    """

    array: NDArray
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = MODEL_DIRECTION

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise ValueError(f"a volume has 3 axes, this array has shape {self.array.shape}")
        if min(self.spacing_mm) <= 0 or not np.isfinite(self.spacing_mm).all():
            raise ValueError(f"spacing must be positive millimetres, got {self.spacing_mm}")

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel in cubic millimetres."""
        return float(np.prod(self.spacing_mm))

    def with_array(self, array: NDArray) -> Volume:
        """The same geometry around another array of the same shape."""
        if array.shape != self.array.shape:
            raise ValueError(f"array of shape {array.shape} does not lie on a grid of shape {self.array.shape}")
        return replace(self, array=array)


def to_sitk(volume: Volume) -> sitk.Image:
    """The volume as a SimpleITK image (booleans become uint8)."""
    import SimpleITK as sitk

    array = volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing([float(s) for s in reversed(volume.spacing_mm)])
    image.SetOrigin([float(o) for o in volume.origin_mm])
    image.SetDirection([float(d) for d in volume.direction])
    return image


def from_sitk(image: sitk.Image) -> Volume:
    """A SimpleITK image as a volume."""
    import SimpleITK as sitk

    z, y, x = reversed(image.GetSpacing())
    origin = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image), (z, y, x), (origin[0], origin[1], origin[2]), image.GetDirection())


def read_volume(path: str | Path) -> Volume:
    """Read a 3-D NIfTI, MetaImage or NRRD file; an unreadable or non-3-D one is an InputError naming it."""
    import SimpleITK as sitk

    path = Path(path)
    name = path.name.lower()
    if not path.exists():
        raise InputError(f"{path}: no such file")
    try:
        if name.endswith(".nii.gz") and (volume := _read_plain(path)) is not None:
            return volume
        if name.endswith(".gz"):
            _check_compression(path)
        image = sitk.ReadImage(str(path))
        if name.endswith(".nii"):
            _check_length(path)
    except RuntimeError as error:
        if name.endswith(".gz"):
            _check_compression(path)
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{path}: cannot be read, the file is damaged or no image ({reason}); replace it") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{path}: {image.GetDimension()}-D with {image.GetNumberOfComponentsPerPixel()} components a voxel;"
            " give one 3-D scalar volume"
        )
    return from_sitk(image)


def _read_plain(path: Path) -> Volume | None:
    """A 3-D .nii.gz whose voxels need no conversion, in one pass of the decompressor; None: another file, for ITK.

    ITK reads the geometry. NIfTI-1 header (nifti1.h): data type at byte 70, offset of the voxels at 108, slope and
    intercept at 112 and 116 (slope 0: none). A RuntimeError where ITK finds no image.
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    with _decompressed(path) as handle:
        header = handle.read(348)
        kind = {2: "u1", 4: "<i2", 512: "<u2", 8: "<i4", 16: "<f4", 64: "<f8"}.get(
            int.from_bytes(header[70:72], "little")
        )
        offset, slope, intercept = np.frombuffer(header, "<f4", 3, 108)
        plain = offset >= len(header) and (slope == 0 or (slope == 1 and intercept == 0))
        if header[:4] != NIFTI_START or kind is None or not plain or reader.GetDimension() != 3:
            return None
        array = np.empty(reader.GetSize()[::-1], kind)
        handle.read(int(offset) - len(header))
        if handle.readinto(array.data.cast("B")) != array.nbytes:
            raise EOFError("voxels are missing")
        while handle.read(1 << 22):  # to the checksum at the end
            pass
    x, y, z = reader.GetSpacing()
    origin = reader.GetOrigin()
    return Volume(array, (z, y, x), (origin[0], origin[1], origin[2]), reader.GetDirection())


def _check_compression(path: Path) -> None:
    """ITK's reader fills what is missing from a truncated .gz file with zeros in silence; refuse such a file."""
    with _decompressed(path) as handle:
        while handle.read(1 << 22):
            pass


def _check_length(path: Path) -> None:
    """ITK's reader fills what is missing from a truncated .nii file with zeros in silence; refuse such a file.

    NIfTI-1 header: number of axes and their lengths at byte 40, bits a voxel at 72, offset of the voxels at 108.
    """
    with path.open("rb") as handle:
        header = handle.read(348)
    if header[:4] not in (NIFTI_START, NIFTI_START[::-1]):
        return
    order = "<" if header[:4] == NIFTI_START else ">"
    num_axes, *axes = (int(count) for count in np.frombuffer(header, f"{order}i2", 8, 40))
    voxels = math.prod(axes[:num_axes]) * int(np.frombuffer(header, f"{order}i2", 1, 72)[0]) // 8
    missing = int(np.frombuffer(header, f"{order}f4", 1, 108)[0]) + voxels - path.stat().st_size
    if missing > 0:
        raise InputError(f"{path}: cannot be read, truncated or damaged ({missing} bytes are missing); copy it again")


@contextmanager
def _decompressed(path: Path) -> Iterator[gzip.GzipFile]:
    """An open .gz file; a truncated or damaged one is an InputError."""
    try:
        with gzip.open(path) as handle:
            yield handle
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read, truncated or damaged ({error}); copy it again") from None


def write_volume(path: str | Path, volume: Volume) -> None:
    """Write a volume atomically; the suffix (.nii.gz, .nii, .mha, .nrrd) chooses the format. OSError if it cannot."""
    import SimpleITK as sitk

    with atomic_path(path) as temporary:
        try:
            sitk.WriteImage(to_sitk(volume), str(temporary), useCompression=True, compressionLevel=1)
            complete = _is_complete(temporary, volume.array.nbytes)
        except RuntimeError:
            complete = False
        if not complete:
            raise OSError(errno.ENOSPC, "not all of it could be written", str(path))


def _is_complete(path: Path, num_bytes: int) -> bool:
    """Whether a file just written holds `num_bytes` of voxels; ITK's NIfTI writer says nothing when a disk is full."""
    if path.suffix != ".gz":
        return path.suffix != ".nii" or path.stat().st_size > num_bytes
    try:
        _check_compression(path)
    except InputError:
        return False
    return True


def grid_spacing_mm(
    size: tuple[int, int, int], field_of_view_mm: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Spacing (z, y, x) of a grid of `size` voxels (D, H, W) that covers `field_of_view_mm` (z, y, x)."""
    return tuple(extent / count for extent, count in zip(field_of_view_mm, size, strict=True))  # type: ignore[return-value]


def centred_origin_mm(
    size: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> tuple[float, float, float]:
    """LPS origin (x, y, z) of a grid in model orientation whose centre lies at `centre_mm` (LPS x, y, z)."""
    half = [(count - 1) / 2 * step for count, step in zip(reversed(size), reversed(spacing_mm), strict=True)]
    signs = (1.0, -1.0, 1.0)
    x, y, z = (c - sign * h for c, sign, h in zip(centre_mm, signs, half, strict=True))
    return (x, y, z)
