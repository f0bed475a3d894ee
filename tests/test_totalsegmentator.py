"""TotalSegmentator's own networks with weights that tell HU apart: masks, measures, failures of the library."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import tool_weights as tiny
import torch
from numpy.typing import NDArray
from tool_weights import ALL_TOTAL, OBLIQUE, expected

from medsyn.cli import main
from medsyn.config import MasksConfig, MeasureStage
from medsyn.errors import InputError
from medsyn.files import read_json
from medsyn.masks.heart import ratio_of_heart
from medsyn.masks.segment import open_tools, segment
from medsyn.masks.totalsegmentator_tool import _crop
from medsyn.masks.weights import weight_files
from medsyn.orientation import reorient
from medsyn.stages.measures import measure_one, measure_volume, open_anatomy_tool
from medsyn.volume import STRUCTURES, Volume, read_volume, write_volume
from medsyn.weight_files import hash_weights

TOTAL_BY_HU = (
    ("trachea", -965.0),
    ("lung_lower_lobe_left", -900.0),
    ("lung_upper_lobe_left", -850.0),
    ("lung_lower_lobe_right", -790.0),
    ("lung_middle_lobe_right", -650.0),
    ("lung_upper_lobe_right", -375.0),
    ("background", np.inf),
)


HEART_BY_HU = (("background", 40.0), ("heart", 150.0), ("aorta", np.inf))


def by_number(labels: dict[int, str], by_name: Sequence[tuple[str, float]]) -> list[tuple[int, float]]:
    """Intervals with TotalSegmentator's numbers for names; the names that its model does not have are background."""
    number = {name: label for label, name in labels.items()}
    return [(number.get(name, 0), upper) for name, upper in by_name]


def write_crop_model(root: Path, by_name: Sequence[tuple[str, float]]) -> None:
    """The 3 mm model."""
    from totalsegmentator.map_to_binary import class_map

    labels = class_map["total"]
    tiny.write_nnunet(
        root / "totalsegmentator/Dataset297_TotalSegmentator_total_3mm_1559subj",
        "nnUNetTrainer_4000epochs_NoMirroring",
        *(labels, (3.0, 3.0, 3.0), by_number(labels, by_name), 32),
    )


