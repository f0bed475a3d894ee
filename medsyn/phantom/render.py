"""Render a plan to Hounsfield units on a grid, with the true masks. No global state, no threads, fixed order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr

from medsyn.phantom import pathology, soft
from medsyn.phantom.airway import WALL_FACTOR, WALL_OFFSET_MM
from medsyn.phantom.bones import cover, paint_bones, shoulder_bones
from medsyn.phantom.fields import Shell, lobe_labels
from medsyn.phantom.grid import Grid, Noise
from medsyn.phantom.pathology import Pathology
from medsyn.phantom.plan import PLAN_GRID, Lungs, Plan, central_tubes, lungs_on, mediastinal_distance
from medsyn.phantom.tissue import AIR
from medsyn.phantom.tubes import Tubes, coverage, distance_around
from medsyn.phantom.wall import Wall, build_wall, paint_table, paint_wall

Array = NDArray[np.float32]
PSF_SIGMA_MM = 0.75
"""Standard deviation of the scanner's point spread, about that of a soft reconstruction kernel (FWHM 1.8 mm)."""
_WIDE_MM = 3.0
FISSURE_MM, FISSURE_HU = 0.35, -200.0
SEPTUM_HU, SEPTUM_RIM_MM = 30.0, 30.0
"""Most that a septum between lobules adds to the lung near the pleura, and how deep septa are seen."""
BULLA_WALL_MM = 0.7
WALL_HU = 10.0
_VESSEL_SHARE = 90


@dataclass
class Rendering:
    """A rendered phantom.

    hu: int16 (D, H, W); masks: lobes uint8 labels, the others uint8 0/1, same shape.
    """

    hu: NDArray[np.int16]
    masks: dict[str, NDArray[np.uint8]]


@dataclass
class Layers:
    """Tubes of the subject on the grid, 0..255, distances to the central ones and to the bones of the shoulders."""

    around: Array
    girdle: Array
    wall_layers: Wall
    great: NDArray[np.uint8]
    oesophagus: NDArray[np.uint8]
    wall: NDArray[np.uint8]
    lumen: NDArray[np.uint8]
    lung_vessels: NDArray[np.uint8]
    mottle: Noise
    texture: Noise
    fine: Noise


def render(plan: Plan, findings: Pathology, grid: Grid, layers: Layers) -> Rendering:
    """Render one subject; `findings` from `pathology.place`, `layers` from `tube_layers` on the same grid."""
    hu = np.empty(grid.size, np.float32)
    names = ("lobes", "airway", "vessels", "heart", "effusion")
    masks = {name: np.zeros(grid.size, np.uint8) for name in names}
    for slab in grid.slabs():
        lungs = lungs_on(plan, grid, slab, layers.around)
        hu[slab] = _paint(plan, findings, grid, slab, lungs, layers, masks)
    return Rendering(_scan(plan, grid, hu), masks)


