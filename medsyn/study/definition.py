"""Files of a reader study: `study.json`, which says everything that readers are shown, and the sealed key.

A study is a folder `STUDY` with `study.json`, `volumes/<16 hex digits>.nii.gz` and `SHA256SUMS`. Nothing in it says by
which method a volume was made. The key, which does, lies beside the folder and never in it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from medsyn.config import Section, validate
from medsyn.errors import InputError
from medsyn.files import read_json, sha256

STUDY_FILE, SUMS_FILE, VOLUMES_FOLDER = "study.json", "SHA256SUMS", "volumes"
VOLUME_SUFFIX = ".nii.gz"

Task = Literal["recognition", "ranking"]
Structure = Literal["lobes", "vessels", "airways"]
Group = Literal["", "junior", "senior"]
VolumeName = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
ItemName = Annotated[str, Field(pattern=r"^[a-z][0-9a-z]{0,15}$")]
ReaderCode = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
Answer = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100)]


class Window(Section):
    """The display window with which a volume is first shown, in HU."""

    name: str = "lung"
    level: float = -600
    width: PositiveFloat = 1500


class Option(Section):
    """One answer that a recognition item offers: its value in the answers, and the words on the page."""

    value: Answer
    label: str = Field(min_length=1, max_length=200)


class Item(Section):
    """One question. Recognition: one volume and options; ranking: two or more volumes and a structure.

    practice: shown first and not analysed; repeats: id of the item that this one shows again.
    """

    id: ItemName
    task: Task
    question: str = Field(min_length=1)
    volumes: tuple[VolumeName, ...]
    options: tuple[Option, ...] = ()
    structure: Structure | None = None
    practice: bool = False
    repeats: ItemName | None = None

    @model_validator(mode="after")
    def _check(self) -> Item:
        if len(set(self.volumes)) != len(self.volumes):
            raise ValueError(f"item {self.id}: shows a volume twice, expected different ones")
        if len({option.value for option in self.options}) != len(self.options):
            raise ValueError(f"item {self.id}: has an option twice, expected different values")
        if self.task == "recognition":
            complete = len(self.volumes) == 1 and len(self.options) >= 2 and self.structure is None
            expected = "one volume, at least two options and no structure"
        else:
            complete = len(self.volumes) >= 2 and not self.options and self.structure is not None
            expected = "at least two volumes, a structure and no options"
        if not complete:
            raise ValueError(
                f"item {self.id}: has {len(self.volumes)} volumes, {len(self.options)} options and structure"
                f" {self.structure}; a {self.task} item has {expected}"
            )
        return self


class Slot(Section):
    """One place in a reader's order: an item, and its volumes in the order of display."""

    item: ItemName
    volumes: tuple[VolumeName, ...]


class Reader(Section):
    """A reader by pseudonym, and the order in which this reader sees the items."""

    code: ReaderCode
    group: Group = ""
    order: tuple[Slot, ...]


class Study(Section):
    """study.json: all that the server and its pages need."""

    format: Literal[1] = 1
    title: str = Field(min_length=1)
    seed: int = Field(ge=0)
    introduction: str
    window: Window = Window()
    items: tuple[Item, ...] = Field(min_length=1)
    readers: tuple[Reader, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Study:
        items = {item.id: item for item in self.items}
        if len(items) != len(self.items):
            raise ValueError("items: an id stands twice, expected each once")
        if len({reader.code for reader in self.readers}) != len(self.readers):
            raise ValueError("readers: a code stands twice, expected each once")
        for item in self.items:
            _check_repeat(item, items)
        for reader in self.readers:
            _check_order(reader, items)
        return self

    def item(self, name: str) -> Item:
        """Return the item of this id; a KeyError without one."""
        for item in self.items:
            if item.id == name:
                return item
        raise KeyError(name)

    @property
    def volumes(self) -> tuple[str, ...]:
        """The names of all volumes, sorted: the files that the folder `volumes` holds."""
        return tuple(sorted({name for item in self.items for name in item.volumes}))


class KeyEntry(Section):
    """What a volume is.

    method: name of its method, `real` for a CT of a patient; label: the method's name in tables; prompt_set, sample:
    where it was found; truth: the option value that is the right answer; None where no one asks.
    """

    method: str
    label: str
    real: bool
    prompt_set: str = ""
    sample: str = ""
    truth: Answer | None = None


class Key(Section):
    """The key file: the SHA-256 of the study.json that it belongs to, and what each volume is.

    secret: what names and orders follow from, together with the seed.
    """

    study: str = Field(pattern=r"^[0-9a-f]{64}$")
    secret: str = ""
    volumes: Mapping[VolumeName, KeyEntry]


def volume_file(folder: Path, name: str) -> Path:
    """Return the file of a volume of the study in `folder`; a name that is not one of a volume is a ValueError."""
    if len(name) != 16 or not set(name) <= set("0123456789abcdef"):
        raise ValueError(f"{name!r} is not the name of a volume, expected 16 hexadecimal digits")
    return folder / VOLUMES_FOLDER / f"{name}{VOLUME_SUFFIX}"


def default_key(folder: Path) -> Path:
    """Return where the key of the study in `folder` lies unless it is named: STUDY.key.json beside it."""
    return _beside(folder, ".key.json")


def default_answers(folder: Path) -> Path:
    """Return where the answers to the study in `folder` lie unless they are named: STUDY.answers.sqlite beside it."""
    return _beside(folder, ".answers.sqlite")


def lies_in(path: Path, folder: Path) -> bool:
    """Return whether `path` is, or would be, in `folder` or is `folder` itself; links are followed."""
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return real == root or root in real.parents


def read_study(folder: str | Path) -> Study:
    """Read the study in `folder`; a missing or contradicting file, or a missing volume, is an InputError."""
    folder = Path(folder)
    path = folder / STUDY_FILE
    if not path.is_file():
        raise InputError(f"{folder}: has no {STUDY_FILE}, expected a folder of `medsyn study make`; name one")
    study = validate(Study, read_json(path), path)
    missing = [name for name in study.volumes if not volume_file(folder, name).is_file()]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of its {len(study.volumes)} volumes are missing, such as"
            f" {volume_file(folder, missing[0])}; copy the folder again"
        )
    return study


