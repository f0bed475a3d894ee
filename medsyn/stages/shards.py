"""Run a stage on the items of a shard: one sub-folder per item and an index.csv, with restart after a kill.

Finished items lie in a state folder until all are finished, so that the next job continues where a killed job stopped:
the files of an item in output/<item>, its outcome in records/<item>.json, each complete or absent. An item is reused
only under the same settings, code and packages (the folder's key) and for the same input (the item's identity).

A subject that cannot be used is rejected alone: index.csv says why. Too many rejected subjects stop the run.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medsyn.cluster import requeue_job
from medsyn.errors import InputError
from medsyn.files import NOT_RENAMED, atomic_dir, read_csv, read_json, sha256, to_disk, write_csv, write_json
from medsyn.memory import keep_freed_memory
from medsyn.outputs import check_folder
from medsyn.progress import log, track
from medsyn.provenance import hash_json, installation
from medsyn.registry import plugin_files
from medsyn.scan_warnings import join_warnings
from medsyn.scratch import MARK, claim_state, remove_state

ID_COLUMNS = ("subject_id", "sample_id")
"""First column of an index.csv: items are subjects of the cohort, or samples, as `generate` and its prompts name them.

Tables that are made of such a folder (measures, features) call their items subjects in both cases.
"""
INDEX_COLUMNS = (ID_COLUMNS[0], "status", "reason", "warnings")
VOLUME = "volume.nii.gz"
SUBJECT_FAULTS = (InputError, RuntimeError, ValueError, OSError)
"""What a bad file may raise. Faults of the machine (`is_machine_fault`) are among them and stop the run."""
_GPU_FAULTS = ("OutOfMemoryError", "AcceleratorError")  # torch's, which this module does without
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems mounted without them


@dataclass(frozen=True)
class Outcome:
    """What became of an item: status "ok" or "rejected", the reason, and what its work returned (JSON).

    Work that finds warnings returns a mapping with the list `warnings` (`medsyn.scan_warnings`).
    """

    name: str
    status: str
    reason: str = ""
    result: Any = None

    @property
    def warnings(self) -> list[str]:
        """Return the warnings of an item that is ok."""
        return list(self.result.get("warnings", ())) if isinstance(self.result, dict) else []


class Shard:
    """The finished items of a shard under `state`, whose files are in `folder`.

    num_new: how many items this process has added to those that the next job reuses. An item that was made or rejected
    again as before does not count, so that a shard which only repeats itself is not requeued.
    """

    def __init__(self, state: Path) -> None:
        self.folder, self._records = state / "output", state / "records"
        self.num_new = 0
        self._ok: set[str] = set()
        for path in (self.folder, self._records):
            path.mkdir(exist_ok=True)

    def recall(self, name: str, identity: str | None) -> Outcome | None:
        """Return the outcome of an item with this identity, if there is one and its files are all there."""
        record = self._record(name)
        if record is None or record["identity"] != identity or record["files"] != self._sizes(name):
            return None
        return self._noted(Outcome(**record["outcome"]))

    def make(self, name: str, identity: str | None, work: Callable[[Path], Any]) -> Outcome:
        """Call `work(a new folder)` and keep what it writes there and returns."""
        with atomic_dir(self.folder / name, replace=True) as target:
            result = json.loads(json.dumps(work(target)))
            to_disk(target)
        return self._keep(Outcome(name, "ok", "", result), identity)

    def reject(self, name: str, identity: str | None, reason: str) -> Outcome:
        """Keep that the input of an item cannot be used."""
        if Path(name).name == name and name != "..":  # the id may be rejected because it cannot name a folder
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return self._keep(Outcome(name, "rejected", reason), identity)

    def publish(self, out: Path) -> None:
        """Rename `folder`, with the items that were recalled or made and files beside them, to `out`."""
        check_folder(out)
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in self._ok:
                shutil.rmtree(path)
        out = Path(os.path.realpath(out))
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(self.folder, out)
        except OSError as error:
            if error.errno not in NOT_RENAMED:
                raise
            with atomic_dir(out) as copy:  # the state lies on another file system, or `out` is a mount point
                shutil.copytree(self.folder, copy, dirs_exist_ok=True)

    def _keep(self, outcome: Outcome, identity: str | None) -> Outcome:
        if identity is not None:
            facts = {"identity": identity, "files": self._sizes(outcome.name), "outcome": asdict(outcome)}
            self.num_new += facts != self._record(outcome.name)
            write_json(self._path(outcome.name), facts)
        return self._noted(outcome)

    def _record(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(read_json(self._path(name)))
        except InputError:  # there is none, or a power cut has damaged it
            return None

    def _path(self, name: str) -> Path:
        return self._records / f"{name}.json"

    def _noted(self, outcome: Outcome) -> Outcome:
        if outcome.status == "ok":
            self._ok.add(outcome.name)
        return outcome

    def _sizes(self, name: str) -> dict[str, int]:
        folder = self.folder / name
        return {path.name: path.stat().st_size for path in folder.iterdir()} if folder.is_dir() else {}


@contextmanager
def open_shard(out: Path, state: Path | None, settings: Mapping[str, Any]) -> Iterator[Shard]:
    """Yield what stopped jobs with the same `settings` (JSON) have finished; remove it when the block succeeds.

    state: by default a hidden folder beside `out`. That of other settings, code, plugins or packages is emptied first;
    one that another process works in is an InputError. Of code its content counts, not the commit that `settings` may
    name.
    SLURM is asked to requeue a job that SIGTERM stops after at least one new item.
    """
    state = claim_state(state or out.with_name(f".{out.name}.state"), out)
    with _locked(state):
        plugins = [identity_of(path) for path in plugin_files()]
        key = {"key": hash_json([{**settings, "commit": None}, installation(), plugins])}
        try:
            same = read_json(state / "key.json") == key
        except InputError:
            same = False
        if not same:
            _empty(state)
            write_json(state / "key.json", key)
        shard = Shard(state)
        try:
            yield shard
        except SystemExit:
            if shard.num_new:
                requeue_job()
            raise
        _empty(state)
    remove_state(state)


def is_machine_fault(error: Exception) -> bool:
    """Return whether a fault is the machine's: no GPU memory, a failed GPU, a full disk, a quota."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return type(error).__name__ in _GPU_FAULTS