def calibrate_emphysema(plan: Plan, p: Pathology, target_percent: float, grid: Grid, layers: Layers) -> None:
    """Shift the level of destruction until the expected %LAA-950 on `grid` is `target_percent`, in place.

    Expected over the scanner's noise at the plan's points, with vessels, bullae, opacities and partial volume as
    `grid` shows them; `layers` from `tube_layers` on `grid`.
    """
    every = slice(None)
    p.destroyed_level = None
    texture = (layers.texture.sample(PLAN_GRID, every), layers.fine.sample(PLAN_GRID, every))
    base = _parenchyma(plan, p, PLAN_GRID, plan.lungs, texture)
    opaque = base.copy()
    fluid = _paint_findings(p, opaque, PLAN_GRID, every, plan.lungs.shell, plan.labels)
    blur = 0.0 if grid.width > _WIDE_MM else PSF_SIGMA_MM
    width = float(np.sqrt(grid.width**2 + 12 * blur**2))  # the box as wide as voxel and point spread together
    inside = (plan.labels > 0) & (fluid <= 0.5)
    lumen = _shares_at(grid, layers.lumen, inside, blur)
    inside[inside] = lumen < 0.5
    counted = inside & (opaque - base < 25)
    air = base[counted]
    vessel, wall = (_shares_at(grid, layer, counted, blur) for layer in (layers.lung_vessels, layers.wall))
    edge = 1 - cover(plan.lungs.lung[counted], width)
    score, bullae_mm = pathology.destruction(p, plan.lungs.shell, PLAN_GRID, every)
    score, bullae = score[counted], _bullae(bullae_mm[counted], width)
    low, high = float(score.min()) - 1.0, float(score.max()) + 1.0
    for _ in range(12):
        level = (low + high) / 2
        hu = air.copy()
        _destroy(hu, score - np.float32(level), bullae)
        soft.paint(hu, vessel, plan.anatomy.blood_hu)
        soft.paint(hu, wall, WALL_HU)
        soft.paint(hu, edge, 0.0)
        expected = 100.0 * float(ndtr((-950.0 - hu) / plan.anatomy.noise_hu).sum()) / max(int(inside.sum()), 1)
        low, high = (low, level) if expected < target_percent else (level, high)
    p.destroyed_level = round((low + high) / 2, 4)


def _shares_at(grid: Grid, layer: NDArray[np.uint8], points: NDArray[np.bool_], blur_mm: float) -> Array:
    """Return the coverage of a layer of `grid`, blurred, at the marked points of the plan grid."""
    where = np.nonzero(points)
    index = [((w + 0.5) * m / n).astype(int) for w, n, m in zip(where, PLAN_GRID.size, grid.size, strict=True)]
    if blur_mm == 0:
        return _share(layer[tuple(index)])
    taps = [np.exp(-0.5 * (np.arange(-1, 2) * step / blur_mm) ** 2) for step in grid.spacing]
    taps = [tap / tap.sum() for tap in taps]
    total = np.zeros(len(index[0]), np.float32)
    for z, y, x in np.ndindex(3, 3, 3):
        shifted = tuple(np.clip(i + k - 1, 0, m - 1) for i, k, m in zip(index, (z, y, x), grid.size, strict=True))
        total += np.float32(taps[0][z] * taps[1][y] * taps[2][x]) * _share(layer[shifted])
    return total


def tube_layers(plan: Plan, grid: Grid) -> Layers:
    """Return everything tubular of the subject and its noise fields, ready for `render` on `grid`."""
    turn = plan.anatomy.rotation.T

    def covered(tubes: Tubes) -> NDArray[np.uint8]:
        return coverage(grid, tubes.rotated(turn))

    lumen = plan.airways.lumen()
    central = central_tubes(plan.airways.central, plan.vessels.great, plan.vessels.oesophagus)
    seeds = np.random.SeedSequence([*plan.seed, 31]).spawn(3)
    return Layers(
        around=mediastinal_distance(grid, plan.body, central),
        girdle=distance_around(grid, shoulder_bones(plan.anatomy).rotated(turn), 2 * grid.width),
        wall_layers=build_wall(plan.anatomy),
        great=covered(plan.vessels.great),
        oesophagus=covered(plan.vessels.oesophagus),
        wall=covered(lumen.widened(WALL_FACTOR, WALL_OFFSET_MM)),
        lumen=covered(lumen),
        lung_vessels=covered(plan.vessels.arteries + plan.vessels.veins),
        mottle=Noise(np.random.default_rng(seeds[0]), 14.0),
        texture=Noise(np.random.default_rng(seeds[1]), 9.0),
        fine=Noise(np.random.default_rng(seeds[2]), 3.6),
    )


