"""The cohort manifest: validation, patient-level split, shards, reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from chests import write_manifest

from medsyn.cli import main
from medsyn.cohort import build_cohort, load_cohort, write_cohort
from medsyn.cohort.manifest import split_patients
from medsyn.config import CohortConfig
from medsyn.errors import InputError
from medsyn.files import read_csv


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    names = [f"s{i:02d}.nii.gz" for i in range(20)]
    for name in names:
        (tmp_path / name).touch()
    return names


def rows_of(images: list[str]) -> list[dict[str, str]]:
    return [{"subject_id": f"s{i:02d}", "image": name} for i, name in enumerate(images)]


def test_bad_rows_cost_only_themselves(tmp_path: Path, images: list[str]) -> None:
    rows = rows_of(images)
    rows[3]["subject_id"] = "s00"
    rows[5] |= {"findings": "", "impression": " "}
    rows[7]["image"] = "absent.nii.gz"
    cohort = build_cohort([write_manifest(tmp_path / "m.csv", rows)], None, CohortConfig(num_shards=3))
    reasons = {row["subject_id"]: row["reason"] for row in cohort.rejects}
    assert reasons["s00"] == "duplicate subject_id"
    assert reasons["s05"].startswith("empty report")
    assert "absent.nii.gz does not exist" in reasons["s07"]
    assert len(cohort.subjects) == 17
    assert [s.shard for s in cohort.subjects] == sorted(s.shard for s in cohort.subjects)
    sizes = [sum(s.shard == k for s in cohort.subjects) for k in range(3)]
    assert max(sizes) - min(sizes) <= 1


def test_too_many_rejects_stop_the_run_and_are_listed(
    tmp_path: Path, images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(images)
    for row in rows[:10]:
        row["image"] = "absent.nii.gz"
    manifest = write_manifest(tmp_path / "m.csv", rows)
    assert main(["cohort", "--manifest", str(manifest), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert "10 of 20" in error
    assert "rejects.csv" in error
    assert len(read_csv(tmp_path / "out/rejects.csv")) == 10
    assert not (tmp_path / "out/cohort.csv").exists()


def test_missing_column_and_missing_file_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.csv").write_text("subject_id,image,findings\na,b,c\n")
    assert main(["cohort", "--manifest", str(tmp_path / "m.csv"), "--out", str(tmp_path / "o")]) == 2
    assert "missing column impression" in capsys.readouterr().err
    assert main(["cohort", "--manifest", str(tmp_path / "none.csv"), "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert "subject_id,image,findings,impression" in error
    assert "for example" in error
    assert not (tmp_path / "o").exists()


def test_patients_never_cross_the_split(tmp_path: Path, images: list[str]) -> None:
    rows = [row | {"patient_id": f"p{i // 2}"} for i, row in enumerate(rows_of(images))]
    rows[0]["split"] = "validation"
    rows[19]["split"] = "train"
    rows[18]["split"] = "validation"
    config = CohortConfig(validation_fraction=0.3)
    cohort = build_cohort([write_manifest(tmp_path / "m.csv", rows)], None, config)
    by_patient: dict[str, set[str]] = {}
    for subject in cohort.subjects:
        by_patient.setdefault(subject.patient_id, set()).add(subject.split)
    assert all(len(splits) == 1 for splits in by_patient.values())
    assert by_patient["p0"] == {"validation"}
    assert [row["subject_id"] for row in cohort.rejects] == ["s19"]
    assert "already in split validation" in cohort.rejects[0]["reason"]
    assert build_cohort([tmp_path / "m.csv"], None, config) == cohort


def test_split_share_and_seed() -> None:
    names = [f"p{i}" for i in range(200)]
    first = split_patients(names, {}, 0.12, 0)
    assert sum(split == "validation" for split in first.values()) == 24
    assert split_patients(list(reversed(names)), {}, 0.12, 0) == first
    assert split_patients(names, {}, 0.12, 1) != first
    assert set(split_patients(names, {}, 0.0, 0).values()) == {"train"}
    assert list(split_patients(["a", "b", "c"], {}, 0.1, 0).values()).count("validation") == 1


def test_reports_hold_every_report_once(tmp_path: Path, images: list[str]) -> None:
    rows = rows_of(images[:6])
    rows[0]["report_id"] = rows[1]["report_id"] = "shared"
    rows[2] |= {"report_id": "shared", "findings": "Something else."}
    reports = tmp_path / "text.csv"
    reports.write_text("report_id,findings,impression\nt1,Clear.,\nshared,x,y\nt2,,\n")
    cohort = build_cohort([write_manifest(tmp_path / "m.csv", rows)], reports, CohortConfig())
    ids = [row["report_id"] for row in cohort.reports]
    assert sorted(ids) == ["s03", "s04", "s05", "shared", "t1"]
    assert cohort.reports[ids.index("t1")]["split"] == "text_only"
    reasons = {(row["stage"], row["subject_id"]): row["reason"] for row in cohort.rejects}
    assert "already used by another report" in reasons["cohort", "s02"]
    assert reasons["reports", "shared"] == "duplicate report_id"
    assert reasons["reports", "t2"].startswith("empty report")


def test_written_cohort_reads_back_and_paths_hold(
    tmp_path: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_manifest(tmp_path / "m.csv", rows_of(images))
    monkeypatch.chdir(tmp_path)
    cohort = build_cohort([manifest], None, CohortConfig(num_shards=4))
    write_cohort(cohort, tmp_path / "out", 0.2)
    assert load_cohort(tmp_path / "out/cohort.csv") == cohort.subjects
    assert cohort.subjects[0].image == "s00.nii.gz"
    shards = [load_cohort(tmp_path / "out/cohort.csv", k) for k in range(4)]
    assert [s for shard in shards for s in shard] == cohort.subjects
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert build_cohort([manifest], None, CohortConfig()).subjects[0].image == str(tmp_path / "s00.nii.gz")


def test_unknown_split_and_unsafe_id_are_rejected(tmp_path: Path, images: list[str]) -> None:
    rows = rows_of(images[:4])
    rows[0]["split"] = "test"
    rows[1]["subject_id"] = "../evil"
    cohort = build_cohort([write_manifest(tmp_path / "m.csv", rows)], None, CohortConfig())
    assert [row["subject_id"] for row in cohort.rejects] == ["s00", "../evil"]
    with pytest.raises(InputError, match="2 of 4"):
        write_cohort(cohort, tmp_path / "out", 0.2)
