"""Joint augmentation of image and masks: zoom by 0.9 to 1.1 and rotation by up to 0.2 rad about each axis.

Each happens in half of the samples, about the centre of the volume, linearly interpolated, so that mask values become
fractional (facts: the authors' super-resolution training, with MONAI's RandZoom and RandRotate). What comes from
outside the volume is -1: air, no structure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ZOOM, MAX_ANGLE, SHARE = (0.9, 1.1), 0.2, 0.5
NUM_UNIFORM = 6


def random_affine(uniform: Sequence[float]) -> Tensor | None:
    """Return the map (3, 3) from output to source, in voxels (z, y, x) about the centre; None is the identity.

    uniform: 6 numbers in [0, 1): whether and how much to zoom, whether to rotate and the three angles.
    """
    zooms, rotates = uniform[0] < SHARE, uniform[2] < SHARE
    if not zooms and not rotates:
        return None
    matrix = torch.eye(3, dtype=torch.float64)
    if rotates:
        for axis, u in enumerate(uniform[3:]):
            angle = MAX_ANGLE * (2 * u - 1)
            i, j = (k for k in range(3) if k != axis)
            turn = torch.eye(3, dtype=torch.float64)
            turn[i, i] = turn[j, j] = math.cos(angle)
            turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
            matrix = matrix @ turn
    return matrix / (ZOOM[0] + (ZOOM[1] - ZOOM[0]) * uniform[1]) if zooms else matrix


class Sampling:
    """Where the voxels of a crop come from under an affine map of the whole volume.

    size: of the volume (D, H, W); starts, crop: place and size of the crop in the augmented volume. `window` is the
    part of the source that has to be read, `apply` resamples it.
    """

    def __init__(self, affine: Tensor, size: Sequence[int], starts: Sequence[int], crop: Sequence[int]) -> None:
        centre = (torch.tensor(size, dtype=torch.float64) - 1) / 2
        axes = [torch.arange(a, a + c, dtype=torch.float64) for a, c in zip(starts, crop, strict=True)]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # (D, H, W, 3)
        self._source = (points - centre) @ affine.T + centre
        low = self._source.amin((0, 1, 2)).floor().long().tolist()
        high = self._source.amax((0, 1, 2)).ceil().long().tolist()
        bounds = [(min(max(a, 0), n - 1), min(max(b, 0), n - 1)) for a, b, n in zip(low, high, size, strict=True)]
        self.window = tuple(slice(a, b + 1) for a, b in bounds)

    def apply(self, volume: Tensor) -> Tensor:
        """Return the crop (C, *crop) out of the values (C, d, h, w) of `window`."""
        first = torch.tensor([part.start for part in self.window], dtype=torch.float64)
        last = torch.tensor(volume.shape[1:], dtype=torch.float64) - 1
        grid = (2 * (self._source - first) / last.clamp(min=1) - 1).flip(-1).to(volume.dtype)  # x, y, z in [-1, 1]
        inside = F.grid_sample(volume[None] + 1, grid[None], mode="bilinear", padding_mode="zeros", align_corners=True)
        return inside[0] - 1
