"""Segment the lungs of a chest CT by thresholds.

Takes HU (D, H, W) = (z inferior to superior, y posterior to anterior, x patient's right to left) and spacing in
millimetres. Air inside the body is below -400 HU and does not reach the border of its own axial slice. (The rule is
applied per slice, so that a padded slice that touches the trachea does no harm.) Without the airway, the two large
lateral components of this air are the lungs.

Bullae remain part of the lung, because there is no lower threshold. Vessels and small dense lesions are closed over.
Dense disease that touches the pleura is lost, as with every threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.masks.airway import central_airway
from medsyn.masks.morphology import (
    IN_PLANE,
    Spacing,
    block_expand,
    block_factors,
    block_mean,
    box_of,
    close,
    components,
    dilate,
    dilate_by,
    enclosed,
    erode,
)

AIR_HU = -400.0
WORKING_MM = 2.5
RIGHT, LEFT = 1, 2
HOLE_MM2 = 400.0
"""Largest hole of an axial slice that is filled: a vessel at the hilum, not the dome of the liver."""
AROUND_MM = 12.0
"""Space around a lung in which its holes are looked for: a slice's outside is then larger than any hole."""
MINIMUM_ML = 80.0
"""A smaller component is not a lung, unless ..."""
COLLAPSED_ML = 25.0
"""... it lies on the side where no other is: a lung compressed by an effusion."""


@dataclass(frozen=True)
class Lungs:
    """Lungs and airway of one CT.

    label: uint8 (D, H, W), 0 background, 1 right, 2 left, without the airway; airway: its lumen, bool.
    """

    label: NDArray[np.uint8]
    airway: NDArray[np.bool_]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Return both lungs as one mask."""
        return self.label > 0


def segment_lungs(hu: NDArray, spacing_mm: Spacing, coarse: Lungs | None = None) -> Lungs:
    """Return the right and left lung and the airway; all are empty where the volume shows no lung.

    coarse: what this function found on blocks of WORKING_MM of the same volume, which is then not searched again.
    """
    factors = block_factors(spacing_mm, WORKING_MM)
    coarse_mm: Spacing = tuple(s * f for s, f in zip(spacing_mm, factors, strict=True))  # type: ignore[assignment]
    found = coarse or _coarse_lungs(block_mean(hu, factors), coarse_mm)
    if factors == (1, 1, 1):
        return found
    airway = block_expand(found.airway, factors, hu.shape)
    label = _refine(found.label, hu, factors, coarse_mm)
    label[airway] = 0
    return Lungs(label, airway)


def inner_air(hu: NDArray) -> NDArray[np.bool_]:
    """Return the air inside the body: below -400 HU and not connected to the border of its own axial slice.

    Air enclosed by something beside the body, such as the core of a hollow table, is left out.
    """
    air = hu < AIR_HU
    inside = enclosed(air, in_plane=True)
    return np.asarray(inside & ~_beside_body(~air, inside))


def _beside_body(tissue: NDArray[np.bool_], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the objects of the scan, with the air in them, that are not the one with the most tissue.

    An in-plane erosion by one voxel cuts cables and blankets between the table and the body.
    """
    objects, count = ndimage.label(~dilate_by(~(tissue | inside), IN_PLANE))
    if count < 2:
        return np.zeros(tissue.shape, bool)
    body = np.argmax(np.bincount(objects[tissue], minlength=count + 1)[1:]) + 1
    return np.asarray((objects != body) & (objects > 0))


def _coarse_lungs(hu: NDArray, spacing_mm: Spacing) -> Lungs:
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    inside = inner_air(hu)
    airway = central_airway(hu, inside, spacing_mm)
    lung_air = inside & ~dilate(airway, max(2.0, 0.6 * spacing_mm[2]), spacing_mm)
    label = _two_sides(_without_gas(lung_air, hu, voxel_ml), airway, spacing_mm, voxel_ml)
    out = np.zeros(hu.shape, np.uint8)
    for side in (RIGHT, LEFT):
        if not (label == side).any():
            continue
        box = box_of(label == side, AROUND_MM, spacing_mm)
        whole = _fill_small_holes(close(label[box] == side, 6.0, spacing_mm), spacing_mm)
        out[box][whole & (out[box] == 0) & ~airway[box]] = side
    return Lungs(out, airway)


def _fill_small_holes(lung: NDArray[np.bool_], spacing_mm: Spacing) -> NDArray[np.bool_]:
    """Fill vessels and nodules: closed cavities, and holes of axial slices too small for the diaphragm's dome."""
    lung = lung | enclosed(~lung)
    labels, sizes = components(~lung, IN_PLANE)
    hole = sizes * spacing_mm[1] * spacing_mm[2] <= HOLE_MM2
    hole[0] = False
    return np.asarray(lung | hole[labels])