@pytest.fixture(scope="module")
def total_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights folder with the five models of TotalSegmentator that the project uses."""
    from totalsegmentator.map_to_binary import class_map, class_map_5_parts

    root = tmp_path_factory.mktemp("totalsegmentator weights")
    write_crop_model(root, TOTAL_BY_HU)
    folder = root / "totalsegmentator"
    for part, name, by_name in (
        ("organs", "Dataset291_TotalSegmentator_part1_organs_1559subj", TOTAL_BY_HU),
        ("cardiac", "Dataset293_TotalSegmentator_part3_cardiac_1559subj", HEART_BY_HU),
    ):
        labels = class_map_5_parts[f"class_map_part_{part}"]
        tiny.write_nnunet(
            folder / name, "nnUNetTrainerNoMirroring", labels, (1.5, 1.5, 1.5), by_number(labels, by_name)
        )
    tiny.write_nnunet(
        folder / "Dataset117_lung_airways_arteries_veins_282subj",
        "nnUNetTrainerSkeletonRecall",
        class_map["lung_vessels"],
        (1.0, 0.703125, 0.703125),
        [(1, -965.0), (0, 40.0), (3, 150.0), (4, 310.0), (2, np.inf)],
    )
    tiny.write_nnunet(
        folder / "Dataset315_thoraxCT",
        "nnUNetTrainer",
        class_map["pleural_pericard_effusion"],
        (2.0, 1.5, 1.5),
        [(1, -300.0), (0, 150.0), (2, 310.0), (3, np.inf)],
    )
    (folder / "Dataset302_vertebrae_body_1559subj").mkdir()  # a name that TotalSegmentator deletes as outdated
    return root


# --- TotalSegmentator ---


def test_totalsegmentator_on_an_oblique_grid_with_turned_axes(
    total_root: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: loaded.append(args[0]) or load(*args, **kwargs))
    volume = tiny.plateau_chest((3.0, 1.4, 1.1), **OBLIQUE)
    config = MasksConfig(**ALL_TOTAL, weights_dir=str(total_root))
    masks = segment(volume, config)
    for structure, reach in (("lobes", 3.0), ("airway", 2.0), ("vessels", 2.0)):
        found, truth = masks.labels[structure], expected(volume, structure)
        inside = tiny.inside_plateaus(volume, (reach,) * 3)
        np.testing.assert_array_equal(found.array[inside], truth[inside])
        for label in range(1, 6 if structure == "lobes" else 2):
            assert (truth[inside] == label).sum() > 100
        assert (found.array > 0).sum() == pytest.approx((truth > 0).sum(), rel=0.15)
        assert found.direction == volume.direction
    assert {record["version"] for record in masks.record.values()} == {"2.18.0"}
    turned = reorient(volume)
    segment(turned, config, {name: turned.with_array(expected(turned, name)) for name in ("airway", "vessels")})
    assert len(loaded) == 3  # crop, lobes, vessels: once each for two scans
    assert not no_network
    assert (total_root / "totalsegmentator/Dataset302_vertebrae_body_1559subj").is_dir()
    assert not {"timm", "torchvision"} & set(sys.modules)
    assert torch.get_num_threads() == 1  # conftest asks for one, TotalSegmentator takes all


def test_totalsegmentator_measures(total_root: Path, tmp_path: Path) -> None:
    volume = tiny.plateau_chest((3.0, 2.0, 2.0))
    write_volume(tmp_path / "scan.nii.gz", volume)
    tool = open_anatomy_tool(MeasureStage(anatomy_tool="totalsegmentator", weights_dir=str(total_root)))
    masks: dict[str, NDArray[np.bool_]] = {}

    def once(volume: Volume, names: tuple[str, ...]) -> dict[str, NDArray[np.uint8]]:
        found = tool.segment(volume, names)
        masks.update({name: mask > 0 for name, mask in found.items()})
        return found

    values = measure_one(tmp_path / "scan.nii.gz", tool=SimpleNamespace(segment=once)).values
    inside = tiny.inside_plateaus(volume, (3.0, 3.0, 3.0))
    for name, hu in (("airway", tiny.AIRWAY_HU), ("heart", tiny.ARTERY_HU), ("effusion", tiny.VEIN_HU)):
        np.testing.assert_array_equal(masks[name][inside], (volume.array == hu)[inside])
        assert masks[name][inside].any()
    assert values["airway_volume_mm3"] == pytest.approx(masks["airway"].sum() * volume.voxel_mm3)
    assert values["effusion_volume_ml"] == pytest.approx(masks["effusion"].sum() * volume.voxel_mm3 / 1000)
    assert values["lung_volume_ml"] == pytest.approx(
        (masks["lobes"] & ~masks["airway"]).sum() * volume.voxel_mm3 / 1000
    )
    assert values["lung_volume_ml"] == pytest.approx(
        (expected(volume, "lobes") > 0).sum() * volume.voxel_mm3 / 1000, rel=0.1
    )
    cavity = masks["lobes"] | masks["effusion"]
    assert values["cardiothoracic_ratio"] == ratio_of_heart(masks["heart"], cavity)


def test_a_task_of_totalsegmentator_that_fails_costs_its_structures_only(
    total_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels instead of networks; the effusion's task fails, the lung_vessels' sees nothing to crop to."""
    from totalsegmentator.map_to_binary import class_map

    volume = reorient(tiny.plateau_chest((6.0, 3.0, 3.0)))
    tool = open_anatomy_tool(MeasureStage(anatomy_tool="totalsegmentator", weights_dir=str(total_root)))
    asked: list[str] = []

    def run(task: str, image: nibabel.Nifti1Image, classes: Sequence[str]) -> NDArray[np.uint8]:
        asked.append(task)
        if task == "pleural_pericard_effusion":
            raise InputError(f"TotalSegmentator refused the task {task}: broken")
        if task == "lung_vessels":
            _crop(image, nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine))
        number = {name: label for label, name in class_map["total"].items()}
        lobes = tiny.plateau_lobes(*tiny.from_centre_mm(volume))
        return np.where(
            lobes >= 3, number["lung_upper_lobe_right"], number["lung_upper_lobe_left"] * (lobes > 0)
        ).astype(np.uint8)

    monkeypatch.setattr(tool, "_run", run)
    result = measure_volume(volume, tool=tool)
    assert result.reasons["effusion_volume_ml"].endswith("refused the task pleural_pericard_effusion: broken")
    assert result.values["effusion_volume_ml"] is None
    assert result.values["airway_volume_mm3"] == 0.0
    assert result.values["lung_volume_ml"] > 100  # type: ignore[operator]
    assert result.found == {"lung": True, "airway": False, "heart": False}  # no heart in the labels above
    assert set(asked) == {"total", "lung_vessels", "pleural_pericard_effusion"}


