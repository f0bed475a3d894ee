"""Measures by side and lobe: by hand on box lungs, against phantoms, and the change that a swap of the text makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chests import chest, write_chest

from medsyn.cli import main
from medsyn.errors import InputError
from medsyn.evaluate.regions import CHANGES, MEASURES, Regions, changes, find_regions, regional_measures, solid_by_lobe
from medsyn.files import read_csv, write_csv
from medsyn.masks.lobes import sides_of
from medsyn.phantom.findings import FindingSpec
from medsyn.phantom.subject import render_subject
from medsyn.stages.regions import chosen_subjects, denial_of
from medsyn.volume import LOBE_NAMES, Volume, read_volume, write_volume


def box_lungs() -> tuple[Volume, Regions]:
    """Return two lungs of 10 x 10 x 6 voxels of 1 ml, right lower and left upper lobe, in soft tissue."""
    hu = np.full((10, 20, 20), 40, np.int16)
    lobes = np.zeros(hu.shape, np.uint8)
    lobes[:, 5:15, 2:8], lobes[:, 5:15, 12:18] = 5, 1
    hu[lobes > 0] = -850
    nothing = np.zeros(hu.shape, np.uint8)
    masks = {"lobes": lobes, "airway": nothing}
    return Volume(hu, (10.0, 10.0, 10.0)), Regions(lobes, sides_of(lobes), nothing > 0, masks)


def test_solid_tissue_is_counted_in_the_lobe_that_it_lies_in() -> None:
    volume, regions = box_lungs()
    assert solid_by_lobe(volume, regions) == [0.0] * 5
    hole = (slice(4, 6), slice(9, 11), slice(14, 16))  # 8 ml that a threshold does not take for lung
    volume.array[hole], regions.lobes[hole] = 40, 0
    assert solid_by_lobe(volume, regions) == [8.0, 0.0, 0.0, 0.0, 0.0]
    regions.fluid[hole] = True
    assert solid_by_lobe(volume, regions) == [0.0] * 5


def test_low_attenuation_is_a_share_of_its_lobe() -> None:
    volume, regions = box_lungs()
    volume.array[:3, 5:15, 2:8] = -980
    found = regional_measures(volume, regions)
    assert tuple(sorted(found)) == tuple(sorted(MEASURES))
    assert found["laa950_percent_right_lower"] == pytest.approx(30.0)
    assert found["laa950_percent_left_upper"] == 0.0
    assert found["laa950_percent_left_lower"] is None
    assert found["laa950_percent"] == pytest.approx(15.0)


def test_a_change_is_the_mean_of_its_region_alone() -> None:
    volume, regions = box_lungs()
    other = volume.with_array(volume.array.copy())
    volume.array[:5, 5:15, 2:8] += 100  # half of the right lung
    volume.array[:, :3] -= 500  # outside of both lungs
    found = changes(volume, other, regions)
    assert tuple(found) == CHANGES
    assert (found["change_hu_right"], found["change_hu_right_lower"]) == (50.0, 50.0)
    assert (found["change_hu_left"], found["change_hu_left_upper"]) == (0.0, 0.0)
    assert found["change_hu_left_lower"] is None


def test_volumes_of_two_grids_have_no_change() -> None:
    volume, regions = box_lungs()
    with pytest.raises(InputError, match=r"grids \(9, 20, 20\) and \(10, 20, 20\), expected one grid"):
        changes(Volume(volume.array[1:], volume.spacing_mm), volume, regions)


def test_a_volume_without_lungs_has_amounts_of_0_and_no_shares() -> None:
    volume = Volume(np.full((20, 20, 20), 40, np.int16), (10.0, 10.0, 10.0))
    found = regional_measures(volume, find_regions(volume, None))
    assert {value for name, value in found.items() if name.startswith(("effusion", "solid"))} == {0.0}
    assert {value for name, value in found.items() if name.startswith(("laa950", "cardio"))} == {None}


def test_effusions_lie_on_the_side_of_the_phantom() -> None:
    right, both = (regional_measures(c.volume, find_regions(c.volume, None)) for c in map(chest, SIDED))
    assert right["effusion_ml_right"] == pytest.approx(900, rel=0.35)
    assert right["effusion_ml_left"] < 60
    assert both["effusion_ml_left"] == pytest.approx(500, rel=0.35)
    assert both["effusion_ml_right"] == pytest.approx(700, rel=0.35)


SIDED = ("effusion", "both_effusions")


@pytest.mark.parametrize("lobe", ["left_lower", "right_upper"])
def test_a_consolidation_adds_solid_tissue_to_its_lobe(lobe: str) -> None:
    spec = FindingSpec("consolidation", 0.7, 250.0, lobe.split("_")[0], lobe)  # type: ignore[arg-type]
    ill = render_subject(3, 0, size=64, specs=(spec,)).volume
    well = chest("normal").volume
    excess = np.subtract(*(solid_by_lobe(v, find_regions(v, None)) for v in (ill, well)))
    assert LOBE_NAMES[int(np.argmax(excess))] == lobe
    assert 50 < excess.max() < 250  # closing does not take in all that touches the pleura
    assert excess.max() > 4 * np.sort(excess)[-2]


# --- the verb ---


def write_pair(folder: Path) -> tuple[Path, Path]:
    """Write two samples of one pair, of which one has a right effusion, and their prompts."""
    for name, kind in (("stated", "effusion"), ("denied", "normal")):
        write_chest(folder / "samples" / name, kind)
    rows = [
        {"sample_id": "denied", "pair": "p0", "seed": 5, "present": 0},
        {"sample_id": "stated", "pair": "p0", "seed": 5, "present": 1},
    ]
    write_csv(folder / "prompts.csv", rows, list(rows[0]))
    return folder / "samples", folder / "prompts.csv"


def test_the_verb_compares_with_the_denial_of_the_pair(tmp_path: Path) -> None:
    samples, prompts = write_pair(tmp_path)
    out = tmp_path / "0.csv"
    words = ["regions", "--volumes", samples, "--prompts", prompts, "--samples", samples, "--out", out, "--quiet"]
    assert main(list(map(str, words))) == 0
    rows = {row["subject_id"]: row for row in read_csv(out)}
    assert rows["stated"]["swapped_with"] == "denied"
    assert float(rows["stated"]["change_hu_right"]) > 3 * float(rows["stated"]["change_hu_left"])
    assert rows["denied"]["change_hu_right"] == rows["denied"]["swapped_with"] == ""
    assert float(rows["stated"]["effusion_ml_right"]) > 500


def test_a_volume_that_cannot_be_read_keeps_its_row_with_a_reason(tmp_path: Path) -> None:
    samples, prompts = write_pair(tmp_path)
    (samples / "stated/volume.nii.gz").write_bytes(b"no image")
    out = tmp_path / "0.csv"
    words = ["regions", "--volumes", samples, "--prompts", prompts, "--samples", samples, "--out", out, "--quiet"]
    assert main(list(map(str, words))) == 0
    rows = {row["subject_id"]: row for row in read_csv(out)}
    assert rows["stated"]["reason"]
    assert rows["stated"]["effusion_ml_right"] == ""
    assert rows["denied"]["reason"] == ""


def test_samples_without_prompts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["regions", "--volumes", tmp_path, "--samples", tmp_path, "--out", tmp_path / "0.csv"]
    assert main(list(map(str, words))) == 2
    assert "--samples: is given without --prompts; give both, or none of them" in capsys.readouterr().err


def test_a_pair_without_a_denial_is_named(tmp_path: Path) -> None:
    rows = [
        {"sample_id": "a", "pair": "p0", "present": 0},
        {"sample_id": "b", "pair": "p1", "present": 1},
    ]
    write_csv(tmp_path / "prompts.csv", rows, list(rows[0]))
    with pytest.raises(InputError, match="no prompt of the pair of 'b' denies the finding, expected one"):
        denial_of(tmp_path / "prompts.csv")


def test_real_volumes_are_all_of_validation_and_some_of_training(tmp_path: Path) -> None:
    splits = ("train", "validation", "train", "train", "validation")
    rows = [{"subject_id": f"s{k}", "split": split} for k, split in enumerate(splits)]
    write_csv(tmp_path / "cohort.csv", rows, ["subject_id", "split"])
    names = ["s4", "s3", "s2", "s1", "s0", "unknown"]
    assert chosen_subjects(names, tmp_path / "cohort.csv", 2) == ["s4", "s3", "s2", "s1"]


def test_the_regions_do_not_depend_on_the_orientation_of_the_file(tmp_path: Path) -> None:
    path = write_chest(tmp_path / "a/x", "effusion")
    volume = read_volume(path)
    flipped = Volume(volume.array[:, ::-1, ::-1].copy(), volume.spacing_mm, _far_corner(volume), _turned(volume))
    (tmp_path / "b/x").mkdir(parents=True)
    write_volume(tmp_path / "b/x/volume.nii.gz", flipped)
    found = []
    for name in ("a", "b"):
        words = ["regions", "--volumes", tmp_path / name, "--out", tmp_path / f"{name}.csv", "--quiet"]
        assert main(list(map(str, words))) == 0
        found.append(read_csv(tmp_path / f"{name}.csv"))
    assert found[0] == found[1]


def _turned(volume: Volume) -> tuple[float, ...]:
    directions = np.array(volume.direction).reshape(3, 3)
    directions[:, :2] *= -1
    return tuple(directions.ravel())


def _far_corner(volume: Volume) -> tuple[float, float, float]:
    directions = np.array(volume.direction).reshape(3, 3)
    _, height, width = volume.array.shape
    _, y, x = volume.spacing_mm
    corner = np.array(volume.origin_mm) + directions @ ((width - 1) * x, (height - 1) * y, 0)
    return tuple(corner)
