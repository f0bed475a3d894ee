"""The cohort manifest: validation, patient-level split, shards, reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from chests import write_manifest

from medsyn.cli import main
from medsyn.cohort import build_cohort, load_cohort, write_cohort
from medsyn.cohort.manifest import COLUMNS, NOTES, split_patients
from medsyn.config import CohortConfig, CohortStage
from medsyn.errors import InputError
from medsyn.files import read_csv, write_csv


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


@pytest.mark.parametrize("shard", ["4", "99", "-1", "4/4", "1/2", "x", "1/", "1/0"])
def test_a_shard_that_the_cohort_does_not_have_is_refused(
    tmp_path: Path, images: list[str], shard: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = build_cohort([write_manifest(tmp_path / "m.csv", rows_of(images))], None, CohortConfig(num_shards=4))
    write_cohort(cohort, tmp_path / "out", 0.2)
    verb = [
        "preprocess",
        "--cohort",
        str(tmp_path / "out/cohort.csv"),
        f"--shard={shard}",
        "--out",
        str(tmp_path / "p"),
    ]
    assert main([*verb, "--quiet"]) == 2
    error = capsys.readouterr().err.strip()
    assert "shard" in error
    assert "\n" not in error
    assert not (tmp_path / "p").exists()


def test_a_shard_without_subjects_is_empty_where_the_number_of_shards_is_given(
    tmp_path: Path, images: list[str]
) -> None:
    cohort = build_cohort([write_manifest(tmp_path / "m.csv", rows_of(images[:3]))], None, CohortConfig(num_shards=5))
    write_cohort(cohort, tmp_path / "out", 0.2)
    assert [subject.shard for subject in cohort.subjects] == [0, 1, 3]
    assert [len(load_cohort(tmp_path / "out/cohort.csv", k, 5)) for k in range(5)] == [1, 1, 0, 1, 0]


@pytest.mark.parametrize("spelling", ["same", "other spelling", "symbolic link", "linked folder", "hard link"])
@pytest.mark.parametrize("splits", [("train", "validation"), ("", "")])
def test_one_image_of_two_patients_is_refused(
    tmp_path: Path, images: list[str], spelling: str, splits: tuple[str, str]
) -> None:
    rows = rows_of(images[:6])
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "soft.nii.gz").symlink_to(tmp_path / "s01.nii.gz")
    (tmp_path / "hard.nii.gz").hardlink_to(tmp_path / "s01.nii.gz")
    rows[4]["image"] = {
        "same": "s01.nii.gz",
        "other spelling": f"../{tmp_path.name}/./s01.nii.gz",
        "symbolic link": "soft.nii.gz",
        "linked folder": "link/s01.nii.gz",
        "hard link": "hard.nii.gz",
    }[spelling]
    rows[1]["split"], rows[4]["split"] = splits
    manifest = write_manifest(tmp_path / "m.csv", rows)
    cohort = build_cohort([manifest], None, CohortConfig())
    assert [row["subject_id"] for row in cohort.rejects] == ["s04"]
    assert "is that of subject s01" in cohort.rejects[0]["reason"]
    rows[1]["patient_id"] = rows[4]["patient_id"] = "one"
    rows[4]["split"] = rows[1]["split"]
    cohort = build_cohort([write_manifest(tmp_path / "m.csv", rows)], None, CohortConfig())
    assert not cohort.rejects
    assert len({subject.split for subject in cohort.subjects if subject.patient_id == "one"}) == 1


def test_a_dicom_folder_of_two_patients_is_refused(tmp_path: Path, images: list[str]) -> None:
    (tmp_path / "series").mkdir()
    rows = rows_of(images[:4])
    rows[0]["image"], rows[3]["image"] = "series", "series/"
    cohort = build_cohort([write_manifest(tmp_path / "m.csv", rows)], None, CohortConfig())
    assert [row["subject_id"] for row in cohort.rejects] == ["s03"]


def test_a_dicom_folder_with_a_series_per_patient_is_used(tmp_path: Path, images: list[str]) -> None:
    """Archives export many patients into one folder; the column `series` tells them apart."""
    (tmp_path / "export").mkdir()
    series = ("1.2.3", "1.2.4", "", "1.2.3")
    rows = [row | {"image": "export", "series": uid} for row, uid in zip(rows_of(images[:4]), series, strict=True)]
    rows = [{"findings": "Clear.", "impression": ""} | row for row in rows]
    write_csv(tmp_path / "m.csv", rows, [*rows[0]])
    cohort = build_cohort([tmp_path / "m.csv"], None, CohortConfig())
    assert [row["subject_id"] for row in cohort.rejects] == ["s03"]
    assert [subject.hints for subject in cohort.subjects] == [{"series": "1.2.3"}, {"series": "1.2.4"}, {}]
    rows = [row | {"image": name} for row, name in zip(rows, [*images[:3], images[0]], strict=True)]
    rows[3]["series"] = "1.2.5"  # a NIfTI file is one image, whatever the column says
    write_csv(tmp_path / "m.csv", rows, [*rows[0]])
    assert [row["subject_id"] for row in build_cohort([tmp_path / "m.csv"], None, CohortConfig()).rejects] == ["s03"]


def test_given_labels_technique_and_clinic_go_through_the_cohort(tmp_path: Path, images: list[str]) -> None:
    given = ("nodule=1;emphysema=0", "emphysema=0; nodule=1", "", "nodule=0", "nodule=2", "nodule=0;emphysema=1")
    rows = [
        row | {"given_labels": text, "technique": "Without contrast.", "clinical_information": "Cough, fever."}
        for row, text in zip(rows_of(images[:6]), given, strict=True)
    ]
    rows[0]["report_id"] = rows[1]["report_id"] = "r0"
    columns = list(rows[0] | {"findings": "", "impression": "", "report_id": ""})
    write_csv(tmp_path / "m.csv", [{"findings": "Clear."} | row for row in rows], columns)
    cohort = build_cohort([tmp_path / "m.csv"], None, CohortConfig())
    assert [(row["subject_id"], row["reason"]) for row in cohort.rejects] == [
        ("s04", "given_labels holds 'nodule=2', expected such as nodule=0 or nodule=1; correct it")
    ]
    write_cohort(cohort, tmp_path / "out", 0.5)
    subjects = load_cohort(tmp_path / "out/cohort.csv")
    assert subjects == cohort.subjects
    assert {(s.technique, s.clinical_information) for s in subjects} == {("Without contrast.", "Cough, fever.")}
    table = read_csv(tmp_path / "out/given_labels.csv")  # s02 has none, s03 lacks one
    assert table == [
        {"id": "r0", "emphysema": "0", "nodule": "1"},
        {"id": "s05", "emphysema": "1", "nodule": "0"},
    ]


def test_a_cohort_of_an_earlier_version_is_read(tmp_path: Path, images: list[str]) -> None:
    cohort = build_cohort([write_manifest(tmp_path / "m.csv", rows_of(images))], None, CohortConfig())
    write_cohort(cohort, tmp_path / "out", 0.2)
    rows = read_csv(tmp_path / "out/cohort.csv")
    write_csv(tmp_path / "old.csv", [{k: row[k] for k in COLUMNS if k not in NOTES} for row in rows], COLUMNS[:-3])
    assert load_cohort(tmp_path / "old.csv") == cohort.subjects


def test_unknown_split_and_unsafe_id_are_rejected(tmp_path: Path, images: list[str]) -> None:
    rows = rows_of(images[:4])
    rows[0]["split"] = "test"
    rows[1]["subject_id"] = "../evil"
    cohort = build_cohort([write_manifest(tmp_path / "m.csv", rows)], None, CohortConfig())
    assert [row["subject_id"] for row in cohort.rejects] == ["s00", "../evil"]
    with pytest.raises(InputError, match="2 of 4"):
        write_cohort(cohort, tmp_path / "out", 0.2)


VALIDATION_TEXT = {"findings": "Small effusion on the left.", "impression": "Effusion."}
LONG = " ".join(f"Segment {number} is clear." for number in range(10))


def rejected_reports(tmp_path: Path, images: list[str], table: str, findings: str = "") -> dict[str, str]:
    """Reasons by report_id of the rows of `table` that may not train the text encoder; v1 is a validation subject."""
    rows = [row | {"split": "train", "findings": f"Case {row['subject_id']}."} for row in rows_of(images[:4])]
    rows[0] |= {
        "subject_id": "V1",
        "patient_id": "Patient7",
        "report_id": "A1",
        "split": "validation",
    } | VALIDATION_TEXT
    rows[0]["findings"] = findings or rows[0]["findings"]
    reports = tmp_path / "reports.csv"
    reports.write_text(table)
    cohort = build_cohort([write_manifest(tmp_path / "m.csv", rows)], reports, CohortConfig())
    used = {row["report_id"] for row in cohort.reports if row["split"] == "text_only"}
    reasons = {row["subject_id"]: row["reason"] for row in cohort.rejects if row["stage"] == "reports"}
    assert not used & set(reasons)
    assert "free" in used
    return reasons


@pytest.mark.parametrize(
    ("header", "row", "reason"),
    [
        ("report_id,findings,impression,patient_id", "x,Other.,,Patient7", "patient_id Patient7"),
        ("report_id,findings,impression,patient_id", "x,Other.,, patient7 ", "patient_id patient7"),
        ("report_id,findings,impression,patient_id", "x,Other.,,V1", "patient_id V1"),
        ("report_id,findings,impression,subject_id", "x,Other.,,V1", "subject_id V1"),
        ("report_id,findings,impression", "A1,Other.,", "duplicate report_id"),
        ("report_id,findings,impression", "a1,Other.,", "report_id a1"),
        ("report_id,findings,impression", "V1,Other.,", "report_id V1"),
        ("report_id,findings,impression", "x,Small effusion on the left.,Effusion.", "the text"),
        ("report_id,findings,impression", 'x,"SMALL  effusion on the left",effusion', "the text"),
        (
            "report_id,findings,impression",
            '"x","Findings: Small effusion on the left. IMPRESSION: Effusion.",',
            "the text",
        ),
    ],
)
def test_no_report_of_a_validation_patient_trains_the_text_encoder(
    tmp_path: Path, images: list[str], header: str, row: str, reason: str
) -> None:
    free = "free,Case s01.,Normal." + "," * (header.count(",") - 2)
    reasons = rejected_reports(tmp_path, images, f"{header}\n{row}\n{free}\n")
    assert len(reasons) == 1
    assert next(iter(reasons.values())).startswith(reason)


def test_one_long_section_of_a_validation_report_is_its_text_but_a_phrase_is_not(
    tmp_path: Path, images: list[str]
) -> None:
    table = f'report_id,findings,impression\nx,"{LONG}",\ny,,Effusion.\nfree,a,b\n'
    assert set(rejected_reports(tmp_path, images, table, findings=LONG)) == {"x"}


def test_reports_that_are_absent_or_name_no_patient_are_said_so(
    tmp_path: Path, images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_manifest(tmp_path / "m.csv", rows_of(images))
    (tmp_path / "cohort.json").write_text('{"source": "manifest"}')
    arguments = ["cohort", "--config", str(tmp_path / "cohort.json"), "--manifest", str(manifest)]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    assert "cohort.reports is empty" in capsys.readouterr().err
    (tmp_path / "r.csv").write_text("report_id,findings,impression\nt,Other.,\n")
    assert main([*arguments, "--reports", str(tmp_path / "r.csv"), "--out", str(tmp_path / "b")]) == 0
    said = capsys.readouterr().err
    assert "cohort.reports is empty" not in said
    assert "no column patient_id" in said
    assert main([*arguments, "--reports", str(tmp_path / "none.csv"), "--out", str(tmp_path / "c")]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    for word in ("none.csv: no such file", "cohort.reports", "report_id,findings,impression", "null"):
        assert word in error


def test_a_report_without_any_configured_section_is_rejected(tmp_path: Path, images: list[str]) -> None:
    rows = rows_of(images[:6])
    rows[2] |= {"impression": " "}
    manifest = write_manifest(tmp_path / "m.csv", rows)
    cohort = build_cohort([manifest], None, CohortStage(sections=("impression",)))
    assert [row["subject_id"] for row in cohort.rejects] == ["s02"]
    assert "without impression, which text.sections asks for" in cohort.rejects[0]["reason"]
    assert not build_cohort([manifest], None, CohortStage(sections=("findings", "impression"))).rejects
