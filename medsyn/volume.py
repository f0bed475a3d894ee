"""Define a volume with its geometry; read and write image files.

Arrays are (D, H, W) = (z, y, x). The model's orientation is "LAS": z runs inferior to superior, y posterior to
anterior, x right to left (the paper's data). World coordinates are ITK's LPS millimetres, so in model orientation the
direction matrix is diag(1, -1, 1).
"""

from __future__ import annotations

import errno
import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsyn import nifti
from medsyn.errors import InputError
from medsyn.files import atomic_path

if TYPE_CHECKING:
    import SimpleITK as sitk

MODEL_DIRECTION = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
LOBE_NAMES = ("left_upper", "left_lower", "right_upper", "right_middle", "right_lower")
"""Names of the lobe labels 1..5 (0 is background)."""
STRUCTURES = ("lobes", "airway", "vessels")
EXACT_DEGREES = 0.005
"""Axes that differ from right angles by less are rounded numbers."""


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
        """Return the volume of one voxel in cubic millimetres."""
        return float(np.prod(self.spacing_mm))

    def with_array(self, array: NDArray) -> Volume:
        """Return the same geometry around another array of the same shape."""
        if array.shape != self.array.shape:
            raise ValueError(f"array of shape {array.shape} does not lie on a grid of shape {self.array.shape}")
        return replace(self, array=array)


def to_sitk(volume: Volume) -> sitk.Image:
    """Return the volume as a SimpleITK image (booleans become uint8)."""
    import SimpleITK as sitk

    array = volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing([float(s) for s in reversed(volume.spacing_mm)])
    image.SetOrigin([float(o) for o in volume.origin_mm])
    image.SetDirection([float(d) for d in volume.direction])
    return image


def from_sitk(image: sitk.Image) -> Volume:
    """Return a SimpleITK image as a volume."""
    import SimpleITK as sitk

    z, y, x = reversed(image.GetSpacing())
    origin = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image), (z, y, x), (origin[0], origin[1], origin[2]), image.GetDirection())


def read_volume(path: str | Path) -> Volume:
    """Read a 3-D NIfTI, MetaImage or NRRD file; an unreadable or non-3-D one is an InputError naming it.

    Axes that are not quite at right angles are made orthogonal; `read_image` keeps them.
    """
    return straightened(read_image(path))


def read_image(path: str | Path) -> Volume:
    """Read a file as `read_volume` does, with the axes of its header, which a tilted gantry leaves skewed."""
    path = Path(path)
    check_regular(path)
    try:
        if nifti.is_nifti(path):
            return _read_nifti(path)
        return _read_itk(path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read, truncated or damaged ({error}); copy it again") from None
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"{path}: cannot be read, the file is damaged or not an image ({reason}); replace it"
        ) from None


def check_regular(path: Path) -> None:
    """Raise InputError unless `path` is a regular file: a pipe or device can block."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe, socket or device"
        raise InputError(f"{path}: is {kind}, expected a regular file; name an image file")


def skew_degrees(volume: Volume) -> tuple[float, float]:
    """Return by how much the axes differ from right angles: the slice axis to the slices, and within the slices.

    The slice axis is the one nearest to the patient's long axis; a tilted gantry leaves it skewed.
    """
    direction = np.array(volume.direction).reshape(3, 3)
    cosines = direction / np.linalg.norm(direction, axis=0)
    along = int(np.argmax(np.abs(cosines[2])))
    first, second = (cosines[:, axis] for axis in range(3) if axis != along)
    normal = np.cross(first, second)
    across = np.linalg.norm(np.cross(normal, cosines[:, along]))
    tilt = math.degrees(math.atan2(float(across), abs(float(normal @ cosines[:, along]))))
    return tilt, 90.0 - math.degrees(math.acos(min(abs(float(first @ second)), 1.0)))


def straightened(volume: Volume) -> Volume:
    """Return a volume with the orthogonal axes nearest to its own; axes that are orthogonal keep every bit."""
    if max(skew_degrees(volume)) < EXACT_DEGREES:
        return volume
    left, _, right = np.linalg.svd(np.array(volume.direction).reshape(3, 3))
    return replace(volume, direction=tuple(float(cosine) for cosine in (left @ right).ravel()))


def _read_nifti(path: Path) -> Volume:
    header = nifti.read_header(path)
    nifti.check_size(path, header)
    _check_memory(path, header.num_bytes, header.shape)
    compressed = nifti.is_gzip(path)
    usual = header.version == 1 and header.data == path and header.num_axes == 3 and header.dtype is not None
    if usual and path.name.lower().endswith(".nii.gz" if compressed else ".nii"):
        try:
            return _read_plain(path, header) if compressed else _read_itk(path)
        except RuntimeError:  # ITK refuses an sform whose axes are not at right angles
            pass
    array = nifti.read_voxels(path, header)
    if header.affine is None:
        x, y, z = (step or 1.0 for step in header.spacing_mm)
        return Volume(array, (z, y, x), direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))  # as ITK reads it
    return _on_affine(array, header.affine)


def _on_affine(array: NDArray, affine: NDArray) -> Volume:
    """Return voxels (z, y, x) with the geometry of an affine from index (x, y, z) to RAS millimetres."""
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    x, y, z = (float(step) for step in np.linalg.norm(lps[:, :3], axis=0))
    direction = tuple(float(cosine) for cosine in (lps[:, :3] / (x, y, z)).ravel())
    origin = (float(lps[0, 3]), float(lps[1, 3]), float(lps[2, 3]))
    return Volume(array, (z, y, x), origin, direction)


def _read_itk(path: Path) -> Volume:
    """Read an image with ITK; a RuntimeError where it finds none."""
    import SimpleITK as sitk

    if path.name.lower().endswith(".gz"):
        _check_compression(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    _check_memory(path, math.prod(reader.GetSize()), reader.GetSize())
    image = reader.Execute()
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{path}: {image.GetDimension()}-D with {image.GetNumberOfComponentsPerPixel()} components per voxel;"
            " give one 3-D scalar volume"
        )
    return from_sitk(image)


def _check_memory(path: Path, num_bytes: int, shape: Sequence[int]) -> None:
    """Raise InputError for an image that is larger than the memory of this machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes > memory:
        raise InputError(
            f"{path}: its header claims {' x '.join(map(str, shape))} voxels, {num_bytes / 2**30:,.0f} GiB of"
            f" {memory / 2**30:,.0f} GiB memory; check the file, or crop the image"
        )


