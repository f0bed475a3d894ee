"""The manifest of a cohort from the folders and tables of a data set: what all adapters share, and that of any table.

`from_csv` takes any table with renamed columns. `medsyn.cohort.ct_rate` and `medsyn.cohort.rad_chestct` know two public
data sets. Every adapter gives rows of MANIFEST_COLUMNS with absolute paths; files on disk decide who is in. What a file
does not say itself (spacing, rescaling) goes into the manifest's columns of `medsyn.header_hints`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medsyn.cohort.manifest import NOTES
from medsyn.errors import InputError
from medsyn.files import read_csv
from medsyn.header_hints import HINT_COLUMNS
from medsyn.volume import STRUCTURES

MANIFEST_COLUMNS = (
    *("subject_id", "image", "findings", "impression", "split", "patient_id", "report_id", "labels"),
    *STRUCTURES,
    *HINT_COLUMNS,
    *NOTES,
)
LEFT_OUT_COLUMNS = ("subject_id", "reason")
Row = dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """What an adapter gives.

    rows: subjects (MANIFEST_COLUMNS); left_out: volumes on disk that are not in it (LEFT_OUT_COLUMNS, a reason begins
    with its kind and a colon); notes: warnings, one line each.
    """

    rows: list[Row]
    left_out: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def from_csv(table: str | Path, columns: Mapping[str, str], images: str | Path | None = None) -> Manifest:
    """Return rows of `table`.

    columns: its names of manifest columns; those that have the manifest's name need none;
    images: folder that the paths of images and masks are relative to (none: the table's own).
    """
    unknown = sorted(set(columns) - set(MANIFEST_COLUMNS))
    if unknown:
        raise InputError(
            f"{table}: {unknown[0]} is not a column of a manifest; expected one of {', '.join(MANIFEST_COLUMNS)}"
        )
    required = [columns.get(name, name) for name in ("subject_id", "image")]
    folder = Path(images) if images is not None else Path(table).parent
    rows = []
    for raw in read_csv(table, [*required, *columns.values()]):
        row = {name: raw.get(columns.get(name, name), "").strip() for name in MANIFEST_COLUMNS}
        row |= {name: str((folder / row[name]).absolute()) for name in ("image", *STRUCTURES) if row[name]}
        rows.append(row)
    return Manifest(rows)


def manifest_row(**values: str) -> Row:
    """Return a row of MANIFEST_COLUMNS; columns that are not given are empty."""
    return dict.fromkeys(MANIFEST_COLUMNS, "") | {name: value.strip() for name, value in values.items()}


def walk(folder: str | Path) -> Iterator[Path]:
    """Yield the files below `folder`, also through linked folders, without hidden folders; no folder: InputError."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; name the one that holds the volumes")
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        facts = Path(place).stat()
        if (facts.st_dev, facts.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name).absolute() for name in sorted(files) if not name.startswith("."))


def header_of(table: Path) -> set[str]:
    """Return the columns of a CSV file; the empty set for another file."""
    try:
        with table.open(encoding="utf-8-sig") as handle:
            return {name.strip().strip('"') for name in handle.readline(1 << 20).split(",")}
    except (OSError, UnicodeDecodeError):
        return set()


def by_name(tables: Sequence[Path], key: str, columns: Sequence[str] = ()) -> dict[str, Row]:
    """Return rows of several tables, which must have `columns`, by `stem` of their column `key`.

    Two tables that differ in `columns` (none: in any) of one name are an InputError.
    """
    rows: dict[str, tuple[Row, Path]] = {}
    for table in tables:
        for raw in read_csv(table, [key, *columns]):
            name = stem(raw[key])
            row, first = rows.setdefault(name, (raw, table))
            if first != table and any(row.get(column) != raw.get(column) for column in columns or raw):
                raise InputError(
                    f"{table}: {name} has other values than in {first}; keep or name one of the two tables"
                )
    return {name: row for name, (row, _) in rows.items()}


def stem(name: str) -> str:
    """Return the name of a volume without folder and suffix."""
    return re.sub(r"\.(nii\.gz|nii|npz|mha|nrrd)$", "", name.strip().replace("\\", "/").rpartition("/")[2])


def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts train_2 before train_10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def number(text: str) -> float | None:
    """Return a finite number, or None for other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def is_positive(text: str) -> bool:
    """Return whether a label field says that the finding is there."""
    return (number(text) or 0.0) > 0.5


def label_columns(marks: Mapping[str, str], key: str) -> list[str]:
    """Return the columns of a row that are labels: not `key`, not the index that pandas writes."""
    return [name for name in marks if name not in ("", key) and not name.startswith("Unnamed")]


def positive(marks: Mapping[str, str], key: str) -> str:
    """Return the names of the columns that are 1, joined by semicolons."""
    return ";".join(name for name in label_columns(marks, key) if is_positive(marks[name]))


def none_named(folder: str | Path, pattern: str, names: Collection[str]) -> InputError:
    """Return the error of a folder without a volume of the data set; names: files that were seen."""
    seen = f"found {len(names)} other files, such as {min(names)}" if names else "found no file"
    return InputError(f"{folder}: no file in it is named as {pattern}, {seen}; name the folder of the download")
