"""Read and validate configurations and the settings of single stages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from medsyn.config.experiment import Config
from medsyn.config.section import Section
from medsyn.errors import InputError
from medsyn.files import read_json
from medsyn.registry import load_plugins
from medsyn.yaml_file import read_yaml

SectionType = TypeVar("SectionType", bound=Section)
RENAMED = {"variants": "methods"}
"""Keys of earlier versions: old name -> new name."""


def load_config(path: str | Path) -> Config:
    """Read and validate a YAML configuration; the first mistake is an InputError that names file and key."""
    return validate(Config, read_yaml(path), path)


def check_keys(paths: Iterable[str | Path]) -> None:
    """Refuse configuration files with a key that stands twice, of which Snakemake silently takes the last."""
    for path in paths:
        read_yaml(path)


def load_stage(model: type[SectionType], path: str | Path) -> SectionType:
    """Read results/config/<stage>.json into its model, after importing the plugins that it names."""
    values = read_json(path)
    if isinstance(values, dict):
        _import_plugins(values.pop("plugins", ()), path)
    return validate(model, values, path)


def validate(model: type[SectionType], values: Any, source: str | Path) -> SectionType:
    """Build `model` from `values`; the first mistake is an InputError that names `source` and the key."""
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected a mapping of settings, found {type(values).__name__}")
    if model is Config:
        _import_plugins(values.get("plugins", ()), source)
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key, remove or correct it"
            message = f"is called {RENAMED[where]} now, rename it" if where in RENAMED else message
        raise InputError(f"{source}: {where + ': ' if where else ''}{message}") from None


def _import_plugins(names: Any, source: str | Path) -> None:
    """Import plugins; names that are not a list of texts are left to the validation."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return
    try:
        load_plugins(names)
    except InputError as error:
        raise InputError(f"{source}: plugins: {error}") from error
