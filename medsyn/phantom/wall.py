"""Render the chest wall: muscles in two layers between planes of fat, subcutaneous fat, breasts, skin, and the table.

The layers are tables of thickness by angle around the chest and height, made once per subject. Patients lie on their
back with the arms above the head: the fat of the back is flat, the axillae are open and the shoulders are high.
Thicknesses follow textbooks (Gray's Anatomy, 41st ed., ch. 46 and 53) and the shares of tissue at the sternal angle
(Kadowaki, J Showa Med Assoc 45:237, 1985).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medsyn.phantom.anatomy import Anatomy
from medsyn.phantom.bones import cover
from medsyn.phantom.fields import Shell, smooth_max, smooth_min
from medsyn.phantom.grid import Grid
from medsyn.phantom.tissue import AIR, FAT, GLAND, MEDIASTINAL_FAT, MUSCLE, SKIN

Array = NDArray[np.float32]
SKIN_MM, RIB_LAYER_MM = 2.0, 10.0
_HEIGHTS, _ANGLES = (-0.3, 1.25, 128), (0.0, float(np.pi), 160)
_ARM = (108, -20, 140), (170, 10, 205)
ARM_MM = 40.0
"""Axis of the left upper arm in the mean adult, (z, y, x) mm, and the arm's radius."""
_ARMPIT, _REACH_MM = 0.55, 100.0
"""Height above which the shoulders widen the body; farthest skin there and of breasts, outside the ribs' inner face."""

_Window = tuple[float, float, float]
_DEEP: tuple[tuple[float, _Window, _Window], ...] = (  # mm, (first, last, softness) of the angle and of the height
    (12.0, (-1.0, 0.55, 0.15), (-1.0, 1.05, 0.1)),  # erector spinae
    (6.0, (0.95, 2.15, 0.2), (0.12, 0.80, 0.1)),  # serratus anterior
    (10.0, (0.62, 1.40, 0.2), (0.56, 1.02, 0.1)),  # subscapularis
    (7.0, (2.15, 2.65, 0.15), (0.66, 0.95, 0.08)),  # pectoralis minor
    (6.0, (1.30, 2.90, 0.2), (-1.0, 0.24, 0.12)),  # oblique muscles of the abdomen
)
_SUPERFICIAL: tuple[tuple[float, _Window, _Window], ...] = (
    (6.0, (-1.0, 0.62, 0.2), (0.34, 2.0, 0.2)),  # trapezius and rhomboids
    (7.0, (-1.0, 0.50, 0.15), (0.92, 2.0, 0.1)),  # trapezius above the shoulders
    (6.0, (0.45, 1.55, 0.2), (-1.0, 0.62, 0.12)),  # latissimus dorsi
    (10.0, (1.20, 1.60, 0.2), (0.45, 0.78, 0.15)),  # its edge with teres major: posterior fold of the axilla
    (12.0, (0.70, 1.35, 0.2), (0.60, 1.02, 0.1)),  # infraspinatus
    (13.0, (2.08, 2.84, 0.4), (0.48, 0.97, 0.2)),  # pectoralis major
    (8.0, (2.62, 3.05, 0.1), (-1.0, 0.28, 0.06)),  # rectus abdominis
)
_AXILLA_MM, _AXILLA = 19.0, ((1.45, 2.05, 0.35), (0.60, 0.98, 0.2))


@dataclass(frozen=True)
class Wall:
    """Layers of one subject's chest wall.

    deep, superficial, skin: outer faces (height, angle) in mm outside the inner face of the ribs; plane_mm: fat between
    the muscles' layers; back_y: height of the flat back in the scanner's frame, mm.
    """

    anatomy: Anatomy
    deep: Array
    superficial: Array
    skin: Array
    plane_mm: float
    back_y: float

    def faces(self, height: Array, angle: Array) -> tuple[Array, Array, Array]:
        """Return the three outer faces at points given by height fraction and angle."""
        row = (np.clip(height, *_HEIGHTS[:2]) - np.float32(_HEIGHTS[0])) * np.float32(_scale(_HEIGHTS)) + 0.5
        column = angle * np.float32(_scale(_ANGLES)) + np.float32(0.5)
        flat = row.astype(np.int32) * _ANGLES[2] + np.minimum(column.astype(np.int32), _ANGLES[2] - 1)
        return self.deep.take(flat), self.superficial.take(flat), self.skin.take(flat)


