"""Code that docs/extend.md shows, for the tests that run it."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs/extend.md").read_text(encoding="utf-8")


def example(name: str) -> str:
    """Return the Python of the page whose first line is `# name`; KeyError without one."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return {block.split("\n", 1)[0].removeprefix("# "): block for block in blocks}[name]


def packaged(name: str) -> str:
    """Return an example as an installed package has it: without its last line, which registers the object."""
    code, _, last = example(name).rstrip("\n").rpartition("\n")
    if ".register(" not in last:
        raise ValueError(f"docs/extend.md, {name}: its last line is {last!r}, expected the call of register")
    return code + "\n"
