"""Measure findings by side and lobe, and the change between two volumes there: what Table VIII judges volumes by.

- `effusion_ml_<side>`: pleural fluid on the side of the midline on which it lies.
- `laa950_percent_<lobe>`: share of the lobe's voxels below -950 HU, and `laa950_percent` of both lungs.
- `cardiothoracic_ratio`, as in Table IV.
- `solid_ml_<lobe>`: solid tissue where the lobe should be: voxels above SOLID_HU, neither fluid nor airway, in the lung
  closed by FILL_MM. Normal vessels and a rim of the mediastinum count as well, so only what exceeds a normal chest says
  something. A nodule is too small beside these, so there is no measure of nodules.
- `density_hu_<lobe>`: mean HU of the lobe less the median of both lungs, which ground glass raises.
- `change_hu_<side or lobe>`: mean absolute difference to another volume, in its pleural cavity or lobe.

An amount of absent anatomy is 0; a share or ratio of absent anatomy has no value (`medsyn.evaluate.measures`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.errors import InputError
from medsyn.evaluate.measures import LOW_ATTENUATION_HU, measure
from medsyn.mask_tools import ANATOMY, Segmenter
from medsyn.masks.classical import with_bronchi
from medsyn.masks.effusion import WORKING_MM, fluid_on_grid, pleural_cavities
from medsyn.masks.lobes import segment_lobes, sides_of
from medsyn.masks.lungs import LEFT, RIGHT, segment_lungs
from medsyn.masks.morphology import block_factors, block_labels, block_mean, close
from medsyn.volume import LOBE_NAMES, Volume

SIDES = {"left": LEFT, "right": RIGHT}
"""Side -> its label in `Regions.sides`."""
SOLID_HU = -300.0
FILL_MM = 30.0
"""A consolidation is no part of the thresholded lung; closing by this radius takes in one of twice this thickness. Of
0, 10, 20 and 30 mm this one finds the lobe of most consolidations of phantoms: 26 of 30."""
MEASURES = (
    *(f"effusion_ml_{side}" for side in SIDES),
    "laa950_percent",
    *(f"laa950_percent_{lobe}" for lobe in LOBE_NAMES),
    "cardiothoracic_ratio",
    *(f"solid_ml_{lobe}" for lobe in LOBE_NAMES),
    *(f"density_hu_{lobe}" for lobe in LOBE_NAMES),
)
CHANGES = tuple(f"change_hu_{place}" for place in (*SIDES, *LOBE_NAMES))


@dataclass(frozen=True)
class Regions:
    """Masks (D, H, W) of a CT.

    lobes: 0..5; sides: of lungs and fluid, 1 right, 2 left; fluid: pleural; masks: as `measure` takes them.
    """

    lobes: NDArray[np.uint8]
    sides: NDArray[np.uint8]
    fluid: NDArray[np.bool_]
    masks: Mapping[str, NDArray[np.uint8]]


def find_regions(model: Volume, tool: Segmenter | None) -> Regions:
    """Return the regions of a CT in HU in model orientation, by `tool`; None: by the classical segmentation."""
    if tool is not None:
        masks = tool.segment(model, ANATOMY)
        if missing := [name for name in ANATOMY if name not in masks]:
            raise InputError(f"the tool gave no mask for {missing[0]}, expected {', '.join(ANATOMY)}; repair the tool")
        fluid = masks["effusion"] > 0
        return Regions(masks["lobes"], pleural_cavities(sides_of(masks["lobes"]), fluid), fluid, masks)
    lungs = with_bronchi(segment_lungs(model.array, model.spacing_mm), model)
    fluid = fluid_on_grid(model.array, lungs.label, model.spacing_mm)
    sides = pleural_cavities(lungs.label, fluid)
    lobes = segment_lobes(lungs.label, sides)
    return Regions(lobes, sides, fluid, {"lobes": lobes, "airway": lungs.airway.astype(np.uint8)})


def regional_measures(model: Volume, regions: Regions) -> dict[str, float | None]:
    """Return MEASURES of a CT in HU in model orientation."""
    whole = measure(model, {name: model.with_array(mask) for name, mask in regions.masks.items()}).values
    voxel_ml = model.voxel_mm3 / 1000
    found: dict[str, float | None] = {
        f"effusion_ml_{side}": float((regions.fluid & (regions.sides == label)).sum()) * voxel_ml
        for side, label in SIDES.items()
    }
    airway = regions.masks["airway"] > 0
    lung = model.array[(regions.lobes > 0) & ~airway]
    median = float(np.median(lung)) if lung.size else 0.0
    for label, lobe in enumerate(LOBE_NAMES, start=1):
        voxels = model.array[(regions.lobes == label) & ~airway]
        share = 100.0 * float((voxels < LOW_ATTENUATION_HU).mean()) if voxels.size else None
        found[f"laa950_percent_{lobe}"] = share
        found[f"density_hu_{lobe}"] = float(voxels.mean()) - median if voxels.size else None
    found |= {name: whole[name] for name in ("laa950_percent", "cardiothoracic_ratio")}
    solid = solid_by_lobe(model, regions)
    return found | {f"solid_ml_{lobe}": value for lobe, value in zip(LOBE_NAMES, solid, strict=True)}


def solid_by_lobe(model: Volume, regions: Regions) -> list[float]:
    """Return the solid tissue (ml) where each lobe should be, on blocks of about WORKING_MM; of absent lobes 0."""
    factors = block_factors(model.spacing_mm, WORKING_MM)
    spacing = tuple(step * factor for step, factor in zip(model.spacing_mm, factors, strict=True))
    hu, lobes = block_mean(model.array, factors), block_labels(regions.lobes, factors)
    if not lobes.any():
        return [0.0] * len(LOBE_NAMES)
    excluded = block_labels((regions.fluid | (regions.masks["airway"] > 0)).astype(np.uint8), factors) > 0
    lungs = sides_of(lobes)
    filled = np.logical_or.reduce([close(lungs == side, FILL_MM, spacing) for side in SIDES.values()])  # type: ignore[arg-type]
    nearest = ndimage.distance_transform_edt(lobes == 0, spacing, return_distances=False, return_indices=True)
    solid = lobes[tuple(nearest)][filled & ~excluded & (hu > SOLID_HU)]
    counts = np.bincount(solid, minlength=len(LOBE_NAMES) + 1)[1:]
    return [float(count) * float(np.prod(spacing)) / 1000 for count in counts]


def changes(volume: Volume, other: Volume, regions: Regions) -> dict[str, float | None]:
    """Return CHANGES: the mean absolute difference (HU) of two volumes in `regions`, those of `other`.

    None for a region that is absent. Both volumes are in model orientation; another grid is an InputError.
    """
    if volume.array.shape != other.array.shape:
        raise InputError(
            f"volumes of one pair have grids {volume.array.shape} and {other.array.shape}, expected one grid; sample"
            " both with the same settings"
        )
    difference = np.abs(volume.array.astype(np.float32) - other.array)
    masks = [regions.sides == label for label in SIDES.values()]
    masks += [regions.lobes == label for label in range(1, len(LOBE_NAMES) + 1)]
    means = (float(difference[mask].mean()) if mask.any() else None for mask in masks)
    return dict(zip(CHANGES, means, strict=True))
