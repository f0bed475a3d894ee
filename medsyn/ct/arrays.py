"""Find the orientation of an array without geometry, as npz data sets store CTs, from the patient's anatomy.

Columns of an axial slice are assumed to run to the patient's left, as scanners write them: a mirror image cannot be
told from a patient. Found by the anatomy are the end of z at which the head lies, and the side of y on which the back
lies.
"""

from __future__ import annotations

import numpy as np

from medsyn.errors import InputError
from medsyn.masks.lungs import segment_lungs
from medsyn.masks.morphology import coarsened
from medsyn.orientation import reorient
from medsyn.volume import Volume

BONE_HU = 200.0
COARSE_MM = 3.0


def orient_by_anatomy(volume: Volume, name: str = "volume") -> Volume:
    """Return the same voxels with the direction of z and y found by the anatomy; columns must run to the left ("LPS").

    Back: the side of the spine, where the bone between the lungs lies. Head: the end where a trachea is found. Without
    lungs the orientation is unchanged (inspection refuses such a volume). Lungs without a trachea at either end are an
    InputError.
    """
    coarse = coarsened(volume, COARSE_MM)
    best: tuple[int, str] | None = None
    lungs_seen = False
    for z_code in "SI":
        turned = reorient(with_code(coarse, f"L{_back(coarse)}{z_code}"))
        lungs = segment_lungs(turned.array, turned.spacing_mm)
        lungs_seen |= bool(lungs.mask.any())
        size = int(lungs.airway.sum()) if lungs.mask.any() else 0
        if size and (best is None or size > best[0]):
            best = (size, f"L{_back(coarse)}{z_code}")
    if best is None:
        if lungs_seen:
            raise InputError(
                f"{name}: no trachea found, by which head and feet are told apart; give the orientation of the array"
            )
        return volume
    return with_code(volume, best[1])


def with_code(volume: Volume, code: str) -> Volume:
    """Return the same voxels with axes that run as `code` says: three letters for x, y and z, such as LPS."""
    signs = {"L": (0, 1.0), "R": (0, -1.0), "P": (1, 1.0), "A": (1, -1.0), "S": (2, 1.0), "I": (2, -1.0)}
    direction = np.zeros((3, 3))
    for column, letter in enumerate(code):
        row, sign = signs[letter]
        direction[row, column] = sign
    return Volume(volume.array, volume.spacing_mm, volume.origin_mm, tuple(direction.ravel()))


def _back(volume: Volume) -> str:
    """Return "P" if rows run to the back, else "A": the spine is the bone in the body's middle third."""
    body = volume.array > -300
    columns = np.flatnonzero(body.sum((0, 1)) > 0.1 * body.sum((0, 1)).max())
    third = (columns[-1] - columns[0] + 1) // 3 if columns.size else 0
    middle = slice(columns[0] + third, columns[-1] + 1 - third) if third else slice(None)
    bone, inside = volume.array[:, :, middle] > BONE_HU, body[:, :, middle]
    if not bone.any():
        return "P"
    rows = np.arange(volume.array.shape[1])
    at_bone = float((bone.sum((0, 2)) * rows).sum() / bone.sum())
    at_body = float((inside.sum((0, 2)) * rows).sum() / inside.sum())
    return "P" if at_bone > at_body else "A"
