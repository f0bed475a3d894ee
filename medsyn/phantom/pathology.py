"""Place findings inside the lungs on the plan grid, stored as thresholds and spheres in millimetres.

Each finding's `amount` is met by a threshold of a continuous score, chosen as a quantile over the plan grid: the
effusion's dependent level, the share of destroyed lung, the reach of an opacity. Rendering only compares scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medsyn.phantom.fields import Shell, box_between
from medsyn.phantom.findings import FindingSpec
from medsyn.phantom.grid import Grid, Noise
from medsyn.volume import LOBE_NAMES

Array = NDArray[np.float32]
DENT = 0.22
"""How far the surface of a bulla lies from a sphere, as a share of its radius (standard deviation)."""
BULLA_HU, DESTROYED_HU, FLUID_HU, SOLID_HU, GROUND_GLASS_HU = -992.0, -985.0, 12.0, 35.0, -560.0


@dataclass
class Opacity:
    """A focal lesion: centre (z, y, x) mm, threshold of its score in mm, edge softness in mm, HU, lobe label."""

    kind: str
    centre: NDArray[np.float64]
    reach: float
    edge: float
    hu: float
    lobe: int


@dataclass
class Pathology:
    """All findings of one subject in continuous space."""

    seed: tuple[int, ...]
    effusion_level: dict[str, float] = field(default_factory=dict)
    atelectasis_mm: dict[str, float] = field(default_factory=dict)
    bullae: list[tuple[NDArray[np.float64], float]] = field(default_factory=list)
    destroyed_level: float | None = None
    diffuse_hu: float = 0.0
    opacities: list[Opacity] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.patches = Noise(np.random.default_rng([*self.seed, 21]), 13.0)
        self.holes = Noise(np.random.default_rng([*self.seed, 24]), 6.0)
        self.fringe = Noise(np.random.default_rng([*self.seed, 22]), 12.0)


def effusion_score(s: Shell) -> Array:
    """Return how dependent a point of the pleural space is, mm: posterior, then basal; fluid climbs along the wall."""
    wall = np.maximum(-s.cavity, 0)
    return -s.y - np.float32(0.42) * s.z + np.float32(26.0) * np.exp(-wall * np.float32(1 / 11.0))


def destruction(p: Pathology, s: Shell, grid: Grid, slab: slice) -> tuple[Array, Array]:
    """Return where emphysema destroys the lung first, and the distance to bullae, on one slab.

    The score has patches with holes as wide as the middle of a lobule, more of them towards the apices.
    """
    patches, holes = p.patches.sample(grid, slab), p.holes.sample(grid, slab)
    score = np.float32(0.75) * patches + np.float32(0.65) * holes + s.z * np.float32(1 / 55.0)
    return score, bullae_distance(p, s, patches)


def bullae_distance(p: Pathology, s: Shell, patches: Array) -> Array:
    """Return the signed distance to the nearest bulla, 99 mm without any; zero on the wall between two that meet.

    The field `patches` dents and swells each bulla by a part of its radius.
    """
    best, second = np.full(s.z.shape, 99.0, np.float32), np.full(s.z.shape, 99.0, np.float32)
    fields = (s.z, s.y, s.x)
    for centre, radius in p.bullae:
        reach = radius * 1.4 + 6
        box = box_between(fields, centre - reach, centre + reach)
        if box is None:
            continue
        z, y, x = (field[box] - m for field, m in zip(fields, centre.astype(np.float32), strict=True))
        d = np.sqrt(z * z + y * y + x * x) - np.float32(radius)
        d += np.float32(DENT * radius) * np.clip(patches[box], -1.5, 1.5)
        second[box] = np.minimum(second[box], np.maximum(best[box], d))
        best[box] = np.minimum(best[box], d)
    return np.maximum(best, (best - second) / 2)


def opacity_score(p: Pathology, o: Opacity, s: Shell, fringe: Array) -> Array:
    """Return the distance from the lesion's centre with a ragged edge, mm."""
    c = o.centre.astype(np.float32)
    d = np.sqrt((s.z - c[0]) ** 2 + (s.y - c[1]) ** 2 + (s.x - c[2]) ** 2)
    ragged = 0.06 * o.reach if o.kind == "nodule" else 7.0
    return (d + np.float32(ragged) * fringe).astype(np.float32)


def place(
    seed: tuple[int, ...], specs: tuple[FindingSpec, ...], s: Shell, lung: Array, labels: NDArray[np.uint8], grid: Grid
) -> Pathology:
    """Meet every spec's amount on the plan grid; `lung` is the distance to the pleural space, `labels` the lobes."""
    p = Pathology(seed)
    rng = np.random.default_rng([*seed, 23])
    fluid = np.zeros(lung.shape, bool)
    for spec in specs:
        if spec.kind == "pleural_effusion":
            fluid |= _place_effusion(p, spec, s, lung, grid)
    air = (labels > 0) & ~fluid
    for spec in specs:
        if spec.kind == "emphysema":
            _place_emphysema(p, spec, s, lung, air, labels, grid, rng)
        elif spec.kind in ("consolidation", "ground_glass_opacity", "nodule"):
            _place_opacity(p, spec, s, lung, air & (labels == LOBE_NAMES.index(spec.lobe) + 1), grid, rng)
    return p


