"""Volumes as they come from scanners and archives: padded, tilted, or with a header that says something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from chests import chest

from medsyn.scan_warnings import topic_of
from medsyn.volume import Volume


def normal() -> Volume:
    """Return the phantom without findings."""
    return chest("normal").volume


def topics(warnings: list[str] | tuple[str, ...]) -> list[str]:
    """Return the topic of each warning."""
    return [topic_of(warning) for warning in warnings]


def nifti(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (x, y, z) and RAS affine of a volume, for nibabel."""
    lps = np.array(volume.direction).reshape(3, 3) * np.array(volume.spacing_mm[::-1])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = lps, volume.origin_mm
    return volume.array.transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine


def save(path: Path, volume: Volume, change: Callable[[object], None] | None = None, kind: str = "Nifti1Image") -> Path:
    """Write a volume with nibabel, after `change` to its image."""
    image = getattr(nibabel, kind)(*nifti(volume))
    if change:
        change(image)
    image.to_filename(path)
    return path


def small() -> Volume:
    """Return a part of the phantom that is quickly written as DICOM."""
    volume = normal()
    return Volume(volume.array[:24, 20:40, 20:40], volume.spacing_mm, volume.origin_mm)
