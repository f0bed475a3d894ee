"""Registration, fallback and rejection by finding, on shards whose counts are known by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsyn.cli import main
from medsyn.evaluate.report import _alignment
from medsyn.files import read_csv, write_csv

LABELS = {"a": (0, 0), "b": (0, 0), "c": (1, 0), "d": (1, 1), "e": (1, 0), "f": (0, 0)}
QC = {
    "a": {"alignment": "atlas", "alignment_used": "atlas", "atlas_dice": 0.9},
    "b": {"alignment": "atlas", "alignment_used": "atlas", "atlas_dice": 0.8},
    "c": {
        "alignment": "atlas",
        "alignment_used": "lung_centre",
        "atlas_dice": 0.5,
        "registration_faults": ["overlap 0.5"],
    },
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Write shards in which a and b (no findings) are registered, c fell back, d is rejected, e has no qc.json.

    f has no finding and no record, g no labels.
    """
    for shard, rows in (("0", "abc"), ("1", "deg")):
        for folder in ("pre", "masks"):
            (tmp_path / folder / shard).mkdir(parents=True)
        index = [{"subject_id": name, "status": "rejected" if name == "d" else "ok", "reason": ""} for name in rows]
        index[0]["reason"] = "x/d.nii.gz: rejected, not a chest: one lung only found" if shard == "1" else ""
        write_csv(tmp_path / "pre" / shard / "index.csv", index, ("subject_id", "status", "reason"))
        masks = [{"subject_id": name, "status": "rejected" if name == "b" else "ok"} for name in rows if name != "d"]
        write_csv(tmp_path / "masks" / shard / "index.csv", masks, ("subject_id", "status"))
    for name, facts in QC.items():
        (tmp_path / "pre/0" / name).mkdir()
        (tmp_path / "pre/0" / name / "qc.json").write_text(json.dumps(facts))
    write_csv(tmp_path / "cohort.csv", [{"subject_id": name} for name in "abcdefg"], ("subject_id",))
    labels = [{"id": name, "pleural_effusion": one, "nodule": two} for name, (one, two) in LABELS.items()]
    write_csv(tmp_path / "labels.csv", labels, ("id", "pleural_effusion", "nodule"))
    return tmp_path


def score(run: Path) -> dict[str, dict[str, str]]:
    shards = [str(run / "pre/0"), str(run / "pre/1"), "--masks", str(run / "masks/0"), str(run / "masks/1")]
    tables = ["--cohort", str(run / "cohort.csv"), "--labels", str(run / "labels.csv"), "--out", str(run / "qc.csv")]
    assert main(["alignment-qc", "--volumes", *shards, *tables]) == 0
    return {row["finding"]: row for row in read_csv(run / "qc.csv")}


def counts(row: dict[str, str]) -> list[int]:
    return [int(row[name]) for name in ("n", "registered", "fell_back", "not_registered", "rejected", "unknown")]


def test_every_subject_is_counted_once_per_finding(run: Path) -> None:
    rows = score(run)
    assert counts(rows["all"]) == [7, 2, 1, 0, 1, 3]
    assert counts(rows["no finding"]) == [3, 2, 0, 0, 0, 1]
    assert counts(rows["pleural_effusion"]) == [3, 0, 1, 0, 1, 1]
    assert counts(rows["nodule"]) == [1, 0, 0, 0, 1, 0]
    assert counts(rows["no labels"]) == [1, 0, 0, 0, 0, 1]
    assert rows["all"]["masks_rejected"] == "1"
    assert float(rows["no finding"]["atlas_dice_mean"]) == pytest.approx(0.85)
    assert rows["pleural_effusion"]["fell_back_fraction"] == "0.3333"
    assert rows["nodule"]["commonest_reason"] == "not a chest: one lung only found"


def test_wilson_bounds_by_hand(run: Path) -> None:
    row = score(run)["no finding"]  # 2 of 3; z = 1.95996
    assert float(row["registered_ci_low"]) == pytest.approx(0.2077, abs=1e-4)
    assert float(row["registered_ci_high"]) == pytest.approx(0.9385, abs=1e-4)


def test_the_report_names_findings_that_fare_worse(run: Path) -> None:
    score(run)
    facts = _alignment(run / "qc.csv")
    assert facts is not None
    assert "pleural effusion: 33% fell back, 0% without a finding" in facts["worse"]
    assert "nodule: 100% were rejected, 0% without a finding" in facts["worse"]
    assert ["nodule", "1", "0", "0", "0", "1", "0", "0"] in facts["rows"]


def test_without_registration_there_are_no_fractions_of_it(run: Path) -> None:
    for name in QC:
        (run / "pre/0" / name / "qc.json").write_text(json.dumps({"alignment": "lung_centre"}))
    rows = score(run)
    assert counts(rows["all"]) == [7, 0, 0, 3, 1, 3]
    assert rows["all"]["registered_fraction"] == rows["all"]["fell_back_fraction"] == ""
    assert rows["all"]["rejected_fraction"] == "0.1429"
