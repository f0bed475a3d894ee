"""Check the geometry that the header of an image file states.

Gives faults (the scan is refused) and warnings (`medsyn.scan_warnings`): no spacing, no orientation, two transforms
that differ, axes that are not at right angles. What a header lacks can be given by the manifest or the command line
(`medsyn.header_hints.HeaderHints`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsyn.errors import InputError
from medsyn.header_hints import HeaderHints
from medsyn.nifti import Header
from medsyn.orientation import orientation_code
from medsyn.scan_warnings import GEOMETRY, ORIENTATION, SPACING, warn
from medsyn.volume import EXACT_DEGREES, Volume, skew_degrees, straightened

MOST_SKEW_DEGREES = 1.0
"""Axes skewed by more are a tilted gantry, or damage: slices 300 mm apart are then shifted by 5 mm."""
NAMED_TILT_DEGREES = 0.1
GIVE_SPACING = "give spacing_mm 'z y x' (manifest or --spacing-mm)"
GIVE_ORIENTATION = "give orientation, such as LPS (manifest or --orientation)"


@dataclass(frozen=True)
class HeaderFacts:
    """What a header carries: spacing, orientation, and transforms that may contradict each other (RAS affines by name).

    pixdim_mm: spacing (x, y, z) that a NIfTI header holds beside its transforms; empty in other formats.
    """

    has_spacing: bool = True
    has_orientation: bool = True
    transforms: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    pixdim_mm: tuple[float, ...] = ()


def nifti_facts(header: Header) -> HeaderFacts:
    """Return what a NIfTI header carries; its pixdim is 0 where a spacing is missing."""
    given = {name: affine for name, affine in (("qform", header.qform), ("sform", header.sform)) if affine is not None}
    has_spacing = min(header.spacing_mm) > 0 or header.affine is header.sform is not None
    has_spacing = has_spacing and bool(np.isfinite(header.spacing_mm).all())
    return HeaderFacts(has_spacing, bool(given), given, header.spacing_mm)


def text_facts(path: Path) -> HeaderFacts:
    """Return what the text header of a MetaImage or NRRD file carries.

    MetaImage: ElementSpacing (or ElementSize), TransformMatrix (or Rotation, Orientation). NRRD: "space directions" or
    "spacings", and "space" with "space directions".
    """
    keys = {}
    with path.open("rb") as handle:
        for raw in handle.read(1 << 16).split(b"\n"):
            line = raw.decode("latin-1").strip()
            name, _, value = line.partition("=" if path.suffix.lower() != ".nrrd" else ":")
            keys[name.strip().lower()] = value.strip().lower()
            if not line or name.strip() == "ElementDataFile":
                break
    if path.suffix.lower() == ".nrrd":
        turned = "space directions" in keys
        spaced = turned or ("spacings" in keys and "nan" not in keys["spacings"])
        return HeaderFacts(spaced, turned and ("space" in keys))
    return HeaderFacts(
        not keys.keys().isdisjoint({"elementspacing", "elementsize"}),
        not keys.keys().isdisjoint({"transformmatrix", "rotation", "orientation"}),
    )


def unsaid_geometry(volume: Volume, facts: HeaderFacts, hints: HeaderHints) -> tuple[str, ...]:
    """Return which of `spacing_mm` and `orientation` neither the header nor `hints` says.

    A header with what libraries write by default, 1 mm and an identity matrix without an origin, says neither.
    """
    bare = _is_bare(volume)
    spacing = hints.spacing_mm is None and (bare or not facts.has_spacing)
    orientation = hints.orientation == "auto" and (bare or not facts.has_orientation)
    return ("spacing_mm",) * spacing + ("orientation",) * orientation


def check_geometry(
    volume: Volume, facts: HeaderFacts, hints: HeaderHints, name: str
) -> tuple[Volume, list[str], list[str]]:
    """Return a volume with orthogonal axes, the faults and the warnings; without any spacing, InputError."""
    warnings: list[str] = []
    if hints.spacing_mm is None:
        if not facts.has_spacing:
            raise InputError(f"{name}: carries no spacing; {GIVE_SPACING}")
        if _is_bare(volume):
            text = "1 mm in every direction with an identity matrix and no origin, as files without a spacing have"
            warnings.append(warn(SPACING, f"{text}; {GIVE_SPACING}"))
        warnings += _other_spacing(volume, facts)
    if hints.orientation != "auto":
        return volume, [], warnings
    if not facts.has_orientation or _is_bare(volume):
        why = "an identity matrix" if facts.has_orientation else "no orientation"
        warnings.append(warn(ORIENTATION, f"{why}, taken as {orientation_code(volume)}; {GIVE_ORIENTATION}"))
    warnings += _contradictions(volume, facts)
    faults, notes = tilt_notes(*skew_degrees(volume), _other_tilt(facts))
    return straightened(volume), faults, warnings + notes


def tilt_notes(tilt: float, skew: float, other: float = 0.0) -> tuple[list[str], list[str]]:
    """Return faults and warnings of axes that differ from right angles by `tilt` (slice axis) and `skew` (in plane).

    other: tilt in a transform of the header that is not in use.
    """
    tilt = max(tilt, other)
    if tilt > MOST_SKEW_DEGREES:
        return [
            f"gantry tilt: the slices are shifted against each other by {tilt:.1f} degrees; resample the scan to a"
            " straight grid"
        ], []
    if skew > MOST_SKEW_DEGREES:
        return [f"skewed by {skew:.1f} degrees: rows and columns are not at right angles; write the header again"], []
    largest = max(tilt, skew)
    if largest < EXACT_DEGREES:
        return [], []
    name = "gantry tilt" if tilt > NAMED_TILT_DEGREES and tilt >= skew else "skew"
    return [], [warn(GEOMETRY, f"{name} of {largest:.2g} degrees, the axes were made orthogonal")]


def _is_bare(volume: Volume) -> bool:
    """Return whether the geometry is what libraries write by default: 1 mm, no origin, an identity matrix."""
    steps = bool(np.allclose(volume.spacing_mm, 1.0, atol=1e-6) and not np.any(volume.origin_mm))
    return steps and bool(np.allclose(np.abs(volume.direction), np.eye(3).ravel(), atol=1e-6))


def _other_spacing(volume: Volume, facts: HeaderFacts) -> list[str]:
    """Warn where the sform of a NIfTI header without a qform scales the voxels differently from its pixdim."""
    if facts.transforms.keys() != {"sform"} or min(facts.pixdim_mm) <= 0:
        return []
    scale = tuple(np.linalg.norm(facts.transforms["sform"][:3, :3], axis=0))
    if np.allclose(scale, facts.pixdim_mm, rtol=0.01):
        return []
    pixdim, sform, used = (
        " x ".join(f"{step:.3g}" for step in steps) for steps in (facts.pixdim_mm, scale, volume.spacing_mm[::-1])
    )
    return [warn(SPACING, f"pixdim says {pixdim} mm, sform says {sform} mm, used as {used}; {GIVE_SPACING}")]


def _contradictions(volume: Volume, facts: HeaderFacts) -> list[str]:
    """Warn where qform and sform turn or scale the voxels differently."""
    if len(facts.transforms) < 2:
        return []
    first, second = (affine[:3, :3] for affine in facts.transforms.values())
    steps = np.linalg.norm(first, axis=0)
    if np.allclose(first, second, atol=0.01 * float(steps.min())):
        return []
    seen = []
    for name, affine in facts.transforms.items():
        lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]
        norms = np.linalg.norm(lps, axis=0)
        code = orientation_code(replace(volume, direction=tuple((lps / np.maximum(norms, 1e-9)).ravel())))
        seen.append(f"{name} says {code} at {' x '.join(f'{step:.3g}' for step in norms)} mm")
    return [warn(ORIENTATION, f"{', '.join(seen)}, used as {orientation_code(volume)}; {GIVE_ORIENTATION}")]


def _other_tilt(facts: HeaderFacts) -> float:
    """Return the largest tilt of the transforms, in use or not."""
    tilts = [0.0]
    for affine in facts.transforms.values():
        norms = np.linalg.norm(affine[:3, :3], axis=0)
        if norms.min() > 0:
            direction = tuple((affine[:3, :3] / norms).ravel())
            tilts.append(skew_degrees(Volume(np.zeros((1, 1, 1), np.uint8), (1.0, 1.0, 1.0), direction=direction))[0])
    return max(tilts)
