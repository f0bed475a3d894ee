"""Find the real volume that a generated one resembles most: a copy of a training volume is a leak of a patient.

Two volumes are compared on features or voxel by voxel. The voxel distance is 1 - r; r is Pearson's correlation of HU
inside the body of the volume that is judged, the largest over flips of all axes and small shifts. It is searched on a
coarse grid for all real volumes, and again on a fine one for those that lead there.

A distance alone does not tell a copy: a smooth volume correlates well with all. Its isolation does, after Carlini et
al. 2023 (arXiv:2301.13188): the distance to the nearest training volume over the mean distance to the next NUM_NEXT
that are not copies of that volume themselves, as second scans and augmented copies of the same patient are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfftn, rfftn
from scipy.ndimage import binary_fill_holes, convolve1d
from scipy.spatial.distance import cdist

FINE = 32
"""Voxels per axis at most of the fine grid; the coarse one has half as many."""
FINE_SHIFT, COARSE_SHIFT = 2, 1
"""Largest shift per axis in voxels of each grid: a sixteenth of the field of view."""
WINDOW_HU = (-1024.0, 600.0)
BODY_HU = -500.0
MIN_BODY = 0.05
"""Share of the grid below which the body counts as not found; all voxels are compared then."""
NUM_NEXT = 10
"""Volumes after the nearest one that its distance is compared with."""
_SMOOTHING = (0.25, 0.5, 0.25)  # lets a shift between the voxels of the fine grid change little
_FLIPS = tuple(product((1, -1), repeat=3))
_CHUNK = 256  # real volumes at a time
_JUDGED = 32  # judged volumes at a time
_FLAT = 1.0  # product of variances below which there is nothing to correlate, HU^4


@dataclass(frozen=True)
class Match:
    """The nearest of several volumes: its index, the distance, and the isolation; None where there is no other one."""

    index: int
    distance: float
    isolation: float | None


class Neighbours:
    """The real volumes around one volume, in an order that has the nearest among its first NUM_NEXT + 1."""

    def __init__(self, order: NDArray[np.integer], measure: Callable[[NDArray[np.integer]], NDArray]) -> None:
        """order: indexes of all real volumes; measure: returns the distances to some of them."""
        self.order = order
        self._measure, self._known = measure, dict[int, float]()
        first = self.distances(order[: NUM_NEXT + 1])
        self.index, self.distance = int(order[np.argmin(first)]), float(first.min())

    def distances(self, indexes: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the distances to real volumes; each is measured once."""
        missing = np.array([i for i in indexes if int(i) not in self._known], int)
        if len(missing):
            self._known |= dict(zip(missing.tolist(), self._measure(missing).tolist(), strict=True))
        return np.array([self._known[int(i)] for i in indexes])

    def within(self, limit: float) -> set[int]:
        """Return the real volumes at a smaller distance; ends where fewer than half of the next in order are."""
        found: set[int] = set()
        for start in range(0, len(self.order), NUM_NEXT + 1):
            part = self.order[start : start + NUM_NEXT + 1]
            near = part[self.distances(part) < limit]
            found.update(near.tolist())
            if 2 * len(near) < len(part):
                break
        return found


class Search(Protocol):
    """Real volumes among which others are looked for."""

    real: NDArray

    def neighbours(self, values: NDArray) -> Iterator[Neighbours]:
        """Yield the neighbours of each of several volumes, given in the form of `real`."""
        ...


class Judge:
    """Compares the distance to the nearest training volume with those to the next, leaving out copies of that one."""

    def __init__(self, search: Search, limit: float | None) -> None:
        """limit: distance below which two training volumes count as copies of each other; None: no two do."""
        self._search, self._limit = search, limit
        self._copies: dict[int, set[int]] = {}

    def match(self, found: Neighbours) -> Match:
        """Return the nearest training volume and its isolation."""
        copies = self._copies_of(found.index)
        others = np.array([i for i in found.order.tolist() if i not in copies][:NUM_NEXT], int)
        mean = float(found.distances(others).mean()) if len(others) else 0.0
        return Match(found.index, found.distance, found.distance / mean if mean > 0 else None)

    def _copies_of(self, index: int) -> set[int]:
        """Return a training volume and its copies in the training set."""
        if self._limit is None:
            return {index}
        if index not in self._copies:
            (itself,) = self._search.neighbours(self._search.real[index : index + 1])
            self._copies[index] = itself.within(self._limit) | {index}
        return self._copies[index]


