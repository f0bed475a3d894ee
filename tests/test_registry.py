"""Registries: names from the package, from installed packages and from a user's modules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from medsyn.cli import main
from medsyn.errors import InputError
from medsyn.registry import Registry, load_plugins


def letters() -> Registry:
    """Return a registry of letters with one of its own and a group that the tests' package offers."""
    return Registry("letter", "medsyn.test_letters", {"a": "string:ascii_letters"})


def test_names_are_listed_without_import_and_loaded_when_asked_for() -> None:
    registry: Registry[str] = Registry("module", "medsyn.test_none", {"own": "this_module_is_missing:x"})
    assert registry.names() == ("own",)
    assert "own" in registry
    with pytest.raises(InputError, match="module 'own': this_module_is_missing:x cannot be imported"):
        registry["own"]
    assert letters()["a"].startswith("abc")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'z' is not a known letter; expected one of a,"):
        letters()["z"]


def test_a_name_is_taken_once() -> None:
    registry = letters()
    registry.register("b", "B")
    assert registry["b"] == "B"
    for name in ("a", "b"):
        with pytest.raises(InputError, match=f"letter '{name}' exists already"):
            registry.register(name, "other")


def test_entry_points_of_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "letters_of_a_stranger.py").write_text("C = 'c of a stranger'\n")
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[medsyn.test_letters]\nc = letters_of_a_stranger:C\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = letters()
    assert registry.names() == ("a", "c")
    assert registry["c"] == "c of a stranger"


def test_plugins_are_modules_or_files_and_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my plugins"
    folder.mkdir()
    for path in (folder / "counted.py", tmp_path / "counted_module.py"):
        path.write_text(f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for _ in range(2):
        load_plugins(["my plugins/counted.py", "counted_module"])
    assert (tmp_path / "runs").read_text() == "xx"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("absent.py", None, "no such file"),
        ("absent_module", None, "No module named 'absent_module'"),
        ("broken.py", "1 / 0\n", "ZeroDivisionError: division by zero"),
        ("syntax.py", "def\n", "SyntaxError"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str | None, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"plugin '{name}' cannot be imported .*{reason}"):
        load_plugins([name])


def test_the_command_line_imports_plugins_before_it_reads_a_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loud.py").write_text("print('imported')\n")
    assert main(["--plugin", "loud.py", "weights", "list"]) == 0
    assert capsys.readouterr().out.startswith("imported\n")
    assert main(["--plugin", "missing.py", "weights", "list"]) == 2
    assert capsys.readouterr().err.startswith("medsyn: plugin 'missing.py' cannot be imported")
