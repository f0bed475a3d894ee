"""Read CSV tables that people made: every row that cannot be trusted is named by the line where it begins.

A row is not trusted when it has another number of fields than the header (a comma in a text without quotation marks, a
line break in one) or when a quotation mark opens a field and does not close it. An open mark swallows the lines
behind it, so reading goes on at the next line. Where that line is not a whole row, nobody can tell where rows begin,
and the table is refused. RFC 4180 describes the format.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medsyn.errors import InputError

MAX_FIELD = 1 << 20
"""Characters of one field: a report of 20,000 words has 130,000; beyond a million a quotation mark is open."""
_MAX_OPEN = 100
_Record = tuple[int, list[str], str]  # line, fields, why it cannot be used
csv.field_size_limit(MAX_FIELD)


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used: the line where it begins (the header is line 1), its fields, and why."""

    line: int
    fields: dict[str, str]
    reason: str


@dataclass
class Table:
    """A table: `columns` of the header, `rows` of strings with the `lines` where they begin, and `faults`."""

    columns: list[str]
    rows: list[dict[str, str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def read_table(path: str | Path, required: Sequence[str] = ()) -> Table:
    """Read a CSV file; rows that cannot be used are in `faults` and cost the others nothing.

    required: columns that the header must have and that every row must reach. A missing file, another encoding than
    UTF-8, a header that lacks a column or has one twice, and a table whose rows cannot be told apart are InputErrors.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as handle:
            return _table(path, _records(path, _Lines(handle)), required)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder; name a CSV file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 CSV file ({error}); export it again as UTF-8") from None


def _table(path: str | Path, records: Iterator[_Record], required: Sequence[str]) -> Table:
    header, broken = next(((fields, broken) for _, fields, broken in records if fields or broken), ([], ""))
    if broken:
        raise InputError(f"{path}: the header cannot be read: {broken}")
    _check_header(path, header, required)
    needed = max((header.index(name) + 1 for name in required), default=0)
    table = Table(header)
    for line, fields, broken in records:
        if not fields and not broken:
            continue
        row = dict(zip(header, fields, strict=False))
        reason = broken or _miscounted(fields, header, needed, line)
        if reason:
            table.faults.append(Fault(line, row, reason))
            continue
        table.rows.append(row if len(fields) == len(header) else dict.fromkeys(header, "") | row)
        table.lines.append(line)
    return table


class _Lines:
    """The lines of a file, where those of the present record can be put back. `begin` lines lie before the record."""

    def __init__(self, handle: Iterator[str]) -> None:
        self._handle = handle
        self._again: list[str] = []
        self.record: list[str] = []
        self.begin = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._handle)
        self.record.append(line)
        return line

    def next_record(self, first: int | None = None) -> None:
        """Begin a new record behind the first lines of this one (None: behind all of them); the others come again."""
        count = len(self.record) if first is None else first
        self._again += reversed(self.record[count:])
        self.begin += count
        self.record = []


def _records(path: str | Path, lines: _Lines) -> Iterator[_Record]:
    """Yield every record with the line where it begins, and one that a quotation mark leaves open with the reason.

    Lines count from 1. InputError if what stands behind an open mark is not a row as long as the header.
    """
    reader, length, num_open, first_broken = csv.reader(lines, strict=True), 0, 0, ""
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            opened = _open_mark(lines.record)
            broken = _fault(lines.begin, opened)
            num_open, first_broken = num_open + 1, first_broken or broken
            yield lines.begin + 1, _first_fields(lines), broken
            lines.next_record(1 if opened is None else opened + 1)
            if num_open > _MAX_OPEN or not _row_follows(lines, length):
                raise InputError(f"{path}: {first_broken}; the rows behind it cannot be told apart") from None
            continue
        first_broken, length = "", length or len(fields)
        begin, count = lines.begin, len(lines.record)
        if count > 1 and len(fields) != length:  # a mark that a later row's mark closes
            begun = _first_fields(lines)
            lines.next_record(1)
            if _row_follows(lines, length):
                yield begin + 1, begun, _fault(begin, 0)
                continue
            for _ in range(count - 1):
                next(lines)
        lines.next_record()
        yield begin + 1, fields, ""


def _first_fields(lines: _Lines) -> list[str]:
    """Return the fields of the record's first line, with what an open mark holds up to its end."""
    return next(csv.reader([lines.record[0][: MAX_FIELD // 2]]), [])


def _fault(begin: int, opened: int | None) -> str:
    if opened is None:
        return f"line {begin + 1} has a field of more than {MAX_FIELD} characters; shorten it"
    return (
        f"the quotation mark that opens a field on line {begin + opened + 1} is not closed before the next comma or"
        ' line end; close it, and double the marks within a text ("")'
    )


def _open_mark(record: Sequence[str]) -> int | None:
    """Return on which line of `record` the field begins that is not closed rightly; None: it is only too long."""
    state, opened, length = "start", 0, 0  # start of a field, plain, quoted, or behind a mark within a quoted one
    for number, line in enumerate(record):
        for character in line:
            length += 1
            if state == "quoted":
                state = "behind" if character == '"' else state
            elif character == '"' and state != "plain":
                state, opened = ("quoted", number) if state == "start" else ("quoted", opened)
            elif character == ",":
                state, length = "start", 0
            elif state == "behind" and character not in "\r\n":
                return opened
            else:
                state = "plain"
            if length > MAX_FIELD:
                return opened if number > opened else None
    return opened


def _row_follows(lines: _Lines, length: int) -> bool:
    """Return whether the next record has `length` fields, or is left open by a mark on its first line as well."""
    try:
        fields = next(csv.reader(lines, strict=True), [])
        right = len(fields) in (0, length)
    except csv.Error:
        right = len(_first_fields(lines)) > 1
    lines.next_record(0)
    return right


def _check_header(path: str | Path, header: Sequence[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in header]
    if missing:
        other = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), None)
        hint = f"; its fields are separated by {other!r}, export it again with commas" if other else ""
        raise InputError(
            f"{path}: missing column {', '.join(missing)}; it has {', '.join(header) or 'no header'}{hint}"
        )
    twice = [name for number, name in enumerate(header) if name and name in header[:number]]
    if twice:
        raise InputError(f"{path}: the header has the column {twice[0]} twice; rename or remove one of them")


def _miscounted(fields: Sequence[str], header: Sequence[str], needed: int, line: int) -> str:
    if len(fields) > len(header) and any(fields[len(header) :]):
        return (
            f"line {line} has {len(fields)} fields, the header has {len(header)}; put texts that hold commas into"
            " quotation marks"
        )
    if len(fields) < needed:
        return (
            f"line {line} has {len(fields)} fields, the header has {len(header)}; put texts that hold line breaks into"
            " quotation marks, and write a comma for every empty field"
        )
    return ""
