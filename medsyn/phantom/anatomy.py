"""Describe one person: the numbers that shape a phantom, sampled from a seed, in mm of the model's field of view.

Frame: (z, y, x) with z inferior to superior, y posterior to anterior, x patient right to left, origin at the centre of
the field of view. Nothing here knows of a grid. Mean dimensions are adult textbook values at full inspiration: inner
thoracic width 24-29 cm, lung height 24-27 cm, right dome 1-2 cm above the left (Gray's Anatomy, 41st ed., ch. 53-58).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Outline of the inner chest wall by height fraction t (0 recess tip, 1 apex): half width, front and back as shares.
_PROFILE_T = (-0.3, 0.0, 0.2, 0.35, 0.5, 0.6, 0.7, 0.78, 0.85, 0.9, 0.95, 1.0, 1.15)
_PROFILE_WIDTH = (0.97, 1.0, 1.0, 0.965, 0.915, 0.88, 0.845, 0.80, 0.73, 0.67, 0.59, 0.52, 0.42)
_PROFILE_FRONT = (0.96, 0.97, 0.98, 1.0, 0.97, 0.90, 0.81, 0.71, 0.59, 0.48, 0.37, 0.28, 0.18)
_PROFILE_BACK = (-0.84, -0.92, -0.98, -1.0, -0.98, -0.94, -0.88, -0.82, -0.75, -0.69, -0.63, -0.57, -0.5)
_SPINE_T = (-0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.15)
_SPINE_Y = (-30.0, -33.0, -38.0, -44.0, -47.0, -42.0, -31.0, -24.0)


@dataclass(frozen=True)
class Ellipsoid:
    """One piece of the heart: centre and semi-axes (z, y, x) mm; rows of `axes` are the semi-axes' directions."""

    centre: NDArray[np.float64]
    semi: NDArray[np.float64]
    axes: NDArray[np.float64]

    def extent(self) -> NDArray[np.float64]:
        """Return half the size (z, y, x) of the box around the ellipsoid."""
        return np.sqrt(((self.axes * self.semi[:, None]) ** 2).sum(0))


@dataclass(frozen=True)
class Anatomy:
    """A subject's shape; lengths in mm, Hounsfield units in HU, angles in radians."""

    female: bool
    rotation: NDArray[np.float64]
    half_width: float
    half_depth: float
    top: float
    bottom: float
    squareness: float
    fat: float
    muscle: float
    dome_top_right: float
    dome_top_left: float
    dome_drop: float
    trachea_radius: float
    vessel_scale: float
    normal_ctr: float
    blood_hu: float
    lung_hu: float
    gravity_hu: float
    bone_hu: float
    noise_hu: float
    texture_hu: float
    lobe_shares: tuple[float, float, float]
    fissure_slope: float
    sway: float
    stomach_gas: float
    stomach_size: float
    scale: float
    dependent_hu: float
    phases: tuple[float, ...]
    """Six angles that decide how fissures and bowel are bent."""

    @property
    def height(self) -> float:
        """Return the height from the tip of the posterior recess to the apex."""
        return self.top - self.bottom

    def level(self, t: float) -> float:
        """Return z of the height fraction t."""
        return self.bottom + t * self.height

    def profile(self, z: NDArray) -> tuple[Array, Array, Array, Array]:
        """Return half width, centre y and half depth of the inner chest wall, and y of the vertebrae, at heights z."""
        t = (z - self.bottom) / self.height
        width = self.half_width * _smooth_interp(t, _PROFILE_T, _PROFILE_WIDTH)
        front = self.half_depth * _smooth_interp(t, _PROFILE_T, _PROFILE_FRONT)
        back = self.half_depth * _smooth_interp(t, _PROFILE_T, _PROFILE_BACK)
        spine = self.half_depth / 88.0 * _smooth_interp(t, _SPINE_T, _SPINE_Y)
        return tuple(  # type: ignore[return-value]
            v.astype(np.float32) for v in (width, (front + back) / 2, (front - back) / 2, spine)
        )

    def point(self, z: float, y: float, x: float) -> NDArray[np.float64]:
        """Return a landmark, given for the mean adult, scaled to this subject."""
        return np.array([z * self.height / 252.0, y * self.half_depth / 88.0, x * self.half_width / 132.0])


