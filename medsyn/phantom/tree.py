"""Grow a branching tree into a cloud of points: the bronchi, arteries and veins of a lobe.

Volume-filling branching after Kitaoka, Takaki and Suki (J Appl Physiol 87:2207, 1999) and Tawhai, Pullan and Hunter
(Ann Biomed Eng 28:793, 2000): each branch's points are parted by a plane that contains the branch, and a daughter grows
towards the centre of each part by a fixed share of the way. All branches of one generation are handled at once. Then
the branching points move towards a lower cost of the tree with the same ends (Murray, Proc Natl Acad Sci 12:207, 1926),
so that thick branches run straight on and the whole radiates from its root.
Radii follow the flow, which is the volume supplied: r / r0 = (V / V0)^(1/2.2) down to a tenth of the whole, as steep as
Weibel's first generations (18, 12.2, 8.3 mm; Morphometry of the Human Lung, 1963), then with Kitaoka's exponent 1/2.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsyn.phantom.tubes import Tubes

CENTRAL_EXPONENT, FLOW_EXPONENT, CENTRAL_SHARE = 2.2, 2.8, 0.1
_SHARES = (0.24, 0.30, 0.36)
_SHARE, _LAST_SHARE = 0.42, 0.85
_MAX_ANGLE_COS = np.cos(np.radians(65.0))
_UNEVEN, _SHIFT = 12, 0.4
"""Points of a group that is split unevenly, and how far from its middle, in standard deviations."""
_ROUNDS, _COST_EXPONENT, _SHORTEST_MM = 6, 0.9, 2.0


@dataclass(frozen=True)
class Tree:
    """n branches: ends (n, 3) mm, parent index (-1 at the root), supplied volume (any unit), generation (root 0)."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    parent: NDArray[np.int64]
    flow: NDArray[np.float64]
    generation: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)

    def directions(self) -> NDArray[np.float64]:
        """Return the unit vector of every branch."""
        span = self.end - self.start
        return span / np.maximum(np.linalg.norm(span, axis=1, keepdims=True), 1e-9)


