"""Turn a volume into the model's orientation and back without resampling: axes are permuted and flipped.

Model orientation: array (D, H, W) = (z inferior to superior, y posterior to anterior, x right to left), ITK's code
"LAS". An oblique scan keeps its small rotation in `direction`; resampling removes it (`medsyn.ct.preprocess`).
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from medsyn.errors import InputError
from medsyn.volume import Volume

MODEL_CODE = "LAS"


def orientation_code(volume: Volume) -> str:
    """Return three letters: where the x, y and z index run to (left/right, anterior/posterior, superior/inferior)."""
    return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines([float(d) for d in volume.direction]))


def reorient(volume: Volume, code: str = MODEL_CODE) -> Volume:
    """Return the same voxels with axes that run as `code` says; geometry follows, nothing is interpolated."""
    present = orientation_code(volume)
    if present == code:
        return volume
    pairs = [next(pair for pair in ("LR", "AP", "SI") if letter in pair) for letter in code]
    order = [next(axis for axis in range(3) if present[axis] in pair) for pair in pairs]  # x, y, z index
    flipped = [present[axis] != letter for axis, letter in zip(order, code, strict=True)]
    direction = np.array(volume.direction).reshape(3, 3)[:, order]
    spacing = np.array(volume.spacing_mm[::-1])[order]
    array = volume.array.transpose([2 - axis for axis in reversed(order)])
    last = (np.array(array.shape[::-1]) - 1) * spacing * flipped
    x, y, z = np.asarray(volume.origin_mm) + direction @ last
    array = np.flip(array, tuple(2 - axis for axis in range(3) if flipped[axis]))
    signs = np.where(flipped, -1.0, 1.0)
    sz, sy, sx = (float(step) for step in spacing[::-1])
    turned = tuple(float(cosine) for cosine in (direction * signs).ravel())
    return Volume(np.ascontiguousarray(array), (sz, sy, sx), (float(x), float(y), float(z)), turned)


def reorient_to(mask: Volume, target: Volume, name: str) -> Volume:
    """Return `mask` with its axes turned to those of `target`; InputError if it then lies on other voxels.

    Nothing is resampled. `name` begins the message.
    """
    turned = reorient(mask, orientation_code(target))
    if not (
        turned.array.shape == target.array.shape
        and np.allclose(turned.spacing_mm, target.spacing_mm, rtol=1e-3)
        and np.allclose(turned.direction, target.direction, atol=1e-3)
        and np.allclose(turned.origin_mm, target.origin_mm, atol=min(target.spacing_mm) / 2)
    ):
        shapes = f"{turned.array.shape}, the CT's {target.array.shape}"
        raise InputError(
            f"{name}: its grid is not the CT's (shape {shapes}; or spacing, origin, axes); resample it to the CT"
        )
    return target.with_array(turned.array)
