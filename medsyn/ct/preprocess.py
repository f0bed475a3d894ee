"""Bring one CT to the model's grid: orientation, alignment on the pleural cavities, one resampling, HU kept.

The model's grid is `size` voxels over `field_of_view_mm` (paper: 256^3 over 292 x 316 x 316 mm), centred on the origin
of model space. `transform` maps points of model space to the scanner's space (ITK's resampling direction). Alignment
`lung_centre` moves the middle of the bounding box of the pleural cavities (`medsyn.ct.cavities`: lungs and what fills
the rest) to the grid's middle; `atlas` registers them to a lung atlas (`medsyn.ct.register`, affine) and falls back to
`lung_centre`, with the reason in qc.json, where that fails.
Orientation and alignment are one transform: the source is interpolated once (linear by default, -1024 HU outside); a
source finer than the grid is first smoothed so that its detail does not alias. With `lung_centre` or `none`, a source
that lies on the model's grid already is kept voxel for voxel. A generated volume that is not a chest is brought to the
grid as well (`require_chest=False`): without alignment, its middle on the grid's middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from medsyn.config import PreprocessConfig
from medsyn.ct.air import calibrate_air
from medsyn.ct.atlas import load_atlas
from medsyn.ct.inspect import Chest, judge
from medsyn.ct.padding import FILL_HU
from medsyn.ct.register import affine_of, register
from medsyn.errors import InputError
from medsyn.masks.labels import as_labels
from medsyn.masks.lungs import LEFT, RIGHT
from medsyn.masks.morphology import bounds
from medsyn.orientation import orientation_code, reorient, reorient_to
from medsyn.scan_warnings import AIR, NOT_A_CHEST, topic_of, warn
from medsyn.volume import Volume, centred_origin_mm, from_sitk, grid_spacing_mm, to_sitk

INTERPOLATORS = {"nearest": sitk.sitkNearestNeighbor, "linear": sitk.sitkLinear, "cubic": sitk.sitkBSpline}
SMOOTH_RATIO = 1.5
"""Smooth along an axis when the grid is coarser than the source by at least this factor."""
MARGIN = 3.0
"""How much of a source beyond the grid takes part, in voxels of the grid: the smoothing reaches 1.7, and a registration
may shrink the grid to 0.6."""


@dataclass(frozen=True)
class Preprocessed:
    """A CT on the model's grid.

    volume: int16 HU; transform: model space to scanner; given: masks on the same grid; qc: facts for qc.json.
    """

    volume: Volume
    transform: sitk.Transform
    given: dict[str, Volume]
    qc: dict[str, Any]


def model_grid(config: PreprocessConfig) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return spacing (z, y, x) in mm and LPS origin (x, y, z) of the model's grid."""
    spacing = grid_spacing_mm(config.size, config.field_of_view_mm)
    return spacing, centred_origin_mm(config.size, spacing)


def preprocess(
    source: Volume,
    config: PreprocessConfig,
    masks: Mapping[str, Volume] | None = None,
    name: str = "volume",
    *,
    require_chest: bool = True,
) -> Preprocessed:
    """Bring a CT in HU (and masks on its own grid) to the model's grid.

    What is not a chest CT is an InputError that names `name`; with `require_chest=False` it is placed by its middle,
    and qc holds the reasons as `warnings`.
    """
    model = reorient(source)
    reasons, chest, warnings = judge(model)
    if reasons or chest is None:
        if require_chest:
            raise InputError(f"{name}: rejected, {'; '.join(reasons)}")
        return _centred(model, config, masks or {}, name, reasons)
    on_grid = config.alignment != "atlas" and lies_on_grid(model, config)
    alignment = _align(model, chest, config, on_grid)
    transform = alignment.transform
    air: dict[str, float | None] = {}
    if config.calibrate_air:
        array, air = calibrate_air(model.array)
        model = model.with_array(array)
    volume, given = _to_grid(model, transform, config, masks or {}, name, on_grid)
    qc = _quality(source, model, chest, volume, transform, on_grid, config) | alignment.qc | air
    calibrated = air.get("air_factor", 1.0) != 1.0
    qc["warnings"] = [line for line in warnings if not (calibrated and topic_of(line) == AIR)]
    return Preprocessed(volume, transform, given, qc)


def _centred(
    model: Volume, config: PreprocessConfig, masks: Mapping[str, Volume], name: str, reasons: list[str]
) -> Preprocessed:
    """Bring a volume that is not a chest to the grid, its middle on the grid's; its air is not calibrated."""
    transform = sitk.TranslationTransform(3, [float(c) for c in _middle_mm(model)])
    volume, given = _to_grid(model, transform, config, masks, name, lies_on_grid(model, config))
    warnings = [warn(NOT_A_CHEST, reason.removeprefix(f"{NOT_A_CHEST}: ")) for reason in reasons]
    return Preprocessed(volume, transform, given, {"alignment_used": "none", "warnings": warnings})


