"""Anatomical measures: by hand on small arrays, against the truth of phantoms, believable on the real CT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from chests import chest, write_chest

from medsyn.cli import main
from medsyn.ct.inspect import judge
from medsyn.ct.reading import read_ct
from medsyn.errors import InputError, NothingFoundError
from medsyn.evaluate.measure_names import MEASURES
from medsyn.evaluate.measures import measure
from medsyn.files import read_csv, read_json, write_csv
from medsyn.stages.measures import measure_volume
from medsyn.volume import Volume, write_volume

AMOUNTS, RATIOS = MEASURES[:3], MEASURES[3:]


def box_chest() -> tuple[Volume, dict[str, Volume]]:
    """Two box lungs of 10 x 10 x 5 voxels of 1 cm with 50 dark voxels, and an airway of 3 voxels."""
    hu = np.full((10, 20, 20), 40, np.int16)
    lobes = np.zeros(hu.shape, np.uint8)
    lobes[:, 5:15, 2:7], lobes[:, 5:15, 13:18] = 5, 1
    hu[lobes > 0] = -850
    hu[:, 5:10, 2] = -960
    airway = np.zeros(hu.shape, np.uint8)
    airway[7:, 10, 10] = 1
    volume = Volume(hu, (10.0, 10.0, 10.0))
    return volume, {"lobes": volume.with_array(lobes), "airway": volume.with_array(airway)}


def test_measures_by_hand() -> None:
    volume, masks = box_chest()
    result = measure(volume, masks)
    assert result.values["lung_volume_ml"] == pytest.approx(1000.0)
    assert result.values["airway_volume_mm3"] == pytest.approx(3000.0)
    assert result.values["laa950_percent"] == pytest.approx(5.0)
    assert result.values["effusion_volume_ml"] == 0.0
    # soft tissue fills the 6 columns between the lungs; the cavity is 16 columns wide
    assert result.values["cardiothoracic_ratio"] == pytest.approx(6 / 16)
    assert result.reasons == {}


def test_amounts_of_absent_anatomy_are_0_and_ratios_null() -> None:
    volume = Volume(np.full((20, 20, 20), 40, np.int16), (10.0, 10.0, 10.0))
    result = measure(volume)
    assert result.values == dict.fromkeys(AMOUNTS, 0.0) | dict.fromkeys(RATIOS)
    assert result.found == {"lung": False, "airway": False, "heart": False}
    assert set(result.reasons) == set(MEASURES)


def test_an_empty_airway_mask_is_0_and_not_found() -> None:
    volume, masks = box_chest()
    result = measure(volume, masks | {"airway": volume.with_array(np.zeros(volume.array.shape, np.uint8))})
    assert result.values["airway_volume_mm3"] == 0.0
    assert result.found == {"lung": True, "airway": False, "heart": True}
    assert result.reasons == {"airway_volume_mm3": "no airway found"}


def test_fluid_that_a_network_found_counts_without_lungs() -> None:
    volume, _ = box_chest()
    nothing = np.zeros(volume.array.shape, np.uint8)
    fluid = nothing.copy()
    fluid[:4, 5:15, 2:7] = 1
    given = {"lobes": nothing, "airway": nothing, "heart": nothing, "effusion": fluid}
    result = measure(volume, {name: volume.with_array(array) for name, array in given.items()})
    assert result.values["effusion_volume_ml"] == pytest.approx(200.0)
    assert result.found["lung"] is False
    empty = measure(volume, {name: volume.with_array(nothing) for name in given})
    assert empty.values["effusion_volume_ml"] == 0.0
    assert empty.reasons["effusion_volume_ml"] == "no lung found"


class BrokenTool:
    """Box masks of a chest; the structures of `errors` raise, alone and together with others."""

    version, weights_hash = "0", None

    def __init__(self, errors: dict[str, Exception]) -> None:
        volume, masks = box_chest()
        heart = np.zeros(volume.array.shape, np.uint8)
        heart[2:6, 8:12, 7:13] = 1
        fluid = np.zeros(volume.array.shape, np.uint8)
        fluid[:2, 5:7, 2:7] = 1
        self.volume, self.errors = volume, errors
        self.masks = {name: mask.array for name, mask in masks.items()} | {"heart": heart, "effusion": fluid}

    def segment(self, volume: Volume, structures: Sequence[str]) -> dict[str, np.ndarray]:
        for name in structures:
            if name in self.errors:
                raise self.errors[name]
        return {name: self.masks[name] for name in structures}


BLANKS = {
    "lobes": {"lung_volume_ml", "laa950_percent", "cardiothoracic_ratio"},
    "airway": {"airway_volume_mm3"},
    "heart": {"cardiothoracic_ratio"},
    "effusion": {"effusion_volume_ml"},
}


@pytest.mark.parametrize("structure", BLANKS)
@pytest.mark.parametrize("error", [InputError("refused"), RuntimeError("refused"), ValueError("refused")])
def test_a_structure_that_fails_blanks_its_own_measures_only(structure: str, error: Exception) -> None:
    whole = measure_volume(BrokenTool({}).volume, tool=BrokenTool({}))
    assert None not in whole.values.values()
    tool = BrokenTool({structure: error})
    result = measure_volume(tool.volume, tool=tool)
    assert {name for name, value in result.values.items() if value is None} == BLANKS[structure]
    for name in BLANKS[structure]:
        assert result.reasons[name] == f"{structure} failed: refused"
    if structure != "effusion":
        failed = {"lobes": {"lung", "heart"}}.get(structure, {structure})
        assert {name for name, found in result.found.items() if found is None} == failed


@pytest.mark.parametrize("structure", ["effusion", "heart"])
def test_a_classical_step_that_fails_blanks_its_own_measure_only(
    structure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("broken")

    step = {"effusion": "segment_effusion", "heart": "cardiothoracic_ratio"}[structure]
    monkeypatch.setattr(f"medsyn.evaluate.measures.{step}", fail)
    result = measure(*box_chest())
    assert {name for name, value in result.values.items() if value is None} == BLANKS[structure]
    assert "broken" in result.reasons["cardiothoracic_ratio"]


def test_what_a_tool_does_not_see_is_absent_and_what_the_machine_lacks_stops() -> None:
    tool = BrokenTool({"airway": NothingFoundError("sees no lung")})
    result = measure_volume(tool.volume, tool=tool)
    assert (result.values["airway_volume_mm3"], result.found["airway"]) == (0.0, False)
    tool = BrokenTool({"heart": torch.OutOfMemoryError("CUDA out of memory")})
    with pytest.raises(torch.OutOfMemoryError):
        measure_volume(tool.volume, tool=tool)
    tool = BrokenTool({name: RuntimeError(name) for name in BLANKS})
    assert set(measure_volume(tool.volume, tool=tool).values.values()) == {None}


@pytest.mark.parametrize("kind", ["effusion", "both_effusions"])
def test_effusion_of_phantoms(kind: str) -> None:
    subject = chest(kind)
    truth = subject.truth["effusion_volume_ml"]
    assert truth > 800
    assert measure(subject.volume).values["effusion_volume_ml"] == pytest.approx(truth, rel=0.2)


@pytest.mark.parametrize("kind", ["normal", "emphysema", "cardiomegaly"])
def test_no_effusion_where_there_is_none(kind: str) -> None:
    assert measure(chest(kind).volume).values["effusion_volume_ml"] < 60  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["normal", "effusion", "emphysema", "cardiomegaly"])
def test_emphysema_and_heart_of_phantoms(kind: str) -> None:
    subject = chest(kind)
    values = measure(subject.volume).values
    assert values["laa950_percent"] == pytest.approx(subject.truth["laa950_percent"], abs=2.0)
    assert values["cardiothoracic_ratio"] == pytest.approx(subject.truth["cardiothoracic_ratio"], abs=0.06)
    assert values["lung_volume_ml"] == pytest.approx(subject.truth["volumes_ml"]["lung"], rel=0.12)


def test_lungs_of_the_verdict_give_the_same_measures() -> None:
    volume = chest("effusion").volume
    fine = Volume(np.repeat(volume.array, 2, axis=1), (volume.spacing_mm[0], volume.spacing_mm[1] / 2, 4.9375))
    for given in (volume, fine):
        assert measure_volume(given, chest=judge(given).chest) == measure_volume(given)


def test_given_masks_are_used(tmp_path: Path) -> None:
    path = write_chest(tmp_path / "a")
    assert main(["measure", str(path), "--masks", str(tmp_path / "a"), "--out", str(tmp_path / "m.json")]) == 0
    values, truth = read_json(tmp_path / "m.json"), chest("normal").truth["volumes_ml"]
    assert values["airway_volume_mm3"] == pytest.approx(1000 * truth["airway"], rel=0.05)
    assert values["lung_volume_ml"] == pytest.approx(truth["lung"], rel=0.05)
    assert set(MEASURES) <= set(values)
    assert values["reasons"] == {}
    assert values["found"] == {"lung": True, "airway": True, "heart": True}
    assert values["chest"] is True


@pytest.mark.parametrize("fault", ["absent", "damaged", "another grid"])
def test_a_mask_that_cannot_be_used_blanks_its_own_measure_only(fault: str, tmp_path: Path) -> None:
    path, airway = write_chest(tmp_path / "a"), tmp_path / "a/airway.nii.gz"
    if fault == "absent":
        airway.unlink()
    elif fault == "damaged":
        airway.write_bytes(b"no image")
    else:
        write_volume(airway, Volume(np.zeros((8, 8, 8), np.uint8), (1.0, 1.0, 1.0)))
    assert main(["measure", str(path), "--masks", str(tmp_path / "a"), "--out", str(tmp_path / "m.json")]) == 0
    values = read_json(tmp_path / "m.json")
    assert {name for name in MEASURES if values[name] is None} == {"airway_volume_mm3"}
    assert values["found"] == {"lung": True, "airway": None, "heart": True}
    assert "airway.nii.gz" in values["reasons"]["airway_volume_mm3"]


def test_a_folder_without_masks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_chest(tmp_path / "a")
    assert main(["measure", str(path), "--masks", str(tmp_path), "--out", str(tmp_path / "m.json")]) == 2
    assert "lobes.nii.gz: no such mask" in capsys.readouterr().err


def test_shard_scores_what_is_no_chest_and_keeps_to_the_split(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(-800, 60, (32, 32, 32)).astype(np.int16)
    for name, array in (("constant", np.full_like(noise, -1024)), ("noise", noise), ("other", noise)):
        write_volume(tmp_path / f"v/{name}/volume.nii.gz", Volume(array, (8.0, 8.0, 8.0)))
    write_chest(tmp_path / "v/person")
    splits = {"constant": "validation", "noise": "validation", "other": "train", "person": "validation"}
    rows = [{"subject_id": name, "split": split} for name, split in splits.items()]
    write_csv(tmp_path / "cohort.csv", rows, ["subject_id", "split"])
    command = ["measure", "--volumes", str(tmp_path / "v"), "--out", str(tmp_path / "m.csv"), "--quiet"]
    assert main([*command, "--cohort", str(tmp_path / "cohort.csv"), "--split", "validation"]) == 0
    constant, noise_row, person = read_csv(tmp_path / "m.csv")
    for row in (constant, noise_row):
        assert [row[name] for name in AMOUNTS] == ["0.0"] * 3
        assert [row[name] for name in RATIOS] == [""] * 2
        assert [row[name] for name in ("lung_found", "airway_found", "heart_found", "chest")] == ["0"] * 4
    assert "chest: constant" in constant["reason"]
    assert [person[name] for name in ("lung_found", "airway_found", "heart_found", "chest")] == ["1"] * 4
    assert main([*command, "--split", "validation"]) == 2  # which volumes are meant, only the cohort can say
    write_csv(tmp_path / "cohort.csv", [{"subject_id": "x", "split": "validation"}], ["subject_id", "split"])
    assert main([*command, "--cohort", str(tmp_path / "cohort.csv"), "--split", "validation"]) == 0
    assert read_csv(tmp_path / "m.csv", MEASURES) == []


def test_shard_goes_on_after_a_bad_volume(tmp_path: Path) -> None:
    write_chest(tmp_path / "v/good")
    (tmp_path / "v/bad").mkdir()
    (tmp_path / "v/bad/volume.nii.gz").write_bytes(b"no image")
    rows = [{"subject_id": name, "status": "ok", "reason": ""} for name in ("bad", "good")]
    rows.append({"subject_id": "refused", "status": "rejected", "reason": "not HU"})
    write_csv(tmp_path / "v/index.csv", rows, ("subject_id", "status", "reason"))
    for _ in range(2):
        assert main(["measure", "--volumes", str(tmp_path / "v"), "--out", str(tmp_path / "m.csv"), "--quiet"]) == 0
    bad, good = read_csv(tmp_path / "m.csv", MEASURES)
    assert {bad[name] for name in (*MEASURES, "lung_found", "airway_found", "heart_found", "chest")} == {""}
    assert "cannot be read" in bad["reason"]
    assert float(good["lung_volume_ml"]) > 2000
    assert good["reason"] == ""


def test_scaled_values_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = chest("normal").volume
    write_volume(tmp_path / "s.nii.gz", volume.with_array((volume.array / 1024.0).clip(-1, 1).astype(np.float32)))
    assert main(["measure", str(tmp_path / "s.nii.gz"), "--out", str(tmp_path / "m.json")]) == 2
    assert "not HU" in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


def test_real_chest(shared_data: Path) -> None:
    values = measure(read_ct(shared_data / "ct/chest_real_5mm.nii.gz")).values
    # both lungs are cut at the base by the scan; an independent implementation finds 2875 ml
    assert 2700 < values["lung_volume_ml"] < 7000  # type: ignore[operator]
    assert values["effusion_volume_ml"] < 20  # type: ignore[operator]
    assert 0.35 < values["cardiothoracic_ratio"] < 0.6  # type: ignore[operator]
    assert 12_000 < values["airway_volume_mm3"] < 35_000  # type: ignore[operator]
    assert values["laa950_percent"] < 6  # type: ignore[operator]
