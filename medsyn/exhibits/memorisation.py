"""The table of memorisation: which share of a method's volumes lies closer to a training volume than unseen ones do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.exhibits.base import Exhibit, Rows, Table
from medsyn.exhibits.inputs import Inputs
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources
from medsyn.files import read_csv
from medsyn.layout import Layout

if TYPE_CHECKING:
    from medsyn.evaluate.memorisation import Row

SPACE_COLUMNS = (
    *("share", "share_ci_low", "share_ci_high", "threshold", "close_share", "median", "validation_median"),
)
NAMES = {
    "share": "beyond the threshold",
    "threshold": "threshold of isolation",
    "close_share": "close by distance alone",
    "median": "distance to training, median",
    "validation_median": "distance to validation, median",
}


def needs(sources: Sources) -> list[Need]:
    """Return the nearest volumes of every method's answers to the reports."""
    methods = sources.compared()
    sampled = (sources.reference, "reports")
    return [Need("file", ("nearest",), (sources.layout.nearest(),), sampled), *sources.names(methods)]


def make(inputs: Inputs, config: EvaluationConfig) -> Table:
    """Return the shares of every method in the file that was given, and `real`, the validation volumes, last."""
    from medsyn.evaluate.memorisation import SPACES, VALIDATION, memorisation

    rows = nearest_rows(inputs)
    limit = config.memorisation.max_share
    table: Rows = []
    for method in methods_of(rows):
        found = memorisation(rows, method)
        over = "voxel_share" in found and found["voxel_share"] > limit
        label = "real, not seen" if method == VALIDATION else inputs.full_name(method)
        verdict = None if method == VALIDATION or "voxel_share" not in found else "above" if over else "within"
        table.append({"method": method, "label": label, "max_share": limit, "verdict": verdict, **found})
    names = [f"{space}_{name}" for space in SPACES for name in SPACE_COLUMNS]
    return ["method", "label", "n", "verdict", *names, "max_share", "note"], table


def nearest_rows(inputs: Inputs) -> list[Row]:
    """Return the rows of the one file of `medsyn nearest` that was given."""
    from medsyn.evaluate.memorisation import read_nearest

    files = [path for paths in inputs.require_group("file").values() for path in paths]
    if len(files) != 1:
        raise InputError(f"{inputs.name}: --file names {len(files)} files, expected one: that of `medsyn nearest`")
    return read_nearest(files[0])


def methods_of(rows: Sequence[Row]) -> list[str]:
    """Return the methods in rows of `medsyn nearest`, and the validation volumes last."""
    from medsyn.evaluate.memorisation import VALIDATION

    groups = dict.fromkeys(row["group"] for row in rows)
    return [*(group for group in groups if group != VALIDATION), VALIDATION]


def warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for every method whose share is above the limit."""
    from medsyn.evaluate.memorisation import warning

    return [
        warning(row["label"], float(row["voxel_share"]), float(row["max_share"]))
        for row in rows
        if row["verdict"] == "above"
    ]


def release_warning(weights: Path) -> str | None:
    """Return what must be known before volumes of a trained run are released; None where its share is within the limit.

    weights: run.json or its folder. The table is that of the results folder in which the run was trained. One that is
    older than the run, or has no verdict on it, counts as missing.
    """
    run = weights / "run.json" if weights.is_dir() else weights
    method, table = run.parent.name, Path(Layout(str(run.parent.parent.parent)).table("memorisation"))
    if table.is_file() and table.stat().st_mtime >= run.stat().st_mtime:
        rows = [row for row in read_csv(table, ("method", "verdict")) if row["method"] == method and row["verdict"]]
        if rows:
            return next(iter(warnings(rows)), None)
    return (
        f"Memorisation: {table} has no verdict on this run, so it is not known whether its volumes are copies of"
        f" training volumes; before you release any, run `snakemake {table}`, or `medsyn evaluate` with --training"
    )


MEMORISATION = Exhibit(
    name="memorisation",
    kind="table",
    title="Memorisation. Generated volumes that may be copies of training volumes",
    caption=(
        "Voxels: distance is 1 minus the correlation of HU inside the body, the largest over flips and small shifts."
        " Features: Euclidean distance on the features of Table I, without flips and shifts. Isolation: the distance to"
        " the nearest training volume over the mean distance to the next ten that are not copies of that volume"
        " themselves; it is small where one training volume stands out. Beyond the threshold: isolation smaller than"
        " that of at least 95 % of the validation volumes, which no method has seen, so at most 5 % are expected of a"
        " method that copies nothing; below in grey the 95 % interval (Wilson). Close by distance alone: the same for"
        " the distance; smooth volumes are close to many."
        " The verdict compares the share by voxels with max_share."
        " The training split is larger than the validation split, so the nearest training volume is nearer by"
        " chance alone."
    ),
    needs=needs,
    options=("file", "label"),
    make=make,
    warnings=warnings,
    headers={
        "verdict": "Verdict",
        "max_share": "at most",
        **{f"{space}_{name}": f"{title} ({space}s)" for space in ("voxel", "feature") for name, title in NAMES.items()},
    },
)
