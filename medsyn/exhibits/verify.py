"""Make a table again from the record beside it and the files that the record names, and say what differs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.evaluate.inputs import text_fields
from medsyn.exhibits.base import EXHIBITS, Rows
from medsyn.exhibits.inputs import Inputs
from medsyn.files import read_csv, read_json, sha256

ROUNDING = 2e-5
"""Relative difference of two numbers that are the same but for the order of sums: tables hold six digits."""
_ZERO = 1e-9  # what is smaller is 0 but for the order of sums
_MOST_LINES = 20


def verify_table(path: Path, root: Path) -> list[str]:
    """Return a line for every way in which a table is not what its inputs give now; none where nothing differs.

    path: the table (.csv) or its record (.json); root: the folder to which the paths in the record are relative.
    Inputs that are missing or have another SHA-256 are named, and the table is then not made again. Raises InputError
    for a file that is no record, one that an earlier version wrote, or a table whose exhibit is not known.
    """
    record = path.with_suffix(".json")
    table = path.with_suffix(".csv") if path.suffix == ".json" else path
    origin = read_json(record)
    if not isinstance(origin, dict) or not isinstance(origin.get("made_from"), dict) or "inputs" not in origin:
        raise InputError(
            f"{record}: does not say from what the table was made, expected `made_from` and `inputs`; it is of an"
            " earlier version or of another verb: verify takes tables of `medsyn table`, made with this version"
        )
    name = str(origin["made_from"].get("exhibit"))
    if name not in EXHIBITS.names():
        plugin = origin["made_from"].get("plugin") or "MODULE"
        raise InputError(f"{record}: exhibit '{name}' is not known; give --plugin {plugin} before the verb")
    changed = list(_changed_inputs(origin["inputs"], root))
    if changed:
        return _shortened(changed)
    exhibit = EXHIBITS[name]
    if exhibit.uses_settings and "config" not in origin:
        raise InputError(f"{record}: holds no `config`, which {name} is made with; make the table again")
    try:
        inputs = Inputs.from_record(origin["made_from"], root)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{record}: made_from cannot be read ({error}); make the table again") from None
    made = exhibit.make(inputs, _settings(origin, record))  # type: ignore[arg-type]
    assert isinstance(made, tuple), name
    columns, rows = made
    found = read_csv(table)
    if found and list(found[0]) != columns:
        return [f"columns: {', '.join(found[0])} in the file, {', '.join(columns)} now"]
    return _shortened(list(_differences(found, rows, columns)))


def _changed_inputs(inputs: Mapping[str, str], root: Path) -> Iterator[str]:
    for name, expected in inputs.items():
        path = root / name
        if not path.is_file():
            yield f"{path}: is missing; the table was made from it"
        elif (found := sha256(path)) != expected:
            yield f"{path}: has changed: its SHA-256 is {found[:16]}, {expected[:16]} when the table was made"


def _settings(origin: Mapping[str, Any], record: Path) -> EvaluationConfig | None:
    if "config" not in origin:
        return None
    try:
        return EvaluationConfig.model_validate(origin["config"])
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{record}: config.{'.'.join(map(str, first['loc']))}: {first['msg']}; another version of medsyn made this"
            f" table (medsyn {origin.get('medsyn')}, commit {origin.get('commit')}): verify it with that one"
        ) from None


def _differences(found: Sequence[Mapping[str, str]], rows: Rows, columns: Sequence[str]) -> Iterator[str]:
    if len(found) != len(rows):
        yield f"rows: {len(found)} in the file, {len(rows)} now"
        return
    for number, (old, new) in enumerate(zip(found, rows, strict=True), start=1):
        fields = text_fields(new, columns)
        for column in columns:
            before, now = old[column], "" if fields[column] is None else str(fields[column])
            if before != now and not (isinstance(new.get(column), float) and _is_rounding(before, now)):
                values = f"{before or 'empty'} in the file, {now or 'empty'} now"
                yield f"row {number} ({old[columns[0]]}), {column}: {values}"


def _is_rounding(before: str, now: str) -> bool:
    try:
        return math.isclose(float(before), float(now), rel_tol=ROUNDING, abs_tol=_ZERO)
    except ValueError:
        return False


def _shortened(lines: list[str]) -> list[str]:
    rest = len(lines) - _MOST_LINES
    return lines if rest <= 0 else [*lines[:_MOST_LINES], f"and {rest} more"]
