"""Find the pleural cavities of a chest CT: aerated lung and what fills the rest (fluid, consolidation, bowel).

Takes the lungs found by thresholds and an atlas of healthy lungs. Density alone cannot tell water, consolidated lung or
bowel from liver and heart. The ends of a cavity follow from what disease does not move: the ribs, the spine, the
outside of the body, and the aerated rest of the lungs. The atlas is fitted to this evidence (`medsyn.ct.affine_fit`);
soft tissue has a low weight, and fluid that `medsyn.masks.effusion` recognises counts as cavity. A thick piece of the
scan without lung where the fitted atlas expects lung is part of the cavity; the fit is then repeated without the soft
tissue around it. Healthy lungs are returned unchanged.

Axes are (D, H, W) in model orientation; points are LPS millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.ct.affine_fit import Affine, Points, SoftAtlas, fit, shape_prior
from medsyn.ct.atlas import load_atlas
from medsyn.masks.effusion import segment_effusion
from medsyn.masks.lungs import LEFT, RIGHT, Lungs
from medsyn.masks.morphology import (
    Spacing,
    block_expand,
    block_factors,
    block_labels,
    block_mean,
    coarsened,
    dilate,
    enclosed,
)
from medsyn.volume import Volume

WORKING_MM = 6.0
"""Grid on which filled pieces are found: 3 to 6 mm."""
FIT_MM, FIRST_FIT_MM = 10.0, 14.0
"""Largest blocks of the evidence in the fit, and in the first fit, which chooses the start."""
UNIT_MM = 8.0
"""Evidence is counted in cubes with edges of this length."""
FIRST_SIGMA_MM, SIGMA_MM = 10.0, 5.0
"""Blur of the atlas in the first fit and later."""
BONE_HU, BONE_SHARE = 220.0, 0.3
"""A block is bone where more than this share of its voxels lies above this density."""
RIB_MM = 7.0
"""Thickness of the wall that ribs make."""
RIB_GAP_MM = 12.0
"""Radius of the closing that joins ribs to a wall: it spans 24 mm, the space between two ribs is up to 20 mm wide."""
SOFT_WEIGHT, NEAR_WEIGHT, FLUID_WEIGHT = 0.15, 0.03, 0.5
"""Weight of soft tissue against a cavity before filled pieces are known, of soft tissue near a filled piece later, and
of fluid for a cavity. Aerated lung, bone, the outside of the body and, later, all other soft tissue have weight 1."""
PRIOR = 3000.0
"""Weight of unequal scales, shear and rotation: a shear of 0.1 costs as much as 30 wrong cubes of UNIT_MM, one scale
that differs by 0.1 from the other two costs 20, and a rotation by 6 degrees 60."""
START_SCALE_RANGE = (1 / 1.3, 1 / 0.75)
"""Limits of the scale, scanner to model, from which a fit starts; the fit itself may leave them."""
THICK_MM, MINIMUM_ML, KNOWN_ML = 24.0, 200.0, 60.0
"""A filled piece contains a ball of this diameter and has at least the first volume, or the second if fluid was
recognised in it or the round before found it (the new fit may have shrunk it). Smaller pieces are differences between
people, such as a heart larger than the atlas's."""
AROUND_MM = 16.0
"""The rest of a filled piece lies within this distance of its thick part."""
NEAR_MM = 25.0
"""Soft tissue within this distance of a filled piece may belong to the cavity."""
BESIDE_MM, MIDDLE_MM = 15.0, 50.0
"""Ribs lie within the first distance of a cavity, and farther than the second from the middle of the chest."""
ROUNDS, SETTLED_SHARE = 3, 0.9999
"""Largest number of fits after the first; they end early when this share of the blocks keeps its state."""


@dataclass(frozen=True)
class Cavities:
    """Pleural cavities of a scan.

    label: uint8 (D, H, W), 1 right, 2 left: aerated lung and what fills the rest; filled_ml: volume of the rest, by
    side; rib_ml: bone beside each fitted side, the spine and the sternum left out; lung_inside: share of the aerated
    lung that lies in the fitted atlas.
    """

    label: NDArray[np.uint8]
    filled_ml: dict[int, float]
    rib_ml: dict[int, float]
    lung_inside: float


@dataclass(frozen=True)
class _Evidence:
    """Contents of the blocks of the working grid, each (D, H, W).

    lung: share of aerated lung, 0 to 1; wall: bone, the gaps between ribs and the outside of the body; fluid: pleural
    fluid.
    """

    volume: Volume
    lung: NDArray[np.float32]
    bone: NDArray[np.bool_]
    wall: NDArray[np.bool_]
    fluid: NDArray[np.bool_]