def _place_effusion(p: Pathology, spec: FindingSpec, s: Shell, lung: Array, grid: Grid) -> NDArray[np.bool_]:
    space = (lung < 0) & ((s.x > 0) == (spec.side == "left"))
    score = effusion_score(s)
    share = np.clip(spec.amount / (space.sum() * grid.voxel_ml), 0, 0.95)
    level = float(np.round(np.quantile(score[space], 1 - share), 3))
    p.effusion_level[spec.side] = level
    p.atelectasis_mm[spec.side] = float(4.0 + 11.0 * min(spec.amount / 1200.0, 1.2))
    return space & (score > level)


def _place_emphysema(
    p: Pathology,
    spec: FindingSpec,
    s: Shell,
    lung: Array,
    air: NDArray,
    labels: NDArray,
    grid: Grid,
    rng: np.random.Generator,
) -> None:
    target = spec.amount / 100.0 * air.sum()
    z, y, x = (c[air] for c in (s.z, s.y, s.x))
    filled = np.zeros(z.shape, bool)
    anywhere = np.flatnonzero(air & (lung < -5))
    upper = np.flatnonzero(air & ((labels == 1) | (labels == 3)) & (lung > -9) & (lung < -2))
    weight = rng.uniform(0.5, 0.7)
    typical = 12.0 + 12.0 * min(spec.amount / 40.0, 1.0)  # mm; giant bullae in severe disease only
    for _ in range(60):
        if filled.sum() >= weight * target or upper.size == 0 or anywhere.size == 0:
            break
        pool = upper if rng.random() < 0.85 else anywhere
        radius = float(np.clip(rng.lognormal(np.log(typical), 0.42), 7.5, 45.0))
        centre = _bulla_centre(p, s, pool, radius, rng)
        radius = min(radius, 7.5 + 1.1 * float(np.cbrt(max(target - filled.sum(), 1) * grid.voxel_ml * 120)))
        p.bullae.append((np.round(centre, 3), round(radius, 3)))
        filled |= (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2
    rest = air.copy()
    rest[air] = ~filled
    wanted = (target - filled.sum()) / max(rest.sum(), 1)
    score, _ = destruction(p, s, grid, slice(None))
    p.destroyed_level = float(np.round(np.quantile(score[rest], 1 - np.clip(wanted, 0.0, 0.9)), 4))
    p.diffuse_hu = -22.0 * min(spec.amount / 30.0, 1.0)


def _bulla_centre(p: Pathology, s: Shell, pool: NDArray, radius: float, rng: np.random.Generator) -> NDArray:
    """Return a point of `pool` (flat indices): often one beside an earlier bulla, since bullae lie in clusters."""
    picks = pool[rng.integers(pool.size, size=40)]
    points = np.stack([c.ravel()[picks] for c in (s.z, s.y, s.x)], 1).astype(float)
    if not p.bullae or rng.random() < 0.35:
        return points[0]
    gaps = [np.linalg.norm(points - centre, axis=1) - 0.85 * (radius + other) for centre, other in p.bullae]
    return points[int(np.argmin(np.abs(np.min(gaps, axis=0))))]


def _place_opacity(
    p: Pathology, spec: FindingSpec, s: Shell, lung: Array, lobe: NDArray, grid: Grid, rng: np.random.Generator
) -> None:
    label = LOBE_NAMES.index(spec.lobe) + 1
    depth = min(spec.amount / 2 + 2, 14.0) if spec.kind == "nodule" else 4.0
    inner = np.flatnonzero(lobe & (lung < -depth))
    if inner.size == 0:
        inner = np.flatnonzero(lobe)
    if inner.size == 0:
        return
    pick = inner[int(rng.integers(inner.size))]
    centre = np.round(np.array([float(c.flat[pick]) for c in (s.z, s.y, s.x)]), 3)
    hu = GROUND_GLASS_HU if spec.kind == "ground_glass_opacity" else SOLID_HU
    edge = {"nodule": 1.0, "consolidation": 3.0}.get(spec.kind, 8.0)
    opacity = Opacity(spec.kind, centre, spec.amount / 2, edge, hu, label)
    if spec.kind != "nodule":
        score = opacity_score(p, opacity, s, p.fringe.sample(grid, slice(None)))
        share = np.clip(spec.amount / (lobe.sum() * grid.voxel_ml), 0.0, 0.97)
        opacity.reach = float(np.round(np.quantile(score[lobe], share), 3))
    p.opacities.append(opacity)
