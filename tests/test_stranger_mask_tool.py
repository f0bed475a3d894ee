"""A stranger's mask tool: one module outside of the package serves `medsyn segment` and the workflow.

The tool needs one file. A user names it under `plugins`; a package offers it by an entry point, without a change to the
file but for the line that registers it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from chests import chest, write_chest
from conftest import ROOT, run_snakemake, write_config
from pages import example, packaged

from medsyn.cli import main
from medsyn.config import Config, MasksConfig, load_config, stage_texts, validate
from medsyn.errors import InputError
from medsyn.mask_tools import ANATOMY, MASK_TOOLS, MaskTool, tools_for, use_network
from medsyn.masks.segment import open_tools
from medsyn.masks.weights import needed_weights
from medsyn.registry import load_plugins
from medsyn.stages.measures import _find_anatomy
from medsyn.volume import STRUCTURES, Volume, read_volume
from medsyn.weight_files import WeightFile

PAGE = (ROOT / "docs/masks.md").read_text(encoding="utf-8")
MODULE = example("dark_middle.py")
"""The example of docs/extend.md, which is what a stranger copies."""


@pytest.fixture(autouse=True)
def _registry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the registry as it was."""
    for name in ("_things", "_plugins", "_sources"):
        monkeypatch.setattr(MASK_TOOLS, name, dict(getattr(MASK_TOOLS, name)))
    monkeypatch.setattr(MASK_TOOLS, "_searched", False)
    open_tools.cache_clear()


def plugin(folder: Path) -> Path:
    """Write the page's tool as a user's module."""
    path = folder / "dark_middle.py"
    path.write_text(MODULE)
    return path


def expected_airway() -> np.ndarray:
    """Return what the tool finds in the phantom `normal`, which lies in model orientation."""
    array = chest("normal").volume.array
    assert array.shape == (64, 64, 64)
    mask = np.zeros(array.shape, np.uint8)
    mask[:, 21:42, 21:42] = array[:, 21:42, 21:42] < -900
    return mask


def assert_its_airway(folder: Path) -> None:
    """Check that the airway is the tool's and that the record says so; the other masks are the classical tool's."""
    np.testing.assert_array_equal(read_volume(folder / "airway.nii.gz").array, expected_airway())
    record = json.loads((folder / "segment.json").read_text(encoding="utf-8"))["structures"]
    assert record["airway"]["tool"] == "dark_middle"
    assert record["airway"]["version"] == "0.3"
    assert record["airway"]["weights_hash"] is None
    assert {record[name]["tool"] for name in ("lobes", "vessels")} == {"classical"}


def test_segment_with_the_tool_of_a_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = write_chest(tmp_path / "scan")
    command = ["segment", str(scan), "--out", str(tmp_path / "masks"), "--airway", "dark_middle"]
    assert main(command) == 2
    assert "airway: 'dark_middle' is not a known mask tool; expected one of classical, " in capsys.readouterr().err
    assert main(["--plugin", str(plugin(tmp_path)), *command]) == 0
    assert_its_airway(tmp_path / "masks")
    assert main([*command[:-2], "--lobes", "dark_middle", "--force"]) == 2
    assert "lobes: 'dark_middle' does not find lobes; expected one of classical" in capsys.readouterr().err


def test_segment_with_the_tool_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package_of_a_stranger.py").write_text(packaged("dark_middle.py"))
    info = tmp_path / "package_of_a_stranger-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: package_of_a_stranger\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[medsyn.mask_tools]\ndark_middle = package_of_a_stranger:TOOL\n")
    monkeypatch.syspath_prepend(tmp_path)
    scan = write_chest(tmp_path / "scan")
    assert main(["segment", str(scan), "--out", str(tmp_path / "masks"), "--airway", "dark_middle"]) == 0
    assert_its_airway(tmp_path / "masks")