def _paint(
    plan: Plan,
    p: Pathology,
    grid: Grid,
    slab: slice,
    lungs: Lungs,
    layers: Layers,
    masks: dict[str, NDArray[np.uint8]],
) -> Array:
    a, s, width = plan.anatomy, lungs.shell, grid.width
    mottle = layers.mottle.sample(grid, slab)
    hu = np.repeat(paint_table(layers.wall_layers, grid)[None], s.z.shape[0], axis=0)
    paint_wall(layers.wall_layers, s, hu, grid, mottle)
    paint_bones(a, s, layers.girdle[slab], hu, width)
    lobular = layers.texture.sample(grid, slab)
    soft.paint_abdomen(a, s, hu, width, mottle, lobular)
    soft.paint_heart(plan.body, s, hu, lungs.heart, mottle, width)
    soft.paint(hu, _share(layers.oesophagus[slab]), 40.0)
    soft.paint(hu, _share(layers.great[slab]), a.blood_hu)
    inside = lungs.lung < 0
    labels = lobe_labels(s, lungs.fissures, inside)
    air = _parenchyma(plan, p, grid, lungs, (lobular, layers.fine.sample(grid, slab)))
    fluid = _paint_findings(p, air, grid, slab, s, labels)
    soft.paint(hu, cover(lungs.lung, width), air)
    # vessels and airways run on through consolidated lung (bronchograms), not through fluid or the heart
    around = layers.around[slab]
    root = np.clip(np.maximum(5 - lungs.lung, 4 - around) * np.float32(0.5), 0, 1) * (lungs.heart > 1)
    seen = np.maximum(np.clip(np.float32(1.5) - around, 0, 1), root) * (1 - fluid)
    soft.paint(hu, _share(layers.lung_vessels[slab]) * seen, a.blood_hu)
    soft.paint(hu, _share(layers.wall[slab]) * seen, WALL_HU)
    lumen = _share(layers.lumen[slab]) * seen
    soft.paint(hu, lumen, AIR)
    wet = (fluid > 0.5) & inside
    masks["lobes"][slab] = np.where(wet, 0, labels)
    masks["effusion"][slab] = wet
    masks["airway"][slab] = lumen >= 0.5
    masks["heart"][slab] = (lungs.heart < 0) & ~inside & (lumen < 0.5)
    masks["vessels"][slab] = (layers.lung_vessels[slab] >= _VESSEL_SHARE) & (masks["lobes"][slab] > 0)
    return hu


def _share(layer: NDArray[np.uint8]) -> Array:
    return layer.astype(np.float32) * np.float32(1 / 255.0)


def _paint_findings(p: Pathology, air: Array, grid: Grid, slab: slice, s: Shell, labels: NDArray[np.uint8]) -> Array:
    """Paint the findings over lung, in place, and return the share of each voxel that is fluid."""
    width = grid.width
    if p.destroyed_level is not None:
        score, bullae_mm = pathology.destruction(p, s, grid, slab)
        _destroy(air, score - np.float32(p.destroyed_level), _bullae(bullae_mm, width))
    if p.opacities:
        fringe = p.fringe.sample(grid, slab)
        for opacity in p.opacities:
            score = pathology.opacity_score(p, opacity, s, fringe) - np.float32(opacity.reach)
            where = np.ones_like(score) if opacity.kind == "nodule" else (labels == opacity.lobe).astype(np.float32)
            soft.paint(air, where * cover(score, max(width, opacity.edge)), opacity.hu)
    return _paint_effusion(p, s, air, width)


