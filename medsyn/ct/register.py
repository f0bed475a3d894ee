"""Affine registration of a scan's lungs to the atlas, from the masks alone, in seconds on one core.

The paper aligns its images by affine registration to one atlas; the authors' scripts do it on lung masks (ANTs, three
resolutions, shrink 4 x 2 x 1). Here the same is done on masks of 2.5 to 5 mm with SimpleITK: mean squares between
blurred masks, three resolutions, 12 parameters. The transform maps points of model space (where the atlas lies) to the
scanner's space, the direction that resampling needs.

Where a scan cuts off the lungs at its lower or upper end, the mask ends there, voxels beyond are not compared, and the
start aligns the other end. The result is checked for overlap with the atlas, scale and rotation. A registration that
fails the check is not used; the caller falls back and reports it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsyn.masks.labels import dice
from medsyn.masks.morphology import bounds, coarsened
from medsyn.volume import Volume, to_sitk

WORKING_MM = 5.0
"""Largest blocks: 2.5 to 5 mm, from masks found at about 2.5 mm; coarser voxels stay as they are."""
MARGIN_MM = 48.0
"""Empty space added around a mask on the sides where the lungs end within the scan."""
SHRINK, SIGMA_MM = (4, 2, 1), (8.0, 5.0, 3.0)
NUM_ITERATIONS = 60
ATLAS_MARGIN_MM = 24.0
"""Space around the atlas's lungs that takes part: enough for the widest blur."""
START_SCALE_RANGE = (0.75, 1.3)
"""Limits of the scales, model to scanner, from which the optimiser starts."""
MINIMUM_DICE, LARGEST_DICE_LOSS = 0.8, 0.01
"""Overlap with the atlas that a registration must reach, and how far it may fall below that of centre alignment."""
SCALE_RANGE = (0.6, 1.6)
"""Allowed scales, model to scanner; a small child's chest is outside of them and falls back to centre alignment."""
LARGEST_ROTATION_DEGREES = 25.0


@dataclass(frozen=True)
class Registration:
    """Affine registration of one scan and its checks.

    transform: model space to scanner; dice, dice_before: overlap with the atlas on what the scan covers, registered and
    with centre alignment; faults: reasons not to use it (empty: it is good).
    """

    transform: sitk.AffineTransform
    dice: float
    dice_before: float
    faults: list[str]


def register(lungs: NDArray[np.bool_], scan: Volume, atlas: Volume, centre_mm: NDArray) -> Registration:
    """Register `lungs` (D, H, W) on the grid of `scan` (model orientation) to the atlas, one thread, deterministic.

    centre_mm: LPS point (x, y, z) of the middle of the lungs, where centre alignment would put the atlas's middle.
    """
    cut = (bool(lungs[0].any()), bool(lungs[-1].any()))
    moving = _moving(lungs, scan, cut)
    fixed = _cropped(atlas)
    centre_mm = np.round(centre_mm, 3)
    centre = sitk.AffineTransform(3)
    centre.SetTranslation([float(c) for c in centre_mm])
    start = _start(lungs, scan, atlas, centre_mm, cut)
    transform, faults = _optimise(fixed, moving, start)
    before, after = overlap(atlas, moving, centre), overlap(atlas, moving, transform)
    return Registration(transform, after, before, faults + _faults(transform, after, before))


def _cropped(atlas: Volume) -> sitk.Image:
    """Return the atlas's lungs and ATLAS_MARGIN_MM around them, as far as its grid goes."""
    image = sitk.Cast(to_sitk(atlas), sitk.sitkFloat32)
    part = []
    ends = reversed(bounds(atlas.array > 0))  # x, y, z
    for (first, last), step, count in zip(ends, image.GetSpacing(), image.GetSize(), strict=True):
        margin = int(np.ceil(ATLAS_MARGIN_MM / step))
        part.append(slice(max(first - margin, 0), min(last + margin + 1, count)))
    return image[tuple(part)]


def overlap(atlas: Volume, moving: sitk.Image, transform: sitk.Transform) -> float:
    """Return the Dice of the atlas and a lung mask resampled to it, on the voxels that the mask's image covers."""
    brought = sitk.Resample(moving, to_sitk(atlas), transform, sitk.sitkLinear, -1.0, sitk.sitkFloat32)
    array = sitk.GetArrayFromImage(brought)
    known, lung = array >= 0, array >= 0.5
    return dice(lung, (atlas.array > 0) & known) or 0.0


