"""Say how many volumes of a method are copies of training volumes, by what holds for real volumes it has not seen.

Rows are those of `medsyn nearest`: one per judged volume, of the group VALIDATION or of a method.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from medsyn.errors import InputError
from medsyn.evaluate.inputs import parse_number
from medsyn.evaluate.nearest import Match, Neighbours
from medsyn.files import read_csv

VALIDATION = "validation"
"""The group of the real volumes that no model has seen; they set the thresholds."""
SPACES = ("voxel", "feature")
KEY = ("group", "volume")
NUMBERS = tuple(f"{space}_{name}" for space in SPACES for name in ("distance", "isolation", "validation_distance"))
COLUMNS = (
    *KEY,
    *(
        f"{space}_{name}"
        for space in SPACES
        for name in ("nearest", "distance", "isolation", "nearest_validation", "validation_distance")
    ),
)
TAIL_PERCENT = 5
"""Share of unseen real volumes that is expected beyond a threshold at most."""
MIN_REAL = 100 // TAIL_PERCENT - 1
"""Validation volumes below which no threshold has that property."""
NOTE_FEW = f"fewer than {MIN_REAL} validation volumes have a nearest training volume: no threshold, no share"
Row = dict[str, Any]


def match_columns(space: str, training: Match, names: Sequence[str]) -> Row:
    """Return the columns of a space that say which training volume is nearest; names: of the training volumes."""
    values = (names[training.index], training.distance, training.isolation)
    return dict(zip((f"{space}_{key}" for key in ("nearest", "distance", "isolation")), values, strict=True))


def validation_columns(space: str, match: Neighbours, names: Sequence[str]) -> Row:
    """Return the columns of a space that say which validation volume is nearest."""
    return {f"{space}_nearest_validation": names[match.index], f"{space}_validation_distance": match.distance}


def read_nearest(path: str | Path) -> list[Row]:
    """Return the rows of a file of `medsyn nearest`; InputError for another file, or one without validation rows."""
    rows = [row | {n: parse_number(row[n], n, path) for n in NUMBERS} for row in read_csv(path, COLUMNS)]
    if not any(row["group"] == VALIDATION for row in rows):
        raise InputError(f"{path}: no row of the group '{VALIDATION}', which sets the thresholds; run `medsyn nearest`")
    return rows


def memorisation(rows: Sequence[Row], group: str) -> Row:
    """Return the shares of the volumes of a group that are beyond the thresholds, by space; None where there are none.

    A volume is beyond the threshold of a space where its isolation is smaller than `low_quantile` of the validation
    volumes'. `<space>_share` with Wilson bounds (95 %); `<space>_threshold`; `<space>_close_share`: by distance alone;
    `<space>_median` and `<space>_validation_median`: of the distances to the nearest training and validation volume.
    """
    judged = [row for row in rows if row["group"] == group]
    result: Row = {"n": len(judged)}
    for space in SPACES:
        for key, share in (("isolation", "share"), ("distance", "close_share")):
            threshold = threshold_of(rows, f"{space}_{key}")
            values = _known(judged, f"{space}_{key}")
            if threshold is None or not len(values):
                continue
            count = int((values < threshold).sum())
            result[f"{space}_{share}"] = count / len(values)
            if key == "isolation":
                bounds = binomtest(count, len(values)).proportion_ci(0.95, "wilson")
                result |= {f"{space}_share_ci_low": bounds.low, f"{space}_share_ci_high": bounds.high}
                result[f"{space}_threshold"] = threshold
        for key, median in (("distance", "median"), ("validation_distance", "validation_median")):
            if len(values := _known(judged, f"{space}_{key}")):
                result[f"{space}_{median}"] = float(np.median(values))
    if threshold_of(rows, "voxel_isolation") is None:
        result["note"] = NOTE_FEW
    return result


def warning(label: str, share: float, max_share: float) -> str:
    """Return the sentence that tells of a method whose share by voxels is above `max_share`."""
    return (
        f"Memorisation: {100 * share:.0f} % of the volumes of {label} stand out as copies of a training volume, at most"
        f" {100 * max_share:.0f} % may (evaluation.memorisation.max_share) and {TAIL_PERCENT} % of unseen real"
        " volumes at most do. Look at the closest pairs before you release model or volumes."
    )


def threshold_of(rows: Sequence[Row], name: str) -> float | None:
    """Return `low_quantile` of a column over the validation volumes."""
    return low_quantile(_known([row for row in rows if row["group"] == VALIDATION], name))


def low_quantile(values: Sequence[float] | np.ndarray) -> float | None:
    """Return the value below which another one of the same kind lies with a probability of TAIL_PERCENT at most.

    Of n exchangeable values it is the k-th smallest with k = (n + 1) * TAIL_PERCENT / 100, rounded down: a further
    value is smaller with probability k / (n + 1). None for fewer than MIN_REAL values.
    """
    rank = (len(values) + 1) * TAIL_PERCENT // 100
    return float(np.sort(values)[rank - 1]) if rank else None


def _known(rows: Sequence[Row], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows if row.get(name) is not None], float)
