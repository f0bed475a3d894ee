"""Rasterise tubes along polylines onto a grid: coverage of each voxel, or signed distance around the tubes.

A tube is a chain of capsules with linearly changing radius. Thin tubes (radius below half a voxel) cover a voxel by
their share of its cross-section, so that a coarse grid shows them as faint as a scanner would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsyn.phantom.grid import Grid

_CACHED_VOXELS = 1 << 16
"""Voxels of the boxes that are worked on together: their arrays stay in a core's cache."""


@dataclass(frozen=True)
class Tubes:
    """n capsules: ends (n, 3) in mm (z, y, x), radii (n,) in mm."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    start_radius: NDArray[np.float64]
    end_radius: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.start)

    def __add__(self, other: Tubes) -> Tubes:
        return Tubes(
            *(
                np.concatenate([getattr(self, name), getattr(other, name)])
                for name in ("start", "end", "start_radius", "end_radius")
            )
        )

    def select(self, keep: NDArray) -> Tubes:
        """Return the capsules of a mask or of indices."""
        return Tubes(self.start[keep], self.end[keep], self.start_radius[keep], self.end_radius[keep])

    def widened(self, factor: float, offset: float) -> Tubes:
        """Return the tubes with radius factor r + offset."""
        return Tubes(self.start, self.end, self.start_radius * factor + offset, self.end_radius * factor + offset)

    def rotated(self, matrix: NDArray[np.float64]) -> Tubes:
        """Return the tubes with positions matrix @ p."""
        return Tubes(self.start @ matrix.T, self.end @ matrix.T, self.start_radius, self.end_radius)

    @staticmethod
    def empty() -> Tubes:
        """Return no tube."""
        return Tubes(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), np.zeros(0))

    @staticmethod
    def path(points: list[NDArray[np.float64]], radii: list[float]) -> Tubes:
        """Return one polyline through `points` with the radius of each point."""
        p, r = np.array(points, float), np.array(radii, float)
        return Tubes(p[:-1], p[1:], r[:-1], r[1:])


def coverage(grid: Grid, tubes: Tubes, faintest: float = 0.04) -> NDArray[np.uint8]:
    """Return the coverage of every voxel by the union of `tubes`, 0..255, without capsules fainter than `faintest`."""
    half = grid.width / 2
    result = np.zeros(grid.size, np.uint8)
    strongest = np.maximum(tubes.start_radius, tubes.end_radius)
    kept = tubes.select((np.minimum(strongest / half, 1.0) ** 2 >= faintest) & (strongest > 0))
    for flat, inside, distance, radius in _stamps(grid, kept, half, floor=half, beyond=False):
        distance -= np.maximum(radius, np.float32(half))
        touched = inside & (distance < half)
        share = np.clip(np.float32(0.5) - distance[touched] * np.float32(1 / grid.width), 0, 1)
        share *= np.minimum(np.square(radius[touched] * np.float32(1 / half)), 1)
        np.maximum.at(result.reshape(-1), flat[touched], np.rint(share * np.float32(255.0)).astype(np.uint8))
    return result


def distance_around(grid: Grid, tubes: Tubes, margin: float) -> NDArray[np.float32]:
    """Return the signed distance to the union of `tubes` within `margin` mm of them, 99 elsewhere."""
    result = np.full(grid.size, 99.0, np.float32)
    for flat, inside, distance, radius in _stamps(grid, tubes, margin, floor=0.0, beyond=True):
        np.minimum.at(result.reshape(-1), flat[inside], np.round((distance - radius)[inside], 3))
    return result


_Boxes = tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]


def _stamps(grid: Grid, tubes: Tubes, margin: float, floor: float, *, beyond: bool) -> Iterator[_Boxes]:
    """Yield equal boxes of voxels around the capsules; the last axis, along which numpy is fast, counts the boxes.

    Per voxel: its index in the flat grid, whether it lies in the grid, its distance to the capsule's axis, and the
    capsule's radius at the nearest point of the axis. A box holds every voxel within `margin` of the capsule, whose
    radius counts as at least `floor`, and with `beyond` one more on each side.
    """
    if len(tubes) == 0:
        return
    pieces = _cut(tubes, 3.0 * grid.width)
    spacing = np.array(grid.spacing)
    first = np.array([axis[0] for axis in grid.axes], float)
    reach = np.maximum(np.maximum(pieces.start_radius, pieces.end_radius), floor) + margin
    low = (np.minimum(pieces.start, pieces.end) - reach[:, None] - first) / spacing
    high = (np.maximum(pieces.start, pieces.end) + reach[:, None] - first) / spacing
    if beyond:
        low, high = np.floor(low).astype(int), np.ceil(high).astype(int)
    else:
        low, high = np.ceil(low).astype(int), np.floor(high).astype(int)
    edge = np.maximum((high - low).max(1) + 1, 0)
    bucket = np.where(edge <= 12, edge, np.ceil(edge / 4).astype(int) * 4)
    for n in np.unique(bucket[bucket > 0]):
        members = np.nonzero(bucket == n)[0]
        step = max(1, _CACHED_VOXELS // int(n) ** 3)
        for begin in range(0, len(members), step):
            chosen = members[begin : begin + step]
            yield _box(grid, pieces.select(chosen), low[chosen], n, spacing, first)


def _box(grid: Grid, part: Tubes, low: NDArray[np.int64], n: int, spacing: NDArray, first: NDArray) -> _Boxes:
    """Return what `_stamps` yields for boxes of n voxels an edge that begin at the voxels `low` (s, 3)."""
    index = low.T[:, None] + np.arange(n)[:, None]  # (3, n, s)
    inside = (index >= 0) & (index < np.array(grid.size)[:, None, None])
    offset = (first[:, None, None] + index * spacing[:, None, None] - part.start.T[:, None]).astype(np.float32)
    span = (part.end - part.start).astype(np.float32)
    length = np.maximum((span**2).sum(1), np.float32(1e-6))
    position = offset[0][:, None, None], offset[1][None, :, None], offset[2][None, None]
    along = position[0] * span[:, 0] + position[1] * span[:, 1] + position[2] * span[:, 2]
    along /= length
    np.clip(along, 0, 1, out=along)
    distance = np.zeros_like(along)
    for axis in range(3):
        away = along * span[:, axis]
        np.subtract(position[axis], away, out=away)
        away *= away
        distance += away
    np.sqrt(distance, out=distance)
    r0, r1 = part.start_radius.astype(np.float32), part.end_radius.astype(np.float32)
    along *= r1 - r0
    along += r0
    keep = inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None]
    _, h, w = grid.size
    flat = (index[0][:, None, None] * h + index[1][None, :, None]) * w + index[2][None, None]
    return flat, keep, distance, along


def _cut(tubes: Tubes, longest: float) -> Tubes:
    """Return the same tubes in pieces no longer than `longest` mm or their diameter."""
    length = np.linalg.norm(tubes.end - tubes.start, axis=1)
    limit = np.maximum(longest, 2 * np.maximum(tubes.start_radius, tubes.end_radius))
    count = np.maximum(np.ceil(length / limit).astype(int), 1)
    owner = np.repeat(np.arange(len(tubes)), count)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    low, high = rank / count[owner], (rank + 1) / count[owner]
    span = (tubes.end - tubes.start)[owner]
    slope = (tubes.end_radius - tubes.start_radius)[owner]
    return Tubes(
        tubes.start[owner] + low[:, None] * span,
        tubes.start[owner] + high[:, None] * span,
        tubes.start_radius[owner] + low * slope,
        tubes.start_radius[owner] + high * slope,
    )
