"""Warnings that the voxels of a chest CT give rise to: what changes a measure but proves no fault.

Takes a volume in HU that `medsyn.ct.inspect` does not refuse, and returns lines of `medsyn.scan_warnings`.
"""

from __future__ import annotations

from numpy.typing import NDArray

from medsyn.scan_warnings import RANGE, warn

CLIPPED_SHARE = 0.002
"""Share of the voxels with the highest (or lowest) value of a scan that was clipped there. On a real CT it is 0.00001;
clipped at 200, 400 and 600 HU it is 0.029, 0.010 and 0.0036."""
LOWEST_FREE_HU = -1000.0
"""Values clipped at or below this lose nothing that is measured: it is the HU of air."""


def range_warnings(array: NDArray) -> list[str]:
    """Return warnings of HU (D, H, W) that were clipped: many voxels hold exactly the highest or the lowest value."""
    sample = array[:: max(1, array.shape[0] // 32), ::2, ::2]
    warnings = []
    for end, value in (("maximum", float(sample.max())), ("minimum", float(sample.min()))):
        share = float((sample == value).mean())
        if share >= CLIPPED_SHARE and (end == "maximum" or value > LOWEST_FREE_HU):
            warnings.append(warn(RANGE, f"{share:.1%} of the voxels at the {end}, {value:g} HU: were they clipped?"))
    return warnings
