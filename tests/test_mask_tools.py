"""lungmask and TotalSegmentator through their real code, on weights whose label is a known function of HU: where the
masks lie, that networks are loaded once, that nothing goes to a network, and that silent failures are errors.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import tool_weights as tiny
import torch
from numpy.typing import NDArray
from test_naviairway import dark_finder

from medsyn.cli import main
from medsyn.config import Config, MasksConfig, MeasureStage, load_config
from medsyn.errors import InputError
from medsyn.files import read_json, sha256
from medsyn.masks import segment as contract
from medsyn.masks.heart import ratio_of_heart
from medsyn.masks.segment import check_sides, open_tools, segment
from medsyn.masks.totalsegmentator_tool import _crop
from medsyn.orientation import orientation_code, reorient
from medsyn.stages.tables import measure_one, measure_volume, open_anatomy_tool
from medsyn.stages.volumes import segment_shard
from medsyn.volume import LOBE_NAMES, STRUCTURES, Volume, read_volume, write_volume
from medsyn.weight_files import hash_weights, needed_weights, weight_files, weights_of

ALL_TOTAL = dict.fromkeys(STRUCTURES, "totalsegmentator")
LOBES_BY_HU = ((2, -900.0), (1, -850.0), (5, -790.0), (4, -650.0), (3, -375.0), (0, np.inf))
LUNGS_BY_HU = ((2, -850.0), (1, -100.0), (0, np.inf))
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
OBLIQUE = {"code": "RSA", "degrees": (4.0, -3.0, 12.0)}
"""Axes permuted and flipped, grid turned against the patient."""


@pytest.fixture(scope="module")
def lungmask_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights folder with both of lungmask's models."""
    root = tmp_path_factory.mktemp("lungmask weights")
    tiny.write_lungmask(root / "lungmask/unet_ltrclobes-3a07043d.pth", 6, LOBES_BY_HU)
    tiny.write_lungmask(root / "lungmask/unet_r231-d5d2fc3d.pth", 3, LUNGS_BY_HU)
    return root


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


def expected(volume: Volume, structure: str) -> NDArray[np.uint8]:
    """What the weights above see in the chest of plateaus."""
    hu = volume.array
    if structure == "lobes":
        return np.where(np.isin(hu, list(tiny.LOBE_HU.values())), tiny.plateau_lobes(*tiny.from_centre_mm(volume)), 0)
    values = {"airway": [tiny.AIRWAY_HU], "vessels": [tiny.ARTERY_HU, tiny.VEIN_HU]}[structure]
    return np.isin(hu, values).astype(np.uint8)


# --- lungmask ---


def test_lungmask_on_an_oblique_grid_with_turned_axes(lungmask_root: Path, no_network: list[str]) -> None:
    volume = tiny.plateau_chest((14.0, 1.4, 1.1), **OBLIQUE)
    masks = segment(volume, MasksConfig(lobes="lungmask", weights_dir=str(lungmask_root)))
    found, truth = masks.labels["lobes"], expected(volume, "lobes")
    truth[volume.array == tiny.DENSE_HU] = 5  # seen by R231 alone, given to the lobe around it
    inside = tiny.inside_plateaus(volume, (2.0, 0.0, 2.0))  # slices, the middle axis here, do not see each other
    assert orientation_code(volume) == "RSA"
    assert found.direction == volume.direction
    np.testing.assert_array_equal(found.array[inside], truth[inside])
    assert set(np.unique(truth[inside])) == set(range(6))
    assert (volume.array[inside] == tiny.DENSE_HU).sum() > 50
    record = masks.record["lobes"]
    assert (record["tool"], record["version"]) == ("lungmask", "0.2.22")
    files = sorted((lungmask_root / "lungmask").iterdir())
    assert record["weights_hash"] == hash_weights(files, lungmask_root)
    assert not no_network


@pytest.mark.parametrize("model", ["LTRCLobes", "R231"])
def test_lungmask_models_alone(lungmask_root: Path, model: str) -> None:
    volume = tiny.plateau_chest((25.0, 2.0, 2.0))
    config = MasksConfig(lobes="lungmask", lungmask_model=model, weights_dir=str(lungmask_root))
    masks = segment(volume, config)
    found, truth = masks.labels["lobes"].array, expected(volume, "lobes")
    inside = tiny.inside_plateaus(volume, (0.0, 2.5, 2.5))
    dense = volume.array == tiny.DENSE_HU
    assert (dense & inside).any()
    if model == "LTRCLobes":
        np.testing.assert_array_equal(found[inside], truth[inside])  # without the consolidation
    else:
        np.testing.assert_array_equal((found > 0)[inside], ((truth > 0) | dense)[inside])
        right = tiny.from_centre_mm(volume)[0] < 0
        assert np.isin(found[right & inside], (0, 3, 4, 5)).all()
        assert np.isin(found[~right & inside], (0, 1, 2)).all()
    [file] = [row.path for row in weights_of("lungmask", [model])]
    assert masks.record["lobes"]["weights_hash"] == sha256(lungmask_root / file)


def test_lungmask_files_that_are_something_else(lungmask_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lungmask"
    folder.mkdir()
    lobes = folder / "unet_ltrclobes-3a07043d.pth"
    lobes.symlink_to(lungmask_root / "lungmask/unet_r231-d5d2fc3d.pth")
    config = MasksConfig(lobes="lungmask", lungmask_model="LTRCLobes", weights_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"ltrclobes.*a model of 3 classes, expected 6"):
        open_tools(config)
    lobes.unlink()
    lobes.write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match="not lungmask's weights"):
        open_tools(config)


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


def test_cardiothoracic_ratio_from_masks_by_hand() -> None:
    heart, cavity = np.zeros((2, 3, 5, 20), bool)
    cavity[:, :, 2:18] = True
    cavity[0, :, 4:] = False
    heart[1, 2, 6:10] = heart[2, 2, 6:14] = True
    heart[2, 0, 0] = True  # a speck apart from the heart
    assert ratio_of_heart(heart, cavity) == 8 / 16
    assert ratio_of_heart(np.zeros_like(heart), cavity) is None


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
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    inside = tiny.inside_plateaus(volume, (3.0, 3.0, 3.0))
    for name in ("a", "b"):
        lobes = read_volume(tmp_path / f"masks/{name}/lobes.nii.gz")
        np.testing.assert_array_equal(lobes.array[inside], expected(volume, "lobes")[inside])
        record = read_json(tmp_path / f"masks/{name}/segment.json")["structures"]
        assert [record[key]["tool"] for key in STRUCTURES] == ["totalsegmentator", "classical", "classical"]


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


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, total_root: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nnunetv2" else find(name))
    config = MasksConfig(vessels="totalsegmentator", weights_dir=str(total_root), max_reject_fraction=0.5)
    with pytest.raises(InputError, match=r"'totalsegmentator' needs the Python package nnunetv2.*requirements\.lock"):
        open_tools(config)


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


def test_weights_list_names_every_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["weights", "list", "--weights-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for row in weight_files():
        assert str(tmp_path / row.path) in out
        assert row.licence in out
        assert "http" not in f"{row.source} {row.fetch}"


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


def test_a_file_that_is_not_as_known_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(row for row in weight_files() if row.name == "med3d")
    known = replace(row, sha256=hashlib.sha256(b"known").hexdigest())
    monkeypatch.setattr("medsyn.weight_files.weight_files", lambda: [known])
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
