"""Keep the answers of a reader study in an SQLite file: nothing that was acknowledged is lost, nothing counts twice.

An answer is acknowledged only when its transaction is on the disk (write-ahead log, `synchronous=FULL`). A submission
carries an id that the page chose: the same submission again, from a retry or a second tab, is recorded once. A later
submission for the same item is refused unless it names the submission that it replaces, and until the reader has
finished. Replaced answers stay in the file as earlier revisions; the export holds the last one of each item.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from medsyn.errors import InputError

_VERSION = 1
"""Version of the tables below, kept as SQLite's `user_version`."""
_BUSY_SECONDS = 20
_TABLES = """
CREATE TABLE study (sums TEXT NOT NULL) STRICT;
CREATE TABLE readers (
    code TEXT PRIMARY KEY, token BLOB UNIQUE, started_at TEXT, finished_at TEXT, withdrawn_at TEXT
) STRICT;
CREATE TABLE answers (
    reader TEXT NOT NULL REFERENCES readers, item TEXT NOT NULL, revision INTEGER NOT NULL, submission TEXT NOT NULL,
    content TEXT NOT NULL, note TEXT NOT NULL, seconds REAL NOT NULL, answered_at TEXT NOT NULL,
    PRIMARY KEY (reader, item, revision), UNIQUE (reader, submission)
) STRICT;
CREATE TABLE drafts (
    reader TEXT NOT NULL REFERENCES readers, item TEXT NOT NULL, seconds REAL NOT NULL, content TEXT NOT NULL,
    PRIMARY KEY (reader, item)
) STRICT;
"""


class Refused(Exception):
    """A submission that contradicts what is recorded: answered in another tab, or the reader has finished."""


@dataclass(frozen=True)
class Answer:
    """What a reader answered to an item.

    content: the value of the chosen option, or volume -> rank (1 is best, ties share a rank); seconds: time that the
    item was in view; submission: id that the page chose for this act of submitting.
    """

    item: str
    submission: str
    content: str | Mapping[str, int]
    note: str
    seconds: float
    answered_at: str = ""


@dataclass(frozen=True)
class Draft:
    """An item that is open: how long it was in view (s), and what was chosen so far, as the page keeps it."""

    item: str
    seconds: float
    content: str


@dataclass(frozen=True)
class Progress:
    """Where a reader stands: answers by item, drafts by item, and whether the reader has finished."""

    answers: Mapping[str, Answer]
    drafts: Mapping[str, Draft]
    finished: bool