def _smooth_interp(t: NDArray, knots: tuple[float, ...], values: tuple[float, ...]) -> NDArray:
    return _interpolator(knots, values)(np.clip(t, knots[0], knots[-1]))


@cache
def _interpolator(knots: tuple[float, ...], values: tuple[float, ...]) -> Callable[[NDArray], NDArray]:
    from scipy.interpolate import PchipInterpolator

    return PchipInterpolator(knots, values)


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw one adult. Sex shifts size, fat, muscle and trachea; everything else varies independently."""
    female = bool(rng.random() < 0.5)
    scale = float(np.clip(rng.normal(0.955 if female else 1.03, 0.035), 0.86, 1.1))
    half_width = float(np.clip(132.0 * scale + rng.normal(0, 4), 112, 145))
    half_depth = float(np.clip(94.0 * scale + rng.normal(0, 4.5), 78, 106))
    height = float(np.clip(262.0 * scale + rng.normal(0, 7), 228, 274))
    middle = float(rng.normal(-3, 3))
    angles = np.clip(rng.normal(0, [0.025, 0.02, 0.03]), -0.06, 0.06)
    contrast = bool(rng.random() < 0.45)
    upper = float(np.clip(rng.normal(0.338, 0.027), 0.27, 0.40))
    middle_lobe = float(np.clip(rng.normal(0.17, 0.018), 0.12, 0.22))
    return Anatomy(
        female=female,
        rotation=_rotation(*angles),
        half_width=half_width,
        half_depth=half_depth,
        top=min(middle + height / 2, 134.0),
        bottom=max(middle - height / 2, -138.0),
        squareness=float(rng.uniform(0.2, 0.5)),
        fat=float(np.clip(rng.normal(16 if female else 12, 5), 5, 28)),
        muscle=float(np.clip(rng.normal(7 if female else 10, 1.5), 4.5, 14)),
        dome_top_right=float(rng.normal(0.285, 0.022)),
        dome_top_left=float(rng.normal(-0.045, 0.012)),
        dome_drop=float(np.clip(rng.normal(70, 6), 54, 84)),
        trachea_radius=float(np.clip(rng.normal(7.6 if female else 9.0, 0.6), 6.2, 11)),
        vessel_scale=float(np.clip(rng.normal(1.0, 0.06), 0.85, 1.15)),
        normal_ctr=float(np.clip(rng.normal(0.445, 0.022), 0.405, 0.485)),
        blood_hu=float(rng.uniform(110, 190) if contrast else rng.normal(42, 4)),
        lung_hu=float(np.clip(rng.normal(-872, 11), -894, -848)),
        gravity_hu=float(np.clip(rng.normal(48, 12), 20, 75)),
        bone_hu=float(np.clip(rng.normal(1.0, 0.12), 0.7, 1.3)),
        noise_hu=float(np.clip(rng.normal(15, 2.5), 10, 22)),
        texture_hu=float(np.clip(rng.normal(29, 4), 20, 38)),
        lobe_shares=(upper, middle_lobe, float(np.clip(rng.normal(0.50, 0.025), 0.43, 0.56))),
        fissure_slope=float(np.clip(rng.normal(0.95, 0.08), 0.75, 1.15)),
        sway=float(rng.normal(0, 2.5)),
        stomach_gas=float(rng.uniform(-0.5, 0.55)),
        stomach_size=float(rng.uniform(0.7, 1.05)),
        scale=scale,
        dependent_hu=float(rng.uniform(0, 90)),
        phases=tuple(float(angle) for angle in rng.uniform(0, 2 * np.pi, 6)),
    )


def hyperinflated(anatomy: Anatomy, laa950_percent: float) -> Anatomy:
    """Return the chest of a subject with emphysema: lower and flatter domes, deeper from front to back.

    Full effect from 45 % of the lung below -950 HU on: domes 8 % of the lung's height lower and a third flatter, the
    sagittal diameter 6 % larger (signs of hyperinflation, Fleischner Society glossary 2008 and textbooks).
    """
    amount = min(laa950_percent / 45.0, 1.0)
    return replace(
        anatomy,
        half_depth=min(anatomy.half_depth * (1 + 0.06 * amount), 106.0),
        dome_top_right=anatomy.dome_top_right - 0.08 * amount,
        dome_drop=anatomy.dome_drop * (1 - 0.33 * amount),
    )


def _rotation(about_z: float, about_y: float, about_x: float) -> NDArray[np.float64]:
    """Return the rotation matrix on (z, y, x) vectors from three small angles."""

    def plane(i: int, j: int, angle: float) -> NDArray[np.float64]:
        matrix = np.eye(3)
        matrix[i, i] = matrix[j, j] = np.cos(angle)
        matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
        return matrix

    return plane(1, 2, about_z) @ plane(0, 2, about_y) @ plane(0, 1, about_x)


# --- heart ---

_HEART = (  # centre (z, y, x), long axis (z, y, x), semi-axes (long, across, across)
    ((-44, 20, 37), (-0.45, 0.42, 0.78), (55, 44, 46)),  # left ventricle
    ((-48, 44, 15), (-0.50, 0.15, 0.85), (53, 40, 37)),  # right ventricle
    ((-30, 24, -17), (1.0, 0.0, 0.0), (46, 34, 27)),  # right atrium
    ((-12, -2, 11), (0.0, 0.0, 1.0), (40, 27, 26)),  # left atrium
)


def heart_ellipsoids(anatomy: Anatomy, ctr: float) -> list[Ellipsoid]:
    """Return the heart's pieces, widened so that its widest axial extent is `ctr` times the inner thorax there."""
    z = np.arange(anatomy.level(0.05), anatomy.level(0.75), 1.0)
    chest = 2.0 * anatomy.profile(z)[0]
    anchor, pieces = anatomy.point(-6, 4, 7), _heart_pieces(anatomy)

    def stretched(lateral: float) -> list[tuple[NDArray, NDArray]]:
        stretch = np.array([lateral**0.55, lateral**0.5, lateral])
        scales = np.outer(stretch, stretch)  # of the ellipsoid's matrix, so that it stays an exact ellipsoid
        return [(anchor + (centre - anchor) * stretch, shape * scales) for centre, shape in pieces]

    low, high = 0.4, 2.6
    for _ in range(24):
        lateral = (low + high) / 2
        if _cardiothoracic_ratio(z, chest, stretched(lateral)) < ctr:
            low = lateral
        else:
            high = lateral
    ellipsoids = []
    for centre, shape in stretched((low + high) / 2):
        values, vectors = np.linalg.eigh(shape)
        ellipsoids.append(Ellipsoid(centre, np.sqrt(values), vectors.T))
    return ellipsoids


