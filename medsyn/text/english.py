"""General English that every Python brings along: the corpus of the generic language model of the ablation.

The paper compares its encoder with BERT-Base, pretrained on Wikipedia and books. Where no such checkpoint can be had,
the ablation learns its vocabulary and its language from the language reference (`pydoc_data.topics`) and the docstrings
of the standard library: a megabyte of English prose without a single chest in it. The text belongs to the interpreter,
so the result is reproducible for one Python version; its hash is kept with the model.
"""

from __future__ import annotations

import ast
import importlib
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

MIN_CHARACTERS = 80


@cache
def english_documents(max_characters: int = 1_500_000) -> tuple[str, ...]:
    """Return the texts in a fixed order, white space normalised, together at most `max_characters` long."""
    documents: list[str] = []
    total = 0
    for text in _sources():
        clean = " ".join(text.split())
        if len(clean) < MIN_CHARACTERS:
            continue
        if total + len(clean) > max_characters:
            break
        documents.append(clean)
        total += len(clean)
    return tuple(documents)


def _sources() -> Iterator[str]:
    """Yield language topics first, then module, class and function docstrings by file name."""
    topics = importlib.import_module("pydoc_data.topics").topics
    yield from (topics[name] for name in sorted(topics))
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""
