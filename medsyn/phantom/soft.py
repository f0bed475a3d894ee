"""Render the heart and the organs below the diaphragm."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from medsyn.phantom.anatomy import Anatomy
from medsyn.phantom.bones import cover
from medsyn.phantom.fields import Body, Shell, piece_distance, smooth_max
from medsyn.phantom.tissue import AIR, FAT, LIVER, MUSCLE, SPLEEN, STOMACH, STOOL

Array = NDArray[np.float32]


def paint(hu: Array, share: Array, value: NDArray | np.floating | float) -> None:
    """Replace `share` (0..1) of every voxel by `value`, in place."""
    hu += share * (np.asarray(value, np.float32) - hu)


def paint_abdomen(a: Anatomy, s: Shell, hu: Array, width: float, mottle: Array, lobular: Array) -> None:
    """Paint liver, stomach, colon and spleen below the diaphragm's 3 mm of muscle; the last two are noise fields."""
    near = np.flatnonzero((s.dome < width) & (s.cavity < width))
    if near.size == 0:
        return
    value, s, mottle, lobular = hu.take(near), s.at(near), mottle.take(near), lobular.take(near)
    paint(value, cover(s.dome, width) * cover(s.cavity, width), MUSCLE)
    below = np.maximum(s.dome + np.float32(3.0), s.cavity + np.float32(2.5))
    spine_guard = 26 - np.hypot(s.x - s.spine_x, s.y - s.spine_y - 4)
    space = np.maximum(below, spine_guard)
    paint(value, cover(space, width), np.float32(FAT + 6.0) + 12 * mottle)
    stomach = _stomach(a, s) + 4 * mottle
    _paint_colon(a, s, value, space, width, mottle)
    _paint_liver(a, s, value, np.maximum(space, -stomach), width, mottle, lobular)
    w, d, top = a.half_width, a.half_depth, a.level(a.dome_top_right + a.dome_top_left)
    spleen = _ellipsoid(s, (top - 48, -0.45 * d, 0.66 * w), (42, 0.42 * d, 0.24 * w))
    spleen = np.maximum(np.maximum(spleen, space), -stomach - 2)
    enhanced = max(a.blood_hu - 42, 0)
    paint(value, cover(spleen, width), SPLEEN + 3 * mottle + enhanced * (0.25 + 0.06 * lobular))
    _paint_stomach(a, s, value, np.maximum(stomach, space), width, mottle)
    np.put(hu, near, value)


def _paint_liver(a: Anatomy, s: Shell, hu: Array, space: Array, width: float, mottle: Array, lobular: Array) -> None:
    """Paint the liver with its veins, which run where two noise fields vanish together."""
    edge = s.x - np.float32(18.0) - np.float32(0.28) * (s.y - 20) + np.float32(0.10) * (s.z + 90)
    enhanced = max(a.blood_hu - 42, 0)
    vein = np.clip(1.5 - 5 * np.hypot(lobular, mottle), 0, 1)
    value = np.float32(LIVER + 0.12 * enhanced) + 3 * mottle + vein * np.float32(0.35 * enhanced - 13.0)
    paint(hu, cover(smooth_max(space, edge, 10.0), width), value)


def _stomach(a: Anatomy, s: Shell) -> Array:
    w, d, size = a.half_width, a.half_depth, a.stomach_size
    top = a.level(a.dome_top_right + a.dome_top_left)
    return _ellipsoid(s, (top - 8 - 36 * size, 0.14 * d, 0.46 * w), (46 * size, 0.46 * d * size, 0.35 * w * size))


def _paint_stomach(a: Anatomy, s: Shell, hu: Array, stomach: Array, width: float, mottle: Array) -> None:
    """Paint the stomach's wall with folds, what was eaten, and the bubble of gas above it."""
    paint(hu, cover(stomach, width), 45.0)
    inner = stomach + np.float32(2.8) + np.clip(2 * mottle, 0, 2)
    paint(hu, cover(inner, width), STOMACH + 18 * mottle)
    level = 0.14 * a.half_depth + a.stomach_gas * 0.46 * a.half_depth * a.stomach_size
    gas = np.maximum(inner, np.float32(level) - s.y)
    paint(hu, cover(gas, width), AIR + 10)


