"""Build blood vessels: the great vessels by landmarks, arteries beside the bronchi, veins grown between them.

An artery follows each bronchus at its side with about the bronchus's outer diameter (bronchoarterial ratio about 0.7;
Matsuoka et al., AJR 180:513, 2003). Veins drain the lobes into the left atrium along separate trees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsyn.phantom.airway import WALL_FACTOR, WALL_OFFSET_MM, Airways
from medsyn.phantom.anatomy import Anatomy
from medsyn.phantom.tree import Tree, curved_tubes, grow, relative_radius
from medsyn.phantom.tubes import Tubes

_GREAT = {  # name: (points (z, y, x), radii) of the mean adult
    "aorta": (
        (
            (-2, 14, 4),
            (22, 22, -12),
            (44, 20, -14),
            (58, 13, -3),
            (63, 2, 12),
            (60, -12, 22),
            (46, -24, 27),
            (20, -31, 27),
            (-20, -30, 25),
            (-60, -27, 20),
            (-100, -20, 12),
            (-150, -12, 6),
        ),
        (14, 15, 15, 14, 13, 12.5, 12, 11.5, 11.5, 11, 10.5, 10),
    ),
    "pulmonary_trunk": (((-12, 38, 12), (4, 36, 16), (18, 24, 20), (24, 8, 26)), (13, 13.5, 13, 11)),
    "right_pulmonary_artery": (((20, 16, 18), (17, 6, 0), (15, 0, -22), (13, -2, -36)), (11, 10, 9.5, 8)),
    "left_pulmonary_artery": (((24, 8, 26), (27, -6, 36), (24, -14, 44)), (11, 10, 8.5)),
    "superior_cava": (((96, 10, -20), (70, 14, -25), (40, 14, -28), (10, 12, -26), (-10, 14, -22)), (7, 8, 9, 10, 10)),
    "inferior_cava": (((-30, 8, -22), (-60, 2, -24), (-100, 0, -22), (-150, 0, -18)), (10, 11.5, 11, 11)),
    "left_brachiocephalic_vein": (((112, 14, 32), (92, 22, 14), (78, 20, -12), (68, 14, -25)), (5, 6, 6.5, 7)),
    "right_brachiocephalic_vein": (((130, 12, -30), (105, 12, -24), (84, 12, -23)), (5.5, 6.5, 7)),
    "brachiocephalic_trunk": (((60, 12, -4), (84, 12, -9), (106, 8, -18), (135, 10, -26)), (6.5, 6, 5.5, 4)),
    "left_carotid": (((62, 4, 8), (90, 8, 13), (150, 12, 24)), (4, 3.5, 3.5)),
    "left_subclavian": (((62, -6, 17), (90, -3, 24), (112, 0, 34), (122, 4, 70)), (5, 4.5, 4.5, 4)),
}
_OESOPHAGUS = (
    ((150, -4, 3), (110, -8, 4), (70, -19, 4), (35, -25, 4), (-20, -20, 8), (-60, -14, 14), (-85, -6, 24)),
    (5, 5.5, 6, 6, 6.5, 7, 7),
)
_ARTERY_ROOTS = {1: (23, -14, 44), 2: (12, -20, 44), 3: (16, -2, -33), 4: (8, -3, -36), 5: (6, -8, -36)}
_VEIN_PATHS = {
    1: ((-4, 4, 24), (4, 8, 40), (12, 9, 54)),
    2: ((-14, -8, 24), (-22, -16, 38), (-34, -22, 48)),
    3: ((-4, 4, -16), (6, 9, -34), (16, 10, -48)),
    4: ((-8, 6, -16), (-14, 14, -34), (-20, 20, -48)),
    5: ((-14, -8, -16), (-26, -16, -32), (-40, -23, -44)),
}

_VEIN_MM = 9.2
"""Radius of a vein that drained the whole lungs."""


@dataclass(frozen=True)
class Vessels:
    """Great vessels and oesophagus of the mediastinum; arteries and veins of the lungs."""

    great: Tubes
    oesophagus: Tubes
    arteries: Tubes
    veins: Tubes


def build_vessels(anatomy: Anatomy, airways: Airways, points: dict[int, NDArray[np.float64]], smallest: int) -> Vessels:
    """Return vessels for the given bronchi; `points` (label to (n, 3) mm) are those that the veins drain."""
    arteries, veins = Tubes.empty(), Tubes.empty()
    whole = float(sum(len(p) for p in points.values()))
    courses = {label: [anatomy.point(*p) for p in path] for label, path in _VEIN_PATHS.items()}
    ends = [course[-1] for course in courses.values()]
    directions = [course[-1] - course[-2] for course in courses.values()]
    grown = grow([points[label] for label in courses], ends, directions, smallest=smallest)
    for (label, course), vein in zip(courses.items(), grown, strict=True):
        arteries = arteries + _artery(anatomy, airways.lobes[label], airways.radius[label], _ARTERY_ROOTS[label])
        radius = _VEIN_MM * anatomy.scale * anatomy.vessel_scale * relative_radius(vein.flow / whole)
        root = _VEIN_MM * anatomy.scale * float(relative_radius(len(points[label]) / whole))
        veins = veins + Tubes.path(course, [root * 1.2, root * 1.1, root]) + curved_tubes(vein, radius)
    return Vessels(great_vessels(anatomy), build_oesophagus(anatomy), arteries, veins)


def great_vessels(anatomy: Anatomy) -> Tubes:
    """Return the great vessels of the mediastinum."""
    great = Tubes.empty()
    for landmarks, radii in _GREAT.values():
        great = great + Tubes.path([anatomy.point(*p) for p in landmarks], [r * anatomy.scale for r in radii])
    return great


def build_oesophagus(anatomy: Anatomy) -> Tubes:
    """Return the oesophagus."""
    landmarks, radii = _OESOPHAGUS
    return Tubes.path([anatomy.point(*p) for p in landmarks], [r * anatomy.scale for r in radii])


def _artery(anatomy: Anatomy, tree: Tree, bronchus: NDArray[np.float64], root: tuple[float, float, float]) -> Tubes:
    """Return the tree moved sideways by the two radii, so that bronchus and artery touch, joined to its root."""
    radius = (bronchus * 0.95 + 0.15) * anatomy.vessel_scale
    heads = tree.directions()
    preferred = np.array([0.55, 0.25, 0.8 if root[2] > 0 else -0.8])
    side = preferred - (heads @ preferred)[:, None] * heads
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-9)
    gap = bronchus * WALL_FACTOR + WALL_OFFSET_MM + radius
    end = tree.end + side * gap[:, None]
    first = tree.parent < 0
    trunk = tree.start[np.nonzero(first)[0][0]] + side[first].mean(0) * gap[first].max() * 0.8
    start = np.where(first[:, None], trunk, end[np.maximum(tree.parent, 0)])
    moved = Tree(start, end, tree.parent, tree.flow, tree.generation)
    thickest = float(radius[first].max()) * 1.15
    stem = Tubes.path([anatomy.point(*root), trunk], [thickest * 1.1, thickest])
    return stem + curved_tubes(moved, radius)
