"""Header hints: facts that an image file lacks or states wrongly, from the manifest or the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from medsyn.errors import InputError

HINT_COLUMNS = ("series", "spacing_mm", "orientation", "rescale_slope", "rescale_intercept")


@dataclass(frozen=True)
class HeaderHints:
    """What is known of an image beside its file.

    series: SeriesInstanceUID or SeriesDescription of the DICOM series to read. spacing_mm: (z, y, x), replaces the
    file's. orientation: three letters, where the x, y and z index run to ("LPS": the patient's left, posterior and
    superior), replaces the file's; "auto" keeps the file's and finds that of an npz array by its anatomy
    (`medsyn.ct.arrays`). slope, intercept: HU = slope * value + intercept, for files that hold raw values.
    """

    series: str | None = None
    spacing_mm: tuple[float, float, float] | None = None
    orientation: str = "auto"
    slope: float | None = None
    intercept: float | None = None


def parse_hints(row: Mapping[str, str], name: str = "volume") -> HeaderHints:
    """Return the header hints of a manifest row; a HINT_COLUMN that is missing or empty gives no hint.

    A value that cannot be true is an InputError that begins with `name`.
    """
    text = {key: (row.get(key) or "").strip() for key in HINT_COLUMNS}
    try:
        numbers = [float(part) for part in text["spacing_mm"].replace(",", " ").split()]
        slope, intercept = (float(text[key]) if text[key] else None for key in HINT_COLUMNS[3:])
    except ValueError as error:
        raise InputError(
            f"{name}: {error}; expected spacing_mm 'z y x' in mm and rescale columns that are numbers"
        ) from None
    finite = all(math.isfinite(value) for value in (*numbers, slope or 1.0, intercept or 0.0))
    if len(numbers) not in (0, 3) or not finite or any(value <= 0 for value in numbers) or slope == 0:
        found = ", ".join(f"{key} '{text[key]}'" for key in HINT_COLUMNS if key == "spacing_mm" or "rescale" in key)
        raise InputError(
            f"{name}: {found}; expected three positive numbers of mm, a finite slope other than 0 and a finite"
            " intercept; correct them or leave them empty"
        )
    orientation = text["orientation"].upper() or "AUTO"
    if orientation != "AUTO" and not (
        len(orientation) == 3 and {frozenset(pair) & set(orientation) != set() for pair in ("LR", "AP", "SI")} == {True}
    ):
        raise InputError(f"{name}: orientation '{orientation}' is invalid: expected three letters such as LPS, or auto")
    return HeaderHints(
        text["series"] or None,
        (numbers[0], numbers[1], numbers[2]) if numbers else None,
        orientation if orientation != "AUTO" else "auto",
        slope,
        intercept,
    )
