"""The external weight files: what each is for, where it is looked for, and one clear line when it is missing.

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

from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.files import sha256
from medsyn.masks.tools import ANATOMY, MASK_TOOLS
from medsyn.volume import STRUCTURES

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


def weight_files() -> list[WeightFile]:
    """Return the rows of weight_files.yaml, and those that mask tools of other packages and plugins bring."""
    return [*_own_files(), *(row for name in MASK_TOOLS.names() for row in MASK_TOOLS[name].weight_files)]


@cache
def _own_files() -> list[WeightFile]:
    rows = yaml.safe_load(TABLE_FILE.read_text(encoding="utf-8"))
    return [WeightFile(**row | {key: tuple(row.get(key, ())) for key in ("parts", "files")}) for row in rows]


def weights_of(tool: str, parts: Iterable[str]) -> list[WeightFile]:
    """Return the rows that a tool needs for `parts` (structures, or lungmask's models), in the table's order."""
    wanted = set(parts)
    return [row for row in weight_files() if row.tool == tool and wanted & set(row.parts)]


def find_weights(tool: str, parts: Iterable[str], root: Path) -> list[Path]:
    """Return the files of `weights_of` under the weights folder `root`; a missing one is an InputError."""
    return [path for row in weights_of(tool, parts) for path in row.find(root)]


def needed_weights(config: Config) -> list[WeightFile]:
    """Return the rows that a configuration needs: for its mask tools and measures, and what else it names."""
    root = Path(config.masks.weights_dir)
    wanted = [(getattr(config.masks, structure), structure) for structure in STRUCTURES]
    wanted += [(config.evaluation.anatomy_tool, structure) for structure in ANATOMY]
    needs = {(tool, part) for tool, name in wanted for part in MASK_TOOLS[tool].weight_parts(config.masks, [name])}
    named = {Path(encoder.init) for encoder in config.text.encoders.values()}
    named |= {Path(config.evaluation.features.weights)} if config.evaluation.features.weights else set()
    return [
        row
        for row in weight_files()
        if root / row.path in named or any((row.tool, part) in needs for part in row.parts)
    ]


def hash_weights(paths: Iterable[Path], root: Path) -> str:
    """Return the SHA-256 of one file, or of the lines that `sha256sum` prints for several, in order of their names."""
    files = sorted(paths)
    if len(files) == 1:
        return sha256(files[0])
    lines = "".join(f"{sha256(file)}  {file.relative_to(root)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()
