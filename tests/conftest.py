"""Shared by all tests: one torch thread, so that results are bit-identical, and where real data may lie."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The table of the parity numbers, as the tests compared them."""
    parser.addoption("--parity-table", type=Path, metavar="FILE", help="write the parity numbers as a Markdown table")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table that was asked for."""
    table = session.config.getoption("--parity-table")
    if table:
        import parity

        table.write_text(parity.HEAD + "".join(parity.ROWS), encoding="utf-8")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real CTs and reports ($MEDSYN_SHARED_DATA or ../shared/data); skips where it is absent."""
    folder = Path(os.environ.get("MEDSYN_SHARED_DATA", ROOT.parent / "shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEDSYN_SHARED_DATA")
    return folder


def run_snakemake(*options: str, directory: Path, config: str | Path = "test") -> subprocess.CompletedProcess[str]:
    """Run Snakemake on this repository's workflow in `directory`; `config` is a shipped name or a YAML file."""
    path = ROOT / "config" / f"{config}.yaml" if isinstance(config, str) else config
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile")]
    command += ["--configfile", str(path), "--directory", str(directory), "--cores", "2", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False, cwd=directory)