def _parenchyma(plan: Plan, p: Pathology, grid: Grid, lungs: Lungs, texture: tuple[Array, Array]) -> Array:
    """Return lung without vessels: density falls from back to front (gravity); texture, septa of lobules, fissures."""
    a, s, width = plan.anatomy, lungs.shell, grid.width
    down = -(s.y + np.float32(0.02 * a.half_depth)) * np.float32(1 / (2 * a.half_depth))
    air = np.float32(a.lung_hu + p.diffuse_hu) + np.float32(a.gravity_hu) * down
    # lung that collapses a little where the patient lies on it
    lowest = np.clip(-s.y * np.float32(1 / a.half_depth) - np.float32(0.35), 0, 0.4)
    air += np.float32(2.5 * a.dependent_hu) * lowest / (1 + np.square(lungs.lung * np.float32(1 / 9.0)))
    lobular, fine = texture
    air += np.float32(a.texture_hu) * (np.float32(0.3) * lobular + np.float32(0.65) * fine)
    # the lobules' borders are where the field of their size changes sign
    rim = np.clip(1 + lungs.lung * np.float32(1 / SEPTUM_RIM_MM), 0, 1)
    air += np.float32(SEPTUM_HU) * rim * np.maximum(1 - np.float32(5.0) * np.abs(lobular), 0)
    oblique, horizontal = lungs.fissures
    # the horizontal fissure exists in front of the oblique one on the right only
    minor = np.where((s.x < 0) & (oblique > 0), np.abs(horizontal), 99).astype(np.float32)
    line = np.minimum(np.abs(oblique), minor) - np.float32(max(FISSURE_MM, width) / 2)
    soft.paint(air, np.float32(min(FISSURE_MM / width, 1.0)) * cover(line, width), FISSURE_HU)
    return air


def _bullae(distance: Array, width: float) -> tuple[Array, Array]:
    """Return the shares of each voxel that lie inside bullae and in their walls, from the distance to bullae."""
    wall = cover(np.abs(distance) - np.float32(BULLA_WALL_MM / 2), width)
    return cover(distance, width), np.float32(min(BULLA_WALL_MM / width, 1.0)) * wall


def _destroy(air: Array, score: Array, bullae: tuple[Array, Array]) -> None:
    """Paint emphysema over lung, in place: where `score` > 0 the lung is destroyed, inside bullae it is gone."""
    soft.paint(air, np.clip(score * np.float32(7.0) + np.float32(0.5), 0, 1), pathology.DESTROYED_HU)
    soft.paint(air, bullae[0], pathology.BULLA_HU)
    soft.paint(air, bullae[1], -500.0)


def _paint_effusion(p: Pathology, s: Shell, air: Array, width: float) -> Array:
    fluid = np.zeros(s.z.shape, np.float32)
    if not p.effusion_level:
        return fluid
    score = pathology.effusion_score(s)
    for side, level in p.effusion_level.items():
        here = ((s.x > 0) == (side == "left")).astype(np.float32)
        depth = np.float32(level) - score
        squeezed = here * np.clip(np.float32(1.0) - (depth - np.float32(p.atelectasis_mm[side])) / 12.0, 0, 1)
        soft.paint(air, squeezed * squeezed, 28.0)
        fluid = np.maximum(fluid, here * cover(depth, width))
    soft.paint(air, fluid, pathology.FLUID_HU)
    return fluid


def _scan(plan: Plan, grid: Grid, hu: Array) -> NDArray[np.int16]:
    """Apply the scanner: quantum noise, then the point spread of both, then whole Hounsfield units."""
    rng = np.random.default_rng([*plan.seed, 41, grid.size[0]])
    sigma = [PSF_SIGMA_MM / step for step in grid.spacing]
    noise = rng.standard_normal(grid.size, dtype=np.float32)
    if grid.width > _WIDE_MM:  # the voxel is much wider than the point spread: coverage has blurred already
        hu += np.float32(plan.anatomy.noise_hu) * noise
    else:
        loss = np.prod([np.sqrt(_kernel_energy(value)) for value in sigma])
        hu += noise * np.float32(plan.anatomy.noise_hu / loss)
        hu = gaussian_filter(hu, sigma, truncate=3.0)
    return np.clip(np.rint(np.round(hu, 2)), -1024, 3071).astype(np.int16)


def _kernel_energy(sigma: float) -> float:
    x = np.arange(-int(3 * sigma + 0.5), int(3 * sigma + 0.5) + 1)
    kernel = np.exp(-0.5 * (x / sigma) ** 2)
    return float(np.square(kernel / kernel.sum()).sum())
