"""Reconstruction kernels and slice thickness: which of several reconstructions of one scan to take.

Used for the series of a DICOM folder (`medsyn.ct.dicom`) and for the reconstructions of a public data set
(`medsyn.cohort.ct_rate`), so that both follow one rule: a soft or standard kernel before a sharp one, then the thinnest
slices.
"""

from __future__ import annotations

import re

THICK_ENOUGH_MM = 1.5
"""Slices up to this thickness count as equally thin."""
_SHARP = re.compile(
    r"lung|bone|edge|ultra|sharp"  # GE (LUNG, BONE, BONEPLUS, EDGE, ULTRA), names in words
    r"|^[BDHIJQSTU][a-z]?(?:[6-9]\d|1\d\d)"  # Siemens, by the number
    r"|^[BHQ]l\d"  # Siemens, lung
    r"|^FC[358]\d"  # Canon and Toshiba: FC3x bone, FC5x lung, FC8x high resolution
    r"|^Y[A-E]|^(?:D|E[BC]?|L)$",  # Philips
    re.IGNORECASE,
)


def is_sharp(kernel: str) -> bool:
    """Return whether a kernel (DICOM: ConvolutionKernel) is made for lung or bone: B70s, Br60f, Bl57d, FC30, YA, LUNG.

    Siemens: one or two letters for the body part and the kind (B body, H head, Q quantitative, U ultra-high resolution;
    l lung), then a number that grows with the sharpness. B30s and B40s are its standard kernels, B60s to B80s those of
    higher sharpness for thorax and skeleton (operating instructions of SOMATOM Sensation Cardiac, A60, body kernels).
    A kernel whose name is not known counts as soft.
    """
    return bool(_SHARP.search(kernel.strip()))


def equal_thickness_mm(thickness: float) -> float:
    """Return a thickness in mm by which reconstructions are compared: at least THICK_ENOUGH_MM."""
    return max(thickness, THICK_ENOUGH_MM)
