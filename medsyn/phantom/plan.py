"""What of a subject is settled before any rendering, on one fixed grid of about 5 mm: lobes, trees, lesions.

Everything found here is stored in millimetres, so that each rendering, coarse or fine, shows the same person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsyn.phantom.airway import Airways, build_airways
from medsyn.phantom.anatomy import Anatomy, draw_anatomy, heart_ellipsoids, hyperinflated
from medsyn.phantom.fields import (
    Body,
    Shell,
    fissures,
    heart_distance,
    lobe_labels,
    lung_distance,
    septum_distance,
    shell,
    smooth_min,
)
from medsyn.phantom.findings import FindingSpec
from medsyn.phantom.grid import Grid
from medsyn.phantom.tubes import Tubes, distance_around
from medsyn.phantom.vessels import Vessels, build_vessels

PLAN_GRID = Grid((64, 64, 64))
_POINTS_PER_LITRE = 2600
_SMALLEST_GROUP = 4


@dataclass
class Lungs:
    """Fields of one slab that decide what is lung."""

    shell: Shell
    heart: NDArray[np.float32]
    mediastinum: NDArray[np.float32]
    lung: NDArray[np.float32]


@dataclass
class Plan:
    """One subject, ready to be rendered on any grid."""

    body: Body
    airways: Airways
    vessels: Vessels
    specs: tuple[FindingSpec, ...]
    seed: tuple[int, ...]
    lungs: Lungs
    labels: NDArray[np.uint8]

    @property
    def anatomy(self) -> Anatomy:
        """Return the subject's shape."""
        return self.body.anatomy


def lungs_on(body: Body, grid: Grid, slab: slice, tubes_distance: NDArray[np.float32]) -> Lungs:
    """Return chest, heart, mediastinum and pleural space on one slab; `tubes_distance` from `mediastinal_distance`."""
    s = shell(body, grid, slab)
    heart = heart_distance(body, s.z, s.y, s.x)
    heart = np.maximum(heart, s.cavity + 3)
    organs = smooth_min(heart - np.float32(3.0), tubes_distance[slab] - np.float32(2.5), 12.0)
    spine = np.hypot(s.x - s.spine_x, s.y - s.spine_y) - np.float32(20.0 * body.anatomy.scale)
    mediastinum = smooth_min(smooth_min(organs, septum_distance(body.anatomy, s), 10.0), spine, 8.0)
    return Lungs(s, heart, mediastinum, lung_distance(body.anatomy, s, mediastinum))


def mediastinal_distance(grid: Grid, body: Body, tubes: Tubes) -> NDArray[np.float32]:
    """Return the distance to the central tubes (own frame), 99 mm beyond 16 mm."""
    return distance_around(grid, tubes.rotated(body.anatomy.rotation.T), 16.0)


def central_tubes(airways: Airways, vessels: Vessels) -> Tubes:
    """Return what the mediastinum wraps: trachea, main and intermediate bronchi, great vessels, oesophagus."""
    airway = airways.central
    return (
        airway["trachea"].widened(1.2, 0.25)
        + airway["right_main"].widened(1.2, 0.25)
        + airway["left_main"].widened(1.2, 0.25)
        + vessels.great
        + vessels.oesophagus
    )


def make_plan(seed: Sequence[int], specs: tuple[FindingSpec, ...]) -> Plan:
    """Draw the anatomy of `seed`, shape chest and heart as the findings want, place the fissures, grow the trees."""
    draw, tree_draw = (np.random.default_rng(s) for s in np.random.SeedSequence(list(seed)).spawn(2))
    anatomy = draw_anatomy(draw)
    for spec in specs:
        if spec.kind == "emphysema":
            anatomy = hyperinflated(anatomy, spec.amount)
    enlarged = [spec.amount for spec in specs if spec.kind == "cardiomegaly"]
    body = Body(anatomy, heart_ellipsoids(anatomy, max(enlarged) if enlarged else anatomy.normal_ctr))
    # the central tubes do not depend on the lobes: a first tree from the landmarks alone
    dummy = {label: np.zeros((n, 3)) + tree_draw.normal(0, 5, (n, 3)) for label, n in _TYPICAL.items()}
    first = build_airways(anatomy, dummy, 1000)
    skeleton = build_vessels(anatomy, first, dummy, 1000)
    around = mediastinal_distance(PLAN_GRID, body, central_tubes(first, skeleton))
    lungs = lungs_on(body, PLAN_GRID, slice(None), around)
    _place_fissures(body, lungs)
    points = [_scatter(body, lungs, np.random.default_rng(s)) for s in np.random.SeedSequence([*seed, 7]).spawn(2)]
    airways = build_airways(anatomy, points[0], _SMALLEST_GROUP)
    vessels = build_vessels(anatomy, airways, points[1], _SMALLEST_GROUP + 1)
    labels = lobe_labels(body, lungs.shell, lungs.lung < 0)
    return Plan(body, airways, vessels, specs, tuple(seed), lungs, labels)


_TYPICAL = {1: 230, 2: 230, 3: 190, 4: 90, 5: 260}


def _place_fissures(body: Body, lungs: Lungs) -> None:
    """Shift the fissures until the lobes have the sampled shares of their lung."""
    upper, middle, left_upper = body.anatomy.lobe_shares
    inside = lungs.lung < 0
    oblique, horizontal = fissures(body, lungs.shell)
    scale = float(np.hypot(1, body.anatomy.fissure_slope))
    for side, share in (("left", left_upper), ("right", upper + middle)):
        here = inside & ((lungs.shell.x > 0) == (side == "left"))
        body.oblique_offset[side] = float(np.round(np.quantile(oblique[here], 1 - share) * scale, 3))
    oblique, _ = fissures(body, lungs.shell)
    front = inside & (lungs.shell.x <= 0) & (oblique > 0)
    body.horizontal_offset = float(np.round(np.quantile(horizontal[front], middle / (upper + middle)), 3))


def _scatter(body: Body, lungs: Lungs, rng: np.random.Generator) -> dict[int, NDArray[np.float64]]:
    """Return points spread evenly in every lobe, the trees' targets."""
    labels = lobe_labels(body, lungs.shell, lungs.lung < -2.5)
    s = lungs.shell
    wanted = _POINTS_PER_LITRE * PLAN_GRID.voxel_ml / 1000.0
    points = {}
    for label in range(1, 6):
        where = np.nonzero(labels == label)
        chosen = rng.random(len(where[0])) < wanted
        position = np.stack([c[where][chosen] for c in (s.z, s.y, s.x)], 1).astype(float)
        points[label] = position + rng.uniform(-0.5, 0.5, position.shape) * np.array(PLAN_GRID.spacing)
    return points
