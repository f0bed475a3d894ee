"""Write the golden set again from a results folder of `config/test.yaml`, and print which values moved and by how much.

    python tests/write_golden.py RESULTS [ENTRY ...] [--dry-run]

An entry whose values all lie within their tolerances is left as it is, so that the stored values do not drift.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import golden_set
from golden_set import SET

MOST = 20
"""Values printed per entry."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, compare, print, and write what has moved beyond its tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="for example results/test")
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help=f"by default all: {', '.join(SET)}")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what has moved, also within the tolerances; write nothing"
    )
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.entries) - set(SET))
    if unknown:
        parser.error(f"unknown entry {', '.join(unknown)}; expected some of {', '.join(SET)}")
    for name in given.entries or SET:
        write(name, given.results, dry_run=given.dry_run)


def write(name: str, results: Path, *, dry_run: bool) -> None:
    """Print how one entry has moved, and store it where a value lies beyond its tolerance."""
    path = golden_set.GOLDEN / f"{name}.json"
    values = golden_set.compare(name, results) if path.exists() else []
    beyond = [value for value in values if not value.allowed]
    print(f"{name}: {len(beyond)} values beyond their tolerance, {len(values) - len(beyond)} moved within it")
    shown = sorted(values, key=lambda value: value.allowed) if dry_run else beyond
    for value in shown[:MOST]:
        print(f"  {value}")
    if len(shown) > MOST:
        print(f"  and {len(shown) - MOST} more")
    if not dry_run and (beyond or not path.exists()):
        path.parent.mkdir(exist_ok=True)
        text = json.dumps(golden_set.SET[name][0](results), indent=1)
        path.write_text(flat_lists(text) + "\n", encoding="utf-8")
        print(f"  written to {path}")


def flat_lists(text: str) -> str:
    """Put each innermost list of a JSON text on one line."""
    return re.sub(r"\[[^][{}]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text)


if __name__ == "__main__":
    main()
