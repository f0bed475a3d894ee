"""Reconstruction kernels and slice thickness: which of several reconstructions of one scan to take.

Used for the series of a DICOM folder (`medsyn.ct.dicom`) and for the reconstructions of a public data set
(`medsyn.cohort.ct_rate`), so that both follow one rule: a soft or standard kernel before a sharp one, then the thinnest
slices.
"""

from __future__ import annotations

import re

THICK_ENOUGH_MM = 1.5
"""Slices up to this thickness count as equally thin."""
_SHARP = re.compile(r"lung|bone|edge|^[BI][678]\d|^Bl\d|^Br?[678]\d|^FC[58]\d|^Y[A-D]|^[DEL]$", re.IGNORECASE)


def is_sharp(kernel: str) -> bool:
    """Return whether a kernel (DICOM: ConvolutionKernel) is made for lung or bone: B70s, Br60f, Bl57d, YA, LUNG."""
    return bool(_SHARP.search(kernel))


def equal_thickness_mm(thickness: float) -> float:
    """Return a thickness in mm by which reconstructions are compared: at least THICK_ENOUGH_MM."""
    return max(thickness, THICK_ENOUGH_MM)
