"""What every section of the configuration is made of: the base model, and the types of its values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from medsyn.registry import Registry


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


@dataclass(frozen=True)
class Registered:
    """Annotation of a setting whose value is a name in a registry: `Annotated[str, Registered(SOLVERS)]`."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "examples": list(self.registry.builtin)}

    def _known(self, value: str) -> str:
        if value not in self.registry:
            raise ValueError(self.registry.unknown(value))
        return value


def unique(key: str, values: Sequence[str]) -> None:
    """Raise ValueError if a value stands twice."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{key}: '{value}' stands {values.count(value)} times, expected once")


def _path(value: str) -> str:
    """Return a path that a command line and a rule can hold; another one is a ValueError."""
    if not value.strip() or value != value.strip() or not value.isprintable():
        raise ValueError(f"{value!r} is empty, begins or ends with a space or holds a control character; rename it")
    if value.startswith(("-", "~")):
        raise ValueError(f"{value!r} begins with '{value[0]}', expected a plain path; write it in full")
    if any(len(os.fsencode(part)) > 255 for part in value.split("/")):
        raise ValueError("a name in it has more than 255 bytes, which no file system takes; shorten it")
    return value


def _results_dir(value: str) -> str:
    """Return the path of the results, without slashes too many; one that Snakemake cannot hold is a ValueError."""
    if not set(value).isdisjoint("{}<>"):
        raise ValueError(f"{value!r} holds one of {{}}<>, which Snakemake reads as placeholders; rename it")
    return os.path.normpath(_path(value))


def _label(value: str) -> str:
    """Return a name that a command line and a table can hold; another one is a ValueError."""
    if not value.strip() or not value.isprintable() or value.startswith("-"):
        raise ValueError(f"{value!r} is empty, begins with '-' or holds a control character; choose another")
    return value


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
OwnSeed = Annotated[Seed, Field(description="seed of this section; when left out, the configuration's seed")]
DataSeed = Annotated[Seed, Field(description="seed of the data; does not follow the configuration's seed")]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Shards = Annotated[int, Field(ge=1, le=10_000)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Voxels = Annotated[int, Field(ge=1, le=4096)]
Size3 = tuple[Voxels, Voxels, Voxels]
Millimetres = Annotated[float, Field(gt=0, le=10_000)]
Millimetres3 = tuple[Millimetres, Millimetres, Millimetres]
Hounsfield = Annotated[float, Field(ge=-32768, le=32767)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Precision = Literal["fp32", "bf16", "fp16"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100)]
LabelText = Annotated[str, Field(max_length=200), AfterValidator(_label)]
Sentence = Annotated[str, Field(min_length=1, max_length=10_000)]
PathText = Annotated[str, AfterValidator(_path)]
ResultsDir = Annotated[str, AfterValidator(_results_dir)]