def run_shard(
    shard: Shard,
    names: Iterable[str],
    work: Callable[[str, Path], Any],
    identify: Callable[[str], str | None],
    description: str,
) -> list[Outcome]:
    """Return the outcome of each item: kept from an earlier job, or of `work(name, its new sub-folder)` now.

    identify(name): what `identity_of` says of the item's input. Only what an InputError says of a subject is kept as
    its rejection; after any other fault the next job tries it again.
    """
    keep_freed_memory()
    names = list(names)
    outcomes, num_kept = [], 0
    for name in track(names, description=description, total=len(names)):
        identity = identify(name)
        outcome = shard.recall(name, identity)
        if outcome is not None:
            num_kept += 1
        else:
            try:
                outcome = shard.make(name, identity, lambda target, name=name: work(name, target))  # type: ignore[misc]
            except SUBJECT_FAULTS as error:
                if is_machine_fault(error):
                    raise
                reason = " ".join(str(error).split())
                log.warning("%s: subject %s rejected: %s", description, name, reason)
                outcome = shard.reject(name, identity if isinstance(error, InputError) else None, reason)
        outcomes.append(outcome)
    if num_kept:
        log.info("%s: %d of %d were finished by an earlier job", description, num_kept, len(names))
    return outcomes


def write_index(folder: Path, outcomes: Iterable[Outcome]) -> list[dict[str, str]]:
    """Write folder/index.csv and return its rows."""
    rows = [
        {
            "subject_id": item.name,
            "status": item.status,
            "reason": item.reason,
            "warnings": join_warnings(item.warnings),
        }
        for item in outcomes
    ]
    write_csv(folder / "index.csv", rows, INDEX_COLUMNS)
    return rows


def identity_of(*parts: Any) -> str | None:
    """Hash what the result of an item depends on: values (JSON), and files and folders (Path) with their content.

    None if a file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for part in parts:
            digest.update(_hash_path(part).encode() if isinstance(part, Path) else json.dumps(part).encode())
    except OSError:
        return None
    return digest.hexdigest()


def check_rejects(rows: list[dict[str, str]], limit: float, out: Path) -> None:
    """Raise InputError when more than the share `limit` is rejected; they are listed in <out>.rejects.csv."""
    rejected = [row for row in rows if row["status"] != "ok"]
    listed = rejects_file(out)
    listed.unlink(missing_ok=True)  # of an earlier run
    if rejected and len(rejected) > limit * len(rows):
        write_csv(listed, rejected, INDEX_COLUMNS)
        raise InputError(
            f"{listed}: {len(rejected)} of {len(rows)} subjects are rejected (at most {limit:.0%} allowed by"
            f" max_reject_fraction); first: {rejected[0]['subject_id']}: {rejected[0]['reason']}"
        )


def rejects_file(out: Path) -> Path:
    """Return where `check_rejects` lists what is rejected of the shard `out`."""
    return out.with_name(f"{out.name}.rejects.csv")


def is_rejects_file(path: Path) -> bool:
    """Return whether a file is a list of an earlier run: its header says so where its signature may be lost."""
    if not path.is_file():
        return False
    header = ",".join(INDEX_COLUMNS).encode()
    with path.open("rb") as handle:
        return handle.readline(len(header) + 2).rstrip(b"\r\n") == header


def accepted_ids(folder: str | Path) -> list[str]:
    """Return the ids that a stage accepted: those with status ok in index.csv, else sub-folders that hold a volume."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; run the stage that makes it")
    index = folder / "index.csv"
    if index.exists():
        rows = read_csv(index)
        if rows and not set(ID_COLUMNS) & set(rows[0]):
            raise InputError(
                f"{index}: has no column {' or '.join(ID_COLUMNS)}; write it again with the stage that makes it"
            )
        return [item_id(row) for row in rows if row.get("status", "ok") in ("ok", "")]
    return sorted(path.parent.name for path in folder.glob(f"*/{VOLUME}"))


def item_id(row: Mapping[str, str]) -> str:
    """Return the id of a row of an index.csv, whichever of ID_COLUMNS holds it."""
    return next(row[name] for name in ID_COLUMNS if name in row)


def _hash_path(path: Path) -> str:
    """Hash the name and content of a file, or of all files of a folder; OSError for a pipe, which can block."""
    if not path.is_dir():
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return f"{path.name} {sha256(path)}\n"
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return "".join(f"{file.relative_to(path)} {sha256(file)}\n" for file in files)


def _empty(state: Path) -> None:
    """Remove everything but the lock and the mark."""
    for path in state.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("lock", MARK):
            path.unlink()


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Hold the lock of a state folder; a process that dies lets go of it. No lock where the file system has none."""
    lock = state / "lock"
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                wait = "wait for its end, or remove this file if there is none"
                raise InputError(f"{lock}: another process works on this shard; {wait}") from None
        yield
