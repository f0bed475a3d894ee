"""Make folders for unfinished work: temporary folders beside an output, and states from which a stopped run continues.

Every such folder holds the file MARK, which says what the folder is and of which output. Only a folder with this mark
is ever emptied or removed, so a user's folder is never taken for a leftover, whatever its name is.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medsyn.errors import InputError

MARK = "medsyn-unfinished.txt"
_TITLE = "Unfinished work of medsyn; removed when the output is complete."
_TRAINING = re.compile(r"\.?step_\d{8}.*|metrics\.csv|tensorboard")
_TEMPORARY, _STATE = "temporary", "state"


def is_own(folder: Path) -> bool:
    """Return whether medsyn made `folder` for unfinished work."""
    return _mark(folder) is not None


@contextmanager
def beside(output: Path, *, clean: bool = False) -> Iterator[Path]:
    """Yield a new folder on the file system of `output`, removed at the end.

    It lies in the parent folder of `output`, or in `output` itself where that is a mount point or the working folder,
    or the parent cannot be written. clean: first remove those that killed processes left for the same output.
    """
    inside = output.is_dir() and (
        os.path.ismount(output) or output.samefile(os.curdir) or not os.access(output.parent, os.W_OK)
    )
    parent = output if inside else output.parent
    parent.mkdir(parents=True, exist_ok=True)
    if clean:
        _remove_leftovers(parent, _TEMPORARY, output.name)
    folder = Path(tempfile.mkdtemp(prefix=f".{_short(output.name)}.", dir=parent))
    try:
        _write_mark(folder, _TEMPORARY, output.name)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def claim_state(folder: Path, output: Path) -> Path:
    """Make `folder` the state of `output`, or keep it if it is one; with other files in it: InputError."""
    folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, expected a folder for unfinished work; name another with --state")
    folder.mkdir(parents=True, exist_ok=True)
    if not is_own(folder):
        names = sorted(path.name for path in folder.iterdir() if path.name != MARK)  # a peer may have just written it
        if any(name.startswith("step_") for name in names):  # a training run that was started without a claim
            names = [name for name in names if not _TRAINING.fullmatch(name)]
        other = next(iter(names), None)
        if other is not None:
            raise InputError(
                f"{folder}: holds {other}, expected a new folder or one that a stopped run of medsyn left; name another"
                " with --state"
            )
        _write_mark(folder, _STATE, output.name)
    return folder


def remove_state(folder: Path) -> None:
    """Remove a state with all that is in it; a folder without the mark stays."""
    folder = Path(os.path.realpath(folder))
    if is_own(folder):
        shutil.rmtree(folder, ignore_errors=True)


def remove_states(output: Path) -> None:
    """Remove all states beside `output` that belong to it."""
    _remove_leftovers(output.parent, _STATE, output.name)


def file_mode(folder: Path) -> int:
    """Return the permissions that the system gives a new file: those of the mark in a folder from `beside`."""
    return (folder / MARK).stat().st_mode & 0o777


def _remove_leftovers(parent: Path, kind: str, name: str) -> None:
    prefix = f".{_short(name)}."
    for path in list(parent.iterdir()):
        if path.name.startswith(prefix) and _mark(path) == [_TITLE, kind, name]:
            shutil.rmtree(path, ignore_errors=True)


def _mark(folder: Path) -> list[str] | None:
    """Return the lines of the mark, None for a folder without one; a link is not one of ours."""
    if folder.is_symlink():
        return None
    try:
        lines = (folder / MARK).read_text(encoding="utf-8", errors="surrogateescape").split("\n", 2)
    except OSError:
        return None
    return lines if lines[0] == _TITLE else None


def _write_mark(folder: Path, kind: str, name: str) -> None:
    (folder / MARK).write_text(f"{_TITLE}\n{kind}\n{name}", encoding="utf-8", errors="surrogateescape")


def _short(name: str) -> str:
    """Return the beginning of a file name, so that a prefix and random characters still fit into 255 bytes."""
    return os.fsencode(name)[:200].decode("utf-8", errors="ignore")
