"""Render chests in which one side holds little or no air.

The conditions are white-out, a removed lung, bowel in the chest, and fluid that displaces the mediastinum. The cohort's
phantoms (`medsyn.phantom.subject`) have none of them. They are made from the same anatomies: a smooth displacement,
which is zero at the chest wall and at the spine, moves mediastinum and diaphragm, then the pleural cavity of one side
is filled. Every condition comes with its true pleural cavities. Used to test the alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.phantom.bones import cover
from medsyn.phantom.fields import Shell
from medsyn.phantom.findings import FindingSpec
from medsyn.phantom.grid import Grid, Noise
from medsyn.phantom.pathology import FLUID_HU, SOLID_HU, effusion_score
from medsyn.phantom.plan import Plan, lungs_on
from medsyn.phantom.subject import render_findings
from medsyn.volume import LOBE_NAMES, Volume, centred_origin_mm

Array = NDArray[np.float32]
Condition = Literal["fluid", "consolidation", "lobe", "pneumonectomy", "hernia"]
RIGHT, LEFT = 1, 2
BOWEL_MM, BOWEL_GAS_HU, BOWEL_FAT_HU = 22.0, -980.0, -95.0
FIXED_MM = 70.0
"""The displacement grows from zero at the chest wall, and around the spine, over this distance."""
FADE_MM = 30.0
"""It fades over this distance at the diaphragm, at the apex and at the midline."""


@dataclass(frozen=True)
class Extreme:
    """What one side of the chest holds.

    share: of the side's cavity that is filled, from the most dependent point up ("hernia": from the base up; "lobe":
    not used); lobe: name of the lobe that is consolidated; shift_mm: how far the mediastinum moves towards the filled
    side, negative: away from it; raised_mm: how far the diaphragm of that side moves up; hu: of fluid.
    """

    kind: Condition
    side: Literal["right", "left"]
    share: float = 1.0
    lobe: str = ""
    shift_mm: float = 0.0
    raised_mm: float = 0.0
    hu: float = FLUID_HU


@dataclass(frozen=True)
class ExtremeSubject:
    """A phantom in an extreme condition.

    volume: int16 HU in model orientation; cavities: uint8, the true pleural cavities, 1 right, 2 left.
    """

    volume: Volume
    cavities: NDArray[np.uint8]


def render_extreme(
    seed: int, index: int, size: int = 64, specs: Sequence[FindingSpec] = (), extremes: Sequence[Extreme] = ()
) -> ExtremeSubject:
    """Render subject `index` of the cohort with `seed` with the findings `specs` and `extremes`; healthy without."""
    plan, grid, layers, rendering = render_findings(seed, index, size, tuple(specs))
    lungs = lungs_on(plan, grid, slice(None), layers.around)
    space, shell = cover(lungs.lung, grid.width), lungs.shell
    sides = {name: space * ((shell.x > 0) == (name == "left")) for name in ("right", "left")}
    hu, rng = rendering.hu.astype(np.float32), np.random.default_rng([seed, index, 51])
    for extreme in extremes:
        move = _displacement(plan, shell, grid, extreme)
        hu, sides = _moved(hu, move), {name: _moved(side, move) for name, side in sides.items()}
        lobes, airway = (_moved(rendering.masks[name], move, order=0) for name in ("lobes", "airway"))
        hu = _filled(hu, sides[extreme.side], extreme, shell, grid, lobes, airway, plan.anatomy.noise_hu, rng)
    cavities = np.zeros(grid.size, np.uint8)
    for value, name in ((RIGHT, "right"), (LEFT, "left")):
        cavities[sides[name] > 0.5] = value
    array = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    return ExtremeSubject(Volume(array, grid.spacing, centred_origin_mm(grid.size, grid.spacing)), cavities)


def _displacement(plan: Plan, s: Shell, grid: Grid, extreme: Extreme) -> tuple[Array, Array]:
    """Return how far (z, x) in mm the tissue at every voxel has moved; zero at the chest wall and at the spine."""
    inside = np.clip(-s.cavity / FIXED_MM, 0, 1)
    loose = np.clip((np.hypot(s.x - s.spine_x, s.y - s.spine_y) - 25) / FIXED_MM, 0, 1)
    above = np.clip(1 + s.dome / FADE_MM, 0, 1) * np.clip(-s.apex / FADE_MM, 0, 1)
    towards = 1.0 if extreme.side == "left" else -1.0
    across = np.float32(towards * extreme.shift_mm) * inside * loose * above
    here = np.clip(0.5 + towards * (s.x - 5) / FADE_MM, 0, 1) * np.clip(-s.cavity / FADE_MM, 0, 1)
    fade = np.clip(1 - np.maximum(s.dome, 0) / max(3 * extreme.raised_mm, 1.0), 0, 1)
    return np.float32(extreme.raised_mm) * here * fade, across


def _moved(array: NDArray, move: tuple[Array, Array], order: int = 1) -> NDArray:
    """Return the array after the displacement (z, x) in mm."""
    if not any(part.any() for part in move):
        return array
    steps = Grid(array.shape).spacing
    z, y, x = np.indices(array.shape, dtype=np.float32)
    points = [z - move[0] / steps[0], y, x - move[1] / steps[2]]
    return ndimage.map_coordinates(array, points, order=order, mode="nearest")


def _filled(
    hu: Array,
    side: Array,
    extreme: Extreme,
    s: Shell,
    grid: Grid,
    lobes: NDArray[np.uint8],
    airway: NDArray[np.uint8],
    noise_hu: float,
    rng: np.random.Generator,
) -> Array:
    """Return `hu` with the cavity of one side filled as `extreme` says."""
    share = side
    if extreme.kind == "lobe":
        share = side * (lobes == LOBE_NAMES.index(extreme.lobe) + 1)
    elif extreme.share < 1:
        height = -s.z if extreme.kind == "hernia" else effusion_score(s)
        level = np.quantile(height[side > 0.5], 1 - extreme.share)
        share = side * cover(np.float32(level) - height, grid.width)
    noise = np.float32(noise_hu) * rng.standard_normal(hu.shape, dtype=np.float32)
    if extreme.kind == "hernia":
        content = _bowel(grid, rng)
    elif extreme.kind in ("consolidation", "lobe"):
        content = np.full(hu.shape, SOLID_HU, np.float32)
        share = share * (airway == 0)
    else:
        content = np.full(hu.shape, extreme.hu, np.float32)
    return (hu + share * (content + noise - hu)).astype(np.float32)


def _bowel(grid: Grid, rng: np.random.Generator) -> Array:
    """Return HU of loops of bowel: patches of gas and of water in fat."""
    loops = Noise(rng, BOWEL_MM).sample(grid, slice(None))
    content = np.full(grid.size, BOWEL_FAT_HU, np.float32)
    content[loops > 0.0] = 25.0
    content[loops > 0.9] = BOWEL_GAS_HU
    return content