def _scale(axis: tuple[float, float, int]) -> float:
    return (axis[2] - 1) / (axis[1] - axis[0])


def build_wall(a: Anatomy) -> Wall:
    """Return the layers of the chest wall of one subject."""
    height, angle = np.linspace(*_HEIGHTS)[:, None], np.linspace(*_ANGLES)[None, :]
    strength = a.muscle / 10.0
    plane = 0.5 + 0.02 * a.fat
    deep, superficial = (
        strength * sum(mm * _window(angle, *around) * _window(height, *along) for mm, around, along in muscles)
        for muscles in (_DEEP, _SUPERFICIAL)
    )
    deep = RIB_LAYER_MM + gaussian_filter(deep, 1.5)
    superficial = gaussian_filter(superficial, 1.5)
    superficial = deep + plane * np.minimum(superficial / 3, 1) + superficial
    fat = a.fat * (0.75 + 0.35 * np.sin(angle) + 0.3 * (1 - height)) * (1 - 0.3 * np.exp(-((angle / 0.6) ** 2)))
    corners = 20.0 * a.squareness * np.sin(2 * angle) ** 2  # the outline of the ribs is squarer than that of the skin
    fat = np.maximum(fat - corners, 0.35 * fat)
    axilla = _AXILLA_MM * a.scale * _window(angle, *_AXILLA[0]) * _window(height, *_AXILLA[1])
    # skin bridges the folds between the muscles
    skin = gaussian_filter(superficial + axilla + fat, (4.0, 7.0), mode="nearest")
    skin = np.maximum(skin, superficial + 2.0) + SKIN_MM
    deep, superficial, skin = (table.astype(np.float32) for table in (deep, superficial, skin))
    return Wall(a, deep, superficial, skin, plane_mm=plane, back_y=_back(a, skin))


def _window(value: NDArray, first: float, last: float, softness: float) -> NDArray:
    """Return 1 between `first` and `last` and 0 beyond, with ramps as wide as `softness`."""
    return np.clip((value - first) / softness + 0.5, 0, 1) * np.clip((last - value) / softness + 0.5, 0, 1)


def _back(a: Anatomy, skin: NDArray) -> float:
    """Return y of the plane (scanner's frame) on which the back lies: it presses in the farthest skin by 4 mm."""
    height = np.linspace(0.0, 0.9, 19)
    width, centre, depth, _ = a.profile(a.level(0) + height * a.height)
    row = np.rint((height - _HEIGHTS[0]) * _scale(_HEIGHTS)).astype(int)
    share = np.linspace(-0.6, 0.6, 7)[:, None]  # of the half width
    angle = np.arctan2(np.abs(share), 1.0) * np.ones_like(height)
    thick = skin[row, np.rint(angle * _scale(_ANGLES)).astype(int)]
    square = share**2
    y = centre - (depth + thick) * np.sqrt((1 - square) / (1 - a.squareness * square))
    z, x = a.level(0) + height * a.height, share * (width + thick)
    r = a.rotation
    return float(np.round((r[0, 1] * z + r[1, 1] * y + r[2, 1] * x).min() + 4.0, 3))


