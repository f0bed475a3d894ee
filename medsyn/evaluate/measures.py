"""Anatomical measures of a chest CT (paper, sections V-B and V-C): arrays in, numbers out.

- `lung_volume_ml`: lungs without the airway. Without lungs 0.
- `airway_volume_mm3`: lumen of the airway (Table I). Without airway 0.
- `effusion_volume_ml`: pleural fluid (Table II). Without lungs 0, unless a network found the fluid.
- `laa950_percent`: share of the lung's voxels below -950 HU (Table III). Without lungs no value.
- `cardiothoracic_ratio`: maximal cardiac width over maximal inner thoracic width at the same axial level (Table IV).
  Without a heart between two lungs no value.

An amount of absent anatomy is 0: leaving the volume out would average a method over its better volumes. A ratio of
absent anatomy is not defined. Fluid is searched for beside the lungs; a volume without lungs holds no fluid that can be
called pleural, so its effusion is 0, and `found["lung"]` tells it from a chest without fluid. A structure whose
segmentation failed with an error says nothing about the anatomy: its measures have no value, and the others stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsyn.evaluate.measure_names import MEASURES
from medsyn.masks.effusion import WORKING_MM, segment_effusion
from medsyn.masks.heart import cardiothoracic_ratio, ratio_of_heart
from medsyn.masks.lobes import sides_of
from medsyn.masks.lungs import Lungs, segment_lungs
from medsyn.masks.morphology import Spacing, block_factors, block_labels, block_mean
from medsyn.orientation import reorient, reorient_to
from medsyn.volume import Volume

LOW_ATTENUATION_HU = -950.0
NO_LUNG, NO_AIRWAY, NO_HEART = "no lung found", "no airway found", "no axial slice shows a heart between two lungs"


@dataclass(frozen=True)
class Measured:
    """values: every name of MEASURES -> number or None; found: every name of ANATOMIES -> whether it is there (None:
    its segmentation failed); reasons: why, for each None and each 0 of absent anatomy.
    """

    values: dict[str, float | None]
    found: dict[str, bool | None]
    reasons: dict[str, str]


@dataclass(frozen=True)
class _Result:
    """One measure: its value, whether its anatomy is there (None: the segmentation failed), and why if it is not."""

    value: float | None
    found: bool | None = True
    reason: str = ""


def measure(
    volume: Volume,
    masks: Mapping[str, Volume] | None = None,
    failures: Mapping[str, str] | None = None,
    coarse_lungs: Lungs | None = None,
) -> Measured:
    """Return all measures of a CT in HU.

    `masks` on the same grid (lobes, airway; heart and effusion, or neither of both) replace the classical segmentation.
    `failures` says by structure why a mask is missing whose segmentation failed. `coarse_lungs`: what the classical
    segmentation begins with, if it was found already (`segment_lungs`).
    """
    model = reorient(volume)
    given = {name: reorient_to(mask, model, f"mask {name}").array for name, mask in (masks or {}).items()}
    failed = dict(failures or {})
    if given or failed:
        lobes = given.pop("lobes", None)
        lungs = None if lobes is None else sides_of(lobes)
        found = {name: mask > 0 for name, mask in given.items()}
    else:
        classical = segment_lungs(model.array, model.spacing_mm, coarse_lungs)
        lungs, found = classical.label, {"airway": classical.airway}
    results = {"airway_volume_mm3": _airway(model, found.get("airway"), failed)}
    results |= _lung(model, lungs, found.get("airway"), failed)
    if "heart" in found.keys() | failed.keys() or "effusion" in found.keys() | failed.keys():
        results |= _given_thorax(model, lungs, found, failed)
    else:
        results |= _classical_thorax(model, lungs, failed)
    return Measured(
        {name: results[name].value for name in MEASURES},
        {
            "lung": results["lung_volume_ml"].found,
            "airway": results["airway_volume_mm3"].found,
            "heart": results["cardiothoracic_ratio"].found,
        },
        {name: results[name].reason for name in MEASURES if results[name].reason},
    )


def _airway(model: Volume, airway: NDArray[np.bool_] | None, failed: Mapping[str, str]) -> _Result:
    if airway is None:
        return _failure("airway", failed)
    there = bool(airway.any())
    return _Result(float(airway.sum()) * model.voxel_mm3, there, "" if there else NO_AIRWAY)


def _lung(
    model: Volume, lungs: NDArray[np.uint8] | None, airway: NDArray[np.bool_] | None, failed: Mapping[str, str]
) -> dict[str, _Result]:
    """Return the volume and low attenuation of the lungs (0, 1 right, 2 left; None: failed) without the airway."""
    names = ("lung_volume_ml", "laa950_percent")
    if lungs is None:
        return dict.fromkeys(names, _failure("lobes", failed))
    lung = lungs > 0 if airway is None else (lungs > 0) & ~airway
    voxels = int(lung.sum())
    if not voxels:
        return {names[0]: _Result(0.0, False, NO_LUNG), names[1]: _Result(None, False, NO_LUNG)}
    share = 100.0 * float((model.array[lung] < LOW_ATTENUATION_HU).sum()) / voxels
    return {names[0]: _Result(voxels * model.voxel_mm3 / 1000), names[1]: _Result(share)}


def _given_thorax(
    model: Volume, lungs: NDArray[np.uint8] | None, masks: Mapping[str, NDArray[np.bool_]], failed: Mapping[str, str]
) -> dict[str, _Result]:
    """Return effusion and cardiothoracic ratio from masks, each None where its segmentation failed."""
    fluid, heart = masks.get("effusion"), masks.get("heart")
    effusion = _failure("effusion", failed)
    if fluid is not None:
        effusion = _Result(float(fluid.sum()) * model.voxel_mm3 / 1000)
        if not fluid.any() and lungs is not None and not (lungs > 0).any():
            effusion = _Result(0.0, False, NO_LUNG)
    if heart is None or lungs is None:
        ratio = _failure("heart" if heart is None else "lobes", failed)
    else:
        cavity = lungs > 0 if fluid is None else (lungs > 0) | fluid
        ratio = _ratio(ratio_of_heart(heart, cavity), effusion)
    return {"effusion_volume_ml": effusion, "cardiothoracic_ratio": ratio}


def _classical_thorax(model: Volume, lungs: NDArray[np.uint8] | None, failed: Mapping[str, str]) -> dict[str, _Result]:
    """Return the effusion and cardiothoracic ratio from HU and lungs, on a coarser grid where the CT is fine."""
    names = ("effusion_volume_ml", "cardiothoracic_ratio")
    if lungs is None:
        return dict.fromkeys(names, _failure("lobes", failed))
    if not (lungs > 0).any():
        return {names[0]: _Result(0.0, False, NO_LUNG), names[1]: _Result(None, False, NO_HEART)}
    factors = block_factors(model.spacing_mm, WORKING_MM)
    spacing: Spacing = tuple(s * f for s, f in zip(model.spacing_mm, factors, strict=True))  # type: ignore[assignment]
    hu, coarse = block_mean(model.array, factors), block_labels(lungs, factors)
    try:
        fluid = segment_effusion(hu, coarse, spacing)
        effusion = _Result(float(fluid.sum()) * float(np.prod(spacing)) / 1000)
    except (RuntimeError, ValueError) as error:
        fluid = np.zeros(coarse.shape, bool)
        effusion = _failure("effusion", {"effusion": " ".join(str(error).split())})
    try:
        ratio = _ratio(cardiothoracic_ratio(hu, coarse, fluid, spacing), effusion)
    except (RuntimeError, ValueError) as error:
        ratio = _failure("heart", {"heart": " ".join(str(error).split())})
    return {names[0]: effusion, names[1]: ratio}


def _ratio(value: float | None, effusion: _Result) -> _Result:
    """Return the cardiothoracic ratio; its reason says so where the thorax was measured without fluid."""
    if value is None:
        return _Result(None, False, NO_HEART)
    return _Result(
        value, True, "" if effusion.value is not None else f"thorax measured without fluid ({effusion.reason})"
    )


def _failure(structure: str, failed: Mapping[str, str]) -> _Result:
    return _Result(None, None, f"{structure} failed: {failed.get(structure, 'no mask was given')}")