def _without_gas(air: NDArray[np.bool_], hu: NDArray, voxel_ml: float) -> NDArray[np.bool_]:
    """Drop specks and bowel gas: a component that is empty air throughout and smaller than a lung."""
    labels, sizes = components(air)
    keep = sizes * voxel_ml >= COLLAPSED_ML
    boxes = ndimage.find_objects(labels)
    for index in np.flatnonzero(keep):
        box = boxes[index - 1]
        if sizes[index] * voxel_ml < 600 and np.median(hu[box][labels[box] == index]) < -955:
            keep[index] = False
    return np.asarray(keep[labels])


def _two_sides(
    air: NDArray[np.bool_], airway: NDArray[np.bool_], spacing_mm: Spacing, voxel_ml: float
) -> NDArray[np.uint8]:
    """Give every lung component a side; one that spans both is cut where erosion parts it, else at the midline."""
    out = np.zeros(air.shape, np.uint8)
    labels, sizes = components(air)
    order = [index for index in np.argsort(sizes)[::-1][:6] if sizes[index] * voxel_ml >= COLLAPSED_ML]
    if not order:
        return out
    columns = np.arange(air.shape[2])
    middle = _midline(np.isin(labels, order), airway)
    for index in order:
        part = labels == index
        profile = part.sum((0, 1))
        balance = profile[columns < middle].sum() / profile.sum()
        if min(balance, 1 - balance) > 0.04:
            cut = _part_in_two(part, spacing_mm, middle, COLLAPSED_ML / voxel_ml)
            if cut is None and min(balance, 1 - balance) > 0.2:
                cut = np.where(part & (columns < middle), RIGHT, LEFT)
            if cut is not None:
                out[part] = cut[part]
                continue
        side = RIGHT if balance > 0.5 else LEFT
        if sizes[index] * voxel_ml >= MINIMUM_ML or not (out == side).any():
            out[part] = side
    return out


def _midline(air: NDArray[np.bool_], airway: NDArray[np.bool_]) -> float:
    """Return the column between the lungs: the trachea's, else the emptiest near the middle of all lung air."""
    if airway.any():
        levels = np.flatnonzero(airway.any((1, 2)))
        trachea = airway[levels[0] + 2 * (levels[-1] - levels[0]) // 3 :]
        return float(np.nonzero(trachea)[2].mean())
    columns = np.flatnonzero(air.any((0, 1)))
    centre, width = (columns[0] + columns[-1]) / 2, columns[-1] - columns[0] + 1
    profile = ndimage.gaussian_filter1d(air.sum((0, 1)).astype(float), 1.0)
    near = np.arange(max(int(centre - 0.15 * width), 0), min(int(centre + 0.15 * width) + 1, len(profile)))
    return float(near[np.argmin(profile[near] / max(profile.max(), 1) + 0.5 * np.abs(near - centre) / width)])


def _part_in_two(
    part: NDArray[np.bool_], spacing_mm: Spacing, middle: float, minimum_voxels: float
) -> NDArray[np.uint8] | None:
    """Cut lungs that touch (anterior or posterior junction) into 1 right and 2 left, None when no erosion parts them.

    Eroded until a core is left on each side of the midline; every voxel then goes to the nearer core.
    """
    box, out = box_of(part, 0.0, spacing_mm), np.zeros(part.shape, np.uint8)
    part, middle = part[box], middle - box[2].start
    depth = ndimage.distance_transform_edt(part, spacing_mm)
    for radius in np.arange(1.0, 16.0, 1.0) * min(spacing_mm) / 2:
        labels, sizes = components(depth > radius)
        cores: dict[int, int] = {}
        for index in np.argsort(sizes)[::-1][:4]:
            if sizes[index] < 0.4 * minimum_voxels:
                break
            where = np.flatnonzero((labels == index).any((0, 1))).mean()
            cores.setdefault(RIGHT if where < middle else LEFT, int(index))
        if len(cores) == 2:
            seeds = np.where(labels == cores[RIGHT], RIGHT, np.where(labels == cores[LEFT], LEFT, 0))
            nearest = ndimage.distance_transform_edt(
                seeds == 0, spacing_mm, return_distances=False, return_indices=True
            )
            out[box] = np.where(part, seeds[tuple(nearest)], 0)
            return out
    return None


def _refine(
    coarse: NDArray[np.uint8], hu: NDArray, factors: tuple[int, int, int], coarse_mm: Spacing
) -> NDArray[np.uint8]:
    """Return labels on the fine grid: the coarse interior unchanged, its outermost layer by the fine threshold."""
    out = np.zeros(hu.shape, np.uint8)
    step = max(coarse_mm[1:])
    for side in (RIGHT, LEFT):
        if not (coarse == side).any():
            continue
        box = box_of(coarse == side, step, coarse_mm)
        part = coarse[box]
        lung = part == side
        fine = tuple(slice(b.start * f, min(b.stop * f, n)) for b, f, n in zip(box, factors, hu.shape, strict=True))
        here = out[fine]
        inner = block_expand(erode(lung, step, coarse_mm), factors, here.shape)
        outer = block_expand(dilate(lung, step, coarse_mm) & (lung | (part == 0)), factors, here.shape)
        here[(inner | (outer & (hu[fine] < AIR_HU))) & (here == 0)] = side
    return out