def _heart_pieces(anatomy: Anatomy) -> list[tuple[NDArray, NDArray]]:
    """Return centre (3,) and matrix (3, 3) of each piece of the heart before it is widened.

    A point p lies in the ellipsoid where (p - centre) inverse(matrix) (p - centre) < 1.
    """
    pieces = []
    for centre, direction, semi in _HEART:
        long_axis = np.array(direction, float) / np.linalg.norm(direction)
        helper = np.array([0.0, 1.0, 0.0]) if abs(long_axis[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
        second = np.cross(long_axis, helper)
        second /= np.linalg.norm(second)
        frame = np.stack([long_axis, second, np.cross(long_axis, second)])
        size = np.array(semi, float)[[0, 2, 1]] * anatomy.scale
        pieces.append((anatomy.point(*centre), (frame.T * size**2) @ frame))
    return pieces


def _cardiothoracic_ratio(z: NDArray, chest: NDArray, pieces: list[tuple[NDArray, NDArray]]) -> float:
    """Return maximal cardiac width over inner thoracic width `chest` at the same of the heights `z`, in closed form."""
    left, right = np.full(z.shape, -np.inf), np.full(z.shape, np.inf)
    for middle, shape in pieces:
        along = (z - middle[0]) / np.sqrt(shape[0, 0])
        inside = np.abs(along) < 1
        centre = middle[2] + shape[0, 2] / np.sqrt(shape[0, 0]) * along
        spread = np.sqrt(np.maximum((shape[2, 2] - shape[0, 2] ** 2 / shape[0, 0]) * (1 - along**2), 0))
        left = np.where(inside, np.maximum(left, centre + spread), left)
        right = np.where(inside, np.minimum(right, centre - spread), right)
    width = np.where(np.isfinite(left), left - right, 0.0)
    widest = int(np.argmax(width))
    return float(width[widest] / chest[widest])
