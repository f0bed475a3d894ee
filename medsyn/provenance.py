"""Describe the origin of an artefact: version, commit, library versions, configuration and its hash."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from medsyn import __version__


def provenance(config: Any = None, **facts: Any) -> dict[str, Any]:
    """Describe the code and settings that make an artefact; `facts` adds seeds, input hashes and the like.

    Holds nothing that changes between two identical runs (no time, no host name), so equal runs give equal files.
    """
    record: dict[str, Any] = {"medsyn": __version__, "commit": _commit(), "versions": _versions()}
    if config is not None:
        plain = config.model_dump(mode="json") if hasattr(config, "model_dump") else config
        record["config"] = plain
        record["config_hash"] = hash_json(plain)
    return record | facts


def hash_json(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def installation() -> str:
    """Hash of this package's files and of the names and versions of all installed packages."""
    folder = Path(__file__).resolve().parent
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    package = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    others = sorted({f"{found.name} {found.version}" for found in metadata.distributions()})
    return hash_json([platform.python_version(), package, others])


@cache
def _commit() -> str:
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("numpy", "scipy", "SimpleITK", "torch", "transformers"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