def _to_grid(
    model: Volume,
    transform: sitk.Transform,
    config: PreprocessConfig,
    masks: Mapping[str, Volume],
    name: str,
    on_grid: bool,
) -> tuple[Volume, dict[str, Volume]]:
    """Resample a volume and its masks once, or keep their voxels where they lie on the grid already."""
    spacing, origin = model_grid(config)
    if on_grid:
        volume = Volume(_int16(model.array), spacing, origin)
    else:
        seen = _smooth(_cropped(model, transform, config), spacing)
        volume = _resample(seen, transform, config, INTERPOLATORS[config.interpolation], FILL_HU)
        volume = volume.with_array(_int16(volume.array))
    given = {}
    for structure, mask in masks.items():
        given[structure] = _given_mask(mask, model, transform, config, on_grid, f"{name}: mask {structure}")
    return volume, given


@dataclass(frozen=True)
class _Alignment:
    """transform: model space to scanner; qc: what was done and how well."""

    transform: sitk.Transform
    qc: dict[str, Any]


def _align(model: Volume, chest: Chest, config: PreprocessConfig, on_grid: bool) -> _Alignment:
    """Return the place of the model's grid in the scanner's space that `config.alignment` asks for."""
    centred = config.alignment != "none" and not on_grid
    centre = _centre_mm(chest) if centred else _middle_mm(model)
    translation = sitk.TranslationTransform(3, [float(c) for c in centre])
    filled = {"filled_cavity_ml": _filled_ml(chest)} if centred else {}
    if config.alignment != "atlas":
        return _Alignment(translation, {"alignment_used": config.alignment} | filled)
    found = register(chest.cavities.label > 0, chest.volume, load_atlas(config.atlas), centre)
    used = "lung_centre" if found.faults else "atlas"
    qc = {
        "alignment_used": used,
        "atlas_dice": round(found.dice_before if found.faults else found.dice, 4),
        "atlas_dice_centred": round(found.dice_before, 4),
        "registration_faults": found.faults,
    } | filled
    return _Alignment(translation if found.faults else found.transform, qc)


def _filled_ml(chest: Chest) -> dict[str, float]:
    """Return the part of each pleural cavity without aerated lung, in millilitres, for qc.json."""
    return {name: round(chest.cavities.filled_ml[side], 1) for name, side in (("right", RIGHT), ("left", LEFT))}


def lies_on_grid(model: Volume, config: PreprocessConfig) -> bool:
    """Return whether size, spacing and directions are those of the model's grid, so that nothing is interpolated; its
    place in space may differ.
    """
    spacing, _ = model_grid(config)
    return (
        model.array.shape == tuple(config.size)
        and np.allclose(model.spacing_mm, spacing, rtol=1e-3)
        and np.allclose(model.direction, np.diag([1, -1, 1]).ravel(), atol=1e-4)
    )


def _physical(volume: Volume, index: tuple[float, float, float]) -> np.ndarray:
    """Return the LPS point (x, y, z) of a continuous index (z, y, x)."""
    matrix = np.array(volume.direction).reshape(3, 3)
    return np.asarray(volume.origin_mm) + matrix @ (np.array(index[::-1]) * np.array(volume.spacing_mm[::-1]))


def _middle_mm(volume: Volume) -> np.ndarray:
    """Return the LPS point in the middle of a volume."""
    z, y, x = volume.array.shape
    return _physical(volume, ((z - 1) / 2, (y - 1) / 2, (x - 1) / 2))


def _centre_mm(chest: Chest) -> np.ndarray:
    """Return the LPS point in the middle of the pleural cavities' bounding box.

    Its sides run along the patient's axes, also in an oblique scan.
    """
    model, mask = chest.volume, chest.cavities.label > 0
    direction = np.array(model.direction).reshape(3, 3)
    if np.allclose(np.abs(direction), np.eye(3), atol=1e-4):
        z, y, x = ((first + last) / 2 for first, last in bounds(mask))
        return _physical(model, (z, y, x))
    index = np.argwhere(mask)[:, ::-1] * np.array(model.spacing_mm[::-1])
    points = index @ direction.T + np.array(model.origin_mm)
    return np.asarray((points.min(0) + points.max(0)) / 2)