def _moving(lungs: NDArray[np.bool_], scan: Volume, cut: tuple[bool, bool]) -> sitk.Image:
    """Return the share of lung in blocks of WORKING_MM, cropped to the lungs, with MARGIN_MM around but at cut ends."""
    blocks = coarsened(scan.with_array(lungs), WORKING_MM)
    coarse = blocks.array
    # files keep geometry as 32-bit numbers: rounded, a copy with flipped axes gives the same bits
    geometry = (
        np.round(numbers, digits)
        for numbers, digits in ((blocks.spacing_mm, 5), (blocks.origin_mm, 3), (blocks.direction, 6))
    )
    spacing, origin, turned = (tuple(float(number) for number in numbers) for numbers in geometry)
    image = to_sitk(Volume(coarse, spacing, origin, turned))  # type: ignore[arg-type]
    image = image[tuple(slice(first, last + 1) for first, last in reversed(bounds(coarse > 0)))]  # x, y, z
    margin = [int(np.ceil(MARGIN_MM / s)) for s in image.GetSpacing()]
    lower, upper = list(margin), list(margin)
    lower[2], upper[2] = (0 if cut[0] else margin[2]), (0 if cut[1] else margin[2])
    return sitk.ConstantPad(image, lower, upper, 0.0)


def _start(
    lungs: NDArray[np.bool_], scan: Volume, atlas: Volume, centre_mm: NDArray, cut: tuple[bool, bool]
) -> sitk.AffineTransform:
    """Return the transform to start from: the atlas's bounding box to that of the lungs.

    Where the scan cuts the lungs, z takes the mean scale of x and y, and the ends that are not cut lie together.
    """
    extent, target = _extent_mm(lungs, scan.spacing_mm), _extent_mm(atlas.array > 0, atlas.spacing_mm)
    scale = np.clip(extent / target, *START_SCALE_RANGE)  # x, y, z
    middle = np.array(centre_mm, float)
    if any(cut):
        scale[2] = scale[:2].mean()
        if cut[0] != cut[1]:
            end = 1.0 if cut[0] else -1.0  # the end that is whole: superior or inferior
            middle[2] += end * (extent[2] - scale[2] * target[2]) / 2
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(np.diag(scale).ravel().tolist())
    transform.SetTranslation([float(m) for m in middle])
    return transform


def _extent_mm(mask: NDArray, spacing_mm: tuple[float, float, float]) -> NDArray:
    """Return the extent (x, y, z) of a mask's bounding box."""
    extent = [(last - first + 1) * step for (first, last), step in zip(bounds(mask), spacing_mm, strict=True)]
    return np.array(extent[::-1])


def _optimise(
    fixed: sitk.Image, moving: sitk.Image, start: sitk.AffineTransform
) -> tuple[sitk.AffineTransform, list[str]]:
    """Return the affine transform with the least mean square difference of the blurred masks and no faults; where the
    optimiser fails, `start` and the reason.
    """
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # sums in one order: the same bits every time
    try:
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)
        method.SetMetricAsMeanSquares()
        method.SetMetricSamplingStrategy(method.NONE)  # every voxel: sampling draws points at random
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(4.0, 0.02, NUM_ITERATIONS, 0.6, 1e-6)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel(SHRINK)
        method.SetSmoothingSigmasPerLevel(SIGMA_MM)
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        method.SetInitialTransform(sitk.AffineTransform(start), inPlace=False)
        found = method.Execute(fixed, moving)
    except RuntimeError as error:  # every point left the moving image
        return start, [f"the optimiser stopped ({str(error).strip().splitlines()[-1].strip()})"]
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    matrix, offset = affine_of(found)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix.ravel().tolist())
    transform.SetTranslation(offset.tolist())
    return transform, []


def affine_of(transform: sitk.Transform) -> tuple[NDArray, NDArray]:
    """Return matrix (3, 3) and translation (x, y, z mm) of any linear transform: p -> matrix p + translation."""
    zero = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.stack([np.array(transform.TransformPoint(tuple(e))) - zero for e in np.eye(3)], axis=1)
    return matrix, zero


def _faults(transform: sitk.Transform, after: float, before: float) -> list[str]:
    """Return the reasons why a registration cannot be right."""
    matrix, _ = affine_of(transform)
    faults = []
    left, scales, right = np.linalg.svd(matrix)
    if after < MINIMUM_DICE:
        faults.append(f"overlap with the atlas {after:.2f}, at least {MINIMUM_DICE} is needed")
    if after < before - LARGEST_DICE_LOSS:
        faults.append(f"overlap with the atlas fell from {before:.2f} to {after:.2f}")
    if np.linalg.det(matrix) <= 0 or scales.min() < SCALE_RANGE[0] or scales.max() > SCALE_RANGE[1]:
        faults.append(
            f"scales {', '.join(f'{s:.2f}' for s in scales)}, {SCALE_RANGE[0]} to {SCALE_RANGE[1]} are allowed"
        )
    turn = np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1)))
    if turn > LARGEST_ROTATION_DEGREES:
        faults.append(f"rotation by {turn:.0f} degrees, at most {LARGEST_ROTATION_DEGREES:.0f} are allowed")
    return faults
