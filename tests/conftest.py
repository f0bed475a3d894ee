"""Shared by all tests: one torch thread, so that results are bit-identical, and where real data may lie."""

from __future__ import annotations

import locale
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parents[1]
LOCALE = locale.setlocale(locale.LC_ALL)
pytest_plugins = ["text_fixtures"]


@pytest.fixture(autouse=True)
def _locale() -> Iterator[None]:
    """Restore the locale of the start: threads that read DICOM through ITK leave C, and Python then reads ASCII."""
    locale.setlocale(locale.LC_ALL, LOCALE)
    yield
    locale.setlocale(locale.LC_ALL, LOCALE)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the parity numbers and of the golden set."""
    parser.addoption("--parity-table", type=Path, metavar="FILE", help="write the parity numbers as a Markdown table")
    parser.addoption(
        "--results", type=Path, metavar="FOLDER", help="compare this run of config/test.yaml: test_golden.py"
    )


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group the tests for `pytest -n 2 --dist loadgroup`: those of a module stay in one process.

    One group holds all tests that use the finished experiment or the cluster, so that each exists once. It takes the
    longest and comes first.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return

    def is_long(item: pytest.Item) -> bool:
        return not {"finished", "cluster"}.isdisjoint(getattr(item, "fixturenames", ()))

    for item in items:
        item.add_marker(pytest.mark.xdist_group("experiment" if is_long(item) else item.path.stem))
    items.sort(key=lambda item: not is_long(item))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table that was asked for."""
    table = session.config.getoption("--parity-table")
    if table:
        import parity

        table.write_text(parity.table(), encoding="utf-8")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real CTs and reports ($MEDSYN_SHARED_DATA or ../shared/data); skips where it is absent."""
    folder = Path(os.environ.get("MEDSYN_SHARED_DATA", ROOT.parent / "shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEDSYN_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The whole test-scale experiment, run once by the local executor: the folder that holds results/test."""
    directory = tmp_path_factory.mktemp("run")
    run = run_snakemake("all", "--show-failed-logs", directory=directory)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return directory


@pytest.fixture(scope="session")
def training_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two training stores, of five and three subjects, and the embeddings of their reports."""
    from tiny_models import make_embeddings, make_store

    folder = tmp_path_factory.mktemp("training data")
    make_store(folder / "store/0")
    make_store(folder / "store/1", num_subjects=3, seed=1)
    make_embeddings(folder / "embeddings.json")
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every look-up and connection fails and is listed."""
    asked: list[str] = []

    def refuse(*args: object, **_: object) -> None:
        asked.append(str(args))
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


def write_config(path: Path, base: str = "test", **sections: dict[str, Any]) -> Path:
    """A shipped configuration with some settings changed."""
    values = yaml.safe_load((ROOT / f"config/{base}.yaml").read_text(encoding="utf-8"))
    for name, section in sections.items():
        changed = values.setdefault(name, {})
        for key, value in section.items():
            changed[key] = changed.get(key, {}) | value if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def run_snakemake(*options: str, directory: Path, config: str | Path = "test") -> subprocess.CompletedProcess[str]:
    """Run Snakemake on this repository's workflow in `directory`; `config` is a shipped name or a YAML file."""
    path = ROOT / "config" / f"{config}.yaml" if isinstance(config, str) else config
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile")]
    command += ["--configfile", str(path), "--directory", str(directory), "--cores", "2", *options]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=1200, check=False, cwd=directory)
