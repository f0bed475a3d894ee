"""Read the answers of a study: the export of its server with the key, or a table that was collected elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from medsyn.config.study import StudyStructure, StudyTask
from medsyn.errors import InputError
from medsyn.files import read_csv
from medsyn.layout import REAL
from medsyn.study.definition import Group, Key

ANSWER_COLUMNS = (
    *("reader", "group", "item", "task", "structure", "repeats", "volume", "answer", "rank", "note", "seconds"),
    *("position", "answered_at"),
)
"""Columns of the server's export; see docs/reader_study.md."""


@dataclass(frozen=True)
class Response:
    """What one reader said about one volume of one item.

    answer: of a recognition item, empty: none; rank: of a ranking item, 1 is the best, None: none; repeats: the item
    that this one shows again; seconds: time for the item.
    """

    reader: str
    group: str
    item: str
    task: str
    structure: str
    repeats: str
    volume: str
    method: str
    label: str
    real: bool
    truth: str
    answer: str
    rank: float | None
    seconds: float | None = None


def read_responses(path: str | Path, key: Key | None = None) -> list[Response]:
    """Return the rows of an answers table; a row that cannot be true is an InputError that names reader and item.

    Without a key the table has the columns `method` (`real` for CTs of patients), `truth` and, if it differs from
    the method, `label`.
    """
    needed = ["reader", "item", "task", "answer", "rank"]
    rows = read_csv(path, [*needed, "volume"] if key else [*needed, "method", "truth"])
    if not rows:
        raise InputError(f"{path}: has no answers, expected a row per reader, item and volume")
    responses = [_response(path, row, key) for row in rows]
    _check(path, responses)
    return responses


def by_block(responses: Iterable[Response]) -> dict[tuple[str, str], list[Response]]:
    """Return the responses of each reader and item."""
    blocks: dict[tuple[str, str], list[Response]] = {}
    for response in responses:
        blocks.setdefault((response.reader, response.item), []).append(response)
    return blocks


def in_order(values: Iterable[str], first: Sequence[str] = (), last: Sequence[str] = ()) -> list[str]:
    """Return different values: those of `first`, others by name, those of `last`."""
    found = set(values)
    middle = sorted(found - set(first) - set(last))
    return [*(value for value in first if value in found), *middle, *(value for value in last if value in found)]


def _response(path: str | Path, row: Mapping[str, str], key: Key | None) -> Response:
    where = f"{path}: reader '{row['reader']}', item '{row['item']}'"
    if not row["reader"] or not row["item"]:
        raise InputError(f"{where}: the name of a reader or item is empty; fill it in")
    task = _one_of(where, "task", row["task"], get_args(StudyTask))
    structure = _one_of(where, "structure", row.get("structure", ""), ("", *get_args(StudyStructure)))
    group = _one_of(where, "group", row.get("group", ""), get_args(Group))
    if (task == "ranking") != bool(structure):
        raise InputError(f"{where}: structure '{structure}' in a {task} item; a ranking item alone has a structure")
    facts = _facts(where, row, key)
    return Response(
        reader=row["reader"],
        group=group,
        item=row["item"],
        task=task,
        structure=structure,
        repeats=row.get("repeats", ""),
        volume=row.get("volume") or facts["method"],
        method=facts["method"],
        label=facts["label"],
        real=facts["method"] == REAL,
        truth=facts["truth"],
        answer=row["answer"] if task == "recognition" else "",
        rank=_number(where, "rank", row["rank"]) if task == "ranking" else None,
        seconds=_number(where, "seconds", row.get("seconds", "")),
    )


def _facts(where: str, row: Mapping[str, str], key: Key | None) -> dict[str, str]:
    """Return method, label and truth of a row's volume."""
    if key is None:
        if not row["method"]:
            raise InputError(f"{where}: the method is empty; name it, `{REAL}` for a CT of a patient")
        return {"method": row["method"], "label": row.get("label") or row["method"], "truth": row["truth"]}
    entry = key.volumes.get(row["volume"])
    if entry is None:
        raise InputError(f"{where}: volume '{row['volume']}' is not in the key; give the key of this study")
    return {"method": REAL if entry.real else entry.method, "label": entry.label, "truth": entry.truth or ""}


def _check(path: str | Path, responses: Sequence[Response]) -> None:
    """Raise InputError at answers that contradict each other."""
    seen: set[tuple[str, str, str]] = set()
    groups: dict[str, str] = {}
    for response in responses:
        where = f"{path}: reader '{response.reader}', item '{response.item}'"
        name = response.reader, response.item, response.volume
        if name in seen:
            raise InputError(f"{where}: volume '{response.volume}' is answered twice; keep one of the rows")
        seen.add(name)
        if groups.setdefault(response.reader, response.group) != response.group:
            raise InputError(f"{where}: the reader is in two groups; give each reader one group")
        if response.task == "recognition" and not response.truth:
            raise InputError(f"{where}: has no truth, which a recognition item needs; fill it in")
    for (reader, item), block in by_block(responses).items():
        where = f"{path}: reader '{reader}', item '{item}'"
        if len({(part.task, part.structure, part.repeats) for part in block}) > 1:
            raise InputError(f"{where}: its rows have different tasks, structures or repeats; correct them")
        if block[0].task == "recognition" and len(block) > 1:
            raise InputError(f"{where}: has {len(block)} volumes, a recognition item has one; correct the items' names")
        if len({part.method for part in block}) < len(block):
            raise InputError(f"{where}: ranks two volumes of one method, expected one of each; correct the methods")
        for part in block:
            if part.rank is not None and not 1 <= part.rank <= len(block):
                raise InputError(f"{where}: rank {part.rank:g} of {len(block)} volumes, expected 1 to {len(block)}")


def _one_of(where: str, column: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        expected = ", ".join(name or "nothing" for name in known)
        raise InputError(f"{where}: {column} '{value}', expected {expected}; correct it")
    return value


def _number(where: str, column: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise InputError(f"{where}: {column} '{text}' is not a number of 0 or more; correct it, or leave it empty")
    return value