def _paint_colon(a: Anatomy, s: Shell, hu: Array, space: Array, width: float, mottle: Array) -> None:
    """Paint the left half of the colon with its pouches: stool below, gas above, both away from the diaphragm."""
    w, d, top = a.half_width, a.half_depth, a.level(a.dome_top_right + a.dome_top_left)
    near = np.flatnonzero((s.x > -0.3 * w) & (s.z < top - 10) & (space < width))
    if near.size == 0:
        return
    part, space, mottle, value = s.at(near), space.take(near), mottle.take(near), hu.take(near)
    bends = ((top - 112, 0.62 * d, -0.15 * w), (top - 84, 0.60 * d, 0.42 * w), (top - 44, 0.16 * d, 0.76 * w))
    points = np.array([*bends, (top - 100, -0.12 * d, 0.80 * w)], np.float32)
    distance = np.full(near.size, 99.0, np.float32)
    passed = 0.0
    for start, end in pairwise(points):
        span, offset = end - start, (part.z - start[0], part.y - start[1], part.x - start[2])
        length = float(np.sqrt(span @ span))
        along = np.clip((offset[0] * span[0] + offset[1] * span[1] + offset[2] * span[2]) / length**2, 0, 1)
        away = np.sqrt(sum((o - along * step) ** 2 for o, step in zip(offset, span, strict=True)))
        pouch = np.float32(3.0) * np.sin((passed + length * along) * np.float32(2 * np.pi / 27.0))
        distance = np.minimum(distance, away - np.float32(18.0) - pouch)
        passed += length
    distance = np.maximum(distance + 2 * mottle, space + 1)
    paint(value, cover(distance, width), 40.0)
    inner = np.maximum(distance + np.float32(2.0), space + np.float32(7.0))
    paint(value, cover(inner, width), STOOL + 60 * mottle)
    level = np.float32(0.30 * d * (1 + 1.6 * np.sin(a.phases[1])))
    paint(value, cover(np.maximum(inner, level - part.y), width), AIR + 10)
    np.put(hu, near, value)


def _ellipsoid(s: Shell, centre: tuple[float, float, float], semi: tuple[float, float, float]) -> Array:
    z, y, x = ((c - np.float32(m)) / np.float32(r) for c, m, r in zip((s.z, s.y, s.x), centre, semi, strict=True))
    return (np.sqrt(z * z + y * y + x * x + np.float32(1e-6)) - 1) * np.float32(min(semi))


_WALLS_MM = (10.0, 4.5, 3.0, 3.0)
"""Thickness of the walls of left ventricle, right ventricle, right and left atrium."""
_GROOVE_MM = 8.0


def paint_heart(body: Body, s: Shell, hu: Array, heart: Array, mottle: Array, width: float) -> None:
    """Paint walls around the blood of four chambers, and the fat in the grooves between them."""
    near = np.flatnonzero(heart < width)
    if near.size == 0:
        return
    value, heart, mottle = hu.take(near), heart.take(near), mottle.take(near)
    blood_hu = body.anatomy.blood_hu
    chambers = [piece_distance(piece, s.z.take(near), s.y.take(near), s.x.take(near)) for piece in body.heart]
    inside = cover(heart, width)
    paint(value, inside, np.float32(48.0 + 0.35 * max(blood_hu - 42, 0)))
    left, right, *atria = (cover(d + mm + mottle, width) for d, mm in zip(chambers, _WALLS_MM, strict=True))
    right = right * (1 - cover(chambers[0], width))
    atria = [atrium * (1 - cover(np.minimum(*chambers[:2]) + 3, width)) for atrium in atria]
    paint(value, inside * np.maximum.reduce([left, right, *atria]), blood_hu)
    first, second = np.sort(np.stack(chambers), axis=0)[:2]
    groove = np.clip((6 - (second - first)) * np.float32(0.25), 0, 1)
    groove *= np.clip((first + _GROOVE_MM) * np.float32(0.25), 0, 1)
    paint(value, inside * groove, FAT + 15.0)
    np.put(hu, near, value)
