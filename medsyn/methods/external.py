"""The kind `external`: any other system, as a folder of volumes or as a command that is given the prompts.

A folder whose files are named by the `sample_id` of prompts answers these prompts. Any other folder takes no text: its
first n files in natural order are the answers to the n rows of the prompts `reports`, each file used once.

A command is run without a shell, once per shard and guidance scale. `{prompts}` in it is the path of a CSV with the
rows (sample_id, text, seed), `{out}` that of an empty folder, in which it writes <sample_id>.nii.gz or
<sample_id>/volume.nii.gz. What it prints goes to the log.

A volume is CT in HU on any grid. Its file says its spacing and orientation, or the entry does; a file that leaves one
of them open is rejected. Each volume is brought to the model's grid as `medsyn evaluate` does it.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from medsyn.config import MethodConfig
from medsyn.config.section import Fraction, Millimetres3, ResultsDir
from medsyn.errors import InputError
from medsyn.header_hints import HeaderHints, parse_hints
from medsyn.methods.base import Answer, Kind, Method, MethodStage, Prompt, Rejected
from medsyn.names import is_report_sample_id
from medsyn.volume_files import find_volumes, volumes_in

PLACEHOLDERS = ("{prompts}", "{out}")
PROMPT_COLUMNS = ("sample_id", "text", "seed")


def _words(command: Any) -> Any:
    """Split a command that is one string as a shell would."""
    if not isinstance(command, str):
        return command
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ValueError(f"'{command}' cannot be split into words ({error}); give a list of words") from None


class ExternalConfig(MethodConfig):
    """Another system: a folder of its volumes, or a command that makes them."""

    kind: Literal["external"] = "external"
    folder: ResultsDir | None = Field(
        None,
        description="volumes named by sample_id (<sample_id>.nii.gz or <sample_id>/volume.nii.gz), or any volumes of a"
        " system that takes no text",
    )
    command: Annotated[tuple[str, ...], BeforeValidator(_words)] | None = Field(
        None,
        description="words of a command, or one string, run without a shell; {prompts}: CSV with sample_id, text, seed;"
        " {out}: empty folder to fill with <sample_id>.nii.gz",
    )
    text_free: bool = Field(
        False,
        description="the system ignores the text of prompts; so does a folder whose volumes are not named by sample_id,"
        " whatever this says",
    )
    spacing_mm: Millimetres3 | None = Field(None, description="(z, y, x), instead of the files' own")
    orientation: str | None = Field(
        None, description="where x, y, z of the volumes run to, such as LPS, instead of what the files say"
    )
    max_reject_fraction: Fraction = Field(
        0.1, description="stop a shard of which more than this, and more than one volume, is rejected"
    )

    @field_validator("orientation")
    @classmethod
    def _check_orientation(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_hints({"orientation": value}, "orientation")
            except InputError as error:
                raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _check(self) -> ExternalConfig:
        if (self.folder is None) == (self.command is None):
            found = "neither" if self.folder is None else "both"
            raise ValueError(f"{found} of folder and command is given, expected one of them")
        if self.command is not None:
            text = " ".join(self.command)
            missing = next((name for name in PLACEHOLDERS if name not in text), None)
            if missing is not None:
                raise ValueError(f"command: '{text}' does not contain {missing}, which the command must be given")
        return self

    @property
    def is_named_by_prompts(self) -> bool:
        """Whether a volume of the folder is named as a prompt of the set `reports`; a command is given the names."""
        return self.folder is None or any(map(is_report_sample_id, find_volumes(self.folder)))

    @property
    def takes_text(self) -> bool:
        """Whether volumes depend on the text of a prompt."""
        return not self.text_free and self.is_named_by_prompts

    def hints(self) -> HeaderHints:
        """Return what the entry says of the geometry of its files."""
        return HeaderHints(spacing_mm=self.spacing_mm, orientation=self.orientation or "auto")


class External(Kind):
    """A folder or a command of another system."""

    entry = ExternalConfig

    def fault(self, config: Any, name: str) -> str | None:
        """Return that the folder of entry `name` is missing or holds no volume, or None."""
        folder = config.methods[name].folder
        try:
            if folder is not None:
                find_volumes(folder)
        except InputError as error:
            return f"methods.{name}.folder: {error}"
        return None

    def state(self, entry: MethodConfig) -> str:
        """Return a hash of the names, sizes and times of the folder's volumes."""
        from medsyn.provenance import hash_json

        assert isinstance(entry, ExternalConfig)
        if entry.folder is None:
            return ""
        facts = {name: path.stat() for name, path in find_volumes(Path(entry.folder)).items() if path.exists()}
        return hash_json({name: [found.st_size, found.st_mtime_ns] for name, found in facts.items()})

    def inputs(self, config: Any, name: str) -> list[str]:
        """Return the folder."""
        folder = config.methods[name].folder
        return [] if folder is None else [folder]

    def open(self, config: Path, files: Sequence[Path], work: Path) -> Method:
        """Open the folder or the command of an entry."""
        stage = self.load(config)
        entry = stage.entry
        assert isinstance(entry, ExternalConfig)
        return Folder(stage, entry, self.state(entry)) if entry.command is None else Command(stage, entry, work)


