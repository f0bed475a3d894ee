"""Write files atomically: an output appears whole under its final name or not at all.

Everything is written in a temporary folder beside the target (`medsyn.scratch`) and renamed at the end, so a killed
process, a full disk or an exception leaves no half-written file. `medsyn.outputs` decides what may be replaced.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medsyn import outputs, scratch
from medsyn.csv_reading import read_table
from medsyn.errors import InputError

NOT_RENAMED = (errno.EBUSY, errno.EXDEV, errno.ENOTEMPTY, errno.EEXIST)
"""Why a finished folder cannot take its place at once: a mount point, another file system, a folder with files."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path with the same name as `path`; rename it to `path` if the block succeeds.

    A link is followed: the file that it names is replaced. A device or pipe is an InputError.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise InputError(f"{path}: is not a regular file, expected one or a new name; name another output")
    with scratch.beside(target) as folder:
        temporary = folder / path.name
        yield temporary
        _let_others_read(temporary, folder)
        outputs.sign(temporary)
        _rename(temporary, target)


@contextmanager
def atomic_dir(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder; when the block succeeds it becomes the folder `path`.

    A folder `path` with something in it is an InputError, so that no user's files are lost; with `replace` it is
    replaced. A link is followed. Temporary folders that killed processes left for the same `path` are removed first.
    """
    target = Path(os.path.realpath(path))
    if not replace:
        outputs.check_folder(target)
    with scratch.beside(target, clean=True) as folder:
        temporary = folder / target.name
        temporary.mkdir()
        yield temporary
        _let_others_read(temporary, folder)
        if replace and target.exists():
            shutil.rmtree(target)
        outputs.check_folder(target)
        _rename(temporary, target)


@contextmanager
def staging_dir(out: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files move into `out` when the block succeeds; other files in `out` stay."""
    target = Path(os.path.realpath(out))
    if target.exists() and not target.is_dir():
        raise InputError(f"{out}: is a file, expected a folder; name another one")
    with scratch.beside(target) as folder:
        temporary = folder / "files"
        temporary.mkdir()
        yield temporary
        _let_others_read(temporary, folder)
        _move_files(temporary, target)


def _rename(source: Path, target: Path) -> None:
    """Give `source` the name `target`; where that is a mount point or a folder with files, move file by file."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in NOT_RENAMED:
            raise
        if source.is_dir():
            _move_files(source, target)
        else:
            shutil.copyfile(source, target)
            outputs.sign(target)


def _move_files(source: Path, target: Path) -> None:
    """Move all files below the folder `source` to the same places below `target`."""
    for folder, _, names in os.walk(source):
        place = target / Path(folder).relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        for name in sorted(names):
            shutil.move(Path(folder) / name, place / name)


def _let_others_read(path: Path, folder: Path) -> None:
    """Add the permissions of a new file (umask) to `path`, or to all files below it: some libraries write 0600."""
    mode = scratch.file_mode(folder)
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file() and file.stat().st_mode & mode != mode:
            file.chmod(file.stat().st_mode & 0o777 | mode)


def to_disk(folder: Path) -> None:
    """Wait until the files of `folder` are on the disk, so that a rename after it survives a power cut whole."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a missing or broken one is an InputError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:  # bytes, syntax, numbers of thousands of digits, endless nesting
        raise InputError(f"{path}: not valid JSON ({error}); write it again with the step that makes it") from None


def write_csv(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write `rows` as CSV with exactly `columns`, atomically; None becomes an empty field."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(columns), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: "" if value is None else value for key, value in row.items()})


def read_csv(path: str | Path, required: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read a CSV into dicts of strings; a missing file, column or a row that cannot be read is an InputError."""
    table = read_table(path, required)
    if table.faults:
        raise InputError(f"{path}: {table.faults[0].reason}")
    return table.rows


def sha256(path: str | Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