def _read_plain(path: Path, header: nifti.Header) -> Volume:
    """Read a 3-D .nii.gz in one pass of the decompressor where its voxels need no conversion, else with ITK.

    ITK reads the geometry: a RuntimeError where it does not take it.
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    plain = header.order == "<" and (header.slope, header.intercept) == (1.0, 0.0)
    if not plain or str(header.dtype)[1:] not in ("u1", "i2", "u2", "i4", "f4", "f8") or reader.GetDimension() != 3:
        return _read_itk(path)
    array = nifti.read_voxels(path, header)
    x, y, z = reader.GetSpacing()
    origin = reader.GetOrigin()
    return Volume(array, (z, y, x), (origin[0], origin[1], origin[2]), reader.GetDirection())


def _check_compression(path: Path) -> None:
    """Refuse a truncated .gz file: ITK's reader silently fills what is missing with zeros."""
    with _decompressed(path) as handle:
        while handle.read(1 << 22):
            pass


@contextmanager
def _decompressed(path: Path) -> Iterator[gzip.GzipFile]:
    """Yield an open .gz file; a truncated or damaged one is an InputError."""
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


def nifti_bytes(volume: Volume, compression: int = 6) -> bytes:
    """Return int16 or uint8 voxels as .nii.gz: qform, sform, no field that may be left out; the same bytes every time.

    compression: of gzip, 0 to 9. The layout is that of nifti1.h.
    """
    from scipy.spatial.transform import Rotation

    array = volume.array
    data_type, bits = {"uint8": (2, 8), "int16": (4, 16)}[array.dtype.name]
    steps = [float(step) for step in reversed(volume.spacing_mm)]
    to_ras = np.diag([-1.0, -1.0, 1.0])
    axes, origin = to_ras @ np.array(volume.direction).reshape(3, 3), to_ras @ volume.origin_mm
    handedness = 1.0 if np.linalg.det(axes) > 0 else -1.0
    turn = Rotation.from_matrix(axes * [1.0, 1.0, handedness]).as_quat(canonical=True)[:3]
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *reversed(array.shape), 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, data_type, bits)
    struct.pack_into("<4f", header, 76, handedness, *steps)
    struct.pack_into("<3f", header, 108, len(header), 1, 0)  # first voxel, slope, intercept
    header[123] = 2  # millimetres
    struct.pack_into("<2h6f", header, 252, nifti.SCANNER, nifti.SCANNER, *turn, *origin)
    struct.pack_into("<12f", header, 280, *np.column_stack([axes * steps, origin]).ravel())
    header[344:348] = b"n+1\0"
    voxels = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return gzip.compress(bytes(header) + voxels, compression, mtime=0)


def _is_complete(path: Path, num_bytes: int) -> bool:
    """Return whether a new file holds `num_bytes` of voxels: ITK's NIfTI writer does not report a full disk."""
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
    """Return the spacing (z, y, x) of a grid of `size` voxels (D, H, W) that covers `field_of_view_mm` (z, y, x)."""
    return tuple(extent / count for extent, count in zip(field_of_view_mm, size, strict=True))  # type: ignore[return-value]


def centred_origin_mm(
    size: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> tuple[float, float, float]:
    """Return the LPS origin (x, y, z) of a grid in model orientation whose centre lies at `centre_mm` (LPS x, y, z)."""
    half = [(count - 1) / 2 * step for count, step in zip(reversed(size), reversed(spacing_mm), strict=True)]
    signs = (1.0, -1.0, 1.0)
    x, y, z = (c - sign * h for c, sign, h in zip(centre_mm, signs, half, strict=True))
    return (x, y, z)
