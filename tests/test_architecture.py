"""The rooms of the package: floors without imports upwards, no circles, and a page and a picture that are current."""

from __future__ import annotations

import importlib.util
import re
import sys
from itertools import pairwise
from types import ModuleType

import pytest
from conftest import ROOT

from medsyn.cli import build_parser


def script() -> ModuleType:
    """Import docs/draw_architecture.py."""
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs/draw_architecture.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


draw = script()
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PAIRS = draw.imports()
GRAPH = draw.graph_of(PAIRS)
ROOMS = [room for rooms in draw.FLOORS.values() for room in rooms]


def test_rooms_do_not_import_each_other_in_circles():
    found = draw.cycle(GRAPH)
    assert not found, [PAIRS[pair] for pair in pairwise(found)]


def test_no_import_runs_up_the_floors():
    assert draw.upward(PAIRS) == []


def test_every_folder_of_the_package_is_a_room_with_a_floor_and_a_purpose():
    folders = {path.parent.name for path in (ROOT / "medsyn").glob("*/__init__.py")}
    assert folders == set(ROOMS) - {draw.SHARED}
    assert [room for room in ROOMS if len(draw.description(room)) < 20] == []


def test_the_picture_is_that_of_the_code():
    stored = draw.PICTURE.read_text(encoding="utf-8")
    assert stored == draw.svg(GRAPH), "run: python docs/draw_architecture.py"


def test_the_page_names_every_room_and_every_shared_module():
    for room in ROOMS:
        assert f"`medsyn/{room}/`" in PAGE or room == draw.SHARED, room
    shared = {path.name for path in (ROOT / "medsyn").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert {name for name in shared if f"`{name}`" not in PAGE} == set()


def test_the_page_lists_the_verbs_of_the_command_line():
    verbs = next(action for action in build_parser()._actions if action.dest == "verb").choices
    table = PAGE.split("## Verbs")[1].split("\n## ")[0]
    assert set(re.findall(r"`medsyn ([a-z]+(?:-[a-z]+)*)`", table)) == set(verbs)


def test_the_page_names_the_rule_and_the_verb_of_every_result():
    rules = {
        name
        for path in (ROOT / "workflow/rules").glob("*.smk")
        for name in re.findall(r"^rule (\w+):", path.read_text(), re.M)
    }
    table = PAGE.split("## Results")[1].split("\n## ")[0]
    rows = [
        [re.findall(r"`([^`]+)`", cell) for cell in row.split("|")[2:4]] for row in table.splitlines() if "`" in row
    ]
    named = {name for row in rows if len(row) == 2 for name in row[0]} - {"make_<exhibit>"}
    assert named == rules, named ^ rules
    verbs = next(action for action in build_parser()._actions if action.dest == "verb").choices
    assert {verb for row in rows if len(row) == 2 for verb in row[1]} <= set(verbs)


def test_the_page_lists_the_files_of_rules():
    assert {path.name for path in (ROOT / "workflow/rules").glob("*.smk") if f"`{path.name}`" not in PAGE} == set()


@pytest.fixture
def package(tmp_path):
    """A package in which a lower room imports a higher one inside a function, and both import each other."""
    for room, text in {
        "cli": "from medsyn.config import settings\n",
        "config": "def late():\n    from medsyn.cli import verb\n",
        "ct": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from medsyn.cli import verb\n",
    }.items():
        (tmp_path / "medsyn" / room).mkdir(parents=True)
        (tmp_path / "medsyn" / room / "__init__.py").write_text(text)
    return tmp_path / "medsyn"


def test_an_import_upwards_and_a_circle_are_found(package):
    pairs = draw.imports(package)
    assert draw.upward(pairs) == ["medsyn/config/__init__.py:2 imports medsyn.cli"]
    assert draw.cycle(draw.graph_of(pairs)) == ["cli", "config", "cli"]


def test_a_room_without_a_floor_is_named(package):
    (package / "attic").mkdir()
    (package / "attic/__init__.py").write_text("import medsyn.config\n")
    with pytest.raises(KeyError, match="room attic is not in FLOORS"):
        draw.upward(draw.imports(package))
