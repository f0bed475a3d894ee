"""Find the real volume that a generated one resembles most: a copy of a training volume is a leak of a patient.

Two volumes are compared twice, on features and voxel by voxel. The voxel distance is 1 - r; r is Pearson's correlation
of HU inside the body of the volume that is judged, the largest over flips of all axes and small shifts. It is searched
on a coarse grid for all real volumes, and again on a fine one for the NUM_NEXT + 1 best of them.

A distance alone does not tell a copy: a smooth volume correlates well with all. Its isolation does, after Carlini et
al. 2023 (arXiv:2301.13188): the distance to the nearest training volume over the mean distance to the next NUM_NEXT.
As in Dar et al. 2023 (arXiv:2307.01148), thresholds come from real volumes that the model has not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfftn, rfftn
from scipy.ndimage import binary_fill_holes
from scipy.spatial.distance import cdist

FINE, COARSE = 32, 16
"""Voxels per axis at most of the two grids."""
FINE_SHIFT, COARSE_SHIFT = 2, 1
"""Largest shift per axis in voxels of each grid: a sixteenth of the field of view."""
WINDOW_HU = (-1024.0, 600.0)
BODY_HU = -500.0
MIN_BODY = 0.05
"""Share of the grid below which the body counts as not found; all voxels are compared then."""
NUM_NEXT = 10
"""Volumes after the nearest one that its distance is compared with."""
TAIL = 0.05
"""Share of unseen real volumes that lies beyond a threshold by definition."""
_FLIPS = tuple(product((1, -1), repeat=3))
_CHUNK = 256  # real volumes at a time
_FLAT = 1.0  # product of variances below which there is nothing to correlate, HU^4


@dataclass(frozen=True)
class Match:
    """The nearest of several volumes: its index, the distance, and the distance over the mean to the next ones.

    isolation is None where there is no other volume.
    """

    index: int
    distance: float
    isolation: float | None


def reduce(hu: NDArray) -> NDArray[np.int16]:
    """Return block means of a volume (D, H, W) in HU, clipped to WINDOW_HU: at most FINE voxels per axis, even numbers.

    64 KiB instead of a whole volume: all that is kept of one.
    """
    means = np.clip(np.asarray(hu, np.float32), *WINDOW_HU)
    for axis, size in enumerate(means.shape):
        count = min(FINE, size) // 2 * 2
        starts = np.arange(count) * size // count
        sums = np.add.reduceat(means, starts, axis=axis)
        lengths = np.diff([*starts, size]).reshape([-1 if k == axis else 1 for k in range(3)])
        means = sums / lengths
    return np.round(means).astype(np.int16)


def nearest_by_features(features: NDArray, real: NDArray, *, itself: bool = False) -> list[Match]:
    """Return the nearest row of `real` (n, F) for each row of `features` (m, F), by Euclidean distance.

    itself: the two are the same rows, of which none is its own neighbour.
    """
    distances = cdist(features, real)
    if itself:
        np.fill_diagonal(distances, np.inf)
    return [_match(row) for row in distances]


class VoxelSearch:
    """Searches real volumes, which it keeps reduced: 64 KiB of HU and 16 KiB on the coarse grid for each."""

    def __init__(self, real: NDArray[np.int16]) -> None:
        """real: reduced volumes (n, d, h, w) of `reduce`."""
        self._fine, self._coarse = real, _halved(real)

    def nearest(self, volumes: NDArray[np.int16]) -> list[Match]:
        """Return the nearest real volume of each reduced volume (m, d, h, w) of the same grid."""
        best, flips = self._coarse_search(_halved(volumes))
        matches = []
        for volume, found, flip in zip(volumes, best, flips, strict=True):
            candidates = np.argsort(-found, kind="stable")[: NUM_NEXT + 1]
            template = _Template(volume)
            distances = np.array([1 - template.correlation(self._fine[i], _FLIPS[flip[i]]) for i in candidates])
            match = _match(distances)
            matches.append(Match(int(candidates[match.index]), match.distance, match.isolation))
        return matches

    def _coarse_search(self, volumes: NDArray[np.float32]) -> tuple[NDArray, NDArray]:
        """Return the largest correlations (m, n) of volumes on the coarse grid with all real ones, and their flips."""
        views = [_inner(_flipped(array, flip), COARSE_SHIFT) for array in volumes for flip in _FLIPS]
        bodies = [_inner(_flipped(_body(array), flip), COARSE_SHIFT) for array in volumes for flip in _FLIPS]
        shape = views[0].shape
        weights = np.stack([mask.ravel() for mask in bodies]).astype(np.float32)
        templates = _centred(np.stack([view.ravel() for view in views]), weights)
        best = np.full((len(volumes), len(self._coarse)), -1.0, np.float32)
        flips = np.zeros(best.shape, np.int8)
        for start in range(0, len(self._coarse), _CHUNK):
            part = slice(start, start + _CHUNK)
            for place in _places(shape, COARSE_SHIFT):
                windows = self._coarse[(part, *place)].reshape(-1, weights.shape[1]).T
                sums = (templates @ windows, weights @ windows, weights @ windows**2)
                found = _correlation(*sums, templates, weights).reshape(len(volumes), len(_FLIPS), -1)
                better = found.max(axis=1) > best[:, part]
                best[:, part] = np.maximum(best[:, part], found.max(axis=1))
                flips[:, part][better] = found.argmax(axis=1)[better]
        return best, flips


class _Template:
    """A volume on the fine grid whose correlation with others is asked for at all small shifts, by FFT."""

    def __init__(self, volume: NDArray[np.int16]) -> None:
        self._volume, self._body, self._shape = volume.astype(np.float32), _body(volume), volume.shape
        self._spectra: dict[tuple[int, ...], tuple[NDArray, ...]] = {}

    def correlation(self, real: NDArray[np.int16], flip: tuple[int, ...]) -> float:
        """Return the largest correlation with a real volume; between the voxels of the grid by a parabola."""
        template, weights, template_spectrum, weights_spectrum = self._of(flip)
        values = real.astype(np.float32)
        spectrum, square_spectrum = rfftn(values), rfftn(values**2)
        products = (template_spectrum * spectrum, weights_spectrum * spectrum, weights_spectrum * square_spectrum)
        near = tuple(slice(0, 2 * FINE_SHIFT + 1) for _ in range(3))
        sums = (irfftn(product, self._shape)[near].reshape(1, -1) for product in products)
        found = _correlation(*sums, template, weights)
        return _peak(found.reshape([2 * FINE_SHIFT + 1] * 3))

    def _of(self, flip: tuple[int, ...]) -> tuple[NDArray, ...]:
        """Return the flipped, centred template and its body (1, v), and the conjugate spectra of both."""
        if flip not in self._spectra:
            weights = _inner(_flipped(self._body, flip), FINE_SHIFT).astype(np.float32)
            inner = _inner(_flipped(self._volume, flip), FINE_SHIFT)
            template = _centred(inner.reshape(1, -1), weights.reshape(1, -1))
            spectra = (np.conj(rfftn(part.reshape(inner.shape), self._shape)) for part in (template, weights))
            self._spectra[flip] = (template, weights.reshape(1, -1), *spectra)
        return self._spectra[flip]


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


def _match(distances: NDArray) -> Match:
    """Return the nearest of distances (n), of which infinite ones are no neighbours."""
    nearest, distance = int(np.argmin(distances)), float(np.min(distances))
    others = np.sort(np.delete(distances, nearest))[:NUM_NEXT]
    others = others[np.isfinite(others)]
    mean = float(others.mean()) if len(others) else 0.0
    return Match(nearest, distance, distance / mean if mean > 0 else None)


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


def _places(inner: tuple[int, ...], shift: int) -> Iterator[tuple[slice, ...]]:
    """Yield every place of a box of this shape that is at most `shift` voxels off the middle on each axis."""
    for start in product(range(2 * shift + 1), repeat=3):
        yield tuple(slice(a, a + size) for a, size in zip(start, inner, strict=True))
