"""Export the answers of a reader study as a table: one row per reader, item and volume, with pseudonyms only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medsyn.files import write_csv
from medsyn.study.answers import Answer, AnswerStore
from medsyn.study.definition import Reader, Study

COLUMNS = (
    *("reader", "group", "item", "task", "structure", "repeats", "volume", "answer", "rank", "note", "seconds"),
    *("position", "answered_at"),
)


def export(study: Study, store: AnswerStore, path: Path) -> int:
    """Write the answers, as they were at one moment, to the CSV `path`; return how many items were answered.

    Practice items are left out, and readers who were withdrawn. `position` counts the items of a reader's order from 1,
    without practice; `seconds` is the time of the whole item, in each of its rows. Ranks are competition ranks: 1 is
    best, and volumes that tie share a rank.
    """
    rows = list(rows_of(study, store.all_answers()))
    write_csv(path, rows, COLUMNS)
    return len({(row["reader"], row["item"]) for row in rows})


def rows_of(study: Study, answers: Mapping[str, Mapping[str, Answer]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table from reader -> item -> answer."""
    for reader in study.readers:
        yield from _rows_of_reader(study, reader, answers.get(reader.code, {}))


def _rows_of_reader(study: Study, reader: Reader, answers: Mapping[str, Answer]) -> Iterator[dict[str, Any]]:
    asked = [slot for slot in reader.order if not study.item(slot.item).practice]
    for position, slot in enumerate(asked, start=1):
        if slot.item not in answers:
            continue
        item, answer = study.item(slot.item), answers[slot.item]
        for volume in slot.volumes:
            chosen = {"answer": answer.content} if isinstance(answer.content, str) else {"rank": answer.content[volume]}
            yield {
                "reader": reader.code,
                "group": reader.group,
                "item": item.id,
                "task": item.task,
                "structure": item.structure,
                "repeats": item.repeats,
                "volume": volume,
                "answer": None,
                "rank": None,
                **chosen,
                "note": _as_text(answer.note),
                "seconds": round(answer.seconds, 1),
                "position": position,
                "answered_at": answer.answered_at,
            }


def _as_text(note: str) -> str:
    """Return a note that a spreadsheet does not compute: an apostrophe stands before one that begins as a formula."""
    return f"'{note}" if note.startswith(("=", "+", "-", "@", "\t", "\r")) else note
