"""Compute pointwise fields of one anatomy: signed distances (mm, negative inside) on a slab of a grid.

Every field is a function of position alone, so a coarse and a fine grid show the same person. Distances are exact for
tubes and first-order (field over gradient) for the other shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from medsyn.phantom.anatomy import Anatomy, Ellipsoid
from medsyn.phantom.grid import Grid

Array = NDArray[np.float32]
HEART_REACH_MM = 42.0
"""Largest distance to the heart that is told from others."""
RIB_PITCH = 21.0
"""Distance between neighbouring ribs and vertebrae in the mean adult, mm."""
_LUT_STEP = 0.25
_LUT_HALF = 190.0


@dataclass
class Body:
    """The anatomy with what is derived from it once: lookup tables, heart pieces, fissure offsets."""

    anatomy: Anatomy
    heart: list[Ellipsoid]
    tables: tuple[Array, ...] = field(init=False)
    oblique_offset: dict[str, float] = field(default_factory=lambda: {"left": 0.0, "right": 0.0})
    horizontal_offset: float = 0.0

    def __post_init__(self) -> None:
        z = np.arange(-_LUT_HALF, _LUT_HALF + _LUT_STEP, _LUT_STEP)
        self.tables = self.anatomy.profile(z)

    def lookup(self, z: Array) -> tuple[Array, ...]:
        """Return half width, centre y, half depth and spine y at every point's height."""
        index = np.clip((z + np.float32(_LUT_HALF)) * np.float32(1 / _LUT_STEP) + 0.5, 0, len(self.tables[0]) - 1)
        index = index.astype(np.int32)
        return tuple(table[index] for table in self.tables)


@dataclass
class Shell:
    """Fields of one slab; all (d, H, W) float32."""

    z: Array
    y: Array
    x: Array
    spine_y: Array
    spine_x: Array
    cavity: Array
    """distance to the inner chest wall"""
    outline: Array
    """the same without the groove of the spine: what the muscles and skin follow"""
    angle: Array
    """around the chest: 0 at the spine, pi at the sternum"""
    dome: Array
    """height above the diaphragm"""
    apex: Array
    """height above the pleural apex"""

    def at(self, points: NDArray[np.int64]) -> Shell:
        """Return the fields at some points of the slab, given as indices into its flat arrays."""
        return Shell(**{field.name: getattr(self, field.name).take(points) for field in fields(self)})


def smooth_max(a: Array, b: Array, k: float) -> Array:
    """Return the maximum of two distances with edges rounded over about k mm (polynomial)."""
    h = np.maximum(np.float32(k) - np.abs(a - b), 0)
    return np.maximum(a, b) + h * h * np.float32(0.25 / k)