class FeatureSearch:
    """Searches real volumes by the Euclidean distance of features."""

    def __init__(self, real: NDArray) -> None:
        """real: features (n, F)."""
        self.real = real

    def neighbours(self, values: NDArray) -> Iterator[Neighbours]:
        """Yield the neighbours of each row of features (m, F)."""
        for value in values:
            row = cdist(value[None], self.real)[0]
            yield Neighbours(np.argsort(row, kind="stable"), row.__getitem__)


class VoxelSearch:
    """Searches real volumes by the correlation of HU; keeps 94 KiB of each."""

    def __init__(self, real: NDArray[np.int16]) -> None:
        """real: reduced volumes (n, d, h, w) of `reduce`."""
        self.real = real
        self._coarse = (_halved(real), _halved(real[:, 1:-1, 1:-1, 1:-1]))  # the second lies half a coarse voxel beside

    def neighbours(self, values: NDArray[np.int16]) -> Iterator[Neighbours]:
        """Yield the neighbours of each reduced volume (m, d, h, w) of the same grid."""
        for start in range(0, len(values), _JUDGED):
            part = values[start : start + _JUDGED]
            for volume, found, flips in zip(part, *self._coarse_search(part), strict=True):
                yield Neighbours(np.argsort(-found, kind="stable"), self._measure(volume, flips))

    def _measure(self, volume: NDArray[np.int16], flips: NDArray[np.int8]) -> Callable[[NDArray], NDArray]:
        """Return the function that takes indexes and returns fine distances; flips: one of each real volume."""

        def measure(indexes: NDArray[np.integer]) -> NDArray[np.float64]:
            distances = np.empty(len(indexes))
            for flip in np.unique(flips[indexes]):
                of_flip = flips[indexes] == flip
                distances[of_flip] = 1 - _peaks(_flipped(volume, _FLIPS[flip]), self.real[indexes[of_flip]])
            return distances

        return measure

    def _coarse_search(self, volumes: NDArray[np.int16]) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """Return the largest correlations (m, n) of volumes on the coarse grid with all real ones, and their flips.

        Shifts are those of whole coarse voxels, and of half of one on all axes at once.
        """
        views = [_inner(_flipped(volume, flip), COARSE_SHIFT) for volume in _halved(volumes) for flip in _FLIPS]
        weights = np.stack([_body(view).ravel() for view in views]).astype(np.float32)
        templates = _centred(np.stack([view.ravel() for view in views]), weights)
        best = np.full((len(volumes), len(self.real)), -1.0, np.float32)
        flips = np.zeros(best.shape, np.int8)
        for start in range(0, len(self.real), _CHUNK):
            part = slice(start, start + _CHUNK)
            for grid in self._coarse:
                for windows in _windows(grid[part], views[0].shape):
                    sums = (templates @ windows, weights @ windows, weights @ windows**2)
                    found = _correlation(*sums, templates, weights).reshape(len(volumes), len(_FLIPS), -1)
                    better = found.max(axis=1) > best[:, part]
                    best[:, part] = np.maximum(best[:, part], found.max(axis=1))
                    flips[:, part][better] = found.argmax(axis=1)[better]
        return best, flips


def reduce(hu: NDArray) -> NDArray[np.int16]:
    """Return means of overlapping blocks of a volume (D, H, W) in HU, clipped to WINDOW_HU.

    At most FINE of them per axis and an even number; each weighs its block by a half, the two beside it by a quarter.
    These are 64 KiB, all that is kept of a volume.
    """
    means = np.clip(np.asarray(hu, np.float32), *WINDOW_HU)
    for axis, size in enumerate(means.shape):
        count = min(FINE, size) // 2 * 2
        starts = np.arange(count) * size // count
        sums = np.add.reduceat(means, starts, axis=axis)
        lengths = np.diff([*starts, size]).reshape([-1 if k == axis else 1 for k in range(3)])
        means = convolve1d(sums / lengths, _SMOOTHING, axis=axis, mode="nearest")
    return np.round(means).astype(np.int16)


