"""Render the soft tissue: skin, fat, muscle, breasts, heart, and the organs below the diaphragm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medsyn.phantom.anatomy import Anatomy
from medsyn.phantom.bones import cover
from medsyn.phantom.fields import Shell, sigmoid, smooth_max, smooth_min

Array = NDArray[np.float32]
AIR, FAT, MUSCLE, SKIN, LIVER, SPLEEN, STOMACH = -1000.0, -103.0, 52.0, 20.0, 58.0, 48.0, 25.0


def paint(hu: Array, share: Array, value: Array | np.floating | float) -> None:
    """Replace `share` (0..1) of every voxel by `value`, in place."""
    hu += share * (np.asarray(value, np.float32) - hu)


def body_distance(a: Anatomy, s: Shell) -> tuple[Array, Array]:
    """Return the signed distances to the skin and to the muscles' outer face."""
    t = (s.z - np.float32(a.bottom)) / np.float32(a.height)
    front = np.clip((s.angle - np.float32(1.7)) * np.float32(2.0), 0, 1) * np.clip(1 - np.abs(t - 0.66) * 3.6, 0, 1)
    back = np.clip(np.float32(1.9) - s.angle, 0, 1) * np.clip((t - np.float32(0.25)) * 2.5, 0, 1)
    midline = np.clip((s.angle - np.float32(2.65)) * 3, 0, 1)
    thick = np.float32(10.0) + np.float32(a.muscle) * (
        np.float32(0.12) + np.float32(1.1) * front * (1 - midline) + np.float32(1.3) * back
    )
    muscle = s.outline - thick
    rise = np.maximum(t - np.float32(0.66), 0)
    shoulder_x = np.float32(a.half_width) * (np.float32(0.80) + np.float32(1.35) * np.minimum(rise, 0.42))
    shoulder_y = np.float32(a.half_depth) * (np.float32(0.50) + np.float32(0.25) * np.minimum(rise, 0.3))
    u, v = s.x / shoulder_x, (s.y + np.float32(0.26 * a.half_depth)) / shoulder_y
    q = np.sqrt(u * u + v * v + np.float32(1e-6))
    shoulders = (q - 1) * np.minimum(shoulder_y, shoulder_x) + np.float32(60.0) * np.maximum(np.float32(0.70) - t, 0)
    muscle = smooth_min(muscle, shoulders, 25.0)
    fat = np.float32(a.fat) * (np.float32(0.75) + np.float32(0.35) * np.sin(s.angle) + np.float32(0.3) * (1 - t))
    skin = muscle - fat - np.float32(2.0)
    if a.female:
        skin = smooth_min(skin, _breasts(a, s), 18.0)
    return skin, muscle


def _breasts(a: Anatomy, s: Shell) -> Array:
    size = np.float32(1.0 + 0.035 * (a.fat - 14))
    z = (s.z - np.float32(a.level(0.50))) / (np.float32(52.0) * size)
    y = (s.y - np.float32(0.98 * a.half_depth)) / (np.float32(48.0) * size)
    x = (np.abs(s.x) - np.float32(0.55 * a.half_width)) / (np.float32(56.0) * size)
    return (np.sqrt(z * z + y * y + x * x + np.float32(1e-6)) - 1) * np.float32(48.0)


def paint_wall(a: Anatomy, s: Shell, hu: Array, width: float, mottle: Array) -> None:
    """Paint the body from skin to inner chest wall; `mottle` is unit-variance noise that breaks up fat planes."""
    skin, muscle = body_distance(a, s)
    paint(hu, cover(skin, width), SKIN)
    paint(hu, cover(skin + np.float32(2.2), width), FAT)
    if a.female:
        gland = cover(_breasts(a, s) + np.float32(9.0) + 4 * mottle, width) * (muscle > 2)
        paint(hu, gland * np.clip(0.35 + 0.5 * mottle, 0, 0.9), 30.0)
    # fat planes between the muscle layers of the wall
    layer = np.abs(s.outline - 11 - np.float32(0.62 * a.muscle) - 2 * mottle) - np.float32(0.8)
    planes = cover(layer, width) * np.float32(min(1.6 / width, 1.0)) * np.clip(s.angle - np.float32(0.4), 0, 1)
    paint(hu, cover(muscle, width), np.float32(MUSCLE) - np.float32(140.0) * planes + 6 * mottle)
    paint(hu, cover(s.cavity + np.float32(0.5), width), FAT + 8.0)


