"""The registry of solvers: what knows its names, and a stranger's solver from outside of the package."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from pages import example, packaged
from tiny_models import SIZE, install_text_encoder, make_run

from medsyn.cli import main
from medsyn.config import SamplingConfig, load_config
from medsyn.diffusion.base import SOLVERS, solver_label
from medsyn.errors import InputError
from medsyn.volume import read_volume

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = """from medsyn.diffusion.base import SOLVERS, Solver
from medsyn.diffusion.solvers import ddim_times

"""


@pytest.fixture
def registry(monkeypatch):
    """The registry of solvers as it is in a new process, put back after the test."""
    for name in ("_things", "_sources", "_plugins"):
        monkeypatch.setattr(SOLVERS, name, dict(getattr(SOLVERS, name)))
    monkeypatch.setattr(SOLVERS, "_searched", False)
    return SOLVERS


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    install_text_encoder(monkeypatch)
    return make_run(tmp_path / "model with a space")


def write_config(path, **changes):
    """Write config/test.yaml for volumes of SIZE, with other sampling settings and top-level keys."""
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    values["preprocess"]["size"] = list(SIZE)
    values["methods"] = {name: entry for name, entry in values["methods"].items() if "kind" not in entry}  # of 64^3
    values["sampling"] |= changes.pop("sampling")
    path.write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return path


def generate(run_folder, out, *options):
    """Sample one volume with `medsyn generate`; return its array and its record."""
    command = ["generate", "--weights", str(run_folder), "--text", "Effusion.", "--seed", "3", "--out", str(out)]
    assert main([*command, *options, "--quiet"]) == 0
    record = json.loads(out.with_name(f"{out.name.partition('.')[0]}.json").read_text(encoding="utf-8"))
    return read_volume(out).array, record


def test_a_strangers_solver_is_one_module_and_one_entry_of_the_configuration(registry, run_folder, tmp_path):
    plugin = tmp_path / "euler.py"
    plugin.write_text(example("euler.py"), encoding="utf-8")
    sampling = tmp_path / "sampling.json"
    for solver, plugins in (("ddim", []), ("euler", [str(plugin)])):
        config = write_config(tmp_path / f"{solver}.yaml", sampling={"solver": solver}, plugins=plugins)
        assert main(["config", str(config), "--stage", "sampling", "--out", str(sampling), "--force"]) == 0
        array, record = generate(run_folder, tmp_path / f"{solver}.nii.gz", "--config", str(sampling))
        assert record["config"]["sampling"]["solver"] == solver
        assert json.loads(sampling.read_text(encoding="utf-8")).get("plugins", []) == plugins
        if solver == "ddim":
            first = array
    assert array.shape == SIZE and (array != first).mean() > 0.01
    assert "euler" in registry.names() and solver_label("euler") == "Euler"


def test_the_example_of_the_page_runs_from_the_command_line_alone(registry, run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("euler.py").write_text(example("euler.py"), encoding="utf-8")
    command = ["--plugin", "euler.py", "generate", "--weights", str(run_folder), "--text", "x", "--solver", "euler"]
    assert main([*command, "--out", "ct.nii.gz", "--quiet"]) == 0
    assert read_volume(Path("ct.nii.gz")).array.shape == SIZE and solver_label("euler") == "Euler"


def test_a_solver_of_an_installed_package(registry, run_folder, tmp_path, monkeypatch):
    site = tmp_path / "site"
    info = site / "stranger-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "stranger_solvers.py").write_text(packaged("euler.py"), encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[medsyn.solvers]\neuler = stranger_solvers:EULER\n", encoding="utf-8")
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    monkeypatch.setattr(registry, "_searched", False)  # a package that was there before the process started
    config = write_config(tmp_path / "config.yaml", sampling={"solver": "euler"})
    sampling = tmp_path / "sampling.json"
    assert main(["config", str(config), "--stage", "sampling", "--out", str(sampling)]) == 0
    array, record = generate(run_folder, tmp_path / "ct.nii.gz", "--config", str(sampling))
    assert record["config"]["sampling"]["solver"] == "euler" and array.shape == SIZE


def test_an_unknown_solver_is_one_line_that_lists_the_known_ones(run_folder, tmp_path, capsys):
    config = write_config(tmp_path / "config.yaml", sampling={"solver": "euler"})
    with pytest.raises(InputError, match=r"sampling\.solver: 'euler' is not a known solver; expected one of ddim, dpm"):
        load_config(config)
    out = tmp_path / "ct.nii.gz"
    command = ["generate", "--weights", str(run_folder), "--text", "x", "--solver", "euler", "--out", str(out)]
    assert main([*command, "--quiet"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "solver: 'euler' is not a known solver; expected one of ddim, dpmpp_2m" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("thing", "fault"),
    [
        ("ddim_times", "sampling.solver 'broken' is a function, expected a medsyn.diffusion.base.Solver"),
        (
            "Solver('B', ddim_times, lambda denoiser, x, times: denoiser(x, 0.0) * float('nan'))",
            "sampling.solver 'broken' gave values that are not finite, expected [-1, 1]",
        ),
        (
            "Solver('B', ddim_times, lambda denoiser, x, times: denoiser(x, 0.0)[0])",
            "sampling.solver 'broken' gave volumes of shape [4, ",
        ),
        (
            "Solver('B', lambda num_steps: ddim_times(0), None)",
            "sampling.solver 'broken': num_steps is 0, expected 1 to",
        ),
    ],
)
def test_a_solver_that_misbehaves_is_one_line(registry, run_folder, tmp_path, capsys, thing, fault):
    plugin, out = tmp_path / "broken.py", tmp_path / "ct.nii.gz"
    plugin.write_text(f"{IMPORTS}SOLVERS.register('broken', {thing})\n", encoding="utf-8")
    command = ["--plugin", str(plugin), "generate", "--weights", str(run_folder), "--text", "x", "--solver", "broken"]
    assert main([*command, "--out", str(out), "--quiet"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and fault in line
    assert not out.exists()


def test_schema_help_and_page_name_the_packages_solvers(capsys):
    own = list(SOLVERS.builtin)
    assert SamplingConfig.model_json_schema()["properties"]["solver"]["examples"] == own
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    page = (ROOT / "docs/sampling.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| `sampling.solver` |"))
    for name in own:
        assert name in words and f"`{name}`" in row and SOLVERS[name].label in row


def test_every_solver_falls_from_noise_to_tau_0():
    for name in SOLVERS.builtin:
        for num_steps in (1, 7, 50, 1000):
            times = SOLVERS[name].times(num_steps)
            assert 900 < times[0] <= 1000 and times[-1] == 0 and (np.diff(times) < 0).all()


def test_a_page_names_a_solver_that_is_not_known_any_more():
    assert solver_label("ddim") == "DDIM" and solver_label("solver_of_last_year") == "solver_of_last_year"
