"""Measure the HU of the air in a scan, and calibrate the scan so that air is -1000 HU.

Hounsfield's scale has two fixed points: water 0 and air -1000. The paper says of its images that they "have been
calibrated, and air density correction has been applied", without a formula. Ours: the air around the patient is
measured and all values are multiplied by -1000 / air, which leaves water at 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medsyn.masks.lungs import AIR_HU as LEAST_AIR_HU
from medsyn.masks.lungs import inner_air

AIR_HU = -1000.0
AIR_RANGE_HU = (-1200, -500)
"""Where a peak of air is looked for, in whole HU."""
TOLERANCE_HU = 80.0
"""Air farther from -1000 than this is not a scanner's drift but another scale."""
MINIMUM_SHARE = 0.002
"""Of the voxels: less air around the patient cannot be measured (a field of view within the body)."""
MINIMUM_NEAR_SHARE = 0.0005
"""Of the voxels: trachea and bronchi alone are more (30 ml of 20 to 50 litres)."""


def measure_air(hu: NDArray) -> float | None:
    """Return the median HU of the air around the patient in (D, H, W), None where there is too little of it.

    Outside the circle of reconstruction scanners write one constant, often -1024 or lower: a lowest value that alone
    makes up a tenth of the volume, with almost nothing 1 to 3 HU above it, is padding and not measured.
    """
    sample = _sample(hu)
    values = _without_padding(sample, sample[(sample < LEAST_AIR_HU) & ~inner_air(sample)])
    if values.size < MINIMUM_SHARE * sample.size:
        return None
    counts = np.bincount(values - AIR_RANGE_HU[0])
    peak = int(np.argmax(np.convolve(counts, np.ones(21), "same"))) + AIR_RANGE_HU[0]
    return float(np.median(values[np.abs(values - peak) <= 30]))


def air_is_off(hu: NDArray, air: float | None = None) -> float | None:
    """Return what is wrong with the air, or None if the air (or another air of the volume) is near -1000 HU.

    air: what `measure_air` returns for the volume, if it is known.
    """
    air = measure_air(hu) if air is None else air
    if air is None or abs(air - AIR_HU) <= TOLERANCE_HU:
        return None
    sample = _sample(hu)
    near = np.abs(_without_padding(sample, sample.ravel()) - AIR_HU) <= TOLERANCE_HU
    return air if near.sum() < MINIMUM_NEAR_SHARE * sample.size else None


def calibrate_air(hu: NDArray) -> tuple[NDArray, dict[str, float | None]]:
    """Scale HU so that air is -1000 and water 0; return them with the measured air and the factor.

    Without measurable air near -1000 HU the values are unchanged, the factor is 1 and the air is the one that was seen.
    """
    air = measure_air(hu)
    if air is None or abs(air - AIR_HU) > TOLERANCE_HU:
        return hu, {"air_hu": air, "air_factor": 1.0}
    factor = AIR_HU / air
    return hu.astype(np.float32) * np.float32(factor), {"air_hu": round(air, 2), "air_factor": round(factor, 6)}


def _sample(hu: NDArray) -> NDArray[np.float32]:
    """Return about 32 slices at every second row and column."""
    return np.asarray(hu[:: max(1, hu.shape[0] // 32), ::2, ::2], np.float32)


def _without_padding(sample: NDArray, values: NDArray) -> NDArray[np.int64]:
    """Return those of `values` that lie in AIR_RANGE_HU, rounded, without padding."""
    whole = np.rint(values[(values >= AIR_RANGE_HU[0]) & (values <= AIR_RANGE_HU[1])]).astype(np.int64)
    if whole.size == 0:
        return whole
    counts = np.bincount(whole - whole.min(), minlength=4)
    padding = counts[0] > 0.1 * sample.size and counts[1:4].sum() < 0.1 * counts[0] and counts[1:].any()
    return whole[whole > whole.min()] if padding else whole
