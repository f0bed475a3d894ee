"""The contract of every mask tool: its labels, empty and mirrored masks, values that are not HU, shards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tool_weights as tiny
import torch
from test_naviairway import dark_finder
from tool_weights import ALL_TOTAL, OBLIQUE, expected

from medsyn.cli import main
from medsyn.config import MasksConfig
from medsyn.errors import InputError
from medsyn.masks import segment as contract
from medsyn.masks.heart import ratio_of_heart
from medsyn.masks.segment import check_sides, segment
from medsyn.stages.volumes import segment_shard
from medsyn.volume import LOBE_NAMES, STRUCTURES, write_volume
from medsyn.weight_files import hash_weights


def test_cardiothoracic_ratio_from_masks_by_hand() -> None:
    heart, cavity = np.zeros((2, 3, 5, 20), bool)
    cavity[:, :, 2:18] = True
    cavity[0, :, 4:] = False
    heart[1, 2, 6:10] = heart[2, 2, 6:14] = True
    heart[2, 0, 0] = True  # a speck apart from the heart
    assert ratio_of_heart(heart, cavity) == 8 / 16
    assert ratio_of_heart(np.zeros_like(heart), cavity) is None


# --- NaviAirway: the network itself is tested in test_naviairway.py ---


def test_naviairway_as_a_tool(tmp_path: Path) -> None:
    for found, name in ((True, "checkpoint"), (False, "checkpoint_semi_supervise_learning")):
        (tmp_path / "naviairway").mkdir(exist_ok=True)
        state = dark_finder(found).state_dict()
        torch.save({"model_state_dict": state}, tmp_path / f"naviairway/{name}.pkl")
    volume = tiny.plateau_chest((6.0, 3.0, 3.0), **OBLIQUE)
    hu = np.where(volume.array == tiny.AIRWAY_HU, -1000, 0).astype(np.int16)
    lobes = volume.with_array(expected(volume, "lobes"))
    given = {"lobes": lobes, "vessels": volume.with_array(expected(volume, "vessels"))}
    masks = segment(volume.with_array(hu), MasksConfig(airway="naviairway", weights_dir=str(tmp_path)), given)
    np.testing.assert_array_equal(masks.labels["airway"].array, hu == -1000)
    record = masks.record["airway"]
    assert record["weights_hash"] == hash_weights((tmp_path / "naviairway").iterdir(), tmp_path)
    assert record["volume_ml"] == pytest.approx((hu == -1000).sum() * volume.voxel_mm3 / 1000, abs=0.001)


# --- the contract ---


def test_labels_of_every_tool_are_the_projects() -> None:
    """Order of lungmask from its README, of TotalSegmentator from its table; ours from `medsyn.volume.LOBE_NAMES`."""
    from totalsegmentator.map_to_binary import class_map

    from medsyn.masks import lungmask_tool, totalsegmentator_tool

    ours = ["left_upper", "left_lower", "right_upper", "right_middle", "right_lower"]
    assert list(LOBE_NAMES) == ours
    assert [lungmask_tool.LOBES[label] for label in range(1, 6)] == ours
    task, classes = totalsegmentator_tool.CLASSES["lobes"]
    for name, label in classes.items():
        _, lobe, _, side = name.split("_")
        assert ours[label - 1] == f"{side}_{lobe}"
    for task, classes in totalsegmentator_tool.CLASSES.values():
        assert set(classes) <= set(class_map[task].values())


def test_mirrored_lobes_are_an_error() -> None:
    lobes = np.zeros((4, 4, 9), np.uint8)
    lobes[:, :, 1:3], lobes[:, :, 6:8] = 5, 1
    check_sides(lobes, "scan")
    with pytest.raises(InputError, match=r"scan: the right lung lies on the patient's left"):
        check_sides(lobes[:, :, ::-1], "scan")
    volume = tiny.plateau_chest((6.0, 3.0, 3.0))
    given = {name: volume.with_array(expected(volume, name)) for name in STRUCTURES}
    segment(volume, MasksConfig(), given)
    given["lobes"] = volume.with_array(given["lobes"].array[:, :, ::-1])
    with pytest.raises(InputError, match=r"given: the right lung lies on the patient's left"):
        segment(volume, MasksConfig(), given)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_an_empty_mask_of_a_network_is_an_error(structure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = tiny.plateau_chest((6.0, 3.0, 3.0))
    masks = {name: expected(volume, name) for name in STRUCTURES}
    masks[structure] = np.zeros_like(masks[structure])
    tool = SimpleNamespace(version="1", weights_hash="0", segment=lambda volume, names: masks)
    monkeypatch.setattr(contract, "open_tools", lambda config: {"totalsegmentator": tool})
    what = "no right and no left lung found" if structure == "lobes" else f"totalsegmentator found no {structure}"
    with pytest.raises(InputError, match=f"scan: {what}"):
        segment(volume, MasksConfig(**ALL_TOTAL), name="scan")


@pytest.mark.parametrize(
    ("fault", "said"), [("nan", "NaN or infinite"), ("offset", "intercept"), ("scaled", "network")]
)
def test_values_that_are_no_hu_are_refused(
    fault: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = tiny.plateau_chest((6.0, 3.0, 3.0))
    hu = volume.array.astype(np.float32)
    wrong = {"nan": np.where(hu == tiny.BONE_HU, np.nan, hu), "offset": hu + 1024, "scaled": hu / 1024}[fault]
    write_volume(tmp_path / "scan.nrrd", volume.with_array(wrong.astype(np.float32)))
    assert main(["segment", str(tmp_path / "scan.nrrd"), "--out", str(tmp_path / "masks")]) == 2
    error = capsys.readouterr().err.strip()
    assert "scan.nrrd" in error
    assert said in error
    assert not (tmp_path / "masks").exists()


def test_a_shard_that_loses_most_scans_stops(tmp_path: Path) -> None:
    volume = tiny.plateau_chest((6.0, 3.0, 3.0))
    for name in ("a", "b"):
        write_volume(tmp_path / f"volumes/{name}/volume.nii.gz", volume.with_array(volume.array + 1024))
    with pytest.raises(InputError, match=r"2 of 2 subjects are rejected"):
        segment_shard(tmp_path / "volumes", tmp_path / "masks", MasksConfig())
    assert not (tmp_path / "masks").exists()
