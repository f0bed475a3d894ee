"""Plan a subject before any rendering, on one fixed grid of about 5 mm: lobes, trees, lesions.

The plan is stored in millimetres, so that each rendering, coarse or fine, shows the same person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsyn.phantom.airway import Airways, build_airways, central_airways
from medsyn.phantom.anatomy import Anatomy, draw_anatomy, heart_ellipsoids, hyperinflated
from medsyn.phantom.fields import (
    Body,
    Shell,
    heart_distance,
    horizontal_fissure,
    lobe_labels,
    oblique_fissure,
    septum_distance,
    shell,
    smooth_max,
    smooth_min,
    thorax_distance,
)
from medsyn.phantom.findings import FindingSpec
from medsyn.phantom.grid import Grid
from medsyn.phantom.tubes import Tubes, distance_around
from medsyn.phantom.vessels import Vessels, build_oesophagus, build_vessels, great_vessels

Array = NDArray[np.float32]
PLAN_GRID = Grid((64, 64, 64))
_POINTS_PER_LITRE = 2600
_SMALLEST_GROUP = 2


@dataclass
class Chest:
    """Fields of one slab that do not depend on the trees.

    heart, septum, spine, thorax: signed distances; septum is the thin middle of the mediastinum, thorax the space
    inside the wall and above the diaphragm.
    """

    shell: Shell
    heart: Array
    septum: Array
    spine: Array
    thorax: Array


@dataclass
class Lungs:
    """Fields of one slab that decide what is lung; fissures: heights above the oblique and the horizontal one."""

    shell: Shell
    heart: Array
    lung: Array
    fissures: tuple[Array, Array]


@dataclass
class Plan:
    """One subject, ready to be rendered on any grid."""

    body: Body
    airways: Airways
    vessels: Vessels
    specs: tuple[FindingSpec, ...]
    seed: tuple[int, ...]
    chest: Chest
    lungs: Lungs
    labels: NDArray[np.uint8]

    @property
    def anatomy(self) -> Anatomy:
        """Return the subject's shape."""
        return self.body.anatomy


def lungs_on(plan: Plan, grid: Grid, slab: slice, tubes_distance: Array) -> Lungs:
    """Return heart, pleural space and fissures on one slab; `tubes_distance` from `mediastinal_distance`.

    On the whole of the plan's own grid, what does not depend on the trees is the plan's.
    """
    planned = grid == PLAN_GRID and slab.indices(grid.size[0]) == (0, grid.size[0], 1)
    chest = plan.chest if planned else chest_on(plan.body, grid, slab)
    fissures = plan.lungs.fissures if planned else _fissures(plan.body, chest.shell)
    return Lungs(chest.shell, chest.heart, _lung_distance(chest, tubes_distance[slab]), fissures)


def chest_on(body: Body, grid: Grid, slab: slice) -> Chest:
    """Return the fields of one slab that do not depend on the trees."""
    s = shell(body, grid, slab)
    heart = np.maximum(heart_distance(body, s.z, s.y, s.x), s.cavity + 3)
    spine = np.hypot(s.x - s.spine_x, s.y - s.spine_y) - np.float32(20.0 * body.anatomy.scale)
    return Chest(s, heart, septum_distance(body.anatomy, s), spine, thorax_distance(s))


def _lung_distance(chest: Chest, tubes_distance: Array) -> Array:
    """Return the signed distance to the lungs: in the thorax, beside the mediastinum."""
    organs = smooth_min(chest.heart - np.float32(3.0), tubes_distance - np.float32(2.5), 12.0)
    mediastinum = smooth_min(smooth_min(organs, chest.septum, 10.0), chest.spine, 8.0)
    return smooth_max(chest.thorax, -mediastinum, 7.0)


def _fissures(body: Body, s: Shell) -> tuple[Array, Array]:
    return oblique_fissure(body, s), horizontal_fissure(body, s)


def mediastinal_distance(grid: Grid, body: Body, tubes: Tubes) -> Array:
    """Return the distance to the central tubes (own frame), 99 mm beyond 16 mm."""
    return distance_around(grid, tubes.rotated(body.anatomy.rotation.T), 16.0)


