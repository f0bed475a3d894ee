"""Anatomical measures of a chest CT (paper, sections V-B and V-C): arrays in, numbers out.

`lung_volume_ml`: lungs without the airway. `airway_volume_mm3`: lumen of the airway (Table I). `effusion_volume_ml`:
pleural fluid (Table II). `laa950_percent`: share of the lung's voxels below -950 HU (Table III).
`cardiothoracic_ratio`: maximal cardiac width over maximal inner thoracic width at the same axial level (Table IV). What
cannot be measured is None with a reason, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsyn.masks.effusion import WORKING_MM, segment_effusion
from medsyn.masks.heart import cardiothoracic_ratio, ratio_of_heart
from medsyn.masks.lungs import LEFT, RIGHT, segment_lungs
from medsyn.masks.morphology import Spacing, block_factors, block_labels, block_mean
from medsyn.orientation import laid_on, reorient
from medsyn.volume import Volume

MEASURES = ("lung_volume_ml", "airway_volume_mm3", "effusion_volume_ml", "laa950_percent", "cardiothoracic_ratio")
LOW_ATTENUATION_HU = -950.0


@dataclass(frozen=True)
class Measured:
    """values: every name of MEASURES -> number or None; reasons: why, for each None."""

    values: dict[str, float | None]
    reasons: dict[str, str]


def measure(volume: Volume, masks: Mapping[str, Volume] | None = None) -> Measured:
    """All measures of a CT in HU; `masks` on the same grid (lobes, airway; heart and effusion, or neither of both)
    replace the classical segmentation.
    """
    model = reorient(volume)
    given = {name: laid_on(mask, model, f"mask {name}").array for name, mask in (masks or {}).items()}
    if not given:
        found = segment_lungs(model.array, model.spacing_mm)
        lungs, airway = found.label, found.airway
    else:
        lobes, airway = given["lobes"], given["airway"] > 0
        lungs = np.where(lobes >= 3, RIGHT, np.where(lobes > 0, LEFT, 0)).astype(np.uint8)
    lung = (lungs > 0) & ~airway
    voxels = int(lung.sum())
    values: dict[str, float | None] = dict.fromkeys(MEASURES)
    reasons: dict[str, str] = {}
    if airway.any():
        values["airway_volume_mm3"] = float(airway.sum()) * model.voxel_mm3
    else:
        reasons["airway_volume_mm3"] = "no airway found"
    if not voxels:
        reasons |= dict.fromkeys((name for name in MEASURES if name != "airway_volume_mm3"), "no lung found")
        return Measured(values, reasons)
    values["lung_volume_ml"] = voxels * model.voxel_mm3 / 1000
    values["laa950_percent"] = 100.0 * float((model.array[lung] < LOW_ATTENUATION_HU).sum()) / voxels
    if "heart" in given:
        effusion = given["effusion"] > 0
        values["effusion_volume_ml"] = float(effusion.sum()) * model.voxel_mm3 / 1000
        values["cardiothoracic_ratio"] = ratio_of_heart(given["heart"] > 0, (lungs > 0) | effusion)
    else:
        values["effusion_volume_ml"], values["cardiothoracic_ratio"] = _thorax(model, lungs)
    if values["cardiothoracic_ratio"] is None:
        reasons["cardiothoracic_ratio"] = "no axial slice shows a heart between two lungs"
    return Measured(values, reasons)


def _thorax(model: Volume, lungs: NDArray[np.uint8]) -> tuple[float, float | None]:
    """Effusion in ml and cardiothoracic ratio, on a coarser grid where the CT is fine."""
    factors = block_factors(model.spacing_mm, WORKING_MM)
    spacing: Spacing = tuple(s * f for s, f in zip(model.spacing_mm, factors, strict=True))  # type: ignore[assignment]
    hu, coarse = block_mean(model.array, factors), block_labels(lungs, factors)
    effusion = segment_effusion(hu, coarse, spacing)
    volume_ml = float(effusion.sum()) * float(np.prod(spacing)) / 1000
    return volume_ml, cardiothoracic_ratio(hu, coarse, effusion, spacing)
