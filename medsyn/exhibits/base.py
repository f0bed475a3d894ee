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
from medsyn.registry import EXHIBITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from medsyn.config import Config, EvaluationConfig
    from medsyn.exhibits.inputs import Inputs
    from medsyn.exhibits.sources import Sources

Rows = list[dict[str, Any]]
Table = tuple[list[str], Rows]
"""Columns and rows."""


@dataclass(frozen=True)
class PaperTable:
    """A table as the paper prints it, shown beside the run's own for orientation."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Need:
    """One option of the command that makes an exhibit: words, then files or folders, which the rule takes as inputs.

    sampled: method and set of prompts of the volumes behind the files, if they were generated.
    """

    option: str
    words: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    sampled: tuple[str, str] | None = None


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
    table, read from its file; memory_mb, minutes: what its job asks a cluster for.
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
    memory_mb: int = 1000
    minutes: int = 60

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise InputError(f"exhibit '{self.name}': expected a name of lower-case letters, digits and _; rename it")

    @property
    def number(self) -> str:
        """What follows `medsyn table` or `medsyn figure`: the paper's number, or the name."""
        number = self.name.removeprefix(self.kind)
        return number if number.isdigit() else self.name


def name_of(kind: str, number: str) -> str:
    """Return the name of the exhibit that `medsyn table 2` or `medsyn figure hero` asks for."""
    return f"{kind}{number}" if number.isdigit() else number


def inputs_of(needs: Sequence[Need]) -> dict[str, list[str]]:
    """Return the inputs of a rule: option -> files and folders, each path once."""
    inputs: dict[str, list[str]] = {}
    for need in needs:
        if need.paths:
            inputs.setdefault(need.option.replace("-", "_"), []).extend(need.paths)
    return {option: list(dict.fromkeys(paths)) for option, paths in inputs.items()}


def words_of(needs: Sequence[Need]) -> list[str]:
    """Return the words of a command."""
    return [word for need in needs for word in (f"--{need.option}", *need.words, *need.paths)]


def exhibits_of(config: Config, *, only_in_all: bool = True) -> list[Exhibit]:
    """Return the exhibits of an experiment in the order of the registry; only_in_all: those of the target `all`.

    Raises InputError for one that is registered under another name than its own.
    """
    known = {name: EXHIBITS[name] for name in EXHIBITS.names()}
    for name, exhibit in known.items():
        if exhibit.name != name:
            raise InputError(f"exhibit '{exhibit.name}': is registered as '{name}', expected its own name; correct it")
    return [exhibit for exhibit in known.values() if not only_in_all or exhibit.in_all(config)]