def _cropped(model: Volume, transform: sitk.Transform, config: PreprocessConfig) -> Volume:
    """Return the part of a volume that lies in the grid or within MARGIN of it, where smoothing needs neighbours."""
    spacing, _ = model_grid(config)
    matrix, offset = affine_of(transform)
    half = np.array([extent / 2 + MARGIN * max(spacing) for extent in reversed(config.field_of_view_mm)])
    corners = np.array(list(product(*zip(-half, half, strict=True)))) @ matrix.T + offset
    direction = np.array(model.direction).reshape(3, 3)
    index = ((corners - np.array(model.origin_mm)) @ direction / np.array(model.spacing_mm[::-1]))[:, ::-1]
    low = np.floor(index.min(0)).astype(int).clip(0, np.array(model.array.shape) - 1)
    high = np.ceil(index.max(0)).astype(int).clip(low + 1, model.array.shape)
    part = model.array[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]
    x, y, z = _physical(model, tuple(low.tolist()))
    return Volume(part, model.spacing_mm, (float(x), float(y), float(z)), model.direction)


def _smooth(model: Volume, spacing_mm: tuple[float, float, float]) -> Volume:
    """Smooth the axes that are downsampled strongly with a Gaussian.

    sigma^2 = (grid^2 - source^2) / (8 ln 2), in full widths at half maximum. Padding below -1024 is lifted to -1024
    first.
    """
    array = np.maximum(model.array, FILL_HU).astype(np.float32)
    for axis, (source, target) in enumerate(zip(model.spacing_mm, spacing_mm, strict=True)):
        if target >= SMOOTH_RATIO * source:
            sigma = float(np.sqrt((target**2 - source**2) / (8 * np.log(2))))
            array = ndimage.gaussian_filter1d(array, sigma / source, axis, mode="nearest", output=np.float32)
    return model.with_array(array)


def _resample(
    source: Volume, transform: sitk.Transform, config: PreprocessConfig, interpolator: int, fill: float
) -> Volume:
    spacing, origin = model_grid(config)
    reference = to_sitk(Volume(np.zeros(config.size, np.uint8), spacing, origin))
    image = to_sitk(source)
    return from_sitk(sitk.Resample(image, reference, transform, interpolator, float(fill), image.GetPixelID()))


def _given_mask(
    mask: Volume, source: Volume, transform: sitk.Transform, config: PreprocessConfig, on_grid: bool, name: str
) -> Volume:
    """Return a mask on the model's grid: nearest neighbour with the CT's transform. `name` ends with the structure."""
    mask = reorient_to(mask, source, name)
    mask = mask.with_array(as_labels(mask.array, name.rpartition(" ")[2], name, may_be_empty=False))
    if on_grid:
        spacing, origin = model_grid(config)
        return Volume(mask.array, spacing, origin)
    return _resample(mask, transform, config, sitk.sitkNearestNeighbor, 0)


def _int16(array: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(array) if array.dtype.kind == "f" else array, FILL_HU, 32767).astype(np.int16)


def _quality(
    source: Volume,
    model: Volume,
    chest: Chest,
    volume: Volume,
    transform: sitk.Transform,
    on_grid: bool,
    config: PreprocessConfig,
) -> dict[str, Any]:
    """Return facts for qc.json; volume_scale is the factor by which volumes change from scanner to model space."""
    half = [extent / 2 for extent in reversed(config.field_of_view_mm)]
    mask, coarse = chest.lungs.mask, chest.volume
    index = np.argwhere(mask[::2, ::2, ::2])[:, ::-1] * 2 * np.array(coarse.spacing_mm[::-1])
    matrix, offset = affine_of(transform)
    points = index @ np.array(coarse.direction).reshape(3, 3).T + np.array(coarse.origin_mm) - offset
    covered = float((np.abs(points @ np.linalg.inv(matrix).T) <= np.array(half)).all(1).mean())
    edges = {
        "inferior": bool(mask[0].any()),
        "superior": bool(mask[-1].any()),
    }
    return {
        "source": describe_grid(source),
        "size": list(config.size),
        "spacing_mm": [round(s, 6) for s in volume.spacing_mm],
        "already_on_grid": on_grid,
        "alignment": config.alignment,
        "model_to_scanner_matrix": [round(float(m), 6) for m in matrix.ravel()],
        "model_to_scanner_translation_mm": [round(float(c), 4) for c in offset],
        "centre_shift_mm": [round(float(c), 4) for c in offset - _middle_mm(model)],
        "volume_scale": round(float(1 / np.linalg.det(matrix)), 4),
        "lung_volume_ml": round(float(mask.sum()) * coarse.voxel_mm3 / 1000, 1),
        "lung_fraction_in_grid": round(covered, 4),
        "lungs_cut_by_scan": edges,
    }


def describe_grid(volume: Volume) -> dict[str, Any]:
    """Return size, spacing and orientation of a volume, all (z, y, x)."""
    return {
        "size": list(volume.array.shape),
        "spacing_mm": [round(float(s), 6) for s in volume.spacing_mm],
        "orientation": orientation_code(volume),
    }
