"""How dark the air of a scan is, and the calibration that brings it to -1000 HU.

Hounsfield's scale has two fixed points: water 0 and air -1000. The paper says of its images that they "have been
calibrated, and air density correction has been applied", without a formula. Ours: the air around the patient is
measured and all values are multiplied by -1000 / air, which leaves water at 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medsyn.errors import InputError

AIR_HU = -1000.0
AIR_RANGE_HU = (-1200.0, -800.0)
"""Values that can be air on a scanner that is out of calibration; padding (-1024, -2000, ...) is set aside first."""
TOLERANCE_HU = 80.0
"""Air further from -1000 than this is no drift of a scanner but another scale."""
MINIMUM_SHARE = 0.002


def measure_air(hu: NDArray) -> float | None:
    """Median HU of the air voxels of (D, H, W), None where there are too few to tell.

    Outside the field of reconstruction scanners write one constant, often -1024 or lower: a value that alone makes up
    a tenth of the volume, with almost nothing 1 to 3 HU above it, is padding and not measured.
    """
    sample = hu[:: max(1, hu.shape[0] // 64), ::2, ::2]
    values = np.rint(sample[(sample >= AIR_RANGE_HU[0]) & (sample <= AIR_RANGE_HU[1])]).astype(int)
    if values.size < MINIMUM_SHARE * sample.size:
        return None
    counts = np.bincount(values - int(AIR_RANGE_HU[0]), minlength=int(AIR_RANGE_HU[1] - AIR_RANGE_HU[0]) + 4)
    lowest = int(np.flatnonzero(counts)[0])
    padding = counts[lowest] > 0.1 * sample.size and counts[lowest + 1 : lowest + 4].sum() < 0.1 * counts[lowest]
    if padding and values.size - counts[lowest] >= MINIMUM_SHARE * sample.size:
        values = values[values > lowest + int(AIR_RANGE_HU[0])]
    # around the mode, so that emphysema and partial volume do not pull
    peak = np.argmax(np.convolve(np.bincount(values - int(AIR_RANGE_HU[0])), np.ones(21), "same")) + AIR_RANGE_HU[0]
    return float(np.median(values[np.abs(values - peak) <= 30]))


def calibrate_air(hu: NDArray, name: str = "volume") -> tuple[NDArray[np.float32], dict[str, float]]:
    """HU scaled so that air is -1000 and water 0, with the measured air and the factor; no air to measure, or air
    too far from -1000: InputError that names `name`.
    """
    air = measure_air(hu)
    if air is None or abs(air - AIR_HU) > TOLERANCE_HU:
        seen = "no air to measure" if air is None else f"its air is {air:.0f} HU"
        raise InputError(f"{name}: {seen}; air calibration needs air near -1000 HU (preprocess.calibrate_air: false)")
    factor = AIR_HU / air
    return hu.astype(np.float32) * np.float32(factor), {"air_hu": round(air, 2), "air_factor": round(factor, 6)}
