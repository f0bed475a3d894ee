"""Registration, fallback and rejection by finding, on shards whose counts are known by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsyn.cli import main
from medsyn.files import read_csv, write_csv
from medsyn.report.files import find_files
from medsyn.report.page import write_report
from medsyn.report.tables import alignment_table

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
        write_csv(tmp_path / "masks" / shard / "index.csv", masks, ("subject_id", "status", "reason"))
    for name, facts in QC.items():
        (tmp_path / "pre/0" / name).mkdir()
        (tmp_path / "pre/0" / name / "qc.json").write_text(json.dumps(facts))
    subjects = [{"subject_id": name, "image": f"x/{name}.nii.gz"} for name in "abcdefg"]
    write_csv(tmp_path / "cohort.csv", subjects, ("subject_id", "image"))
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


def test_a_finding_whose_cts_are_all_rejected_has_a_share_of_0_registered(run: Path) -> None:
    row = score(run)["nodule"]  # 0 of 1 registered; Wilson's upper bound is z^2 / (1 + z^2)
    assert row["registered_fraction"] == row["fell_back_fraction"] == "0.0"
    assert float(row["registered_ci_high"]) == float(row["fell_back_ci_high"]) == pytest.approx(0.7935, abs=1e-4)
    assert row["alignment_asked"] == "atlas"


def test_equal_reasons_of_several_files_count_together(run: Path) -> None:
    subjects = [{"subject_id": name, "image": f"chest {name}"} for name in "abcdefg"]
    write_csv(run / "cohort.csv", subjects, ("subject_id", "image"))
    reasons = {
        "d": f"{subjects[3]['image']}: mask lobes is 8 x 8 x 8, the CT is 9 x 9 x 9",
        "e": f"{subjects[4]['image']}: mask lobes is 7 x 7 x 7, the CT is 8 x 9 x 9",
        "g": f"{subjects[6]['image']}: rejected, not a chest: no lung found",
    }
    index = [{"subject_id": name, "status": "rejected", "reason": reason} for name, reason in reasons.items()]
    write_csv(run / "pre/1/index.csv", index, ("subject_id", "status", "reason"))
    row = score(run)["pleural_effusion"]
    assert row["commonest_reason"] == "mask lobes is # x # x #, the CT is # x # x #"
    assert row["commonest_reason_count"] == "2"
    assert score(run)["no labels"]["commonest_reason"] == "not a chest: no lung found"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"alignment": "atlas"}'])
def test_an_unusable_qc_file_is_counted_as_unknown(run: Path, text: str) -> None:
    (run / "pre/0/a/qc.json").write_text(text)
    rows = score(run)
    assert counts(rows["no finding"]) == [3, 1, 0, 0, 0, 2]
    assert counts(rows["all"]) == [7, 1, 1, 0, 1, 4]


def test_a_subject_in_two_shards_is_an_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = ["--volumes", str(run / "pre/0"), str(run / "pre/1"), str(run / "pre/0")]
    tables = ["--cohort", str(run / "cohort.csv"), "--labels", str(run / "labels.csv"), "--out", str(run / "qc.csv")]
    assert main(["alignment-qc", *shards, *tables]) != 0
    assert "subject a" in capsys.readouterr().err
    assert not (run / "qc.csv").exists()


def page(run: Path) -> str:
    """Return the alignment part of the HTML report about `run`."""
    (run / "qc").mkdir(exist_ok=True)
    (run / "qc.csv").rename(run / "qc/alignment.csv")
    write_report(find_files(run), run / "report.html", phantom=False)
    return (run / "report.html").read_text(encoding="utf-8").split('id="alignment"')[1].split("<h2")[0]


def test_the_report_names_findings_that_fare_worse(run: Path) -> None:
    score(run)
    text = page(run)
    assert "Asked for: atlas" in text
    assert "pleural effusion: 1 of 3 (33.3 %) fell back, 0 of 3 (0.0 %) without a finding" in text
    assert "nodule: 1 of 1 (100.0 %) rejected, 0 of 3 (0.0 %) without a finding" in text
    assert ">all:" not in text  # the sum of all groups is compared with none of them
    assert "not a chest: one lung only found (1)" in text


def test_without_cts_free_of_findings_the_report_does_not_say_that_all_is_well(run: Path) -> None:
    labels = [{"id": name, "pleural_effusion": 1} for name in "abcdef"]
    write_csv(run / "labels.csv", labels, ("id", "pleural_effusion"))
    score(run)
    text = page(run)
    assert "No CT is without a finding" in text
    assert "No finding is" not in text


def test_a_difference_of_exactly_five_points_is_not_more_than_five_points() -> None:
    names = ("registered", "fell_back", "not_registered", "rejected", "unknown", "masks_rejected")
    healthy = {"finding": "no finding", "n": "20", "alignment_asked": "atlas"} | dict.fromkeys(names, "0")
    healthy |= {"registered": "10", "rejected": "10", "commonest_reason": "x", "commonest_reason_count": "10"}
    ill = healthy | {"finding": "nodule", "registered": "9", "rejected": "11"}
    assert alignment_table([healthy, ill])["worse"] == []
    assert len(alignment_table([healthy, ill | {"n": "19"}])["worse"]) == 1


def test_without_registration_there_are_no_fractions_of_it(run: Path) -> None:
    facts = {"alignment": "lung_centre", "alignment_used": "lung_centre"}
    for name in QC:
        (run / "pre/0" / name / "qc.json").write_text(json.dumps(facts))
    rows = score(run)
    assert counts(rows["all"]) == [7, 0, 0, 3, 1, 3]
    assert rows["all"]["registered_fraction"] == rows["all"]["fell_back_fraction"] == ""
    assert rows["all"]["rejected_fraction"] == "0.1429"
    assert rows["all"]["alignment_asked"] == "lung_centre"
    text = page(run)
    assert "Asked for: lung centre" in text
    assert "fell back" not in text.split("<table>")[1].split("</tr>")[0]