def find_cavities(volume: Volume, lungs: Lungs) -> Cavities:
    """Return the pleural cavities of a CT in HU (model orientation) in which `lungs` holds at least one lung.

    The built-in atlas is fitted, whatever atlas the scan is registered to later.
    """
    atlas = load_atlas(None)
    evidence = _evidence(volume, lungs)
    points = _points(evidence.volume)
    transform = _first_fit(evidence, lungs, volume, atlas)
    soft_atlas, prior = _soft_atlas(SIGMA_MM), shape_prior(PRIOR, PRIOR)
    soft_weight = np.full(evidence.lung.shape, SOFT_WEIGHT, np.float32)
    core = np.zeros(evidence.lung.shape, bool)
    for _ in range(ROUNDS):
        transform, _ = fit(*_seen(evidence, soft_weight, FIT_MM), soft_atlas, transform, prior, 10)
        expected = soft_atlas.at(transform.apply(points)).reshape(core.shape) > 0.5
        before = core
        missing = expected & (evidence.lung < 0.5) & ~evidence.wall
        core = _thick(missing, evidence.fluid | core, evidence.volume.spacing_mm)
        if (core == before).mean() > SETTLED_SHARE:
            break
        soft_weight = np.where(dilate(core | evidence.fluid, NEAR_MM, evidence.volume.spacing_mm), NEAR_WEIGHT, 1.0)
    filled = (dilate(core, AROUND_MM, evidence.volume.spacing_mm) & missing) | evidence.fluid
    return _cavities(volume, lungs, evidence, filled, expected, transform.apply(points)[:, 0].reshape(core.shape))


@cache
def _soft_atlas(sigma_mm: float) -> SoftAtlas:
    """Return the built-in atlas, blurred; kept for the next scan."""
    return SoftAtlas(load_atlas(None), sigma_mm)


def _evidence(volume: Volume, lungs: Lungs) -> _Evidence:
    """Return the contents of blocks of WORKING_MM."""
    factors = block_factors(volume.spacing_mm, WORKING_MM)
    coarse = coarsened(volume, WORKING_MM)
    steps = coarse.spacing_mm
    lung = block_mean(lungs.mask, factors)
    bone = block_mean(volume.array > BONE_HU, factors) > BONE_SHARE
    ribs = ~dilate(~dilate(bone, RIB_GAP_MM, steps), RIB_GAP_MM, steps) | bone
    tissue = (coarse.array > -300) | (lung > 0.5)
    body = tissue | enclosed(~tissue, in_plane=True)
    fluid = segment_effusion(coarse.array, block_labels(lungs.label, factors), steps)
    return _Evidence(coarse, lung, bone, (ribs | ~body) & (lung < 0.5) & ~fluid, fluid & (lung < 0.5))


def _points(volume: Volume) -> Points:
    """Return the LPS positions (N, 3) of the voxels in the order of the array."""
    index = np.indices(volume.array.shape).reshape(3, -1).T[:, ::-1]
    return _placed(volume, index)


def _placed(volume: Volume, index_xyz: NDArray) -> Points:
    """Return the LPS positions (N, 3) of indices (N, 3) = (x, y, z)."""
    scaled = index_xyz * np.array(volume.spacing_mm[::-1])
    return np.asarray(scaled @ np.array(volume.direction).reshape(3, 3).T + np.array(volume.origin_mm))


def _seen(
    evidence: _Evidence, soft_weight: NDArray[np.float32], block_mm: float
) -> tuple[Points, NDArray[np.float32], NDArray[np.float32]]:
    """Return points, wanted share and weight for `fit`, one per block of `block_mm`."""
    volume = evidence.volume
    factors = block_factors(volume.spacing_mm, block_mm)
    lung = evidence.lung
    weight = np.where(evidence.wall, 1.0, np.where(evidence.fluid, FLUID_WEIGHT, soft_weight))
    weight = lung + (1 - lung) * weight
    wanted = np.where(evidence.fluid, 1.0, lung) * weight
    blocks = coarsened(volume, block_mm)
    weight, wanted = block_mean(weight, factors), block_mean(wanted, factors)
    size = float(np.prod(blocks.spacing_mm)) / UNIT_MM**3
    share = (wanted / np.maximum(weight, 1e-6)).astype(np.float32)
    return _points(blocks), share.ravel(), (weight * size).astype(np.float32).ravel()