def read_key(path: str | Path, study_folder: str | Path | None = None) -> Key:
    """Read a key; with `study_folder` it must be that study's. Anything else is an InputError."""
    key = validate(Key, read_json(path), path)
    if study_folder is not None:
        file = Path(study_folder) / STUDY_FILE
        if not file.is_file() or sha256(file) != key.study:
            raise InputError(f"{path}: is the key of another study than {study_folder}; give the key made with it")
    return key


def check_sums(folder: str | Path) -> None:
    """Raise InputError at the first file of a study that differs from its line in SHA256SUMS, or has none."""
    folder = Path(folder)
    path = folder / SUMS_FILE
    if not path.is_file():
        raise InputError(f"{folder}: has no {SUMS_FILE}; copy the folder again")
    lines = path.read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {SUMS_FILE}
    if different := sorted(found ^ set(sums)):
        where = "is not in" if different[0] in found else "is missing, but stands in"
        raise InputError(f"{folder / different[0]}: {where} {SUMS_FILE}; copy the folder again")
    for name, digest in sums.items():
        if sha256(folder / name) != digest:
            raise InputError(f"{folder / name}: differs from its sum in {SUMS_FILE}; copy the folder again")


def to_json(section: Section) -> dict[str, Any]:
    """Return a study or key as JSON holds it."""
    return section.model_dump(mode="json")


def _beside(folder: Path, ending: str) -> Path:
    real = Path(os.path.realpath(folder))
    return real.with_name(f"{real.name}{ending}")


def _check_repeat(item: Item, items: Mapping[str, Item]) -> None:
    """Raise ValueError unless what an item repeats exists and asks the same about the same volumes."""
    if item.repeats is None:
        return
    first = items.get(item.repeats)
    if first is None or first.practice or item.practice or first.repeats is not None:
        raise ValueError(f"item {item.id}: repeats {item.repeats}, expected an item that is asked for the first time")
    if (first.task, first.structure, set(first.volumes)) != (item.task, item.structure, set(item.volumes)):
        raise ValueError(f"item {item.id}: asks something else than {first.id}, which it repeats")


def _check_order(reader: Reader, items: Mapping[str, Item]) -> None:
    """Raise ValueError unless a reader's order holds each item once, with its own volumes, practice first."""
    if _differ([slot.item for slot in reader.order], list(items)):
        raise ValueError(f"reader {reader.code}: the order does not hold each of the {len(items)} items once")
    practice = [items[slot.item].practice for slot in reader.order]
    if practice != sorted(practice, reverse=True):
        raise ValueError(f"reader {reader.code}: a practice item stands behind others, expected it first")
    for slot in reader.order:
        if _differ(slot.volumes, items[slot.item].volumes):
            raise ValueError(f"reader {reader.code}: shows other volumes in item {slot.item} than the item has")


def _differ(first: Sequence[str], second: Sequence[str]) -> bool:
    return Counter(first) != Counter(second)
