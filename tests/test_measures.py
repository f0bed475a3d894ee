"""Anatomical measures: by hand on small arrays, against the truth of phantoms, believable on the real CT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chests import chest, write_chest

from medsyn.cli import main
from medsyn.ct.reading import read_ct
from medsyn.evaluate.measures import MEASURES, measure
from medsyn.files import read_csv, read_json, write_csv
from medsyn.volume import Volume


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


def test_what_cannot_be_measured_is_null_with_a_reason() -> None:
    volume = Volume(np.full((20, 20, 20), 40, np.int16), (10.0, 10.0, 10.0))
    result = measure(volume)
    assert set(result.values) == set(MEASURES)
    assert all(value is None for value in result.values.values())
    assert set(result.reasons) == set(MEASURES)


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


def test_given_masks_are_used(tmp_path: Path) -> None:
    path = write_chest(tmp_path / "a")
    assert main(["measure", str(path), "--masks", str(tmp_path / "a"), "--out", str(tmp_path / "m.json")]) == 0
    values, truth = read_json(tmp_path / "m.json"), chest("normal").truth["volumes_ml"]
    assert values["airway_volume_mm3"] == pytest.approx(1000 * truth["airway"], rel=0.05)
    assert values["lung_volume_ml"] == pytest.approx(truth["lung"], rel=0.05)
    assert set(MEASURES) <= set(values)
    assert values["reasons"] == {}


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
    assert bad["lung_volume_ml"] == ""
    assert "cannot be read" in bad["reason"]
    assert float(good["lung_volume_ml"]) > 2000
    assert good["reason"] == ""


def test_scaled_values_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from medsyn.volume import write_volume

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