def _first_fit(evidence: _Evidence, lungs: Lungs, volume: Volume, atlas: Volume) -> Affine:
    """Return the better of two fits: from the aerated lungs' bounding box, and from the ribs and the lungs' top."""
    seen = _seen(evidence, np.full(evidence.lung.shape, SOFT_WEIGHT, np.float32), FIRST_FIT_MM)
    soft_atlas, prior = _soft_atlas(FIRST_SIGMA_MM), shape_prior(PRIOR, PRIOR)
    fits = [fit(*seen, soft_atlas, start, prior, 12) for start in _starts(evidence, lungs, volume, atlas)]
    return min(fits, key=lambda found: found[1])[0]


def _starts(evidence: _Evidence, lungs: Lungs, volume: Volume, atlas: Volume) -> list[Affine]:
    """Return the maps to start from: bounding box to bounding box, and ribs (if any) to the atlas's width."""
    sides = [side for side in (RIGHT, LEFT) if (lungs.label == side).any()]
    model = _points(atlas)[(atlas.array > 0).ravel()]
    of_sides = model if len(sides) == 2 else model[(model[:, 0] < 0) == (sides[0] == RIGHT)]
    found = _placed(volume, np.argwhere(lungs.mask)[::7, ::-1])
    low, high = np.percentile(found, [0.5, 99.5], axis=0)
    model_low, model_high = np.percentile(of_sides, [0.5, 99.5], axis=0)
    scale = np.clip((model_high - model_low) / (high - low), *START_SCALE_RANGE)
    if len(sides) == 1:
        scale = np.full(3, scale[2])
    starts = [Affine(np.diag(scale), (model_low + model_high) / 2 - scale * (low + high) / 2)]
    ribs = _points(evidence.volume)[(evidence.wall & (evidence.volume.array > -300)).ravel()]
    if len(ribs):
        model_low, model_high = np.percentile(model, [0.5, 99.5], axis=0)
        left, right = np.percentile(ribs[:, 0], [2, 98])
        size = np.clip((model_high - model_low)[0] / (right - left - 2 * RIB_MM), *START_SCALE_RANGE)
        middle = np.array([(left + right) / 2, (low + high)[1] / 2, high[2]])
        starts.append(Affine(np.eye(3) * size, np.array([0, 0, model_high[2]]) - size * middle))
    return starts


def _thick(mask: NDArray[np.bool_], known: NDArray[np.bool_], spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Return the parts of `mask` that hold a ball of THICK_MM, if they are large enough.

    Parts that contain a block of `known` (fluid, or a piece of the round before) may be smaller than others.
    """
    inner = ~dilate(np.pad(~mask, 1, constant_values=True), THICK_MM / 2, spacing_mm)[1:-1, 1:-1, 1:-1]
    core = dilate(inner, THICK_MM / 2, spacing_mm) & mask
    labels, count = ndimage.label(core)
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * float(np.prod(spacing_mm)) / 1000
    sizes[0] = 0
    holds_known = np.bincount(labels[known], minlength=count + 1) > 0
    return np.asarray((sizes >= np.where(holds_known, KNOWN_ML, MINIMUM_ML))[labels])


def _cavities(
    volume: Volume,
    lungs: Lungs,
    evidence: _Evidence,
    filled: NDArray[np.bool_],
    expected: NDArray[np.bool_],
    across: NDArray[np.float64],
) -> Cavities:
    """Bring the filled blocks back to the grid of the scan.

    expected: blocks that lie in the fitted atlas; across: x of every block in model space.
    """
    factors = block_factors(volume.spacing_mm, WORKING_MM)
    label = lungs.label
    if filled.any():
        side = np.where(across < 0, RIGHT, LEFT).astype(np.uint8) * filled
        side = block_expand(side, factors, volume.array.shape)
        label = np.where((label == 0) & ~lungs.airway, side, label).astype(np.uint8)
    ml = {s: float(((label == s) & (lungs.label != s)).sum()) * volume.voxel_mm3 / 1000 for s in (RIGHT, LEFT)}
    beside = evidence.bone & dilate(expected, BESIDE_MM, evidence.volume.spacing_mm) & (np.abs(across) > MIDDLE_MM)
    bone_ml = {
        side: float((beside & ((across < 0) == (side == RIGHT))).sum()) * evidence.volume.voxel_mm3 / 1000
        for side in (RIGHT, LEFT)
    }
    inside = float(evidence.lung[expected].sum() / max(float(evidence.lung.sum()), 1.0))
    return Cavities(label, ml, bone_ml, inside)
