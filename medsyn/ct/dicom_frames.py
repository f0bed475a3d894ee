"""Multi-frame (enhanced) CT: one DICOM file that holds all slices, each with its place and rescaling.

Enhanced CT and Legacy Converted Enhanced CT (DICOM PS3.3, A.38.1 and A.70.1) say in functional groups, for all frames
at once or for each, where a frame lies (Plane Position, C.7.6.16.2.3), how it is turned (Plane Orientation,
C.7.6.16.2.4), its spacing (Pixel Measures, C.7.6.16.2.1) and its slope and intercept (Pixel Value Transformation,
C.7.6.16.2.9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medsyn.errors import InputError
from medsyn.volume import Volume

_FAULTS = (AttributeError, EOFError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What pydicom raises where a file is damaged, lacks a functional group or has a compression that it cannot decode."""


@dataclass(frozen=True)
class Frames:
    """The frames of one file in HU, in the order of their places.

    positions, normals: (N, 3) in LPS, mm, as `medsyn.ct.dicom.Series` has them. The spacing of `volume` along its first
    axis is the mean distance of neighbouring frames.
    """

    volume: Volume
    positions: NDArray[np.float64]
    normals: NDArray[np.float64]


def has_frames(path: Path) -> bool:
    """Return whether a DICOM file describes its frames one by one, as enhanced CT does."""
    try:
        return "PerFrameFunctionalGroupsSequence" in pydicom.dcmread(path, stop_before_pixels=True)
    except (OSError, pydicom.errors.InvalidDicomError, *_FAULTS):
        return False


def read_frames(path: Path) -> Frames:
    """Read the frames of an enhanced CT; another modality, or a file that cannot be read, is an InputError."""
    try:
        dataset = pydicom.dcmread(path)
        if dataset.Modality != "CT":
            raise InputError(f"{path}: a multi-frame file of modality {dataset.Modality}, expected CT; give a CT")
        return _frames(dataset)
    except _FAULTS as error:
        raise InputError(
            f"{path}: its frames cannot be read ({type(error).__name__}: {error}); convert it to NIfTI (dcm2niix)"
        ) from None


def _frames(dataset: Dataset) -> Frames:
    groups = [_Groups(frame, dataset) for frame in dataset.PerFrameFunctionalGroupsSequence]
    positions = np.array([group.numbers("PlanePositionSequence", "ImagePositionPatient", 3) for group in groups])
    axes = np.array([group.numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6) for group in groups])
    spacings = np.array([group.numbers("PixelMeasuresSequence", "PixelSpacing", 2) for group in groups])
    if (spacings != spacings[0]).any():
        raise ValueError("frames of different PixelSpacing")
    normals = np.cross(axes[:, :3], axes[:, 3:])
    order = np.argsort(positions @ normals[0], kind="stable")
    positions, normals = positions[order], normals[order]
    hu = _hu(dataset.pixel_array, groups)[order]
    step = float((positions[-1] - positions[0]) @ normals[0]) / max(1, len(groups) - 1)
    direction = np.column_stack([axes[order[0], :3], axes[order[0], 3:], normals[0]])
    spacing_mm = (step or 1.0, float(spacings[0][0]), float(spacings[0][1]))
    x, y, z = map(float, positions[0])
    volume = Volume(hu, spacing_mm, (x, y, z), tuple(map(float, direction.ravel())))
    return Frames(volume, positions, normals)


@dataclass(frozen=True)
class _Groups:
    """Functional groups of one frame: its own, else those shared by all."""

    frame: Dataset
    dataset: Dataset

    def numbers(self, group: str, name: str, count: int) -> list[float]:
        """Return the `count` numbers of attribute `name` in a group; KeyError or ValueError where they are missing."""
        shared = self.dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
        found = self.frame.get(group) or shared[0].get(group)
        value = found[0].get(name) if found else None
        if value is None:
            raise KeyError(f"no {name} in {group}")
        numbers = [float(number) for number in (value if count > 1 else [value])]
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise ValueError(f"{name} is {value}, expected {count} numbers")
        return numbers


def _hu(stored: NDArray, groups: Sequence[_Groups]) -> NDArray:
    """Return stored values (N, rows, columns) in HU, whole numbers where slopes and intercepts are whole."""
    if stored.shape[:1] != (len(groups),) or stored.ndim != 3:
        raise ValueError(f"pixels of shape {stored.shape}, expected {len(groups)} grey-level frames")
    name = "PixelValueTransformationSequence"
    scale = np.array(
        [[group.numbers(name, f"Rescale{end}", 1)[0] for end in ("Slope", "Intercept")] for group in groups]
    )
    kind = np.int32 if (scale == np.rint(scale)).all() else np.float32
    slope, intercept = scale.astype(kind).T[:, :, None, None]
    hu = stored.astype(kind) * slope + intercept
    fits = kind == np.int32 and np.abs(hu).max(initial=0) <= np.iinfo(np.int16).max
    return hu.astype(np.int16) if fits else hu
