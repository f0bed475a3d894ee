"""A volume turned into the model's orientation and back, without resampling: axes are permuted and flipped, voxels
never change.

Model orientation: array (D, H, W) = (z inferior to superior, y posterior to anterior, x right to left), ITK's code
"LAS". An oblique scan keeps its small rotation in `direction`; removing it is the resampling's work
(`medsyn.ct.preprocess`).
"""

from __future__ import annotations

import SimpleITK as sitk

from medsyn.volume import Volume, from_sitk, to_sitk

MODEL_CODE = "LAS"


def orientation_code(volume: Volume) -> str:
    """Three letters, where the x, y and z index run to (left/right, anterior/posterior, superior/inferior)."""
    return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines([float(d) for d in volume.direction]))


def reorient(volume: Volume, code: str = MODEL_CODE) -> Volume:
    """The same voxels with axes running as `code` says; geometry follows, nothing is interpolated."""
    if orientation_code(volume) == code:
        return volume
    return from_sitk(sitk.DICOMOrient(to_sitk(volume), code))