def test_the_workflow_plans_and_runs_the_tool_of_a_plugin(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", masks={"airway": "dark_middle"}, cohort={"num_shards": 1})
    run = run_snakemake("-n", "results/test/masks/0", directory=tmp_path, config=config)
    assert run.returncode == 1
    assert "masks.airway: 'dark_middle' is not a known mask tool" in run.stdout + run.stderr

    module = plugin(tmp_path)
    config.write_text(config.read_text() + f"plugins: ['{module}']\n")
    write_chest(tmp_path / "results/test/preprocessed/0/p0")
    for options in (["-n"], ["--allowed-rules", "segment", "write_config", "--show-failed-logs"]):
        run = run_snakemake("results/test/masks/0", *options, directory=tmp_path, config=config)
        assert run.returncode == 0, run.stdout + run.stderr
    assert_its_airway(tmp_path / "results/test/masks/0/p0")


def test_the_workflow_asks_the_tool_whether_it_needs_a_network(tmp_path: Path) -> None:
    for name, needed in (("False", False), ("True", True)):
        module = tmp_path / f"{name}.py"
        module.write_text(
            MODULE.replace("uses_network=False", f"uses_network={name}").replace('"dark_middle"', f'"{name}"')
        )
        load_plugins([str(module)])
        assert use_network("classical", name, "classical") is needed
    rules = (ROOT / "workflow/rules/common.smk").read_text(encoding="utf-8")
    assert "NETWORKS_MEASURE = use_network(" in rules
    assert "NETWORKS_SEGMENT = use_network(" in rules


def test_tools_are_listed_without_numpy_or_torch() -> None:
    code = "import sys, medsyn.config; from medsyn.mask_tools import tools_for; print(tools_for('lobes'))"
    code += "; assert not {'numpy', 'scipy', 'torch'} & set(sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert run.stdout == "['classical', 'lungmask', 'totalsegmentator']\n", run.stderr
    assert run.returncode == 0, run.stderr


def test_the_stage_that_uses_a_plugin_names_it(tmp_path: Path) -> None:
    module = str(plugin(tmp_path))
    values = load_config(ROOT / "config/test.yaml").model_dump()
    values |= {"plugins": [module], "masks": values["masks"] | {"airway": "dark_middle"}}
    texts = stage_texts(validate(Config, values, "test"))
    assert [name for name, text in texts.items() if module in text] == ["masks", "evaluation"]


@pytest.mark.parametrize(
    ("returned", "fault"),
    [
        ("{}", r"broken gave no mask for airway, expected \(64, 64, 64\) voxels"),
        ("None", r"broken gave no mask for airway, expected \(64, 64, 64\) voxels"),
        ("{'airway': [1]}", r"broken gave no mask for airway, expected \(64, 64, 64\) voxels"),
        ("{'airway': volume.array[1:] < -900}", r"gave an array of shape \(63, 64, 64\) for airway"),
        ("{'airway': (volume.array < -900) * 7}", "broken's airway: labels run from 0 to 7, expected 0 to 1"),
        ("{'airway': volume.array < -9000}", "broken found no airway"),
    ],
)
def test_what_a_tool_must_not_return(
    returned: str, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tmp_path / "broken.py"
    text = MODULE.replace('{"airway": (volume.array < -900) & middle}', returned)
    assert text != MODULE
    module.write_text(text.replace('"dark_middle"', '"broken"'))
    scan = write_chest(tmp_path / "scan")
    command = ["--plugin", str(module), "segment", str(scan), "--out", str(tmp_path / "masks"), "--airway", "broken"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert re.search(fault, error), error
    assert error.count("\n") == 1
    assert not (tmp_path / "masks").exists()


def test_a_tool_that_leaves_out_a_structure_loses_that_measure_alone() -> None:
    class LungsOnly:
        version, weights_hash = "1", None

        def segment(self, volume: Volume, structures: Sequence[str]) -> dict[str, np.ndarray]:
            return {"lobes": np.ones(volume.array.shape, np.uint8)} if "lobes" in structures else {}

    masks, failures = _find_anatomy(LungsOnly(), chest("normal").volume)
    assert list(masks) == ["lobes"]
    assert failures["heart"] == "the tool gave no mask for heart, expected heart; repair the tool"


def test_weight_files_of_a_tool_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    row = WeightFile("values", "whole", "airway", "whole/values.txt", 1, "MIT", "author", None, None, parts=("airway",))
    tool = MaskTool(lambda config, structures: None, ANATOMY, weight_files=(row,))  # type: ignore[arg-type,return-value]
    MASK_TOOLS.register("whole", tool)
    assert main(["weights", "list", "--weights-dir", str(tmp_path)]) == 0
    assert f"{tmp_path / 'whole/values.txt'} (missing; about 1 MB; MIT)" in capsys.readouterr().out
    values = load_config(ROOT / "config/test.yaml").model_dump()
    for masks, names in (({}, []), ({"airway": "whole"}, ["values"]), ({"lobes": "whole"}, [])):
        config = validate(Config, values | {"masks": values["masks"] | masks}, "test")
        assert [needed.name for needed in needed_weights(config)] == names


def test_a_tool_that_finds_all_anatomy_can_measure() -> None:
    MASK_TOOLS.register("whole", MaskTool(lambda config, structures: None, ANATOMY))  # type: ignore[arg-type,return-value]
    assert tools_for("anatomy") == ["classical", "totalsegmentator", "whole"]
    assert tools_for("vessels") == ["classical", "totalsegmentator"]
    with pytest.raises(InputError, match="vessels: 'whole' does not find vessels"):
        validate(MasksConfig, {"vessels": "whole"}, "test")


@pytest.mark.parametrize("structure", [*STRUCTURES, "anatomy"])
def test_the_page_and_the_schema_list_the_tools_of_the_package(structure: str) -> None:
    names = tools_for(structure, MASK_TOOLS.builtin)
    key = "evaluation.anatomy_tool" if structure == "anatomy" else structure
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{key}`"))
    assert sorted(set(re.findall(r"`([a-z]+)`", row.split("|")[2])) & set(MASK_TOOLS.builtin)) == sorted(names)
    fields = json.loads((ROOT / "config/schema.json").read_text(encoding="utf-8"))["$defs"]
    field = fields["EvaluationConfig" if structure == "anatomy" else "MasksConfig"]["properties"][key.split(".")[-1]]
    assert field["examples"] == names
