"""Affine fit of a soft atlas to weighted evidence at points: Gauss-Newton with Levenberg-Marquardt damping.

`medsyn.ct.register` compares two images voxel by voxel. Here every point of a scan has a weight: aerated lung must lie
inside the atlas, ribs and the outside of the body must not, and soft tissue counts little. ITK's registration offers
neither a weight per point nor a prior on the shape of the transform.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.volume import Volume

Points = NDArray[np.float64]
FLAT = 1e-4
"""The gradient of the blurred share is taken as 0 where the share is nearer to 0 or 1 than this."""
PADDING_MM = 40.0
"""Empty space around the atlas, where its blurred share falls to 0."""
FIRST_DAMPING, LARGEST_DAMPING, SMALLEST_DAMPING = 1e-3, 1e4, 1e-4
"""Relative to the diagonal of the curvature. A step beyond the largest has failed, and the fit ends."""
SETTLED_MM, LEVER_MM = 0.4, 120.0
"""The fit stops when a step moves no point within LEVER_MM of the middle by more than about SETTLED_MM."""


@dataclass(frozen=True)
class Affine:
    """Map of scanner points p (LPS x, y, z in mm) to model space: matrix (3, 3) p + offset (3,)."""

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]

    def apply(self, points: Points) -> Points:
        """Return points (N, 3) in model space."""
        return np.asarray(points @ self.matrix.T + self.offset)


class SoftAtlas:
    """A blurred lung atlas and its gradient, sampled at any points by trilinear interpolation."""

    def __init__(self, atlas: Volume, sigma_mm: float) -> None:
        padding = [int(np.ceil(PADDING_MM / step)) for step in atlas.spacing_mm]
        share = np.pad((atlas.array > 0).astype(np.float32), [(count, count) for count in padding])
        share = ndimage.gaussian_filter(share, [sigma_mm / step for step in atlas.spacing_mm], truncate=3)
        direction = np.array(atlas.direction).reshape(3, 3)
        spacing = np.array(atlas.spacing_mm[::-1])
        self.origin = np.array(atlas.origin_mm) - direction @ (np.array(padding[::-1]) * spacing)
        self.to_index = np.diag(1 / spacing) @ direction.T
        self.share = share
        slopes = np.stack(np.gradient(share, *atlas.spacing_mm)[::-1], -1) @ direction.T
        self.slopes = [np.ascontiguousarray(slopes[..., axis], np.float32) for axis in range(3)]  # along x, y, z

    def at(self, points: Points) -> NDArray[np.float32]:
        """Return the share of lung (N,) at model points (N, 3); 0 beyond the padding."""
        return self._sampled(self.share, points)

    def slope_at(self, points: Points) -> NDArray[np.float32]:
        """Return the gradient of the share (N, 3) along x, y, z, per mm."""
        return np.stack([self._sampled(slope, points) for slope in self.slopes], -1)

    def _sampled(self, array: NDArray[np.float32], points: Points) -> NDArray[np.float32]:
        index = ((points - self.origin) @ self.to_index.T).T[::-1]
        return np.asarray(ndimage.map_coordinates(array, index, np.float32, order=1))


def shape_prior(unequal_scales: float, shear: float) -> NDArray[np.float64]:
    """Return the quadratic form (12, 12) that penalises unequal scales, shear and rotation of an affine map.

    It acts on the matrix row by row, then the offset. The unit of both weights is the evidence of one point with weight
    1 that is completely wrong.

    The unit of both weights is the evidence of one point with weight 1 that is completely wrong.
    """
    form = np.zeros((12, 12))
    spread = np.zeros((3, 12))
    for i, j in np.ndindex(3, 3):
        spread[i, 4 * j] = (i == j) - 1 / 3
        form[3 * i + j, 3 * i + j] += shear * (i != j)
    return np.asarray(form + unequal_scales * spread.T @ spread)


def fit(
    points: Points,
    lung: NDArray[np.float32],
    weight: NDArray[np.float32],
    atlas: SoftAtlas,
    start: Affine,
    prior: NDArray[np.float64],
    iterations: int,
) -> tuple[Affine, float]:
    """Minimise sum weight (atlas(A p) - lung)^2 + prior over affine maps A; return A and the minimum.

    points: (N, 3) mm; lung: (N,) wanted share, 0 to 1; weight: (N,).
    """
    middle = points.mean(0)
    centred = points - middle
    theta = np.concatenate([start.matrix.ravel(), start.offset + start.matrix @ middle])

    def placed(values: NDArray[np.float64]) -> Points:
        return np.asarray(centred @ values[:9].reshape(3, 3).T + values[9:])

    def evaluated(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float32]]:
        share = atlas.at(placed(values))
        return float((weight * (share - lung) ** 2).sum() + values @ prior @ values), share

    cost, share = evaluated(theta)
    damping = FIRST_DAMPING
    for _ in range(iterations):
        edge = (share > FLAT) & (share < 1 - FLAT)
        slope = atlas.slope_at(placed(theta)[edge]).astype(np.float64)
        jacobian = np.concatenate([(slope[:, :, None] * centred[edge][:, None, :]).reshape(-1, 9), slope], 1)
        weighted = jacobian * weight[edge, None]
        curvature = weighted.T @ jacobian + prior
        downhill = -(weighted.T @ (share - lung)[edge] + prior @ theta)
        while damping <= LARGEST_DAMPING:
            step = np.linalg.lstsq(curvature + damping * np.diag(np.diag(curvature)), downhill, rcond=None)[0]
            new_cost, new_share = evaluated(theta + step)
            if new_cost < cost:
                break
            damping *= 10
        else:
            break
        damping = max(damping / 10, SMALLEST_DAMPING)
        theta, cost, share = theta + step, new_cost, new_share
        if np.abs(step[9:]).max() + np.abs(step[:9]).max() * LEVER_MM < SETTLED_MM:
            break
    matrix = theta[:9].reshape(3, 3)
    return Affine(matrix, theta[9:] - matrix @ middle), cost
