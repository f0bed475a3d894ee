"""Hash the state of the files that a manifest names, so that a workflow notices when one is replaced or added.

Only names, sizes and times of modification are read, each once. A folder of DICOM slices counts as changed when a file
in it is added, removed or renamed.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from medsyn.provenance import hash_json

_COLUMNS = ("image", "lobes", "airway", "vessels")


def manifest_state(manifests: Sequence[str | Path], reports: str | Path | None) -> str:
    """Hash the state of manifests and reports and which of the files that the manifests name are missing."""
    own = [_facts(str(path)) for path in (*manifests, *([reports] if reports else []))]
    missing = [
        path
        for manifest in manifests
        for _, paths in _rows(str(manifest))
        for path in paths
        if _facts(str(Path(manifest).parent / path)) is None
    ]
    return hash_json([own, missing])


def shard_state(cohort: str | Path, shard: str) -> str:
    """Hash the state of the images and masks of one shard of cohort.csv; empty while there is no table."""
    if not Path(cohort).exists():
        return ""
    rows = _rows(str(cohort), Path(cohort).stat().st_mtime_ns)
    return hash_json([[path, _facts(path)] for number, paths in rows if number == shard for path in paths])


@cache
def _rows(table: str, _changed: int = 0) -> list[tuple[str, list[str]]]:
    """Return the shard and the files of every row; what is wrong with a table is told by the verb that reads it."""
    rows = []
    with Path(table).open(newline="", encoding="utf-8-sig", errors="replace") as handle, suppress(csv.Error):
        for row in csv.DictReader(handle):
            rows.append((row.get("shard") or "", [row[name] for name in _COLUMNS if row.get(name)]))
    return rows


@cache
def _facts(path: str) -> list[int] | None:
    """Return size and time of modification of a file or folder, None if there is none."""
    try:
        facts = Path(path).stat()
    except (OSError, ValueError):
        return None
    return [facts.st_size, facts.st_mtime_ns]