def _peaks(volume: NDArray[np.int16], real: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return the largest correlation of a volume (d, h, w) with each of several (n, d, h, w) over shifts.

    By FFT on the fine grid; a parabola through the largest one stands for shifts between its voxels.
    """
    inner = _inner(volume, FINE_SHIFT).astype(np.float32)
    weights = _body(inner).astype(np.float32)
    template = _centred(inner.reshape(1, -1), weights.reshape(1, -1)).reshape(inner.shape)
    of_template, of_weights = (np.conj(rfftn(part, volume.shape)) for part in (template, weights))
    values = real.astype(np.float32)
    spectra, of_squares = (rfftn(part, axes=(1, 2, 3)) for part in (values, values**2))
    count = 2 * FINE_SHIFT + 1
    products, sums, squares = (
        irfftn(product, volume.shape, axes=(1, 2, 3))[:, :count, :count, :count].reshape(1, -1)
        for product in (of_template * spectra, of_weights * spectra, of_weights * of_squares)
    )
    found = _correlation(products, sums, squares, template.reshape(1, -1), weights.reshape(1, -1))
    return np.array([_peak(part) for part in found.reshape(-1, count, count, count)])


def _centred(templates: NDArray, weights: NDArray) -> NDArray[np.float32]:
    """Return templates (t, v) minus their means inside the body, and 0 outside of it."""
    means = (templates * weights).sum(axis=1) / weights.sum(axis=1)
    return np.asarray((templates - means[:, None]) * weights, np.float32)


def _correlation(
    products: NDArray, sums: NDArray, squares: NDArray, templates: NDArray, weights: NDArray
) -> NDArray[np.float64]:
    """Return Pearson's r (t, n) inside the body of centred templates (t, v) with windows; 0 where one is flat.

    products, sums, squares: sums (t, n) over the body of template times window, of the window and of its square.
    """
    count = weights.sum(axis=1)[:, None]
    variance = np.maximum(squares / count - (sums / count) ** 2, 0) * (templates**2).sum(axis=1)[:, None] / count
    return np.divide(products / count, np.sqrt(variance), out=np.zeros(products.shape), where=variance > _FLAT)


def _peak(correlations: NDArray) -> float:
    """Return the largest of (s, s, s) correlations, raised by the parabola through its neighbours on each axis."""
    place = np.unravel_index(np.argmax(correlations), correlations.shape)
    top = float(correlations[place])
    gain = 0.0
    for axis in range(3):
        line = correlations[tuple(slice(None) if k == axis else place[k] for k in range(3))]
        i = place[axis]
        if 0 < i < len(line) - 1:
            slope, bend = line[i + 1] - line[i - 1], 2 * top - line[i + 1] - line[i - 1]
            gain += slope**2 / (8 * bend) if bend > 0 else 0.0
    return min(1.0, top + gain)


def _halved(arrays: NDArray) -> NDArray[np.float32]:
    """Return means of 2 x 2 x 2 blocks of (n, d, h, w)."""
    n, d, h, w = arrays.shape
    blocks = arrays.reshape(n, d // 2, 2, h // 2, 2, w // 2, 2)
    return np.asarray(blocks.mean(axis=(2, 4, 6), dtype=np.float32))


def _body(volume: NDArray) -> NDArray[np.bool_]:
    """Return the body with the lungs in it, axial slice by axial slice; everything where there is none."""
    body = np.stack([binary_fill_holes(part) for part in volume > BODY_HU])
    return body if body.mean() >= MIN_BODY else np.ones(volume.shape, bool)


def _flipped(volume: NDArray, flip: tuple[int, ...]) -> NDArray:
    return volume[tuple(slice(None, None, step) for step in flip)]


def _inner(volume: NDArray, margin: int) -> NDArray:
    return volume[tuple(slice(margin, -margin) for _ in range(3))]


def _windows(grid: NDArray, inner: tuple[int, ...]) -> Iterator[NDArray]:
    """Yield the voxels (v, n) of volumes (n, d, h, w) in a box of shape `inner`, at every place where the box fits."""
    places = (range(outer - size + 1) for outer, size in zip(grid.shape[1:], inner, strict=True))
    for start in product(*places):
        place = tuple(slice(a, a + size) for a, size in zip(start, inner, strict=True))
        yield grid[(slice(None), *place)].reshape(len(grid), -1).T
