"""Describe a table or figure: what it is made from, how it is made, and what is said about it.

The registry EXHIBITS is all that the workflow, the verbs `table` and `figure` and the report know of exhibits, so a new
one is a new module. The workflow imports that module only to learn what the exhibit needs: import numpy, scipy and
matplotlib inside the functions that `make` calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from medsyn.errors import InputError
from medsyn.exhibits.captions import readers_of
from medsyn.exhibits.needs import Need, inputs_of, words_of
from medsyn.exhibits.sources import Sources
from medsyn.layout import Layout
from medsyn.registry import EXHIBITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from medsyn.config import Config, EvaluationConfig
    from medsyn.exhibits.inputs import Inputs

Rows = list[dict[str, Any]]
Table = tuple[list[str], Rows]
"""Columns and rows."""
Stages = Mapping[str, Mapping[str, Any]]
"""Settings by stage: what the files config/<stage>.json hold."""


@dataclass(frozen=True)
class PaperTable:
    """A table as the paper prints it, shown beside the run's own for orientation."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Card:
    """A result in one line, at the head of the report."""

    title: str
    value: str
    detail: str


def always(_: Config) -> bool:
    """Return True: the exhibit belongs to every configuration."""
    return True


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One table or figure.

    name: stem of its file, and its name in `medsyn table` or `medsyn figure`; title, caption: plain text that the
    report prints; needs: the options of its command, for an experiment; options: names of all options that `make`
    reads; make: returns columns and rows, or the drawn figure; paper: the paper's values; uses_settings: whether
    `make` reads the settings of the evaluation; in_all: whether the target `all` and the report hold it; headers: how
    the report prints columns, beside those that it knows; card: what the head of the report says of the rows of a
    table, read from its file; caption_setting: a key of the evaluation's settings whose text, if it has one, ends the
    caption, and the words before that text; by_readers: it shows answers of the reader study, so title and caption say
    who the readers were; memory_mb, minutes: what its job asks a cluster for.
    """

    name: str
    kind: Literal["table", "figure"]
    title: str
    caption: str
    needs: Callable[[Sources], Sequence[Need]]
    options: tuple[str, ...]
    make: Callable[[Inputs, EvaluationConfig], Table | Figure]
    paper: PaperTable | None = None
    uses_settings: bool = True
    in_all: Callable[[Config], bool] = always
    headers: Mapping[str, str] = field(default_factory=dict)
    card: Callable[[Sequence[Mapping[str, str]]], Card | None] | None = None
    caption_setting: tuple[str, str] | None = None
    by_readers: bool = False
    memory_mb: int = 1000
    minutes: int = 60

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise InputError(f"exhibit '{self.name}': expected a name of lower-case letters, digits and _; rename it")

    def full_title(self, stages: Stages) -> str:
        """Return the title for a run with these settings (stage -> content of its JSON file)."""
        return self.title + (readers_of(stages.get("study", {}))[0] if self.by_readers else "")

    def full_caption(self, stages: Stages) -> str:
        """Return the caption for a run with these settings (stage -> content of its JSON file)."""
        caption = self.caption + (readers_of(stages.get("study", {}))[1] if self.by_readers else "")
        key, words = self.caption_setting or ("", "")
        text = stages.get("evaluation", {}).get(key)
        return f"{caption} {words}: {str(text).rstrip('.')}." if text else caption

    def files(self, layout: Layout) -> dict[str, str]:
        """Return what is written: `exhibit`, and `provenance` for a table."""
        if self.kind == "figure":
            return {"exhibit": layout.figure(self.name)}
        return {"exhibit": layout.table(self.name), "provenance": layout.table_provenance(self.name)}

    def inputs(self, sources: Sources) -> dict[str, list[str]]:
        """Return the files that it is made from, by option."""
        return inputs_of(self._options(sources))

    def command(self, sources: Sources) -> list[str]:
        """Return the words of the command that makes it, without its output."""
        return [self.kind, self.number, *words_of(self._options(sources))]

    def _options(self, sources: Sources) -> list[Need]:
        settings = [Need("config", (), (sources.layout.config("evaluation"),))] if self.uses_settings else []
        return [*settings, *self.needs(sources)]

    @property
    def number(self) -> str:
        """What follows `medsyn table` or `medsyn figure`: the paper's number, or the name."""
        number = self.name.removeprefix(self.kind)
        return number if number.isdigit() else self.name


def name_of(kind: str, number: str) -> str:
    """Return the name of the exhibit that `medsyn table 2` or `medsyn figure hero` asks for."""
    return f"{kind}{number}" if number.isdigit() else number


def exhibits_of(config: Config, *, only_in_all: bool = True) -> list[Exhibit]:
    """Return the exhibits of an experiment in the order of the registry; only_in_all: those of the target `all`.

    Raises InputError for one that is registered under another name than its own.
    """
    known = {name: EXHIBITS[name] for name in EXHIBITS.names()}
    for name, exhibit in known.items():
        if exhibit.name != name:
            raise InputError(f"exhibit '{exhibit.name}': is registered as '{name}', expected its own name; correct it")
    return [exhibit for exhibit in known.values() if not only_in_all or exhibit.in_all(config)]
