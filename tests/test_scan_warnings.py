"""Warnings: what they are made of, and that inspect, qc.json, index.csv, measures and the report repeat them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chests import chest, write_chest, write_manifest

from medsyn.cli import main
from medsyn.files import read_csv, read_json, write_json
from medsyn.report.files import find_files
from medsyn.report.page import write_report
from medsyn.scan_warnings import TOPICS, count_topics, join_warnings, of_measures, split_warnings, warn
from medsyn.volume import write_volume


def test_a_warning_is_one_line_of_a_known_topic() -> None:
    line = warn("range", "2 % at\nthe maximum; clipped?")
    assert line == "range: 2 % at the maximum, clipped?"
    other = warn("series", "a localizer was left out")
    assert split_warnings(join_warnings([line, other])) == [line, other]
    assert split_warnings(join_warnings([])) == []
    assert of_measures([line, other]) == [line]
    assert count_topics([[line, line], [line, other], []]) == {"range": 2, "series": 1}
    with pytest.raises(ValueError, match="expected one of"):
        warn("else", "x")
    assert all(name == name.lower() and ":" not in name for name in TOPICS)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound CT and one clipped at 200 HU, preprocessed, segmented and measured; the folder of the run."""
    root = tmp_path_factory.mktemp("warned")
    write_chest(root / "sound")
    volume = chest("normal").volume
    write_volume(root / "clipped.nii.gz", volume.with_array(volume.array.clip(None, 200)))
    images = {"sound": "sound/volume.nii.gz", "clipped": "clipped.nii.gz"}
    manifest = write_manifest(root / "m.csv", [{"subject_id": name, "image": path} for name, path in images.items()])
    write_json(root / "one.json", {"num_shards": 1, "validation_fraction": 0.0})
    shard = str(root / "preprocessed/0")
    for verb in (
        ["cohort", "--manifest", str(manifest), "--config", str(root / "one.json"), "--out", str(root / "cohort")],
        ["preprocess", "--cohort", str(root / "cohort/cohort.csv"), "--shard", "0", "--out", shard],
        ["measure", "--volumes", shard, "--out", str(root / "m0.csv")],
    ):
        assert main([*verb, "--quiet"]) == 0
    return root


CLIPPED = "range: 5.3% of the voxels at the maximum, 200 HU: were they clipped?"


def test_inspect_lists_warnings_and_keeps_the_verdict(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(cohort / "clipped.nii.gz"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["verdict"] == "ok"
    assert facts["reasons"] == []
    assert facts["warnings"] == [CLIPPED]
    assert main(["inspect", str(cohort / "sound/volume.nii.gz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []
    (cohort / "empty.nii").write_bytes(b"")
    assert main(["inspect", str(cohort / "empty.nii"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []
    assert main(["inspect", str(cohort / "clipped.nii.gz")]) == 0
    assert f"warnings: {CLIPPED}" in capsys.readouterr().out


def test_qc_and_index_carry_them(cohort: Path) -> None:
    assert read_json(cohort / "preprocessed/0/clipped/qc.json")["warnings"] == [CLIPPED]
    assert read_json(cohort / "preprocessed/0/sound/qc.json")["warnings"] == []
    rows = {row["subject_id"]: row for row in read_csv(cohort / "preprocessed/0/index.csv")}
    assert {name: row["status"] for name, row in rows.items()} == {"sound": "ok", "clipped": "ok"}
    assert rows["clipped"]["warnings"] == CLIPPED
    assert rows["sound"]["warnings"] == ""


def test_measures_repeat_them(cohort: Path, tmp_path: Path) -> None:
    rows = {row["subject_id"]: row for row in read_csv(cohort / "m0.csv")}
    assert rows["clipped"]["warnings"] == CLIPPED
    assert rows["sound"]["warnings"] == ""
    for path in (cohort / "clipped.nii.gz", cohort / "preprocessed/0/clipped/volume.nii.gz"):
        assert main(["measure", str(path), "--out", str(tmp_path / "m.json"), "--quiet"]) == 0
        assert read_json(tmp_path / "m.json")["warnings"] == [CLIPPED]


def test_measures_take_the_warnings_of_the_scan_not_of_its_copy(cohort: Path, tmp_path: Path) -> None:
    """What preprocessing saw in the file can no longer be seen in the volume on the grid."""
    folder = tmp_path / "s"
    write_chest(folder)
    air, series = warn("air", "air at -976 HU"), warn("series", "a localizer was left out")
    write_json(folder / "qc.json", {"warnings": [air, series]})
    assert main(["measure", str(folder / "volume.nii.gz"), "--out", str(tmp_path / "m.json"), "--quiet"]) == 0
    assert read_json(tmp_path / "m.json")["warnings"] == [air]


def test_the_report_counts_them(cohort: Path, tmp_path: Path) -> None:
    write_report(find_files(cohort), tmp_path / "report.html", phantom=False)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 of 2 preprocessed CTs have a warning" in page
    row = page[page.index("<td>range</td>") :]
    assert row.startswith(f"<td>range</td><td>1</td><td>{TOPICS['range']}</td>")


def test_a_warning_never_stops_a_cohort(cohort: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "strict.json", {"max_reject_fraction": 0.0})
    verb = ["preprocess", "--cohort", str(cohort / "cohort/cohort.csv"), "--shard", "0", "--quiet"]
    assert main([*verb, "--config", str(tmp_path / "strict.json"), "--out", str(tmp_path / "p")]) == 0
    assert np.all([row["status"] == "ok" for row in read_csv(tmp_path / "p/index.csv")])