def relative_radius(share: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Return the radius, over the root's, of a branch that supplies `share` (0..1) of the whole."""
    share = np.asarray(share, float)
    below = np.minimum(share / CENTRAL_SHARE, 1.0) ** (1 / FLOW_EXPONENT)
    return np.maximum(share, CENTRAL_SHARE) ** (1 / CENTRAL_EXPONENT) * below


def grow(
    points: Sequence[NDArray[np.float64]],
    starts: Sequence[NDArray[np.float64]],
    directions: Sequence[NDArray[np.float64]],
    *,
    smallest: int,
    max_generations: int = 18,
) -> list[Tree]:
    """Grow one tree per cloud of `points` (n, 3), from its start, heading along its direction.

    Branches with < `smallest` points end. All trees grow together, which changes none of them and saves calls.
    """
    ends = np.array(starts, float)
    heads = np.stack([direction / np.linalg.norm(direction) for direction in directions])
    alive, owner = np.concatenate(points), np.repeat(np.arange(len(points)), [len(p) for p in points])
    parent, root = np.full(len(points), -1), np.arange(len(points))
    branches: list[tuple[NDArray, ...]] = []
    total = 0
    for generation in range(max_generations):
        group = 2 * owner + _halves(alive, owner, heads)
        count = np.bincount(group)
        used = np.flatnonzero(count)
        owner, count = (np.cumsum(count > 0) - 1)[group], count[used]
        centre = np.stack([np.bincount(owner, alive[:, i]) for i in range(3)], 1) / count[:, None]
        origin, head, parent, root = ends[used // 2], heads[used // 2], parent[used // 2], root[used // 2]
        last = count < 2 * smallest
        share = np.where(last, _LAST_SHARE, _SHARES[generation] if generation < len(_SHARES) else _SHARE)
        tip = _tip(origin, head, centre, share)
        branches.append((origin, tip, parent, count.astype(float), np.full(len(used), generation), root))
        length = np.linalg.norm(tip - origin, axis=1)
        goes_on = ~last & (length > 0.8)
        if not goes_on.any():
            break
        renumber = np.cumsum(goes_on) - 1
        keep = goes_on[owner]
        alive, owner = alive[keep], renumber[owner[keep]]
        ends, root = tip[goes_on], root[goes_on]
        heads = (tip - origin)[goes_on] / length[goes_on, None]
        parent = np.nonzero(goes_on)[0] + total
        total += len(used)
    start, end, parent, flow, generations, root = (np.concatenate(parts) for parts in zip(*branches, strict=True))
    start, end = _settled(start, end, parent, flow)
    trees = []
    for index in range(len(points)):
        own = root == index
        number = np.where(parent[own] >= 0, (np.cumsum(own) - 1)[parent[own]], -1)
        trees.append(Tree(start[own], end[own], number, flow[own], generations[own]))
    return trees


def _settled(start: NDArray, end: NDArray, parent: NDArray, flow: NDArray) -> tuple[NDArray, NDArray]:
    """Return starts and ends (n, 3) after the branching points moved towards the lowest cost; roots and tips stay.

    A branch costs its length times flow^0.9, which lies between its volume (0.71) and the transport through it (1).
    Each round moves a point to the mean of its neighbours, weighted with cost per squared length (Weiszfeld's method).
    """
    child = np.flatnonzero(parent >= 0)  # in the order of their parents
    first = np.flatnonzero(np.diff(parent[child], prepend=-1))
    forks, cost = parent[child][first], flow**_COST_EXPONENT
    for _ in range(_ROUNDS):
        span = end - start
        pull = (cost / (np.sqrt((span * span).sum(1)) + _SHORTEST_MM))[:, None]
        below = np.add.reduceat(np.concatenate([pull, pull * end], 1)[child], first)
        weight = pull[forks] + below[:, :1]
        end[forks] = (pull[forks] * start[forks] + below[:, 1:]) / weight
        start[child] = end[parent[child]]
    return start, end


def _halves(points: NDArray, owner: NDArray, heads: NDArray) -> NDArray[np.int64]:
    """Return the side (0 or 1) of each point: of a plane along the branch, across the points' longest spread.

    The plane lies off the middle of large groups, since the daughters of large airways and vessels differ in size
    (Horsfield, Cumming, J Appl Physiol 24:373, 1968). On which side depends on the parity of the count.
    """
    count = np.maximum(np.bincount(owner, minlength=len(heads)), 1)
    columns = np.ascontiguousarray(points.T)  # z, y and x apart: sums over three are slow in numpy
    offset = [x - (np.bincount(owner, x, len(heads)) / count)[owner] for x in columns]
    head = [x[owner] for x in heads.T]
    along = _dot(offset, head)
    flat = [x - along * h for x, h in zip(offset, head, strict=True)]
    spread = np.zeros((len(heads), 3, 3))
    for i in range(3):
        for j in range(i, 3):
            spread[:, i, j] = spread[:, j, i] = np.bincount(owner, flat[i] * flat[j], len(heads))
    normal = _longest(spread)
    across = _dot(offset, [x[owner] for x in normal.T])
    spread_mm = np.sqrt(np.bincount(owner, across * across, len(heads)) / count)
    shift = np.where(count >= _UNEVEN, _SHIFT * (1 - 2 * (count % 2)) * spread_mm, 0.0)
    return (across > shift[owner]).astype(np.int64)


def _longest(spread: NDArray) -> NDArray[np.float64]:
    """Return the direction (n, 3) of the longest spread: the largest column of a high power of the matrices."""
    for _ in range(3):
        spread = spread / np.maximum(np.trace(spread, axis1=1, axis2=2), 1e-12)[:, None, None]
        spread = spread @ spread
    rows = np.arange(len(spread))
    column = spread[rows, :, np.argmax(np.diagonal(spread, axis1=1, axis2=2), axis=1)]
    return column / np.maximum(np.linalg.norm(column, axis=1, keepdims=True), 1e-30)


def _dot(a: Sequence[NDArray], b: Sequence[NDArray]) -> NDArray[np.float64]:
    """Return the scalar products of vectors given by component."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _tip(origin: NDArray, head: NDArray, centre: NDArray, share: NDArray) -> NDArray:
    """Return the end of each daughter: part of the way to the centre of its points, bent at most the largest angle."""
    span = centre - origin
    distance = np.maximum(np.linalg.norm(span, axis=1, keepdims=True), 1e-9)
    toward = span / distance
    cosine = (toward * head).sum(1, keepdims=True)
    side = toward - cosine * head
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-9)
    limited = _MAX_ANGLE_COS * head + np.sqrt(1 - _MAX_ANGLE_COS**2) * side
    return origin + np.where(cosine < _MAX_ANGLE_COS, limited, toward) * distance * share[:, None]


def curved_tubes(tree: Tree, radius: NDArray[np.float64]) -> Tubes:
    """Return branches as tubes of one radius each: those that fork leave along their parent's direction and bend."""
    forks = np.bincount(tree.parent[tree.parent >= 0], minlength=len(tree)) > 0
    heads = tree.directions()
    incoming = np.where((tree.parent >= 0)[:, None], heads[np.maximum(tree.parent, 0)], heads)
    length = np.linalg.norm(tree.end - tree.start, axis=1, keepdims=True)
    control = tree.start + incoming * length * 0.38
    middle = (tree.start + 2 * control + tree.end)[forks] / 4  # of a quadratic curve
    half, tip = radius[forks], radius[~forks]
    return Tubes(
        np.concatenate([tree.start[forks], middle, tree.start[~forks]]),
        np.concatenate([middle, tree.end[forks], tree.end[~forks]]),
        np.concatenate([half, half, tip]),
        np.concatenate([half, half, tip]),
    )