def paint_table(wall: Wall, grid: Grid) -> Array:
    """Return the air around the patient (H, W) with the table: a shell around foam, curved up at its sides, a pad."""
    y, x = grid.axes[1][:, None], grid.axes[2][None, :]
    width = grid.width
    depth = np.float32(wall.back_y - 9.0) + x * x * np.float32(1 / 1100.0) - y  # below the table's upper face
    hu = np.full(depth.shape, AIR, np.float32)
    hu += 35.0 * (cover(depth - 30, width) - cover(depth + 8, width)) * (x * x < 150.0**2)
    hu += 45.0 * (cover(depth - 30, width) - cover(depth, width))
    for face in (0.0, 28.0):
        hu += 950.0 * (cover(-depth + face, width) - cover(-depth + face + 1.0, width))
    return hu


def paint_wall(wall: Wall, s: Shell, hu: Array, grid: Grid, mottle: Array) -> None:
    """Paint the body from skin to inner chest wall; `mottle` is unit-variance noise that breaks up fat planes."""
    a, width = wall.anatomy, grid.width
    hu[s.cavity < 0] = MEDIASTINAL_FAT
    wide = (s.z > a.level(_ARMPIT)) | ((s.y > 0.3 * a.half_depth) & a.female)
    reach = np.where(wide, np.float32(_REACH_MM), np.float32(wall.skin.max() + 2 * width))
    above_table = (grid.axes[1] > wall.back_y - 2 * width)[None, :, None]
    near = np.flatnonzero((s.cavity > -1 - width) & (s.outline < reach) & above_table)
    p = _Points(*(field.take(near) for field in (s.z, s.y, s.x, s.outline, mottle)))
    height = (p.z - np.float32(a.bottom)) * np.float32(1 / a.height)
    deep, superficial, skin = wall.faces(height, s.angle.take(near))
    skin = p.outline - skin
    muscles = cover(p.outline - superficial, width)
    streaks = np.float32(0.7) * cover(np.abs(p.mottle) * 10 - np.float32(0.8), width)
    above = np.flatnonzero(height > _ARMPIT)
    upper = p.at(above)
    shoulder = _shoulder(a, height[above], upper)
    skin[above] = smooth_min(skin[above], shoulder - np.float32(0.6 * a.fat + SKIN_MM), 25.0)
    shoulder = cover(shoulder, width) * (1 - cover(_axilla(a, upper), width)) * (1 - streaks[above])
    muscles[above] = np.maximum(muscles[above], shoulder)
    for inner, mm in ((deep, wall.plane_mm), (np.float32(RIB_LAYER_MM - 0.5), 0.5)):
        muscles -= cover(p.outline - inner - np.float32(mm), width) - cover(p.outline - inner, width)
    _cleave(muscles, s, near, p, width)
    front, gland = _add_breasts(a, p, skin, superficial, width) if a.female else (None, None)
    skin = smooth_max(skin, np.float32(wall.back_y) - grid.axes[1].take(near // hu.shape[2] % hu.shape[1]), 8.0)
    value = hu.take(near)
    value += cover(skin, width) * (SKIN - value)
    value += cover(skin + np.float32(SKIN_MM), width) * (FAT + 5 * p.mottle - value)
    if front is not None and gland is not None:
        value[front] += gland * (GLAND - value[front])
    value += np.maximum(muscles, 0) * (MUSCLE + 6 * p.mottle - value)
    value += cover(s.cavity.take(near) + np.float32(0.5), width) * (MEDIASTINAL_FAT - value)
    np.put(hu, near, value)


@dataclass(frozen=True)
class _Points:
    """Points of the wall in the subject's frame, with their distance to the outline and the noise there; all (n,)."""

    z: Array
    y: Array
    x: Array
    outline: Array
    mottle: Array

    def at(self, index: NDArray) -> _Points:
        """Return some of the points."""
        return _Points(*(getattr(self, name)[index] for name in ("z", "y", "x", "outline", "mottle")))


def _cleave(muscles: Array, s: Shell, near: NDArray[np.int64], p: _Points, width: float) -> None:
    """Take from the muscles of the back, in place, the fat in the midline and between two columns on each side."""
    back = np.flatnonzero((p.y < s.spine_y.max() - 30) & (np.abs(p.x) < 60))
    behind, across = p.y[back] - s.spine_y.take(near[back]), np.abs(p.x[back] - s.spine_x.take(near[back]))
    columns = np.abs(across - 30 - np.float32(0.25) * (behind + 45)) - np.float32(0.35)
    fat = np.maximum(cover(across - np.float32(0.8), width), cover(columns, width))
    muscles[back] *= 1 - np.clip((-30 - behind) * np.float32(0.2), 0, 1) * fat


def _add_breasts(a: Anatomy, p: _Points, skin: Array, muscle: Array, width: float) -> tuple[NDArray, Array]:
    """Let the breasts move the distance to the skin, in place; return points near them and their share of gland.

    muscle: outer face of the muscles. Gland lies as strands in the middle, away from skin and muscle.
    """
    size = np.float32(1.0 + 0.035 * (a.fat - 14))
    centre, semi = (a.level(0.50), a.half_depth, 0.58 * a.half_width), (58.0, 58.0, 62.0)
    reach = np.float32(size * 62.0 + 30.0)
    front = np.flatnonzero((p.y > 0.35 * a.half_depth) & (np.abs(p.z - np.float32(centre[0])) < reach))
    part = p.at(front)
    # women lie on their back: the breasts spread sideways
    u, v, w = (
        (c - np.float32(m)) / (np.float32(r) * size)
        for c, m, r in zip((part.z, part.y, np.abs(part.x)), centre, semi, strict=True)
    )
    breast = (np.sqrt(u * u + v * v + w * w + np.float32(1e-6)) - 1) * np.float32(54.0)
    skin[front] = smooth_min(skin[front], breast, 18.0)
    inner = cover(breast + np.float32(14.0) + 5 * part.mottle, width)
    inner *= np.clip((part.outline - muscle[front] - 5) * np.float32(0.2), 0, 1)
    return front, inner * np.clip(np.float32(0.9) - np.float32(1.3) * np.abs(part.mottle), 0, 0.9)


def _shoulder(a: Anatomy, height: Array, p: _Points) -> Array:
    """Return the signed distance to the muscles of the shoulders and raised arms, which widen the upper chest."""
    rise = np.clip(height - np.float32(0.66), 0, 0.42)
    half_x = np.float32(a.half_width) * (np.float32(0.80) + np.float32(1.35) * rise)
    half_y = np.float32(a.half_depth) * (np.float32(0.46) + np.float32(0.45) * np.minimum(rise, 0.3))
    u, v = p.x / half_x, (p.y + np.float32(0.22 * a.half_depth)) / half_y
    q = np.sqrt(u * u + v * v + np.float32(1e-6))
    girdle = (q - 1) * np.minimum(half_y, half_x) + np.float32(60.0) * np.maximum(np.float32(0.70) - height, 0)
    start, end = (a.point(*point).astype(np.float32) for point in _ARM)
    span = end - start
    offset = (p.z - start[0], p.y - start[1], np.abs(p.x) - start[2])
    along = offset[0] * span[0] + offset[1] * span[1] + offset[2] * span[2]
    along = np.clip(along / (span @ span), 0, 1)
    away = [part - along * step for part, step in zip(offset, span, strict=True)]
    arm = np.sqrt(away[0] ** 2 + away[1] ** 2 + away[2] ** 2) - np.float32(ARM_MM * a.scale)
    return smooth_min(girdle, arm, 25.0)


def _axilla(a: Anatomy, p: _Points) -> Array:
    """Return the signed distance to the fat of the axillae."""
    u = (p.z - np.float32(a.level(0.82))) / np.float32(45.0 * a.scale)
    v = (p.y - np.float32(0.02 * a.half_depth)) / np.float32(24.0 * a.scale)
    w = (np.abs(p.x) - np.float32(0.98 * a.half_width)) / np.float32(26.0 * a.scale)
    return (np.sqrt(u * u + v * v + w * w) - 1) * np.float32(24.0 * a.scale)
