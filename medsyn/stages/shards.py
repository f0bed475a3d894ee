"""The loop that every per-volume stage runs: subjects in, a folder with one sub-folder each and an index.csv out.

A subject that cannot be used costs only itself: its sub-folder is removed and index.csv says why. Too many of them stop
the run.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medsyn.errors import InputError
from medsyn.files import read_csv, write_csv
from medsyn.progress import log, track

INDEX_COLUMNS = ("subject_id", "status", "reason")
VOLUME = "volume.nii.gz"
SUBJECT_FAULTS = (InputError, RuntimeError, ValueError, OSError)
"""What a bad file may raise. A full disk, a quota and a GPU without memory are nobody's fault and stop the run."""


def is_machine_fault(error: Exception) -> bool:
    """Whether an error says nothing of the subject: no GPU memory, a GPU that failed, a full disk, a quota."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return type(error).__name__ in ("OutOfMemoryError", "AcceleratorError")  # torch's, which this module does without


def run_shard(
    subjects: Iterable[str], work: Callable[[str, Path], None], folder: Path, what: str
) -> list[dict[str, str]]:
    """Call `work(subject_id, its new sub-folder)` for each subject and write folder/index.csv; returns its rows."""
    names = list(subjects)
    rows = []
    for name in track(names, what=what, total=len(names)):
        target = folder / name
        target.mkdir()
        try:
            work(name, target)
        except SUBJECT_FAULTS as error:
            if is_machine_fault(error):
                raise
            shutil.rmtree(target)
            reason = " ".join(str(error).split())
            log.warning("%s: subject %s rejected: %s", what, name, reason)
            rows.append({"subject_id": name, "status": "rejected", "reason": reason})
        else:
            rows.append({"subject_id": name, "status": "ok", "reason": ""})
    write_csv(folder / "index.csv", rows, INDEX_COLUMNS)
    return rows


def check_rejects(rows: list[dict[str, str]], limit: float, out: Path) -> None:
    """InputError when more than the share `limit` is rejected; the list is left beside `out` as <out>.rejects.csv."""
    rejected = [row for row in rows if row["status"] != "ok"]
    listed = out.with_name(f"{out.name}.rejects.csv")
    listed.unlink(missing_ok=True)  # of an earlier run
    if rejected and len(rejected) > limit * len(rows):
        write_csv(listed, rejected, INDEX_COLUMNS)
        raise InputError(
            f"{listed}: {len(rejected)} of {len(rows)} subjects are rejected (at most {limit:.0%} allowed by"
            f" max_reject_fraction); first: {rejected[0]['subject_id']}: {rejected[0]['reason']}"
        )


def accepted(folder: str | Path) -> list[str]:
    """Subjects of a stage's folder that are ok: from its index.csv, else every sub-folder that holds a volume."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; run the stage that makes it")
    index = folder / "index.csv"
    if index.exists():
        rows = read_csv(index)
        key = next((name for name in ("subject_id", "sample_id") if rows and name in rows[0]), None)
        if rows and key is None:
            raise InputError(f"{index}: missing column subject_id; write it again with the stage that makes it")
        return [row[str(key)] for row in rows if row.get("status", "ok") in ("ok", "")]
    return sorted(path.parent.name for path in folder.glob(f"*/{VOLUME}"))


@contextmanager
def into_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files move into `out` when the block succeeds; other files in `out` stay."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
        out.mkdir(exist_ok=True)
        for file in sorted(folder.iterdir()):
            file.replace(out / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
