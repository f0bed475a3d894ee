"""The pages: links, paths, names and keys exist, commands parse, and the index lists every page."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from medsyn import __version__
from medsyn.cli import build_parser

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "config/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
OF_THE_USER = (
    "config/cohort.csv",
    "config/reports.csv",
    "config/ct_rate*.csv",
    "config/rad_chest.csv",
    "medsyn/phantom_model*",
)
"""Paths that a page tells the reader to make."""
FILE_ENDINGS = {"py", "json", "csv", "yaml", "md", "safetensors", "html", "smk"}

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(
    r"(?<![\w./{-])(?:medsyn|docs|config|tests|benchmarks|workflow|slurm|envs|\.ci|\.github)/[\w./*-]*[\w*]"
)
FILE = re.compile(r"(?<![\w./*-])\w+\.(?:py|smk)\b")
OWN = re.compile(r"(?:^# |--plugin |plugins: \[)(\w+\.py)\b", re.MULTILINE)
"""Modules of the reader's own: the first line of a block of code, and what is named as a plugin."""
GROUPS = {"medsyn.methods", "medsyn.exhibits", "medsyn.mask_tools", "medsyn.solvers"}
"""Groups of entry points."""
KEY = re.compile(r"(?<![\w./-])([a-z_]+(?:\.[a-z_]+)+)(?![\w/(])")


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", lambda match: match[1] or "", heading)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def names_of_the_code() -> set[str]:
    """Return every dotted name that a page may use: modules, and what stands at their top level or in their classes."""
    names = set()
    for path in (ROOT / "medsyn").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        names.add(module)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for name in defined(node):
                names.add(f"{module}.{name}")
    return names


def defined(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement of a module defines or imports."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    if isinstance(node, ast.ClassDef):
        yield from (f"{node.name}.{name}" for inner in node.body for name in defined(inner))
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))
    if isinstance(node, ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)


def knows(schema: dict[str, Any], node: dict[str, Any], keys: list[str]) -> bool:
    """Tell whether a key exists below a node of the configuration's schema."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    choices = [node, *node.get("anyOf", []), *node.get("allOf", [])]
    if not keys or any(knows(schema, choice, keys) for choice in choices[1:]):
        return True
    below = [*node.get("patternProperties", {}).values()]
    below += [node["additionalProperties"]] if isinstance(node.get("additionalProperties"), dict) else []
    below += [node["properties"][keys[0]]] if keys[0] in node.get("properties", {}) else []
    return any(knows(schema, inner, keys[1:]) for inner in below)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_leads_to_a_file_and_a_heading(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if re.match(r"https?://|mailto:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_path_and_file_named_exists(page):
    text = page.read_text(encoding="utf-8")
    inside = " ".join([*FENCE.findall(text), *CODE.findall(text)])
    for path in PATH.findall(inside):
        assert list(ROOT.glob(path)) or any(fnmatch(path, user) for user in OF_THE_USER), path
    known = {path.name for folder in ("medsyn", "tests", "benchmarks", "docs", "workflow") for path in files(folder)}
    own = set(OWN.findall(text))
    for name in FILE.findall(inside):
        assert name in known | own, name


def files(folder: str) -> Iterator[Path]:
    """Yield the files below a folder of the repository."""
    return (path for path in (ROOT / folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_name_of_the_code_and_key_of_the_configuration_exists(page):
    schema = json.loads((ROOT / "config/schema.json").read_text(encoding="utf-8"))
    names = names_of_the_code()
    for word in CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        for name in re.findall(r"(?<![\w./-])medsyn(?:\.\w+)+", word):
            assert name in names | GROUPS or name.endswith(".log"), name
        for key in KEY.findall(word):
            first, *rest = key.split(".")
            if first in schema["properties"] and rest[-1] not in FILE_ENDINGS:
                assert knows(schema, schema["properties"][first], rest), key


def test_the_patterns_find_what_they_look_for():
    schema = json.loads((ROOT / "config/schema.json").read_text(encoding="utf-8"))
    properties = schema["properties"]
    assert slug("What `medsyn` is, and is not") == "what-medsyn-is-and-is-not"
    assert PATH.findall("`medsyn/masks/lungs.py` and config/paper.yaml, ../shared/config/x.yaml") == [
        "medsyn/masks/lungs.py",
        "config/paper.yaml",
    ]
    assert knows(schema, properties["preprocess"], ["max_reject_fraction"])
    assert knows(schema, properties["evaluation"], ["augmentation", "num_epochs"])
    assert not knows(schema, properties["preprocess"], ["no_such_key"])
    assert "medsyn.volume.read_volume" in names_of_the_code()


def test_the_index_lists_every_page():
    text = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    listed = {link.partition("#")[0] for link in LINK.findall(text)}
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= listed, pages - listed


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of the `medsyn` commands in a page's blocks, those with an ellipsis left out."""
    for block in FENCE.findall(page.read_text(encoding="utf-8")):
        kind, *lines = block.replace("\\\n", " ").splitlines()
        if kind in ("```", "```bash"):
            shown = (line for line in lines if line.startswith("medsyn ") and "..." not in line)
            yield from (shlex.split(line, comments=True)[1:] for line in shown)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_the_commands_in_the_blocks_of_a_page_parse(page):
    for words in commands(page):
        if "--help" not in words:
            build_parser().parse_args(words)


def test_commands_are_found():
    found = list(commands(ROOT / "README.md"))
    assert len(found) >= 8
    assert found[0][0] == "generate"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_what_a_page_places_in_a_file_is_defined_there(page):
    for name, path in re.findall(r"`(\w+)`,? (?:in|of) `(medsyn/[\w/]+\.py)`", page.read_text(encoding="utf-8")):
        body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        methods = {
            inner.name
            for node in body
            if isinstance(node, ast.ClassDef)
            for inner in node.body
            if isinstance(inner, ast.FunctionDef)
        }
        assert name in {found for node in body for found in defined(node)} | methods, f"{name} in {path}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_the_tests_that_a_page_names_exist(page):
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")}
    tests = {name: set(re.findall(r"^def (test_\w+)", text, re.MULTILINE)) for name, text in texts.items()}
    known = set().union(*tests.values()) | {name.removesuffix(".py") for name in tests}
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"\btest_\w+", text)) - {"test_"} <= known
    for file, name in re.findall(r"(test_\w+\.py)::(test_\w+)", text):
        assert name in tests[file], f"{file}::{name}"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["references"][0]["doi"].startswith("10.")
