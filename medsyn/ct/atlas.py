"""The lung atlas that scans are registered to: a mask of both lungs, centred on the origin of model space.

Ours is the mean lung of the embedded phantoms: atlas.nii.gz holds what `phantom_atlas` makes in some seconds, so that
every machine registers to the same voxels. A user's own atlas is any label file (NIfTI, MetaImage,
NRRD) in which every value above 0 is lung; the middle of its lungs' bounding box goes to the model's origin.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from medsyn.errors import InputError
from medsyn.masks.morphology import bounds
from medsyn.orientation import reorient
from medsyn.phantom.plan import PLAN_GRID, make_plan
from medsyn.volume import MODEL_DIRECTION, Volume, centred_origin_mm, read_volume

NUM_PHANTOMS = 16
PHANTOM_ATLAS = Path(__file__).with_name("atlas.nii.gz")
MINIMUM_ML = 500.0
"""Smallest lung volume of an atlas."""


@cache
def load_atlas(path: str | None) -> Volume:
    """Return the uint8 lung mask (D, H, W) in model orientation around the origin; None: the phantoms' mean lung.

    A file without lungs in it is an InputError.
    """
    volume = reorient(read_volume(path or PHANTOM_ATLAS))
    lung = volume.array > 0
    if lung.sum() * volume.voxel_mm3 / 1000 < MINIMUM_ML:
        raise InputError(f"{path}: not a lung atlas, its labels hold less than {MINIMUM_ML:.0f} ml; give a lung mask")
    return centred(Volume(lung.astype(np.uint8), volume.spacing_mm))


def phantom_atlas(count: int = NUM_PHANTOMS, seed: int = 0) -> Volume:
    """Return the mean lung of `count` phantoms on their 64^3 grid of about 5 mm.

    Each one's signed distance to the pleura is stretched from its bounding box to the mean bounding box; the mean
    distance below 0 is lung.
    """
    fields = [np.asarray(make_plan((seed, index), ()).lungs.lung, np.float32) for index in range(count)]
    boxes = np.array([bounds(field < 0) for field in fields])  # (count, 3, 2), voxels
    middles, extents = boxes.mean(2), boxes[:, :, 1] - boxes[:, :, 0]
    mean_extent = extents.mean(0)
    total = np.zeros(PLAN_GRID.size, np.float32)
    half = (np.array(PLAN_GRID.size) - 1) / 2
    for field, middle, extent in zip(fields, middles, extents, strict=True):
        scale = extent / mean_extent
        total += ndimage.affine_transform(field, scale, middle - scale * half, order=1, mode="nearest")
    return centred(Volume((total < 0).astype(np.uint8), PLAN_GRID.spacing))


def centred(atlas: Volume) -> Volume:
    """Return the same voxels with the middle of the lungs' bounding box at the origin."""
    shift = [
        (low + high) / 2 - (count - 1) / 2
        for (low, high), count in zip(bounds(atlas.array > 0), atlas.array.shape, strict=True)
    ]
    z, y, x = (s * step for s, step in zip(shift, atlas.spacing_mm, strict=True))
    size: tuple[int, int, int] = atlas.array.shape
    return Volume(
        atlas.array, atlas.spacing_mm, centred_origin_mm(size, atlas.spacing_mm, (-x, y, -z)), MODEL_DIRECTION
    )