def central_tubes(airways: dict[str, Tubes], great: Tubes, oesophagus: Tubes) -> Tubes:
    """Return what the mediastinum wraps: trachea and main bronchi (of the central `airways`), vessels, oesophagus."""
    return (
        airways["trachea"].widened(1.2, 0.25)
        + airways["right_main"].widened(1.2, 0.25)
        + airways["left_main"].widened(1.2, 0.25)
        + great
        + oesophagus
    )


def make_plan(seed: Sequence[int], specs: tuple[FindingSpec, ...]) -> Plan:
    """Draw the anatomy of `seed`, shape chest and heart as the findings want, place the fissures, grow the trees."""
    anatomy = draw_anatomy(np.random.default_rng(np.random.SeedSequence(list(seed)).spawn(1)[0]))
    for spec in specs:
        if spec.kind == "emphysema":
            anatomy = hyperinflated(anatomy, spec.amount)
    enlarged = [spec.amount for spec in specs if spec.kind == "cardiomegaly"]
    body = Body(anatomy, heart_ellipsoids(anatomy, max(enlarged) if enlarged else anatomy.normal_ctr))
    chest = chest_on(body, PLAN_GRID, slice(None))
    # the lobes that the trees grow into: lungs around central tubes of typical lobes
    central, great, oesophagus = central_airways(anatomy, _TYPICAL), great_vessels(anatomy), build_oesophagus(anatomy)
    around = mediastinal_distance(PLAN_GRID, body, central_tubes(central, great, oesophagus))
    lung = _lung_distance(chest, around)
    lungs = Lungs(chest.shell, chest.heart, lung, _place_fissures(body, chest.shell, lung))
    points = _scatter(lungs, [np.random.default_rng(s) for s in np.random.SeedSequence([*seed, 7]).spawn(2)])
    airways = build_airways(anatomy, points[0], _SMALLEST_GROUP)
    vessels = build_vessels(anatomy, airways, points[1], _SMALLEST_GROUP)
    labels = lobe_labels(lungs.shell, lungs.fissures, lung < 0)
    return Plan(body, airways, vessels, specs, tuple(seed), chest, lungs, labels)


_TYPICAL = {1: 230, 2: 230, 3: 190, 4: 90, 5: 260}
"""Points of each lobe of a typical lung, which decide how wide the bronchi are."""


def _place_fissures(body: Body, s: Shell, lung: Array) -> tuple[Array, Array]:
    """Shift the fissures until the lobes have the sampled shares of their lung; return the heights above them."""
    upper, middle, left_upper = body.anatomy.lobe_shares
    inside, left = lung < 0, s.x > 0
    oblique, horizontal = _fissures(body, s)
    for side, share in (("left", left_upper), ("right", upper + middle)):
        here = left == (side == "left")
        body.oblique_offset[side] = float(np.round(np.quantile(oblique[inside & here], 1 - share), 3))
        oblique[here] -= np.float32(body.oblique_offset[side])
    front = inside & ~left & (oblique > 0)
    body.horizontal_offset = float(np.round(np.quantile(horizontal[front], middle / (upper + middle)), 3))
    return oblique, horizontal - np.float32(body.horizontal_offset)


def _scatter(lungs: Lungs, rngs: Sequence[np.random.Generator]) -> list[dict[int, NDArray[np.float64]]]:
    """Return points spread evenly in every lobe, the trees' targets, once per generator."""
    s = lungs.shell
    labels = lobe_labels(s, lungs.fissures, lungs.lung < -2.5)
    lobes = {label: np.flatnonzero(labels == label) for label in range(1, 6)}
    return [{label: _points(s, where, rng) for label, where in lobes.items()} for rng in rngs]


def _points(s: Shell, where: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return points (n, 3) in mm near a random choice of the voxels with the flat indices `where`."""
    wanted = _POINTS_PER_LITRE * PLAN_GRID.voxel_ml / 1000.0
    chosen = where[rng.random(len(where)) < wanted]
    position = np.stack([c.ravel()[chosen] for c in (s.z, s.y, s.x)], 1).astype(float)
    return position + rng.uniform(-0.5, 0.5, position.shape) * np.array(PLAN_GRID.spacing)