def smooth_min(a: Array, b: Array, k: float) -> Array:
    """Return the minimum of two distances with corners filled over about k mm."""
    h = np.maximum(np.float32(k) - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h * np.float32(0.25 / k)


def sigmoid(value: Array) -> Array:
    """Return a smooth step from 0 to 1, cheap and bounded (algebraic)."""
    return (np.float32(0.5) + np.float32(0.5) * value / np.sqrt(1 + value * value)).astype(np.float32)


def coordinates(anatomy: Anatomy, grid: Grid, slab: slice) -> tuple[Array, Array, Array]:
    """Return positions in the subject's own (rotated) frame."""
    z, y, x = grid.axes
    r = anatomy.rotation.astype(np.float32)
    z3, y3, x3 = z[slab, None, None], y[None, :, None], x[None, None, :]
    return tuple(r[i, 0] * z3 + r[i, 1] * y3 + r[i, 2] * x3 for i in range(3))


def shell(body: Body, grid: Grid, slab: slice) -> Shell:
    """Return chest wall, diaphragm and pleural apex on one slab."""
    a = body.anatomy
    z, y, x = coordinates(a, grid, slab)
    width, centre, depth, spine_y = body.lookup(z)
    spine_x = np.float32(a.sway) * np.sin(z * np.float32(0.02))
    inner_x, inner_y = x - spine_x * np.float32(0.5), y - centre
    outline = _wall(inner_x, inner_y, width, depth, a.squareness)
    cavity = outline.copy()
    box = box_between((z, y, x), np.array([-np.inf, -np.inf, -110.0]), np.array([np.inf, np.inf, 110.0]))
    if box is not None:
        across = x[box] - spine_x[box]
        groove = np.exp(-np.square(across * np.float32(1 / 35.0))) * np.clip((100 - np.abs(across)) / 20, 0, 1)
        posterior = sigmoid((spine_y[box] + 38 - y[box]) * np.float32(1 / 16.0))
        inner_y[box] -= (spine_y[box] + np.float32(16.0) - (centre[box] - depth[box])) * groove * posterior
        cavity[box] = _wall(inner_x[box], inner_y[box], width[box], depth[box], a.squareness)
    angle = np.arctan2(np.abs(inner_x / width), -(inner_y / depth))
    return Shell(z, y, x, spine_y, spine_x, cavity, outline, angle, _dome(a, z, y, x), _apex(a, z, y, x))


def box_between(fields: tuple[Array, Array, Array], low: NDArray, high: NDArray) -> tuple[slice, ...] | None:
    """Return the box of a slab that holds its points from `low` to `high` (z, y, x) mm; None where there are none.

    fields: z, y and x on the slab, which grow evenly along each axis, so that a plane's corners have its extremes.
    """
    box = []
    for axis, (position, first, last) in enumerate(zip(fields, low, high, strict=True)):
        planes = np.moveaxis(position, axis, 0)
        corners = planes[:, :: max(planes.shape[1] - 1, 1), :: max(planes.shape[2] - 1, 1)]
        inside = np.flatnonzero((corners.min((1, 2)) < last) & (corners.max((1, 2)) > first))
        if inside.size == 0:
            return None
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


def _wall(x: Array, y: Array, width: Array, depth: Array, squareness: float) -> Array:
    """Return the distance to a squircle-like wall of half width and half depth."""
    u, v = x / width, y / depth
    uu, vv = u * u, v * v
    q = uu + vv - np.float32(squareness) * np.minimum(uu, 1.5) * np.minimum(vv, 1.5)
    radius = np.sqrt(np.maximum(q, 1e-4))
    slope = np.sqrt(uu / (width * width) + vv / (depth * depth) + np.float32(1e-9))
    return radius * (radius - 1) / slope


def _dome(a: Anatomy, z: Array, y: Array, x: Array) -> Array:
    """Return the height above the diaphragm: two domes, deepest in the posterior recess, a saddle under the heart."""
    right = _half_dome(a, y, x, -1.0, a.level(a.dome_top_right))
    left = _half_dome(a, y, x, 1.0, a.level(a.dome_top_right + a.dome_top_left))
    return z - smooth_max(right, left, 14.0)


def _half_dome(a: Anatomy, y: Array, x: Array, side: float, top: float) -> Array:
    v = (y - np.float32(0.06 * a.half_depth)) / np.float32(a.half_depth)
    u = (x - np.float32(side * 0.5 * a.half_width)) / np.float32(0.56 * a.half_width)
    u = np.where(u * side < 0, u * np.float32(0.75), u)
    drop = np.float32(a.dome_drop) * (1 - np.float32(0.42) * np.clip(v, -1, 1))
    r = u * u + v * v
    return (np.float32(top) - drop * r * (np.float32(0.55) + np.float32(0.35) * np.minimum(r, 2.0))).astype(np.float32)


def _apex(a: Anatomy, z: Array, y: Array, x: Array) -> Array:
    u = (np.abs(x) - np.float32(0.34 * a.half_width)) / np.float32(0.40 * a.half_width)
    v = (y + np.float32(0.22 * a.half_depth)) / np.float32(0.55 * a.half_depth)
    r = np.minimum(u * u + v * v, 6.0)
    return z - np.float32(a.top) + np.float32(26.0) * r


def heart_distance(body: Body, z: Array, y: Array, x: Array) -> Array:
    """Return the signed distance to the heart: its four chambers' ellipsoids, blended, at most HEART_REACH_MM."""
    distance = np.full(z.shape, HEART_REACH_MM, np.float32)
    low = np.min([piece.centre - piece.extent() for piece in body.heart], 0) - HEART_REACH_MM - 6
    high = np.max([piece.centre + piece.extent() for piece in body.heart], 0) + HEART_REACH_MM + 6
    box = box_between((z, y, x), low, high)
    if box is not None:
        distance[box] = np.minimum(_blended(body, z[box], y[box], x[box]), np.float32(HEART_REACH_MM))
    return distance


def _blended(body: Body, z: Array, y: Array, x: Array) -> Array:
    best, *others = (piece_distance(piece, z, y, x) for piece in body.heart)
    for distance in others:
        best = smooth_min(best, distance, 5.0)
    return best


def piece_distance(piece: Ellipsoid, z: Array, y: Array, x: Array) -> Array:
    """Return the signed distance to an ellipsoid of the heart."""
    offset = (z - np.float32(piece.centre[0]), y - np.float32(piece.centre[1]), x - np.float32(piece.centre[2]))
    square = np.zeros(z.shape, np.float32)
    slope = np.zeros(z.shape, np.float32)
    for direction, semi in zip(piece.axes.astype(np.float32), piece.semi.astype(np.float32), strict=True):
        along = (direction[0] * offset[0] + direction[1] * offset[1] + direction[2] * offset[2]) / semi
        along *= along
        square += along
        slope += along / (semi * semi)
    k0 = np.sqrt(square)
    return k0 * (k0 - 1) / np.sqrt(slope + np.float32(1e-9))


def septum_distance(a: Anatomy, s: Shell) -> Array:
    """Return the distance to the thin middle of the mediastinum.

    The lungs nearly meet before and behind the great vessels, but not at the inlet.
    """
    high = np.maximum(s.z - np.float32(a.level(0.80)), 0) * np.float32(1 / 40.0)
    low = np.maximum(np.float32(a.level(0.42)) - s.z, 0) * np.float32(1 / 60.0)
    front = np.clip((s.y - 10) * np.float32(1 / 60.0), 0, 1)
    half = np.float32(3.5) + np.float32(15.0) * np.minimum(high, 1.6) ** 2 + np.float32(8.0) * low * front
    return np.abs(s.x - np.float32(5.0)) - half


def thorax_distance(s: Shell) -> Array:
    """Return the signed distance to the space inside the wall and above the diaphragm, mediastinum included."""
    slope = np.float32(0.72)
    wall = smooth_max(s.cavity, s.apex * np.float32(0.6), 8.0)
    return smooth_max(wall, -s.dome * slope, 3.0)


def oblique_fissure(body: Body, s: Shell) -> Array:
    """Return the signed height above the oblique fissure, mm along its normal."""
    a, left = body.anatomy, s.x > 0
    v = s.y / np.float32(a.half_depth)
    u = np.abs(s.x) / np.float32(a.half_width)
    bow = np.float32(6.0) * np.sin(v * np.float32(2.6)) - np.float32(10.0) * (u - np.float32(0.5))
    bow += _waves(u, v, _by_side(left, a.phases[0], a.phases[1]), _by_side(left, a.phases[2], a.phases[3]))
    height = (s.z + np.float32(a.fissure_slope) * s.y - bow) / np.float32(np.hypot(1, a.fissure_slope))
    height -= _by_side(left, body.oblique_offset["left"], body.oblique_offset["right"])
    return height.astype(np.float32, copy=False)


def horizontal_fissure(body: Body, s: Shell) -> Array:
    """Return the signed height above the horizontal fissure, mm along its normal."""
    a = body.anatomy
    v = s.y / np.float32(a.half_depth)
    u = np.abs(s.x) / np.float32(a.half_width)
    height = s.z + np.float32(0.10) * s.y - np.float32(7.0) * (v * v - u)
    height -= _waves(u, v, np.float32(a.phases[4]), np.float32(a.phases[5]))
    height -= np.float32(body.horizontal_offset)
    return height.astype(np.float32, copy=False)


def _by_side(left: NDArray[np.bool_], on_left: float, on_right: float) -> NDArray:
    return np.where(left, np.float32(on_left), np.float32(on_right))


def _waves(u: NDArray, v: NDArray, across: NDArray | np.float32, along: NDArray | np.float32) -> NDArray:
    """Return waves of a fissure, mm: `u` is the position across and `v` along the chest, the others are phases."""
    waves = np.float32(2.0) * np.sin(np.float32(4.0) * u + across)
    return waves + np.float32(1.5) * np.sin(np.float32(3.4) * v + along)


def lobe_labels(s: Shell, fissures: tuple[Array, Array], inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return labels 1..5 of LOBE_NAMES inside `inside`, 0 outside; fissures: heights above the oblique, horizontal."""
    upper = fissures[0] > 0
    labels = np.where(upper, np.where(fissures[1] > 0, np.uint8(3), np.uint8(4)), np.uint8(5))
    np.copyto(labels, np.where(upper, np.uint8(1), np.uint8(2)), where=s.x > 0)
    labels[~inside] = 0
    return labels
