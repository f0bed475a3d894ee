"""Make and write the rows of tables: means with bounds, counts of what was found, scores of files, provenance.

Every generated volume is counted: `num_volumes` of them, in `num_found` (Table I: `airway_found`) of which the anatomy
that the measure is of was found. Absent anatomy is 0 where the measure is an amount. A volume without value (a ratio of
absent anatomy, or a measurement that failed: `num_failed`) is left out of mean and test and counted in `num_missing`;
`n` counts the values that were used. `not_chest_fraction` is the share of volumes that `medsyn inspect` would reject.
Means come with the sample standard deviation and percentile bootstrap bounds (95 %); `p_value` is of the one-tailed
Welch t-test, the columns after it of the paired one (`medsyn.evaluate.pairing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.evaluate.inputs import parse_number, text_fields
from medsyn.evaluate.measure_names import NEEDS
from medsyn.evaluate.statistics import summarise
from medsyn.exhibits.base import Exhibit, Rows, Table
from medsyn.exhibits.inputs import Inputs
from medsyn.files import read_csv, sha256, write_csv, write_json
from medsyn.provenance import provenance
from medsyn.registry import EXHIBITS

PARTS = ("mean", "std", "ci_low", "ci_high")


def summary_columns(name: str) -> list[str]:
    """Return the columns of `summary`."""
    return [f"{name}_{part}" for part in PARTS]


def summary(values: Sequence[float | None], name: str, config: EvaluationConfig) -> dict[str, Any]:
    """Return mean, standard deviation and bounds under the names of `summary_columns`, `n_used` and `num_missing`."""
    result = summarise(values, num_bootstrap=config.num_bootstrap, seed=config.seed)
    parts = {"mean": result.mean, "std": result.std, "ci_low": result.ci_low, "ci_high": result.ci_high}
    return {f"{name}_{part}": value for part, value in parts.items()} | {
        "n_used": result.n,
        "num_missing": result.num_missing,
    }


def validity(entries: Sequence[Mapping[str, float | None]], measure: str) -> dict[str, Any]:
    """Count the volumes, those with the anatomy that `measure` is of, those that failed; the share that is not a chest.

    An entry that does not say whether the anatomy was found has it where it has a value, and failed where it has none.
    """
    key = f"{NEEDS[measure]}_found"
    absent = [entry.get(key) == 0 for entry in entries]
    failed = [entry.get(measure) is None and not gone for entry, gone in zip(entries, absent, strict=True)]
    verdicts = [entry["chest"] for entry in entries if entry.get("chest") is not None]
    return {
        "num_found": len(entries) - sum(absent) - sum(failed),
        "num_volumes": len(entries),
        "num_failed": sum(failed),
        "not_chest_fraction": 1.0 - float(np.mean(verdicts)) if verdicts else None,  # type: ignore[arg-type]
    }


def read_scores(paths: Sequence[str | Path], key: Sequence[str], numbers: Sequence[str]) -> list[Rows]:
    """Return the rows of each file, `numbers` parsed; a row whose columns `key` came before is an InputError."""
    seen: dict[tuple[str, ...], str | Path] = {}
    parts: list[Rows] = []
    for path in paths:
        parts.append([])
        for row in read_csv(path, [*key, *numbers]):
            name = tuple(row[column] for column in key)
            if name in seen:
                raise InputError(f"{path}: {' / '.join(name)} is already in {seen[name]}; give every score once")
            seen[name] = path
            parts[-1].append(row | {column: parse_number(row[column], column, path) for column in numbers})
    return parts


def write_table(
    out: str | Path, table: Table, exhibit: Exhibit, config: EvaluationConfig | None, inputs: Inputs
) -> None:
    """Write the table as CSV and, beside it with the suffix .json, where it comes from (for `medsyn verify`)."""
    columns, rows = table
    facts: dict[str, Any] = {}
    if "feature_extractor" in columns:
        facts["feature_extractor"] = next((r["feature_extractor"] for r in rows if "feature_extractor" in r), "none")
    number = int(exhibit.number) if exhibit.number.isdigit() else exhibit.number
    hashes = {str(file): sha256(file) for path in inputs.all_files() for file in _files(Path(path))}
    made_from = {"exhibit": exhibit.name, "plugin": EXHIBITS.plugin_of(exhibit.name), **inputs.record()}
    write_csv(out, (text_fields(row, columns) for row in rows), columns)
    write_json(
        Path(out).with_suffix(".json"), provenance(config, table=number, made_from=made_from, inputs=hashes, **facts)
    )


def _files(path: Path) -> list[Path]:
    """Return a file, or all files in a folder."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