def paint_abdomen(a: Anatomy, s: Shell, hu: Array, width: float, mottle: Array) -> None:
    """Paint liver, stomach with its gas bubble and spleen below the diaphragm's 3 mm of muscle."""
    near = np.nonzero((s.dome < width) & (s.cavity < width))
    if near[0].size == 0:
        return
    value, s, mottle = hu[near], s.at(near), mottle[near]
    _paint_organs(a, s, value, width, mottle)
    hu[near] = value


def _paint_organs(a: Anatomy, s: Shell, hu: Array, width: float, mottle: Array) -> None:
    paint(hu, cover(s.dome, width) * cover(s.cavity, width), MUSCLE)
    below = np.maximum(s.dome + np.float32(3.0), s.cavity + np.float32(2.5))
    spine_guard = 26 - np.hypot(s.x - s.spine_x, s.y - s.spine_y - 4)
    space = np.maximum(below, spine_guard)
    paint(hu, cover(space, width), np.float32(FAT + 6.0) + 12 * mottle)
    edge = s.x - np.float32(18.0) - np.float32(0.28) * (s.y - 20) + np.float32(0.10) * (s.z + 90)
    liver = smooth_max(space, edge, 10.0)
    w, d, top = a.half_width, a.half_depth, a.level(a.dome_top_right + a.dome_top_left)
    spleen = _ellipsoid(s, (top - 48, -0.45 * d, 0.66 * w), (42, 0.42 * d, 0.24 * w))
    size = a.stomach_size
    stomach = _ellipsoid(s, (top - 8 - 36 * size, 0.14 * d, 0.46 * w), (46 * size, 0.46 * d * size, 0.35 * w * size))
    stomach = stomach + 4 * mottle
    liver = np.maximum(liver, -stomach)
    paint(hu, cover(liver, width), 3 * mottle + LIVER + 0.12 * max(a.blood_hu - 42, 0))
    spleen = np.maximum(np.maximum(spleen, space), -stomach - 2)
    paint(hu, cover(spleen, width), SPLEEN + 0.25 * max(a.blood_hu - 42, 0))
    stomach = np.maximum(stomach, space)
    paint(hu, cover(stomach, width), 45.0)
    inner = stomach + np.float32(2.8)
    paint(hu, cover(inner, width), STOMACH)
    gas = np.maximum(inner, np.float32(0.14 * d + a.stomach_gas * 0.46 * d * size) - s.y)
    paint(hu, cover(gas, width), AIR + 10)


def _ellipsoid(s: Shell, centre: tuple[float, float, float], semi: tuple[float, float, float]) -> Array:
    z, y, x = ((c - np.float32(m)) / np.float32(r) for c, m, r in zip((s.z, s.y, s.x), centre, semi, strict=True))
    return (np.sqrt(z * z + y * y + x * x + np.float32(1e-6)) - 1) * np.float32(min(semi))


def paint_heart(a: Anatomy, hu: Array, heart: Array, mottle: Array, width: float) -> None:
    """Paint myocardium around blood; without contrast the two look alike."""
    near = np.nonzero(heart < width)
    value, heart, mottle = hu[near], heart[near], mottle[near]
    muscle = np.float32(48.0 + 0.35 * max(a.blood_hu - 42, 0))
    paint(value, cover(heart, width), muscle)
    inner = sigmoid((-heart - np.float32(11.0) + 3 * mottle) * np.float32(0.6))
    paint(value, cover(heart, width) * inner, a.blood_hu)
    hu[near] = value
