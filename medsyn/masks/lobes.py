"""Five lobes from two lungs: fissures as smooth surfaces in coordinates of each lung's own bounding box.

Coordinates in 0..1: u medial to lateral, v posterior to anterior, w inferior to superior. A fissure is w = a quadratic
in (u, v). The coefficients are least-logistic-loss fits to a 1 mm lobe template (the lungct lung template; 98 to 99 %
of its voxels fall on the right side of the surfaces). No image evidence is used, so the result is an atlas's opinion:
right in position and volume, not at the fissure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medsyn.masks.lungs import LEFT, RIGHT

LEFT_OBLIQUE = (1.056, -0.358, -1.022, 0.039, 0.708, -0.345)
RIGHT_OBLIQUE = (0.897, -0.313, -0.501, 0.081, 0.387, -0.414)
RIGHT_HORIZONTAL = (0.466, 0.017, 0.327, -0.102, 0.224, -0.386)
"""w of the surface = c0 + c1 u + c2 v + c3 u^2 + c4 u v + c5 v^2."""


def segment_lobes(lungs: NDArray[np.uint8], cavities: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Return lobe labels 0..5 (order of `medsyn.volume.LOBE_NAMES`) from lung labels (1 right, 2 left).

    lungs: (D, H, W) in model orientation; cavities: lungs with the fluid around them, by default the lungs.
    """
    out = np.zeros(lungs.shape, np.uint8)
    cavities = lungs if cavities is None else cavities
    for side in (RIGHT, LEFT):
        z, y, x = np.nonzero(lungs == side)
        if z.size == 0:
            continue
        box = cavities == side
        w, v, u = (_unit(index, box, axis) for axis, index in enumerate((z, y, x)))
        if side == LEFT:
            out[z, y, x] = np.where(w > _surface(LEFT_OBLIQUE, u, v), 1, 2)
            continue
        u = 1 - u
        upper = np.where(w > _surface(RIGHT_HORIZONTAL, u, v), 3, 4)
        out[z, y, x] = np.where(w > _surface(RIGHT_OBLIQUE, u, v), upper, 5)
    return out


def sides_of(lobes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return lung labels (1 right, 2 left) from lobe labels 0..5."""
    return np.where(lobes >= 3, RIGHT, np.where(lobes > 0, LEFT, 0)).astype(np.uint8)


def _unit(index: NDArray[np.int64], box: NDArray[np.bool_], axis: int) -> NDArray[np.float32]:
    """Return an index along an axis scaled to 0..1 over the extent of `box`."""
    extent = np.flatnonzero(box.any(tuple(other for other in range(3) if other != axis)))
    return np.asarray((index - extent[0]) / max(extent[-1] - extent[0], 1), np.float32)


def _surface(c: tuple[float, ...], u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(c[0] + c[1] * u + c[2] * v + c[3] * u * u + c[4] * u * v + c[5] * v * v)