class _External(Method):
    """What a folder and a command share: how a file becomes an answer."""

    channels = ("image",)
    generates = False

    def __init__(self, stage: MethodStage, entry: ExternalConfig) -> None:
        self.label, self.settings, self.takes_text = stage.name, stage, entry.takes_text
        self.max_reject_fraction = entry.max_reject_fraction
        self._hints = entry.hints()
        self._sources: dict[str, dict[str, str]] = {}

    def record(self, prompt: Prompt) -> dict[str, Any]:
        """Return the name and the hash of the file that is the answer."""
        return {"source": self._sources[prompt.sample_id]}

    def _answer(self, prompt: Prompt, path: Path) -> Answer:
        """Return a file as a volume on the model's grid, or why it cannot be used."""
        from medsyn.ct.generated import generated_on_grid, read_generated
        from medsyn.files import sha256
        from medsyn.stages.shards import SUBJECT_FAULTS, is_machine_fault

        try:
            scan = read_generated(path, self._hints)
            if scan.unsaid:
                unsaid = " and ".join(scan.unsaid)
                raise InputError(f"{path}: carries no {unsaid}, expected one; give {unsaid} in methods.{self.label}")
            volume = generated_on_grid(scan.volume, self.grid, str(path))
            self._sources[prompt.sample_id] = {"file": path.name, "sha256": sha256(path)}
        except (*SUBJECT_FAULTS, ArithmeticError, EOFError, MemoryError) as error:
            if is_machine_fault(error):
                raise
            return Rejected(" ".join(str(error).split()) or type(error).__name__)
        return {"volume": volume}


class Folder(_External):
    """A folder of volumes: by the names of the prompts, or else by their number in the table."""

    def __init__(self, stage: MethodStage, entry: ExternalConfig, state: str) -> None:
        super().__init__(stage, entry)
        self._folder, self._state = Path(str(entry.folder)), state
        self._by_name, self._is_named = find_volumes(self._folder), entry.is_named_by_prompts
        self._in_order = [self._by_name[name] for name in sorted(self._by_name, key=natural_key)]

    def identity(self) -> dict[str, Any]:
        """Return the state of the folder."""
        return {"folder": self._state}

    def sample(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        """Yield the file of each prompt."""
        for prompt in prompts:
            path = self._path(prompt)
            if path is not None:
                yield self._answer(prompt, path)
            elif self._is_named:
                yield Rejected(f"{self._folder}: no {prompt.sample_id}.nii.gz or {prompt.sample_id}/volume.nii.gz")
            else:
                number = len(self._in_order)
                yield Rejected(
                    f"{self._folder}: holds {number} volumes, expected at least {prompt.row + 1}, one per prompt; add"
                    " volumes, or lower evaluation.num_fid_samples"
                )

    def _path(self, prompt: Prompt) -> Path | None:
        if self._is_named:
            return self._by_name.get(prompt.sample_id)
        return self._in_order[prompt.row] if prompt.row < len(self._in_order) else None


class Command(_External):
    """A command that is given all prompts of a shard that have one guidance scale."""

    batch_size = 2**31

    def __init__(self, stage: MethodStage, entry: ExternalConfig, work: Path) -> None:
        super().__init__(stage, entry)
        self._words, self._work = tuple(entry.command or ()), work

    def sample(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        """Run the command, and yield the file of each prompt."""
        from medsyn.files import write_csv
        from medsyn.progress import log

        folder = Path(tempfile.mkdtemp(dir=self._work)).resolve()
        out, table = folder / "out", folder / "prompts.csv"
        out.mkdir()
        rows = [{"sample_id": p.sample_id, "text": p.text, "seed": p.seed} for p in prompts]
        write_csv(table, rows, PROMPT_COLUMNS)
        values = {"{prompts}": str(table), "{out}": str(out)}
        words = [_replaced(word, values) for word in self._words]
        status = run_logged(words, f"methods.{self.label}.command")
        found = volumes_in(out)
        missing = [prompt.sample_id for prompt in prompts if prompt.sample_id not in found]
        if status:
            gone = (
                f"; no volume of {len(missing)} of {len(prompts)} prompts: {', '.join(missing[:5])}" if missing else ""
            )
            raise InputError(
                f"methods.{self.label}.command: {shlex.join(self._words)} ended with exit status {status}, expected 0"
                f"{gone}; see what it printed"
            )
        if unknown := sorted(set(found) - {prompt.sample_id for prompt in prompts}):
            log.warning("%s: %d volumes of no prompt, such as %s", self.label, len(unknown), unknown[0])
        for prompt in prompts:
            if prompt.sample_id in found:
                yield self._answer(prompt, found[prompt.sample_id])
            else:
                yield Rejected(f"the command wrote no {prompt.sample_id}.nii.gz or {prompt.sample_id}/volume.nii.gz")


def run_logged(words: Sequence[str], name: str) -> int:
    """Run a command without a shell and return its exit status; what it prints goes to stderr.

    It and the processes that it starts are ended when this one is. One that cannot be started is an InputError.
    """
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise InputError(f"{name}: {words[0]} cannot be started ({error.strerror}); name an executable file") from None
    try:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(line)
        return process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def natural_key(name: str) -> tuple[Any, ...]:
    """Return a key that sorts names with numbers in the order of the numbers: 2 before 10."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name))


def _replaced(word: str, values: Mapping[str, str]) -> str:
    for placeholder, value in values.items():
        word = word.replace(placeholder, value)
    return word


KIND = External()
