"""Count the volumes of a folder that stand out as copies of training volumes: `medsyn evaluate --training`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medsyn.config.evaluation import MemorisationConfig
from medsyn.errors import InputError
from medsyn.evaluate.memorisation import Row, memorisation, warning
from medsyn.progress import log
from medsyn.stages.nearest import TRAINING, Named, joined, nearest_rows

NUM_CLOSEST = 10


def copies(spaces: Mapping[str, Mapping[str, Named]]) -> tuple[list[dict[str, Any]], list[Row]]:
    """Return rows `metric, value, ci_low, ci_high, n_real, n_synthetic, note`, and the closest pairs; log the share.

    spaces: voxel, and feature if there are any; in each the groups TRAINING, real (not seen by the system) and
    synthetic. Numbers are those of the table `memorisation`. Raises InputError for a group without volumes.
    """
    for name, group in spaces["voxel"].items():
        if not group.names:
            raise InputError(f"--training: no {name} volume can be brought to the grid; give chest CTs in HU")
    nearest = joined(
        nearest_rows(space, of[TRAINING], of["real"], [("synthetic", of["synthetic"])]) for space, of in spaces.items()
    )
    found = memorisation(nearest, "synthetic")
    counts = {
        "n_real": len(spaces["voxel"]["real"].names),
        "n_synthetic": found.pop("n"),
        "note": found.pop("note", None),
    }
    _tell(found, counts)
    bounds = {key: found.pop(key) for key in list(found) if "_ci_" in key}
    rows = [
        {"metric": f"memorisation_{key}", "value": found.get(key), **counts}
        | {bound: bounds.get(f"{key}_{bound}") for bound in ("ci_low", "ci_high")}
        for key in dict.fromkeys(("voxel_share", *found))
    ]
    known = [row for row in nearest if row["group"] == "synthetic" and row["voxel_isolation"] is not None]
    return rows, sorted(known, key=lambda row: row["voxel_isolation"])[:NUM_CLOSEST]


def _tell(found: Row, counts: Mapping[str, Any]) -> None:
    """Log the share by voxels, as a warning where it is above the default of `max_share`."""
    share, limit = found.get("voxel_share"), MemorisationConfig().max_share
    if share is None:
        log.warning(
            "evaluate: memorisation: %s", counts["note"] or "no volume has a nearest and a next training volume"
        )
    elif share > limit:
        log.warning("evaluate: %s", warning("--synthetic", share, limit))
    else:
        bounds = (100 * found[f"voxel_share_ci_{end}"] for end in ("low", "high"))
        log.info(
            "evaluate: memorisation: %.3g %% of %d volumes stand out as copies (95 %% interval %.3g to %.3g %%)",
            *(100 * share, counts["n_synthetic"], *bounds),
        )
