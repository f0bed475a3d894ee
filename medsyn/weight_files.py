"""Describe the external weight files: purpose, place, and what to do about a missing one.

The table is data (`weight_files.yaml`). Nothing here or in the tools downloads a file: a weights folder is filled on a
machine with a network and copied to where the jobs run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from medsyn.errors import InputError
from medsyn.files import sha256

TABLE_FILE = Path(__file__).with_name("weight_files.yaml")


@dataclass(frozen=True)
class WeightFile:
    """One row of the table; `path` lies under the weights folder, `files` under `path` if that is a folder.

    parts: what of the tool needs it, a structure or one of lungmask's models.
    """

    name: str
    tool: str
    use: str
    path: str
    size_mb: int | None
    licence: str
    source: str
    sha256: str | None
    fetch: str | None
    parts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        """Return the size as text."""
        return "size unknown" if self.size_mb is None else f"about {self.size_mb} MB"

    def how_to_fetch(self, root: Path) -> str:
        """Return the command that fills `root` on a machine with a network, or where a person must ask."""
        return f"run `{self.fetch.replace('{root}', str(root))}`" if self.fetch else f"get it from the {self.source}"

    def find(self, root: Path) -> list[Path]:
        """Return the files under the weights folder `root`; a missing one is an InputError that says what to do."""
        target = root / self.path
        found: list[Path] = []
        for pattern in self.files or ("",):
            matches = sorted(target.glob(pattern)) if pattern else self._published_or_converted(target)
            if not matches:
                raise InputError(
                    f"{target / pattern if pattern else target}: no such file, {self.tool} needs it for {self.use}"
                    f" ({self.size}); on a machine with a network {self.how_to_fetch(root)}, then copy"
                    f" {self.path} into {root}"
                )
            found += matches
        return found

    def _published_or_converted(self, target: Path) -> list[Path]:
        """Return a single file: as published, or as `medsyn import-checkpoint` converted it."""
        return [path for path in (target, target.with_suffix(".safetensors")) if path.is_file()][:1]


@cache
def own_weight_files() -> list[WeightFile]:
    """Return the rows of weight_files.yaml."""
    rows = yaml.safe_load(TABLE_FILE.read_text(encoding="utf-8"))
    return [WeightFile(**row | {key: tuple(row.get(key, ())) for key in ("parts", "files")}) for row in rows]


def hash_weights(paths: Iterable[Path], root: Path) -> str:
    """Return the SHA-256 of one file, or of the lines that `sha256sum` prints for several, in order of their names."""
    files = sorted(paths)
    if len(files) == 1:
        return sha256(files[0])
    lines = "".join(f"{sha256(file)}  {file.relative_to(root)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()
