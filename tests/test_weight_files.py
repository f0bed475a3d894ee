"""The external weight files: which a configuration needs, where they are looked for, whether they are known."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import tool_weights as tiny

from medsyn.cli import main
from medsyn.config import Config, MasksConfig, load_config
from medsyn.mask_tools import MASK_TOOLS
from medsyn.masks.weights import needed_weights, weight_files, weights_of
from medsyn.volume import write_volume
from medsyn.weight_files import hash_weights

# --- weights ---


def test_missing_weights_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = tiny.plateau_chest((6.0, 3.0, 3.0))
    write_volume(tmp_path / "scan.nii.gz", volume)
    command = ["segment", str(tmp_path / "scan.nii.gz"), "--out", str(tmp_path / "masks")]
    for tool, parts in (
        ("lungmask", ["unet_ltrclobes-3a07043d.pth", "124 MB", "MODEL_URLS"]),
        ("totalsegmentator", ["Dataset297", "165 MB", "totalseg_download_weights -t total_fast"]),
        ("naviairway", ["checkpoint.pkl", "43 MB", "AntonotnaWang/NaviAirway"]),
    ):
        weights = tmp_path / "none"
        structure = "airway" if tool == "naviairway" else "lobes"
        assert main([*command, f"--{structure}", tool, "--weights", str(weights)]) == 2
        error = capsys.readouterr().err.strip()
        assert error.count("\n") == 0
        for part in (*parts, str(weights), "on a machine with a network"):
            assert part in error
    assert not (tmp_path / "masks").exists()


def paper() -> Config:
    return load_config(Path(__file__).parents[1] / "config/paper.yaml")


def test_weights_of_the_papers_configuration() -> None:
    assert [row.name for row in needed_weights(paper())] == [
        *("lungmask_lobes", "lungmask_lungs", "totalsegmentator_crop", "totalsegmentator_lobes"),
        *("totalsegmentator_heart", "totalsegmentator_lung_vessels", "totalsegmentator_effusion"),
        *("naviairway_supervised", "naviairway_semi_supervised", "med3d"),
    ]


@pytest.mark.parametrize("name", MASK_TOOLS.builtin)
def test_every_structure_of_a_network_has_weight_files(name: str) -> None:
    tool = MASK_TOOLS[name]
    for structure in tool.structures:
        rows = weights_of(name, tool.weight_parts(MasksConfig(), [structure]))
        assert bool(rows) is tool.uses_network, structure


def test_weights_list_names_every_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["weights", "list", "--weights-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for row in weight_files():
        assert str(tmp_path / row.path) in out
        assert row.licence in out
        assert "http" not in f"{row.source} {row.fetch}"


def test_a_file_that_is_not_as_known_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(row for row in weight_files() if row.name == "med3d")
    known = replace(row, sha256=hashlib.sha256(b"known").hexdigest())
    monkeypatch.setattr("medsyn.masks.weights.weight_files", lambda: [known])
    file = tmp_path / row.path
    file.parent.mkdir()
    for content, status in ((b"known", 0), (b"other", 2)):
        file.write_bytes(content)
        assert main(["weights", "check", "--weights-dir", str(tmp_path)]) == status
    error = capsys.readouterr().err
    assert f"{file}: SHA-256" in error
    assert "copy it again" in error
    monkeypatch.undo()
    classical = str(Path(__file__).parents[1] / "config/config.yaml")
    assert main(["weights", "check", "--config", classical]) == 0
    assert "needs no weight file" in capsys.readouterr().out


def test_weights_hash_is_what_sha256sum_prints(tmp_path: Path) -> None:
    files = [tmp_path / "b", tmp_path / "a"]
    for file in files:
        file.write_bytes(file.name.encode())
    assert hash_weights(files[:1], tmp_path) == hashlib.sha256(b"b").hexdigest()
    printed = "".join(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in ("a", "b"))
    assert hash_weights(files, tmp_path) == hashlib.sha256(printed.encode()).hexdigest()