def test_a_crop_that_finds_no_lungs_is_an_error(tmp_path: Path, total_root: Path) -> None:
    write_crop_model(tmp_path, (("trachea", -1020.0), ("background", np.inf)))
    vessels = "totalsegmentator/Dataset117_lung_airways_arteries_veins_282subj"
    (tmp_path / vessels).symlink_to(total_root / vessels)
    config = MasksConfig(vessels="totalsegmentator", weights_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"scan\.nii: TotalSegmentator's 3 mm model sees no lung"):
        segment(tiny.plateau_chest((6.0, 3.0, 3.0)), config, name="scan.nii")


def test_an_exit_of_the_library_is_an_error_and_a_stop_of_the_job_stays_one(
    total_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import totalsegmentator.python_api as api

    volume = tiny.plateau_chest((6.0, 3.0, 3.0))
    config = MasksConfig(vessels="totalsegmentator", weights_dir=str(total_root))

    def leave(*_: object, **__: object) -> None:
        print("this task needs a licence")
        sys.exit(status)

    monkeypatch.setattr(api, "totalsegmentator", leave)
    status = 1
    with pytest.raises(InputError, match=r"refused the task lung_vessels: this task needs a licence"):
        segment(volume, config)
    status = 143
    with pytest.raises(SystemExit):
        segment(volume, config)


def test_damaged_weights_are_named(total_root: Path, tmp_path: Path) -> None:
    shutil.copytree(total_root, tmp_path, dirs_exist_ok=True)
    broken = next(tmp_path.glob("totalsegmentator/Dataset297*/*/fold_0/checkpoint_final.pth"))
    broken.write_bytes(broken.read_bytes()[:1000])
    config = MasksConfig(vessels="totalsegmentator", weights_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"Dataset297.*not weights of nnU-Net"):
        segment(tiny.plateau_chest((6.0, 3.0, 3.0)), config)


def test_a_shard_with_the_real_command_line(total_root: Path, tmp_path: Path) -> None:
    """A new process, as a job runs it: workers that are started by `spawn` would need a guarded main module."""
    volume = tiny.plateau_chest((4.0, 2.0, 2.0))
    for name in ("a", "b"):
        write_volume(tmp_path / f"volumes/{name}/volume.nii.gz", volume)
    command = [sys.executable, "-m", "medsyn", "segment", "--volumes", str(tmp_path / "volumes")]
    command += ["--lobes", "totalsegmentator", "--weights", str(total_root), "--out", str(tmp_path / "masks")]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=1200)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    inside = tiny.inside_plateaus(volume, (3.0, 3.0, 3.0))
    for name in ("a", "b"):
        lobes = read_volume(tmp_path / f"masks/{name}/lobes.nii.gz")
        np.testing.assert_array_equal(lobes.array[inside], expected(volume, "lobes")[inside])
        record = read_json(tmp_path / f"masks/{name}/segment.json")["structures"]
        assert [record[key]["tool"] for key in STRUCTURES] == ["totalsegmentator", "classical", "classical"]


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, total_root: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nnunetv2" else find(name))
    config = MasksConfig(vessels="totalsegmentator", weights_dir=str(total_root), max_reject_fraction=0.5)
    with pytest.raises(InputError, match=r"'totalsegmentator' needs the Python package nnunetv2.*requirements\.lock"):
        open_tools(config)


def test_weights_check(capsys: pytest.CaptureFixture[str], total_root: Path, tmp_path: Path) -> None:
    assert main(["weights", "check", "--weights-dir", str(total_root)]) == 0
    lines = {path: digest for digest, path in (line.split() for line in capsys.readouterr().out.splitlines())}
    row = next(row for row in weight_files() if row.name == "totalsegmentator_lobes")
    assert lines[row.path] == hash_weights(row.find(total_root), total_root / row.path)
    assert lines["naviairway/checkpoint.pkl"] == "missing"
    config = str(Path(__file__).parents[1] / "config/paper.yaml")
    assert main(["weights", "check", "--config", config, "--weights-dir", str(total_root)]) == 2
    error = capsys.readouterr().err
    assert "5 of 10 files are not usable" in error
    assert "unet_ltrclobes-3a07043d.pth" in error
