"""DICOM slices: headers of files, and the stacks of slices that one SeriesInstanceUID may hold.

Positions and normals are LPS, in millimetres. `medsyn.ct.dicom` chooses among the stacks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

IMAGE_TYPE, KERNEL = "0008|0008", "0018|1210"
ACQUISITION, TEMPORAL_POSITION, CONTENT_TIME = "0020|0012", "0020|0100", "0008|0033"
SAME_COSINE, SAME_PLACE_MM = 0.9995, 0.01
MOST_UNEVEN = 1.1
"""Largest distance of neighbouring slices, as a multiple of the smallest, of an even stack."""
MOST_AT_ONE_PLACE = 16
"""Slices at one place that are compared with each other."""


def is_dicom(path: Path) -> bool:
    """Return whether bytes 128 to 131 of a file are "DICM" (DICOM PS3.10, 7.1)."""
    with path.open("rb") as handle:
        return handle.read(132)[128:] == b"DICM"


@dataclass(frozen=True)
class Slice:
    """Header of one file: position and normal in LPS, size in voxels and mm per voxel, and its tags as text."""

    file: str
    position: NDArray[np.float64]
    normal: NDArray[np.float64]
    size: tuple[float, ...]
    num_frames: int
    tags: dict[str, str]

    @property
    def kind(self) -> frozenset[str]:
        """What keeps the slice out of a stack of CT slices."""
        values = {part.strip().upper() for part in self.tags.get(IMAGE_TYPE, "").split("\\")}
        return frozenset(values & {"LOCALIZER", "SECONDARY"})


def read_slice(file: str) -> Slice | None:
    """Read the header of a file without its pixels; None where it holds no image."""
    header = sitk.ImageFileReader()
    header.LoadPrivateTagsOff()
    header.SetFileName(file)
    try:
        header.ReadImageInformation()
    except RuntimeError:
        return None
    direction = np.array(header.GetDirection()).reshape(header.GetDimension(), -1)[:3, :3]
    size = header.GetSize()
    return Slice(
        file,
        np.array(header.GetOrigin()[:3]),
        np.cross(direction[:, 0], direction[:, 1]),
        (*size[:2], *(round(step, 3) for step in header.GetSpacing()[:2])),
        size[2] if len(size) > 2 else 1,
        {key: header.GetMetaData(key).strip() for key in header.GetMetaDataKeys()},
    )


def stacks(slices: list[Slice]) -> list[tuple[list[Slice], int]]:
    """Split slices of one UID into stacks, each with the number of identical doubles that were dropped from it."""
    groups: list[list[Slice]] = []
    for slice_ in slices:
        for group in groups:
            first = group[0]
            same = abs(float(first.normal @ slice_.normal)) > SAME_COSINE
            if same and first.size == slice_.size and first.kind == slice_.kind:
                group.append(slice_)
                break
        else:
            groups.append([slice_])
    parts = []
    for group in groups:
        ordered = sorted(group, key=lambda slice_: _place_mm(slice_, group[0].normal))
        kept = _without_doubles(ordered)
        parts += [(part, len(ordered) - len(kept)) for part in _even_stacks(kept)]
    return parts


def _place_mm(slice_: Slice, normal: NDArray[np.float64]) -> float:
    return float(slice_.position @ normal)


def _without_doubles(slices: list[Slice]) -> list[Slice]:
    """Drop slices whose place and pixels another has; `slices` are in the order of their places."""
    kept: list[Slice] = []
    for slice_ in slices:
        rivals = [o for o in kept[-MOST_AT_ONE_PLACE:] if np.abs(o.position - slice_.position).max() < SAME_PLACE_MM]
        if not any(np.array_equal(_pixels(other), _pixels(slice_)) for other in rivals):
            kept.append(slice_)
    return kept


def _pixels(slice_: Slice) -> NDArray:
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(slice_.file)))


def _even_stacks(slices: list[Slice]) -> list[list[Slice]]:
    """Split slices at uneven places by the first property whose stacks are even and lie at the same place.

    Stacks that follow each other along the body are one scan, whatever their acquisition numbers say.
    """
    if _is_even(slices):
        return [slices]
    properties: list[Callable[[Slice], object]] = [
        lambda slice_, tag=tag: slice_.tags.get(tag, "")  # type: ignore[misc]
        for tag in (IMAGE_TYPE, ACQUISITION, TEMPORAL_POSITION, CONTENT_TIME, KERNEL)
    ]
    normal = slices[0].normal
    properties.append(lambda slice_: tuple(np.round(slice_.position - normal * _place_mm(slice_, normal), 1)))
    for value_of in properties:
        parts: dict[object, list[Slice]] = {}
        for slice_ in slices:
            parts.setdefault(value_of(slice_), []).append(slice_)
        first, *others = sorted(parts.values(), key=len, reverse=True)
        if others and _is_even(first) and all(_is_even(part) and _overlap(first, part) for part in others):
            return [first, *others]
    return [slices]


def _is_even(slices: list[Slice]) -> bool:
    """Return whether the places differ by equal steps; one slice is even."""
    steps = np.diff([_place_mm(slice_, slices[0].normal) for slice_ in slices])
    return bool(steps.size == 0 or (steps.min() > SAME_PLACE_MM and steps.max() < MOST_UNEVEN * steps.min()))


def _overlap(first: list[Slice], second: list[Slice]) -> bool:
    """Return whether most of the second stack lies within the first."""
    normal = first[0].normal
    low, high = _place_mm(first[0], normal) - SAME_PLACE_MM, _place_mm(first[-1], normal) + SAME_PLACE_MM
    inside = [low <= _place_mm(slice_, normal) <= high for slice_ in second]
    return sum(inside) > len(second) / 2