class AnswerStore:
    """The answers of one study, for use by several threads."""

    def __init__(self, path: str | Path) -> None:
        """Open an existing file; see `create`. A file of something else is an InputError."""
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{path}: no such file of answers; start `medsyn study serve` first, or name another")
        self._lock = threading.Lock()
        self._connection = _connect(self.path)

    @classmethod
    def create(cls, path: str | Path, sums: str, codes: Iterable[str]) -> AnswerStore:
        """Open the answers to a study, and make the file if it is new. Only its owner can read it.

        sums: SHA-256 of the study's SHA256SUMS; answers to a study of other content are an InputError. codes: its
        readers.
        """
        path = Path(path)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        store = cls(path)
        with store.transaction() as db:
            if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                if db.execute("SELECT 1 FROM sqlite_master").fetchone() is not None:
                    raise InputError(f"{path}: is a database of something else; name another --answers")
                for statement in _TABLES.split(";"):
                    db.execute(statement)
                db.execute("INSERT INTO study VALUES (?)", (sums,))
                db.executemany("INSERT INTO readers (code) VALUES (?)", [(code,) for code in codes])
                db.execute(f"PRAGMA user_version = {_VERSION}")
        store.check(sums)
        return store

    def check(self, sums: str) -> None:
        """Raise InputError unless these are answers to the study whose SHA256SUMS has this SHA-256."""
        with self.transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version != _VERSION:
                raise InputError(
                    f"{self.path}: holds answers of format {version}, expected {_VERSION}; use the version of this"
                    " program that wrote it"
                )
            found = db.execute("SELECT sums FROM study").fetchone()[0]
        if found != sums:
            raise InputError(
                f"{self.path}: holds answers to a study with checksums {found[:12]}..., but the folder has {sums[:12]}"
                "...; restore the folder as it was, or name another --answers"
            )

    def close(self) -> None:
        """Close the file; the write-ahead log moves into it."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection in a transaction that is on the disk when the block has ended, or that left nothing."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def without_token(self) -> list[str]:
        """Return the readers that have no invitation yet and are not withdrawn."""
        with self.transaction() as db:
            rows = db.execute("SELECT code FROM readers WHERE token IS NULL AND withdrawn_at IS NULL ORDER BY rowid")
            return [row["code"] for row in rows]

    def active(self) -> list[str]:
        """Return the readers that are not withdrawn."""
        with self.transaction() as db:
            return [
                row["code"] for row in db.execute("SELECT code FROM readers WHERE withdrawn_at IS NULL ORDER BY rowid")
            ]

    def set_tokens(self, tokens: Mapping[str, str]) -> None:
        """Give readers the tokens of their invitations; only hashes are stored, and earlier tokens end."""
        with self.transaction() as db:
            for code, token in tokens.items():
                db.execute("UPDATE readers SET token = ? WHERE code = ? AND withdrawn_at IS NULL", (_hash(token), code))

    def reader(self, token: str) -> str | None:
        """Return the reader whose invitation has this token, or None."""
        with self._lock:
            row = self._connection.execute("SELECT code FROM readers WHERE token = ?", (_hash(token),)).fetchone()
        return None if row is None else row["code"]

    def progress(self, reader: str) -> Progress:
        """Return where a reader stands."""
        with self.transaction() as db:
            rows = _last_answers(db, reader)
            drafts = db.execute("SELECT item, seconds, content FROM drafts WHERE reader = ?", (reader,)).fetchall()
            finished = _finished(db, reader)
        return Progress(
            {row["item"]: _answer(row) for row in rows}, {row["item"]: Draft(**row) for row in drafts}, finished
        )

    def submit(self, reader: str, answer: Answer, replaces: str | None = None) -> None:
        """Record an answer; on return it is on the disk.

        The same submission again changes nothing. replaces: the submission that this one corrects; without it, an item
        that is answered is `Refused`, as is everything after the reader has finished.
        """
        with self.transaction() as db:
            known = db.execute(
                "SELECT item FROM answers WHERE reader = ? AND submission = ?", (reader, answer.submission)
            ).fetchone()
            if known is not None:
                if known["item"] != answer.item:
                    raise Refused("this submission was recorded for another item")
                return
            if _finished(db, reader):
                raise Refused("the study is finished for this reader")
            last = db.execute(
                "SELECT revision, submission FROM answers WHERE reader = ? AND item = ? ORDER BY revision DESC LIMIT 1",
                (reader, answer.item),
            ).fetchone()
            if (None if last is None else last["submission"]) != replaces:
                raise Refused("this item was answered in another tab or browser")
            revision = 1 if last is None else last["revision"] + 1
            content = json.dumps(answer.content, sort_keys=True)
            values = (reader, answer.item, revision, answer.submission, content, answer.note, answer.seconds, now())
            db.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
            db.execute("DELETE FROM drafts WHERE reader = ? AND item = ?", (reader, answer.item))
            _set_time(db, reader, "started_at")

    def keep_draft(self, reader: str, draft: Draft) -> None:
        """Keep how long an item was in view and what is chosen so far; the time never becomes shorter.

        Of an item that is answered only the time is kept: what is shown of it is its answer.
        """
        with self.transaction() as db:
            if _finished(db, reader):
                return
            place = (reader, draft.item)
            answered = db.execute("SELECT 1 FROM answers WHERE reader = ? AND item = ?", place).fetchone()
            content = "" if answered else draft.content
            db.execute(
                "INSERT INTO drafts VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " seconds = max(seconds, excluded.seconds), content = excluded.content",
                (*place, draft.seconds, content),
            )
            _set_time(db, reader, "started_at")

    def finish(self, reader: str, items: Sequence[str]) -> None:
        """End the study for a reader, so that answers no longer change; `Refused` while one of `items` is open."""
        with self.transaction() as db:
            answered = {row["item"] for row in _last_answers(db, reader)}
            missing = [item for item in items if item not in answered]
            if missing:
                raise Refused(f"{len(missing)} items have no answer yet")
            db.execute("DELETE FROM drafts WHERE reader = ?", (reader,))
            _set_time(db, reader, "finished_at")

    def all_answers(self) -> dict[str, dict[str, Answer]]:
        """Return reader -> item -> answer of all readers, as they were at one moment."""
        with self.transaction() as db:
            rows = _last_answers(db)
        answers: dict[str, dict[str, Answer]] = {}
        for row in rows:
            answers.setdefault(row["reader"], {})[row["item"]] = _answer(row)
        return answers

    def backup(self, path: Path) -> None:
        """Copy the file as it is at one moment to the new file `path`, while the server runs."""
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        with closing(sqlite3.connect(path)) as copy, closing(_connect(self.path)) as source:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it

    def withdraw(self, reader: str) -> int:
        """Delete the answers, drafts and invitation of a reader from the disk; return how many items were answered.

        Freed pages are overwritten, the file is rewritten and its log emptied. An unknown reader is an InputError.
        """
        with self.transaction() as db:
            if db.execute("SELECT 1 FROM readers WHERE code = ?", (reader,)).fetchone() is None:
                raise InputError(f"{self.path}: has no reader {reader}; name one of study.json")
            number = len(_last_answers(db, reader))
            db.execute("DELETE FROM answers WHERE reader = ?", (reader,))
            db.execute("DELETE FROM drafts WHERE reader = ?", (reader,))
            db.execute(
                "UPDATE readers SET token = NULL, started_at = NULL, finished_at = NULL,"
                " withdrawn_at = coalesce(withdrawn_at, ?) WHERE code = ?",
                (now(), reader),
            )
        with self._lock:
            self._connection.execute("VACUUM")
            busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise InputError(
                f"{self.path}: the answers of {reader} are deleted, but another program reads the file and keeps them"
                " in its log; stop it and withdraw the reader again"
            )
        return number


def now() -> str:
    """Return the time in UTC, as ISO 8601 with seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file in the mode in which a commit is on the disk and what is deleted is overwritten."""
    db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    try:
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()["journal_mode"]
        for setting in ("synchronous = FULL", "secure_delete = ON", "foreign_keys = ON"):
            db.execute(f"PRAGMA {setting}")
    except sqlite3.DatabaseError as error:
        db.close()
        raise InputError(f"{path}: is not a file of answers ({error}); name another --answers") from None
    if mode != "wal":
        db.close()
        raise InputError(f"{path}: its file system keeps no write-ahead log; name --answers on a local disk")
    return db


def _hash(token: str) -> bytes:
    """Return the hash by which a token is stored: it is random, 128 bits, so that it needs no salt."""
    return hashlib.sha256(token.encode()).digest()


def _last_answers(db: sqlite3.Connection, reader: str | None = None) -> list[sqlite3.Row]:
    """Return the rows of the last revision of each answered item, of one reader or of all."""
    return db.execute(
        "SELECT *, max(revision) FROM answers WHERE ?1 IS NULL OR reader = ?1 GROUP BY reader, item", (reader,)
    ).fetchall()


def _answer(row: sqlite3.Row) -> Answer:
    content = json.loads(row["content"])
    return Answer(row["item"], row["submission"], content, row["note"], row["seconds"], row["answered_at"])


def _finished(db: sqlite3.Connection, reader: str) -> bool:
    """Return whether a reader has finished; one who was withdrawn meanwhile is `Refused`."""
    row = db.execute("SELECT finished_at, withdrawn_at FROM readers WHERE code = ?", (reader,)).fetchone()
    if row["withdrawn_at"] is not None:
        raise Refused("the answers of this reader were withdrawn")
    return row["finished_at"] is not None


def _set_time(db: sqlite3.Connection, reader: str, column: str) -> None:
    db.execute(f"UPDATE readers SET {column} = coalesce({column}, ?) WHERE code = ?", (now(), reader))
