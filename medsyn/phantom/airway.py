"""Build the airway tree: trachea, carina, main and lobar bronchi by landmarks, then grown into every lobe.

Radii: the trachea's is sampled (diameters 15-18 mm; Weibel 1963, Morphometry of the Human Lung), the rest follow the
volume supplied (see tree.py). Wall thickness 0.25 mm + 0.2 r: about 2 mm at the trachea and 0.8 mm in a segmental
bronchus, as in CT morphometry (Montaudon et al., J Anat 211:579, 2007).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsyn.phantom.anatomy import Anatomy
from medsyn.phantom.tree import Tree, curved_tubes, grow, relative_radius
from medsyn.phantom.tubes import Tubes

WALL_FACTOR, WALL_OFFSET_MM = 1.2, 0.25
THINNEST_LUMEN_MM = 0.7

# (z, y, x) of the mean adult
_TRACHEA = ((150, 12, 0), (118, 9, 1), (85, 2, 2), (58, -5, 1), (40, -8, 0))
_RIGHT_MAIN = ((40, -8, 0), (30, -10, -10), (19, -11, -18))
_LEFT_MAIN = ((40, -8, 0), (29, -11, 12), (18, -13, 24), (8, -14, 34))
_INTERMEDIATE = ((19, -11, -18), (6, -12, -24), (-8, -13, -29))
_LOBAR = {  # label: points from the bronchus it leaves
    1: ((8, -14, 34), (9, -9, 42), (14, -4, 50)),
    2: ((8, -14, 34), (-4, -20, 38), (-18, -26, 44)),
    3: ((19, -11, -18), (23, -10, -29), (31, -9, -41)),
    4: ((-8, -13, -29), (-15, -4, -37), (-21, 7, -46)),
    5: ((-8, -13, -29), (-18, -19, -34), (-30, -27, -41)),
}


@dataclass(frozen=True)
class Airways:
    """Central tubes by name and the grown tree of every lobe with its bronchial radii."""

    central: dict[str, Tubes]
    lobes: dict[int, Tree]
    radius: dict[int, NDArray[np.float64]]

    def lumen(self) -> Tubes:
        """Return all lumina that are wide enough to be an airway on CT."""
        tubes = Tubes.empty()
        for part in self.central.values():
            tubes = tubes + part
        for label, tree in self.lobes.items():
            wide = self.radius[label] >= THINNEST_LUMEN_MM
            branches = Tree(tree.start[wide], tree.end[wide], tree.parent, tree.flow[wide], tree.generation[wide])
            tubes = tubes + _kept(tree, branches, wide, self.radius[label])
        return tubes


def _kept(tree: Tree, branches: Tree, wide: NDArray[np.bool_], radius: NDArray[np.float64]) -> Tubes:
    number = np.cumsum(wide) - 1
    parent = tree.parent[wide]
    # a parent is never narrower than its child, so it is kept too
    renumbered = np.where(parent >= 0, number[np.maximum(parent, 0)], -1)
    kept = Tree(branches.start, branches.end, renumbered, branches.flow, branches.generation)
    return curved_tubes(kept, radius[wide])


def build_airways(anatomy: Anatomy, points: dict[int, NDArray[np.float64]], smallest: int) -> Airways:
    """Return central airways by landmarks and lobar trees grown into `points` (label to (n, 3) mm, even per lobe)."""
    flows = {label: len(p) for label, p in points.items()}
    whole, central = float(sum(flows.values())), central_airways(anatomy, flows)
    tips = [anatomy.point(*landmarks[-1]) for landmarks in _LOBAR.values()]
    before = [anatomy.point(*landmarks[-2]) for landmarks in _LOBAR.values()]
    directions = [tip - point for tip, point in zip(tips, before, strict=True)]
    grown = grow([points[label] for label in _LOBAR], tips, directions, smallest=smallest)
    trees = dict(zip(_LOBAR, grown, strict=True))
    radii = {label: anatomy.trachea_radius * relative_radius(tree.flow / whole) for label, tree in trees.items()}
    return Airways(central, trees, radii)


def central_airways(anatomy: Anatomy, share: dict[int, int]) -> dict[str, Tubes]:
    """Return trachea, main, intermediate and lobar bronchi by name, as wide as lobes of these shares need them."""
    whole = float(sum(share.values()))

    def radius_of(flow: float) -> NDArray:
        return anatomy.trachea_radius * relative_radius(np.asarray(flow) / whole)

    def path(landmarks: tuple, flow: float, first: float | None = None) -> Tubes:
        r = float(radius_of(flow))
        radii = [r if first is None else (r + first) / 2] + [r] * (len(landmarks) - 1)
        return Tubes.path([anatomy.point(*p) for p in landmarks], radii)

    left, right = share[1] + share[2], share[3] + share[4] + share[5]
    central = {
        "trachea": path(_TRACHEA, whole),
        "right_main": path(_RIGHT_MAIN, right, float(radius_of(whole))),
        "left_main": path(_LEFT_MAIN, left, float(radius_of(whole))),
        "intermediate": path(_INTERMEDIATE, share[4] + share[5]),
    }
    return central | {f"lobar_{label}": path(landmarks, share[label]) for label, landmarks in _LOBAR.items()}
