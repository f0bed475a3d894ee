"""Precision, recall, density and coverage of two sets of features: they tell quality from variety, which FID mixes.

Precision and recall: Kynkäänniemi et al. 2019 (improved precision and recall), density and coverage: Naeem et al. 2020.
All four compare a volume with balls around volumes of a set; the radius of a ball is the distance of its centre to its
NUM_NEIGHBOURS-th nearest neighbour in the same set. A volume on the surface of a ball is outside, as in the reference
implementation of Naeem et al.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

NUM_NEIGHBOURS = 5
"""As Naeem et al. advise."""
NEIGHBOUR_MEASURES = ("precision", "recall", "density", "coverage")


def neighbour_measures(real: NDArray, synthetic: NDArray) -> NDArray[np.float64]:
    """Return the NEIGHBOUR_MEASURES of synthetic features (m, F) against real ones (n, F), as an array (4,).

    precision: share of synthetic volumes in a ball of a real one. recall: share of real volumes in a ball of a
    synthetic one. density: number of real balls in which a synthetic volume lies, over NUM_NEIGHBOURS, on average; may
    exceed 1. coverage: share of real volumes with a synthetic one in their ball. They depend on n and m: compare them
    at equal numbers. Raises ValueError for NUM_NEIGHBOURS rows or fewer in a set.
    """
    least = min(len(real), len(synthetic))
    if least <= NUM_NEIGHBOURS:
        raise ValueError(f"precision to coverage need more than {NUM_NEIGHBOURS} rows in each set, got {least}")
    real_radii, synthetic_radii = _radii(real), _radii(synthetic)
    between = cdist(real, synthetic)
    in_real = between < real_radii[:, None]
    in_synthetic = between < synthetic_radii[None]
    return np.array(
        [
            in_real.any(axis=0).mean(),
            in_synthetic.any(axis=1).mean(),
            in_real.sum(axis=0).mean() / NUM_NEIGHBOURS,
            in_real.any(axis=1).mean(),
        ]
    )


def _radii(features: NDArray) -> NDArray[np.float64]:
    """Return the distance of each row to its NUM_NEIGHBOURS-th nearest other row, (n,)."""
    distances = cdist(features, features)  # each row's distance to itself is its smallest
    return np.asarray(np.partition(distances, NUM_NEIGHBOURS, axis=1)[:, NUM_NEIGHBOURS])
