"""Hold a CT with the faults, warnings and facts that reading its file gave, whatever the format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from medsyn.volume import Volume


@dataclass(frozen=True)
class Scan:
    """A CT as its file gives it.

    faults: reasons to refuse it that were found while reading; warnings: lines of `medsyn.scan_warnings`; facts: what
    was changed while reading, for qc.json; unsaid: `spacing_mm` and `orientation` where neither the file nor the reader
    of it said them.
    """

    volume: Volume
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    unsaid: tuple[str, ...] = ()
