"""What a CT file does not say itself and the manifest adds: series, spacing, orientation, rescaling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from medsyn.errors import InputError

READING_COLUMNS = ("series", "spacing_mm", "orientation", "rescale_slope", "rescale_intercept")


@dataclass(frozen=True)
class Reading:
    """What a file does not say itself.

    series: SeriesInstanceUID or SeriesDescription; spacing_mm: (z, y, x), replaces the file's; orientation: where the
    x, y, z index run to ("LPS": patient's left, posterior, superior), replaces the file's; "auto": the file's, and
    for npz arrays what the anatomy tells (`medsyn.ct.arrays`); slope and intercept: HU = slope * value + intercept
    for raw values.
    """

    series: str | None = None
    spacing_mm: tuple[float, float, float] | None = None
    orientation: str = "auto"
    slope: float | None = None
    intercept: float | None = None


def parse_reading(row: Mapping[str, str], name: str = "volume") -> Reading:
    """A `Reading` from a manifest's READING_COLUMNS (missing or empty: not said); nonsense is an InputError."""
    text = {key: (row.get(key) or "").strip() for key in READING_COLUMNS}
    try:
        numbers = [float(part) for part in text["spacing_mm"].replace(",", " ").split()]
        slope, intercept = (float(text[key]) if text[key] else None for key in READING_COLUMNS[3:])
    except ValueError as error:
        raise InputError(f"{name}: {error}; spacing_mm is 'z y x' in mm, the rescale columns are numbers") from None
    finite = all(math.isfinite(value) for value in (*numbers, slope or 1.0, intercept or 0.0))
    if len(numbers) not in (0, 3) or not finite or any(value <= 0 for value in numbers) or slope == 0:
        raise InputError(f"{name}: spacing_mm '{text['spacing_mm']}' or the rescale columns cannot be; correct them")
    orientation = text["orientation"].upper() or "AUTO"
    if orientation != "AUTO" and not (
        len(orientation) == 3 and {frozenset(pair) & set(orientation) != set() for pair in ("LR", "AP", "SI")} == {True}
    ):
        raise InputError(f"{name}: orientation '{orientation}' is no code such as LPS, nor auto")
    return Reading(
        text["series"] or None,
        (numbers[0], numbers[1], numbers[2]) if numbers else None,
        orientation if orientation != "AUTO" else "auto",
        slope,
        intercept,
    )
