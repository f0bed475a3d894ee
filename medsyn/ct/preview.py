"""Pictures to look at without a viewer: three orthogonal views of a volume, masks painted over it, contact sheets of
many subjects, a generated volume in two windows.

Takes volumes in model orientation; writes PNG through SimpleITK (no matplotlib, it takes a second to import). Views are
drawn as radiologists read them: patient's right on the left of the picture, head up, in the axial view anterior up;
sagittal anterior to the left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsyn.files import atomic_path
from medsyn.volume import Volume

WINDOW_HU = (-1150.0, 350.0)
"""Window of the lungs."""
SOFT_TISSUE_WINDOW_HU = (-160.0, 240.0)
AXIAL_LEVEL, CORONAL_LEVEL, SAGITTAL_LEVEL = LEVELS = (0.5, 0.52, 0.3)
"""Where `two_windows` and the figures cut, as fractions of the field of view (z, y, x)."""
LETTER_COLOUR = (232, 216, 160)
LETTERS = {
    "R": ("1110", "1001", "1001", "1110", "1010", "1001", "1001"),
    "L": ("1000", "1000", "1000", "1000", "1000", "1000", "1111"),
    "A": ("0110", "1001", "1001", "1111", "1001", "1001", "1001"),
    "P": ("1110", "1001", "1001", "1110", "1000", "1000", "1000"),
}
"""Pixels of the letters that mark the sides of a picture."""
PALETTE = {
    1: (230, 90, 80),
    2: (245, 170, 70),
    3: (80, 140, 240),
    4: (90, 205, 205),
    5: (120, 100, 220),
    6: (60, 220, 90),
    7: (255, 60, 200),
    8: (250, 240, 80),
    9: (160, 30, 30),
}
"""RGB of painted labels: 1..5 the lobes, 6 airway, 7 vessels, 8 effusion, 9 heart."""


def three_views(
    volume: Volume, labels: NDArray | None = None, height: int = 256, at: tuple[int, int, int] | None = None
) -> NDArray[np.uint8]:
    """Return an axial, a coronal and a sagittal slice side by side, RGB (height, width, 3).

    labels: (D, H, W) values of PALETTE painted over the slices; at: indices (z, y, x) of the slices, none: `middle_of`
    the labels.
    """
    panels = []
    for index, steps, flips in _views(
        volume, at or middle_of(np.zeros(volume.array.shape, bool) if labels is None else labels > 0)
    ):
        picture = _rgb(_grey(volume.array[index]))
        if labels is not None:
            picture = _paint(picture, labels[index])
        panels.append(_scaled(_flipped(picture, flips), steps, height))
    return np.concatenate(panels, axis=1)


def two_windows(volume: Volume, height: int = 320) -> NDArray[np.uint8]:
    """Return an axial, a coronal and a sagittal slice at LEVELS, RGB: above in the window of the lungs, below of soft
    tissue.

    A row has `height` pixels. Slices are interpolated linearly. Letters mark the patient's right and left, anterior and
    posterior.
    """
    at = tuple(int(level * length) for level, length in zip(LEVELS, volume.array.shape, strict=True))
    slices = [
        (_interpolated(_flipped(volume.array[index], flips), steps, height), "AP" if flips[1] else "RL")
        for index, steps, flips in _views(volume, at)
    ]
    rows = [
        np.concatenate([_lettered(_rgb(_grey(hu, window)), sides) for hu, sides in slices], axis=1)
        for window in (WINDOW_HU, SOFT_TISSUE_WINDOW_HU)
    ]
    return np.concatenate(rows)


def _views(volume: Volume, at: tuple[int, ...]) -> list[tuple[tuple[Any, ...], tuple[float, float], tuple[bool, bool]]]:
    """Return index, spacing (rows, columns; mm) and flips of the axial, coronal and sagittal slices at `at`."""
    (z, y, x), (dz, dy, dx), every = at, volume.spacing_mm, slice(None)
    return [
        ((z, every, every), (dy, dx), (True, False)),
        ((every, y, every), (dz, dx), (True, False)),
        ((every, every, x), (dz, dy), (True, True)),
    ]


def middle_of(mask: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Return the indices (z, y, x) of the slices that show most of a mask; the middle where the mask is empty.

    x: through its larger half.
    """
    if not mask.any():
        z, y, x = (count // 2 for count in mask.shape)
        return z, y, x
    z, y, _ = (int(v) for v in np.median(np.argwhere(mask), axis=0))
    return z, y, int(np.argmax(mask.sum((0, 1))))


def coronal_view(volume: Volume, height: int = 128) -> NDArray[np.uint8]:
    """Return the middle coronal slice, RGB (height, width, 3)."""
    grey = _grey(volume.array[:, volume.array.shape[1] // 2])
    picture = _flipped(_rgb(grey), (True, False))
    return _scaled(picture, (volume.spacing_mm[0], volume.spacing_mm[2]), height)


def combine(masks: Mapping[str, NDArray]) -> NDArray[np.uint8]:
    """Return one label array for painting from lobes, airway, vessels, effusion, heart (later ones on top)."""
    out = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for name, value in (("lobes", 0), ("heart", 9), ("effusion", 8), ("vessels", 7), ("airway", 6)):
        if name in masks:
            mask = masks[name]
            out = np.where(mask > 0, mask if name == "lobes" else value, out).astype(np.uint8)
    return out


def sheet(pictures: Sequence[NDArray[np.uint8]], columns: int = 8) -> NDArray[np.uint8]:
    """Return pictures in rows of `columns`, each on a tile as large as the largest, with black between them."""
    if not pictures:
        return np.zeros((16, 16, 3), np.uint8)
    height = max(p.shape[0] for p in pictures) + 2
    width = max(p.shape[1] for p in pictures) + 2
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    out = np.zeros((rows * height, columns * width, 3), np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * height, index % columns * width
        out[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return out


def write_png(path: str | Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture (height, width, 3) atomically."""
    with atomic_path(path) as temporary:
        sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(picture), isVector=True), str(temporary))


def _grey(slice_: NDArray, window_hu: tuple[float, float] = WINDOW_HU) -> NDArray[np.uint8]:
    low, high = window_hu
    return np.asarray((np.clip((slice_.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8))


def _rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, axis=2)


def _lettered(picture: NDArray[np.uint8], sides: str, scale: int = 2, margin: int = 6) -> NDArray[np.uint8]:
    """Draw the letters of `sides` at the left and at the right edge of an RGB picture, which is changed.

    A picture that is smaller than a letter and its margin is left without.
    """
    for letter, place in zip(sides, (slice(margin, None), slice(None, -margin)), strict=True):
        pixels = np.array([[mark == "1" for mark in row] for row in LETTERS[letter]])
        mask = np.kron(pixels, np.ones((scale, scale), bool))
        top, width = (picture.shape[0] - mask.shape[0]) // 2, mask.shape[1]
        if top < 0 or picture.shape[1] < margin + width:
            break
        columns = picture[top : top + mask.shape[0], place]
        part = columns[:, :width] if place.start else columns[:, -width:]
        part[mask] = LETTER_COLOUR
    return picture


def _paint(picture: NDArray[np.uint8], labels: NDArray) -> NDArray[np.uint8]:
    lookup = np.zeros((256, 3), np.float32)
    for value, colour in PALETTE.items():
        lookup[value] = colour
    strength = np.where(labels > 5, 0.75, np.where(labels > 0, 0.3, 0.0))[..., None]
    return np.asarray(picture * (1 - strength) + lookup[labels.astype(np.uint8)] * strength).astype(np.uint8)


def _flipped(picture: NDArray[np.uint8], flips: tuple[bool, bool]) -> NDArray[np.uint8]:
    return picture[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]


def _scaled(picture: NDArray[np.uint8], steps: tuple[float, float], height: int) -> NDArray[np.uint8]:
    """Scale a picture to `height` rows with square pixels by nearest neighbour."""
    rows, columns = picture.shape[:2]
    width = _width(picture, steps, height)
    y = np.minimum((np.arange(height) + 0.5) * rows / height, rows - 1).astype(int)
    x = np.minimum((np.arange(width) + 0.5) * columns / width, columns - 1).astype(int)
    return picture[y][:, x]


def _interpolated(picture: NDArray, steps: tuple[float, float], height: int) -> NDArray[np.float32]:
    """Scale HU (rows, columns) to `height` rows with square pixels by linear interpolation."""
    out = picture.astype(np.float32)
    for axis, count in enumerate((height, _width(picture, steps, height))):
        length = picture.shape[axis]
        place = np.clip((np.arange(count) + 0.5) * length / count - 0.5, 0, length - 1)
        low = place.astype(int)
        share = (place - low).astype(np.float32).reshape(-1, *[1] * (1 - axis))
        high = np.minimum(low + 1, length - 1)
        out = out.take(low, axis) * (1 - share) + out.take(high, axis) * share
    return out


def _width(picture: NDArray, steps: tuple[float, float], height: int) -> int:
    """Return the columns of a picture that has `height` rows and square pixels."""
    rows, columns = picture.shape[:2]
    return max(1, round(height * columns * steps[1] / (rows * steps[0])))
