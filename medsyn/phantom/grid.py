"""Define sampling grids and continuous noise, which turn the continuous anatomy into arrays of any size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medsyn.volume import grid_spacing_mm

FIELD_OF_VIEW_MM = (292.0, 316.0, 316.0)
"""Extent (z, y, x) of every phantom: the field of view of the paper's model."""


@dataclass(frozen=True)
class Grid:
    """Cell centres of a regular grid over the field of view; size is (D, H, W)."""

    size: tuple[int, int, int]

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Return the spacing (z, y, x) in mm."""
        return grid_spacing_mm(self.size, FIELD_OF_VIEW_MM)

    @property
    def voxel_ml(self) -> float:
        """Return the volume of one voxel in millilitres."""
        return float(np.prod(self.spacing)) / 1000.0

    @property
    def width(self) -> float:
        """Return the edge of the cube that has a voxel's volume, mm."""
        return float(np.prod(self.spacing)) ** (1 / 3)

    @cached_property
    def axes(self) -> tuple[NDArray[np.float32], ...]:
        """Return the coordinates (mm) of the cell centres along z, y and x."""
        return tuple(
            ((np.arange(n) - (n - 1) / 2) * step).astype(np.float32)
            for n, step in zip(self.size, self.spacing, strict=True)
        )

    def slabs(self, voxels: int = 1 << 18) -> Iterator[slice]:
        """Return slices along z of about `voxels` voxels each: small enough to stay in cache."""
        step = max(1, voxels // (self.size[1] * self.size[2]))
        for start in range(0, self.size[0], step):
            yield slice(start, min(start + step, self.size[0]))


class Noise:
    """Smooth random field, unit variance: white nodes on a lattice of `wavelength_mm`, interpolated by cubic B-splines.

    Defined by its seed alone, so every grid samples the same field.
    """

    def __init__(self, rng: np.random.Generator, wavelength_mm: float) -> None:
        self.step, self._rng = wavelength_mm, rng

    @cached_property
    def nodes(self) -> NDArray[np.float32]:
        """Return the nodes; they are drawn when they are first needed, and `rng` must serve no other purpose."""
        count = [int(np.ceil(extent / self.step)) + 5 for extent in FIELD_OF_VIEW_MM]
        nodes = self._rng.standard_normal(count, dtype=np.float32)
        # variance of a cubic B-spline mixture of white nodes, averaged over positions: (151/315)^3
        return nodes * np.float32((315.0 / 151.0) ** 1.5)

    def _weights(self, coordinate: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
        position = (coordinate.astype(np.float64) + FIELD_OF_VIEW_MM[axis] / 2) / self.step + 1.5
        base = np.floor(position).astype(int)
        f = position - base
        parts = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
        matrix = np.zeros((coordinate.size, self.nodes.shape[axis]), np.float32)
        rows = np.arange(coordinate.size)
        for offset, part in enumerate(parts):
            matrix[rows, np.clip(base - 1 + offset, 0, self.nodes.shape[axis] - 1)] = part / 6
        return matrix

    def sample(self, grid: Grid, slab: slice) -> NDArray[np.float32]:
        """Return the values on a z slab of `grid`."""
        wz, wy, wx = (self._weights(c, i) for i, c in enumerate(grid.axes))
        values = np.tensordot(wz[slab], self.nodes, (1, 0))
        values = np.matmul(values, wx.T)
        return np.matmul(wy, values).astype(np.float32, copy=False)
