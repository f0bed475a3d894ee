"""Logging and progress bars on stderr; bars only on a terminal or with --progress, never with --quiet."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
log = logging.getLogger("medsyn")
_bars = False


def configure(*, quiet: bool, progress: bool) -> None:
    """Set the log level and whether bars are drawn; called once by the command line."""
    global _bars
    _bars = not quiet and (progress or sys.stderr.isatty())
    logging.basicConfig(stream=sys.stderr, format="%(message)s", force=True)
    log.setLevel(logging.WARNING if quiet else logging.INFO)


def track(items: Iterable[Item], *, description: str, total: int | None = None, initial: int = 0) -> Iterator[Item]:
    """Iterate over `items` behind a progress bar labelled `description`."""
    from tqdm import tqdm  # slow to import

    yield from tqdm(
        items, desc=description, total=total, initial=initial, disable=not _bars, file=sys.stderr, leave=False
    )
