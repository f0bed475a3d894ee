"""Decide what a verb may write: never an input, and never a file that another program or verb has written.

Every file that `medsyn.files.atomic_path` writes is signed: an extended attribute of the file system holds the verb,
the size, the time of modification and, of files up to 64 MiB, the SHA-256 of the content. A verb replaces a file that
carries its own signature and has not been changed since: the time or the content is the same. Any other file is
replaced with --force alone. Where the file system keeps no such attributes, --force is needed to write an output again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medsyn import scratch
from medsyn.errors import InputError
from medsyn.names import VOLUME_SUFFIXES

_ATTRIBUTE = "user.medsyn"
_MAX_HASHED = 64 << 20
"""Bytes of a file whose content is hashed: Snakemake sets the time of every output at the end of a job."""


@dataclass
class Writer:
    """Who writes in this process: the verb, and whether it was given --force."""

    verb: str = "medsyn"
    force: bool = False


WRITER = Writer()


@dataclass(frozen=True)
class Outputs:
    """What a verb writes: files, and folders that must be new or empty."""

    files: Sequence[Path] = field(default_factory=tuple)
    folders: Sequence[Path] = field(default_factory=tuple)


def volume_name(out: Path) -> tuple[str, str]:
    """Split the name of a volume's file into stem and suffix; another suffix is an InputError."""
    suffix = next((end for end in VOLUME_SUFFIXES if out.name.endswith(end)), None)
    if suffix is None:
        raise InputError(f"--out {out}: name a .nii.gz, .nii, .mha or .nrrd file")
    return out.name.removesuffix(suffix), suffix


def sign(path: Path) -> None:
    """Mark a finished file as written by the verb that runs."""
    try:
        os.setxattr(path, _ATTRIBUTE, _signature(path))
    except OSError:  # the file system has no such attributes
        return


def is_replaceable(path: Path) -> bool:
    """Return whether `path` may be overwritten: it is new or empty, this verb wrote it, or --force was given."""
    if WRITER.force or not path.exists() or path.stat().st_size == 0:
        return True
    try:
        verb, size, time, content = os.getxattr(path, _ATTRIBUTE).decode().split()
        facts = path.stat()
        if (verb, size) != (WRITER.verb, str(facts.st_size)):
            return False
        return time == str(facts.st_mtime_ns) or (content != "-" and content == _content_hash(path))
    except (OSError, ValueError):  # no signature, or that of an earlier version
        return False


def check_outputs(outputs: Outputs, inputs: Iterable[Path] = ()) -> None:
    """Raise InputError if an output cannot be written, or would replace an input or a file that the verb did not make.

    inputs: files and folders that exist.
    """
    known = list(inputs)
    seen: dict[str, Path] = {}
    for path in (*outputs.files, *outputs.folders):
        real = os.path.realpath(path)
        if real in seen:
            raise InputError(f"{path}: is the same file as {seen[real]}, which is written too; name another --out")
        seen[real] = path
        for given in known:
            if path.exists() and path.samefile(given):
                raise InputError(f"{path}: is the input {given} itself, expected another file; name another --out")
        _check_place(Path(real), path)
    for path in outputs.files:
        check_file(path)
    for path in outputs.folders:
        check_folder(path)


def check_state(state: Path, outputs: Outputs) -> None:
    """Raise InputError if the state folder, which is removed at the end, and an output lie in each other."""
    real = Path(os.path.realpath(state))
    for path in (*outputs.files, *outputs.folders):
        out = Path(os.path.realpath(path))
        if real == out or real in out.parents or out in real.parents:
            raise InputError(f"--state {state}: lies in {path} or holds it; name a folder apart from the output")


def check_file(path: Path) -> None:
    """Raise InputError unless a file may be written at `path`."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected the name of a file; name one in it")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is a device, pipe or socket, expected a regular file; name another --out")
    if not is_replaceable(path):
        doubt = f"was not written by `medsyn {WRITER.verb}`, or was changed since"
        if not _keeps_attributes(path):
            doubt = f"its file system keeps no attribute that says whether `medsyn {WRITER.verb}` wrote it"
        raise InputError(f"{path}: exists and {doubt}; name another --out, or give --force to replace it")


def check_folder(path: Path) -> None:
    """Raise InputError unless `path` is free, empty, or (with --force) a folder whose files may be replaced."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file, expected a folder; name another --out")
    if path.is_dir() and not WRITER.force and any(not scratch.is_own(entry) for entry in path.iterdir()):
        raise InputError(
            f"{path}: exists and is not an empty folder; name a new one, or remove it first (or give --force to replace"
            " files of the same names in it)"
        )


def _check_place(real: Path, path: Path) -> None:
    """Raise InputError unless a file can be made in the nearest folder above `real` that exists.

    A full disk is an OSError.
    """
    folder = next(parent for parent in ((real, *real.parents) if real.is_dir() else real.parents) if parent.exists())
    if not folder.is_dir():
        raise InputError(f"{path}: {folder} is a file, expected a folder; name another --out")
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")  # a full disk takes the name of a file, but nothing in it
            probe.flush()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise InputError(f"{path}: cannot be written ({folder}: {error.strerror}); name another --out") from None


def _keeps_attributes(path: Path) -> bool:
    try:
        os.getxattr(path, _ATTRIBUTE)
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    return True


def _signature(path: Path) -> bytes:
    facts = path.stat()
    content = _content_hash(path) if facts.st_size <= _MAX_HASHED else "-"
    return f"{WRITER.verb} {facts.st_size} {facts.st_mtime_ns} {content}".encode()


def _content_hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
