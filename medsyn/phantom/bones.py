"""Render the skeleton of the chest as pointwise coverage and HU: ribs with cartilage, sternum, vertebrae, scapulae.

Ribs are a periodic band on the chest wall: twelve per side, RIB_PITCH apart, sinking from the spine to the front. The
first seven reach the sternum through cartilage; the eleventh and twelfth float (Gray's Anatomy, 41st ed., ch. 53).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medsyn.phantom.anatomy import Anatomy
from medsyn.phantom.fields import RIB_PITCH, Shell
from medsyn.phantom.tubes import Tubes

Array = NDArray[np.float32]
_SPONGY, _CORTEX, _CARTILAGE, _DISC, _CANAL = 210.0, 680.0, 120.0, 85.0, 20.0


def cover(distance: Array, width: float) -> Array:
    """Return the share of a voxel of edge `width` that lies inside a surface at signed `distance`."""
    return np.clip(np.float32(0.5) - distance * np.float32(1 / width), 0, 1)


def _bone_hu(distance: Array, a: Anatomy, width: float, cortex_mm: float) -> Array:
    """Return the HU of bone: spongy inside, dense near the surface."""
    inner = cover(distance + np.float32(cortex_mm), width)
    return (np.float32(a.bone_hu) * (_CORTEX + (_SPONGY - _CORTEX) * inner)).astype(np.float32)


_SHOULDER = (  # points (z, y, x) of the mean adult with raised arms, and radii
    (((90, 60, 22), (97, 50, 48), (106, 30, 84), (113, 6, 120), (118, -12, 142)), (8, 6, 5.5, 6, 6)),  # clavicle
    (((112, -16, 152), (126, -10, 168), (170, 10, 205)), (23, 20, 12)),  # humerus
    (((96, -36, 118), (106, -24, 130)), (8, 13)),  # neck of the scapula with the glenoid
    (((108, -14, 122), (108, 14, 110)), (7, 5)),  # coracoid process
    (((100, -66, 74), (112, -50, 108), (124, -34, 136), (126, -14, 144)), (3.5, 5, 6, 6)),  # spine and acromion
)


def shoulder_bones(a: Anatomy) -> Tubes:
    """Return clavicles, upper ends of the humeri, and the processes of the scapulae."""
    tubes = Tubes.empty()
    for points, radii in _SHOULDER:
        for side in (-1, 1):
            tubes = tubes + Tubes.path([a.point(z, y, side * x) for z, y, x in points], [r * a.scale for r in radii])
    return tubes


def paint_bones(a: Anatomy, s: Shell, girdle: Array, hu: Array, width: float) -> None:
    """Paint the skeleton over `hu` in place; `girdle` is the distance to `shoulder_bones`, `width` the voxel edge."""
    near = np.flatnonzero((girdle < width) & (s.cavity > 8))
    if near.size:
        value, distance = hu.take(near), girdle.take(near)
        value += cover(distance, width) * (_bone_hu(distance, a, width, 1.3) - value)
        np.put(hu, near, value)
    _ribs(a, s, hu, width)
    _sternum(a, s, hu, width)
    _scapulae(a, s, hu, width)
    _spine(a, s, hu, width)


def _ribs(a: Anatomy, s: Shell, hu: Array, width: float) -> None:
    near = np.flatnonzero((s.cavity > -width) & (s.cavity < 10 + width))
    if near.size == 0:
        return
    z, angle, depth = s.z.take(near), s.angle.take(near), s.cavity.take(near)
    pitch = np.float32(RIB_PITCH * a.height / 252.0)
    top = np.float32(a.level(0.955))
    sink = np.float32(60.0 * a.height / 252.0)
    t = np.clip((angle - np.float32(0.25)) / np.float32(2.1), 0, 1)
    path = t * t * (3 - 2 * t)
    rise = np.clip(angle - np.float32(2.35), 0, 1)
    unrolled = z + sink * path
    number = np.clip(np.rint((top - unrolled) / pitch), 0, 11)
    lift = np.where(number >= 3, np.float32(40.0) * rise, np.float32(6.0) * rise)
    height = unrolled - lift - (top - number * pitch)
    half = np.float32(6.3 * a.scale)
    distance = np.hypot((depth - np.float32(4.6)) / np.float32(3.6), height / half)
    distance = (distance - 1) * np.float32(4.2)
    end = np.select([number <= 6, number <= 9, number == 10], [2.40, 2.25, 1.5], 0.95).astype(np.float32)
    bony = (end - angle) * np.float32(70.0)
    bone = cover(distance, width) * np.clip(np.float32(0.5) + bony / width, 0, 1)
    gristle = cover(distance, width) * (bony < 0) * ((number <= 8) & (angle > 2.0))
    value = hu.take(near)
    value += gristle * (np.float32(_CARTILAGE) - value)
    value += bone * (_bone_hu(distance, a, width, 1.1) - value)
    np.put(hu, near, value)


def _sternum(a: Anatomy, s: Shell, hu: Array, width: float) -> None:
    near = np.flatnonzero((s.angle > 2.5) & (s.cavity > 0) & (s.cavity < 20) & (np.abs(s.x) < 45))
    if near.size == 0:
        return
    t = (s.z.take(near) - np.float32(a.bottom)) / np.float32(a.height)
    manubrium = np.clip((t - np.float32(0.70)) * 12, 0, 1)
    half = np.float32(a.scale) * (np.float32(15.0) + np.float32(11.0) * manubrium)
    across = np.abs(s.x.take(near)) - half
    through = np.abs(s.cavity.take(near) - np.float32(8.5)) - np.float32(5.2)
    along = np.maximum(t - np.float32(0.845), np.float32(0.27) - t) * np.float32(a.height)
    gap = (np.abs(t - np.float32(0.70)) - np.float32(0.006)) * np.float32(a.height)
    round_mm = np.float32(3.5)
    corner = np.hypot(np.maximum(across + round_mm, 0), np.maximum(through + round_mm, 0)) - round_mm
    distance = np.maximum(np.maximum(corner, np.maximum(across, through)), np.maximum(along, -gap))
    value = hu.take(near)
    value += cover(distance, width) * (_bone_hu(distance, a, width, 1.3) * np.float32(0.8) - value)
    np.put(hu, near, value)


def _scapulae(a: Anatomy, s: Shell, hu: Array, width: float) -> None:
    t0, t1 = a.level(0.50), a.level(0.98)
    near = np.flatnonzero((s.cavity > 8) & (s.cavity < 46) & (s.z > t0 - 5) & (s.z < t1 + 25) & (s.angle < 1.9))
    if near.size == 0:
        return
    z, angle, depth = s.z.take(near), s.angle.take(near), s.outline.take(near)
    share = np.clip((z - np.float32(t0)) / np.float32(t1 - t0), 0, 1)
    inner, outer = np.float32(0.80) - np.float32(0.15) * share, np.float32(0.95) + np.float32(0.55) * share
    middle, half = (inner + outer) / 2, (outer - inner) / 2
    lateral = np.clip((angle - middle) / np.maximum(half, 1e-3), -1, 1)
    lift = np.float32(19.0) + np.float32(8.0) * share + np.float32(3.0) * lateral
    thick = np.float32(1.7) + np.float32(3.2) * np.maximum(lateral, 0) ** 3
    blade = np.abs(depth - lift) - thick
    rim = (np.abs(angle - middle) - half) * np.float32(85.0)
    distance = np.maximum(np.maximum(blade, rim), np.maximum(np.float32(t0) - z, z - np.float32(t1)))
    value = hu.take(near)
    value += cover(distance, width) * (_bone_hu(distance, a, width, 1.2) - value)
    np.put(hu, near, value)


def _spine(a: Anatomy, s: Shell, hu: Array, width: float) -> None:
    near = np.flatnonzero((np.abs(s.x - s.spine_x) < 46) & (s.y < s.spine_y + 26) & (s.y > s.spine_y - 66))
    if near.size == 0:
        return
    z, y, x = s.z.take(near), s.y.take(near) - s.spine_y.take(near), s.x.take(near) - s.spine_x.take(near)
    pitch = np.float32(RIB_PITCH * a.height / 252.0)
    level = (np.float32(a.level(0.955)) - z) / pitch
    phase = (level - np.rint(level)) * pitch
    grow = np.float32(a.scale) * (np.float32(1.0) - np.float32(0.0016) * z)
    waist = np.float32(1.0) - np.float32(0.10) * np.cos(phase * np.float32(2 * np.pi) / pitch)
    rx, ry = 16.5 * grow * waist, 13.5 * grow * waist
    radial = (np.hypot(x / rx, y / ry) - 1) * (rx + ry) / 2
    disc = np.abs(phase) - (pitch / 2 - np.float32(2.3))
    value = hu.take(near)
    value += cover(radial, width) * (np.float32(_DISC) - value)
    centrum = np.maximum(radial, disc)
    value += cover(centrum, width) * (_bone_hu(centrum, a, width, 1.0) - value)
    back = y + 13.5 * grow + 9.5
    canal = np.hypot(x / 1.15, back) - 8.0 * grow
    arch = np.maximum(canal - 5.0, np.abs(phase) - pitch * np.float32(0.36))
    slanted = phase + np.float32(2.0) + np.float32(0.62) * (back + 10)
    slanted -= np.rint(slanted / pitch) * pitch
    spinous = np.maximum(np.maximum(np.abs(x) - 2.6, np.abs(back + 22 * grow) - 13 * grow), np.abs(slanted) - 4.6)
    wing = np.maximum(np.maximum(np.abs(back + 3 - 0.12 * np.abs(x)) - 5.0, np.abs(x) - 30 * grow), np.abs(phase) - 5.5)
    posterior = np.minimum(np.minimum(arch, spinous), wing)
    value += cover(posterior, width) * (_bone_hu(posterior, a, width, 1.3) - value)
    value += cover(canal, width) * (np.float32(_CANAL) - value)
    np.put(hu, near, value)
