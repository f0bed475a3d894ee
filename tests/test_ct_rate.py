"""Downloads of CT-RATE and RAD-ChestCT: from folders and tables with their quirks to the manifest, and through the
workflow as far as the training store.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from chests import chest
from conftest import run_snakemake, write_config
from ct_rate_tree import TEXTS, Scan, write_tree

from medsyn.cli import main
from medsyn.cohort import build_cohort
from medsyn.cohort.layouts import MANIFEST_COLUMNS
from medsyn.config import CohortConfig
from medsyn.ct.reading import read_ct
from medsyn.files import read_csv, read_json, write_csv
from medsyn.header_hints import parse_hints
from medsyn.scan_warnings import topic_of


def manifest_of(root: Path, *options: str, layout: str = "ct-rate") -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Rows by subject, and reasons of what is left out by volume."""
    out = root / "manifest.csv"
    assert main(["manifest", layout, str(root), "--out", str(out), *options]) == 0
    left_out = {row["subject_id"]: row["reason"] for row in read_csv(root / "manifest.left_out.csv")}
    return {row["subject_id"]: row for row in read_csv(out, MANIFEST_COLUMNS)}, left_out


def test_one_reconstruction_per_scan_by_kernel_thickness_slices_and_number(tmp_path: Path) -> None:
    kernels = {
        "train_1_a": ("Bl57d", "['Br40f', '3']"),
        "train_2_a": ("L", "B"),
        "train_3_a": ("YA", "", "B31s"),
        "train_10_a": ("", "B70s"),
        "train_11_b": ("Br40f", "Br44f"),
    }
    write_tree(tmp_path, [Scan(name, kernels=k, quirks=("",) * len(k)) for name, k in kernels.items()])
    rows, left_out = manifest_of(tmp_path)
    assert list(rows) == ["train_1_a_2", "train_2_a_2", "train_3_a_3", "train_10_a_1", "train_11_b_1"]
    reason = "another reconstruction: train_1_a_2 is taken (kernel Br40f, 1.5 mm), this is kernel Bl57d, 1.5 mm"
    assert left_out["train_1_a_1"] == reason
    assert len(left_out) == 6
    assert {row["patient_id"] for row in rows.values()} == {f"train_{n}" for n in (1, 2, 3, 10, 11)}
    every, _ = manifest_of(tmp_path, "--reconstructions", "all")
    assert len(every) == 11
    assert {every[f"train_3_a_{k}"]["report_id"] for k in (1, 2, 3)} == {"train_3_a"}


def test_the_thinner_of_two_soft_reconstructions_is_taken_and_thin_ones_are_equal(tmp_path: Path) -> None:
    write_tree(tmp_path, [Scan("train_1_a", kernels=("B", "B", "B"), quirks=("", "", ""))])
    table = tmp_path / "dataset/metadata/train_metadata.csv"
    rows = read_csv(table)
    for row, thickness, slices in zip(rows, ("5.0", "1.5", "1.0"), ("80", "300", "340"), strict=True):
        row |= {"SliceThickness": thickness, "NumberofSlices": slices}
    write_csv(table, rows, list(rows[0]))
    assert list(manifest_of(tmp_path)[0]) == ["train_1_a_3"]


def test_fields_of_the_report_and_the_given_labels(tmp_path: Path) -> None:
    texts = ("Not given.", "Pleural effusion.")
    clinic = {"ClinicalInformation_EN": "Cough."}
    write_tree(
        tmp_path,
        [
            Scan("train_1_a", "effusion", texts=texts, extra=clinic),
            Scan("train_2_a", texts=("nan", "Not given.")),
            Scan("valid_1_a", "emphysema", reported=(2,)),  # the row of the reconstruction that is taken is missing
        ],
    )
    rows, _ = manifest_of(tmp_path)
    first, silent, held_out = rows.values()
    assert (first["findings"], first["impression"]) == ("", "Pleural effusion.")
    assert (first["clinical_information"], first["technique"]) == (
        "Cough.",
        "Non-contrast images were taken in the axial plane.",
    )
    assert (silent["findings"], silent["impression"]) == ("", "")
    assert silent["clinical_information"] == ""
    assert (held_out["findings"], held_out["impression"]) == TEXTS["emphysema"]
    assert (held_out["split"], held_out["report_id"]) == ("validation", "valid_1_a")
    assert first["labels"] == "Pleural effusion"
    given = dict(part.split("=") for part in first["given_labels"].split(";"))
    assert len(given) == 18
    assert [name for name, value in given.items() if value == "1"] == ["pleural_effusion"]
    assert given["nodule"] == "0"
    cohort = build_cohort([tmp_path / "manifest.csv"], None, CohortConfig())
    assert [(row["subject_id"], row["reason"]) for row in cohort.rejects] == [
        ("train_2_a_1", "empty report: neither findings nor impression")
    ]
    assert cohort.subjects[0].clinical_information == "Cough."


def test_tables_as_other_programs_write_them(tmp_path: Path) -> None:
    scans = [Scan("train_1_a", "effusion", release=""), Scan("train_2_a", kernels=("nan", "B70s"), release="")]
    write_tree(tmp_path, scans)
    labels = tmp_path / "dataset/multi_abnormality_labels/train_predicted_labels.csv"
    rows = [{"": str(k)} | row | {"Atelectasis": "", "Emphysema": "0.0"} for k, row in enumerate(read_csv(labels))]
    write_csv(labels, [row | {"VolumeName": row["VolumeName"][:-7]} for row in rows], list(rows[0]))
    metadata = tmp_path / "dataset/metadata/train_metadata.csv"
    rows = [row | {"XYSpacing": r"0.7\0.8"} for row in read_csv(metadata)]
    write_csv(metadata, rows, list(rows[0]))
    metadata.write_bytes(b"\xef\xbb\xbf" + metadata.read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / "no_chest_more.txt").write_text("train_2_a\n")
    rows_by_name, left_out = manifest_of(tmp_path, "--reconstructions", "all")
    assert list(rows_by_name) == ["train_1_a_1", "train_1_a_2"]
    assert rows_by_name["train_1_a_1"]["spacing_mm"] == "4.5625 0.8 0.7"
    given = rows_by_name["train_1_a_2"]["given_labels"]
    assert "pleural_effusion=1" in given
    assert "emphysema=0" in given
    assert "atelectasis" not in given
    assert rows_by_name["train_1_a_1"]["labels"] == "Pleural effusion"
    assert left_out["train_2_a_2"] == "no chest: listed in no_chest_more.txt"
    assert build_cohort([tmp_path / "manifest.csv"], None, CohortConfig()).rejects == []


def test_reconstructions_with_different_reports_have_reports_of_their_own(tmp_path: Path) -> None:
    write_tree(tmp_path, [Scan("train_1_a"), Scan("train_2_a")])
    table = tmp_path / "dataset/radiology_text_reports/train_reports.csv"
    rows = read_csv(table)
    rows[1]["Findings_EN"] = "Both  lungs are clear. "  # the same words
    rows[3]["Findings_EN"] = "Nodule."
    write_csv(table, rows, list(rows[0]))
    every, _ = manifest_of(tmp_path, "--reconstructions", "all")
    assert [row["report_id"] for row in every.values()] == ["train_1_a", "train_1_a", "train_2_a_1", "train_2_a_2"]
    assert build_cohort([tmp_path / "manifest.csv"], None, CohortConfig()).rejects == []


def test_volumes_without_a_chest_or_a_slice_spacing_are_left_out_by_name(tmp_path: Path) -> None:
    quirks = {"train_1_a": ("no chest", ""), "train_2_a": ("no chest",) * 2, "train_3_a": ("no spacing", "no spacing")}
    write_tree(tmp_path, [Scan(name, quirks=quirk) for name, quirk in quirks.items()] + [Scan("train_4_a")])
    rows, left_out = manifest_of(tmp_path)
    assert list(rows) == ["train_1_a_2", "train_4_a_1"]
    assert left_out["train_1_a_1"] == "no chest: listed in no_chest_train.txt"
    assert left_out["train_3_a_2"].startswith("no spacing: XYSpacing is '[4.9375, 4.9375]', ZSpacing ''")
    assert len(left_out) == 6


def test_the_first_release_is_read_by_its_metadata_and_the_fixed_one_by_its_headers(tmp_path: Path) -> None:
    write_tree(tmp_path / "first", [Scan("train_1_a", release=""), Scan("valid_7_b", release="")], voxels=True)
    write_tree(tmp_path / "fixed", [Scan("train_1_a")], voxels=True)
    (raw, _), (_, _) = manifest_of(tmp_path / "first"), manifest_of(tmp_path / "fixed")
    assert raw["train_1_a_1"]["spacing_mm"] == "4.5625 4.9375 4.9375"
    assert raw["train_1_a_1"]["rescale_intercept"] == "-1024.0"
    volumes = []
    for name in ("first", "fixed"):
        subject = build_cohort([tmp_path / name / "manifest.csv"], None, CohortConfig()).subjects[0]
        volumes.append(read_ct(subject.image, parse_hints(subject.hints)))
    assert volumes[0].spacing_mm == pytest.approx(volumes[1].spacing_mm)
    np.testing.assert_array_equal(volumes[0].array, volumes[1].array)
    # both in one folder: the fixed file is taken, the other named
    both, left_out = manifest_of(tmp_path)
    assert list(both) == ["train_1_a_1", "valid_7_b_1"]
    assert "train_fixed" in both["train_1_a_1"]["image"]
    assert both["train_1_a_1"]["spacing_mm"] == ""
    assert left_out["train_1_a_1"].startswith("another file of this name: ")


def test_a_volume_of_the_first_release_without_metadata_is_left_out(tmp_path: Path) -> None:
    root = tmp_path / "all_fixed"  # the name of another folder says nothing of the release
    write_tree(root, [Scan("train_1_a", release=""), Scan("train_2_a", release="")])
    table = root / "dataset/metadata/train_metadata.csv"
    write_csv(table, read_csv(table)[:2], list(read_csv(table)[0]))
    rows, left_out = manifest_of(root)
    assert list(rows) == ["train_1_a_1"]
    assert left_out["train_2_a_1"].startswith("no metadata: ")


def test_tables_are_found_by_their_columns_and_hidden_or_looped_folders_do_no_harm(tmp_path: Path) -> None:
    write_tree(tmp_path, [Scan("train_1_a")])
    reports = tmp_path / "dataset/radiology_text_reports"
    (reports / "train_reports.csv").rename(tmp_path / "dataset_radiology_text_reports_train_reports.csv")
    (tmp_path / ".cache/train_9_a").mkdir(parents=True)
    (tmp_path / ".cache/train_9_a/train_9_a_1.nii.gz").touch()
    (tmp_path / "dataset/loop").symlink_to(tmp_path / "dataset", target_is_directory=True)
    rows, left_out = manifest_of(tmp_path)
    assert list(rows) == ["train_1_a_1"]
    assert rows["train_1_a_1"]["findings"] == TEXTS["normal"][0]
    assert list(left_out) == ["train_1_a_2"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "dataset/radiology_text_reports/train_reports.csv").unlink(), "download radiology_text"),
        (lambda root: [path.unlink() for path in root.rglob("*.nii.gz")], "no file in it is named as train_1_a_1"),
        (lambda root: second_table(root), "train_1_a_1 has other values than in"),
        (lambda root: second_row(root), "train_1_a_1 has other values than in another row of it (column Findings_EN)"),
    ],
)
def test_a_download_that_cannot_be_used_is_one_line(tmp_path: Path, change, words: str, capsys) -> None:
    write_tree(tmp_path, [Scan("train_1_a")])
    change(tmp_path)
    assert main(["manifest", "ct-rate", str(tmp_path), "--out", str(tmp_path / "m.csv")]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
    assert not (tmp_path / "m.csv").exists()


def second_table(root: Path) -> None:
    """Another table of reports, which contradicts the first."""
    rows = read_csv(root / "dataset/radiology_text_reports/train_reports.csv")
    rows[0]["Findings_EN"] = "Something else."
    write_csv(root / "old/train_reports.csv", rows, list(rows[0]))


def second_row(root: Path) -> None:
    """A row in the table of reports that contradicts another one."""
    table = root / "dataset/radiology_text_reports/train_reports.csv"
    rows = read_csv(table)
    write_csv(table, [*rows, rows[0] | {"Findings_EN": "Something else."}], list(rows[0]))


def test_options_of_another_layout_and_no_layout_are_refused(tmp_path: Path, capsys) -> None:
    out = ["--out", str(tmp_path / "m.csv")]
    assert main(["manifest", "rad-chest", str(tmp_path), "--reports", "x.csv", *out]) == 2
    assert "--reports is not an option of rad-chest" in capsys.readouterr().err
    assert main(["manifest", *out]) == 2
    assert "ct-rate, rad-chest, csv" in capsys.readouterr().err
    assert main(["manifest", "ct-rate", *out]) == 2
    assert "give the folder of the download" in capsys.readouterr().err


def test_a_table_of_ones_own_has_no_list_of_what_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("subject_id,image,findings\na,a.nii.gz,Clear.\n")
    (tmp_path / "m.left_out.csv").write_text("mine")
    out = ["--table", str(tmp_path / "table.csv"), "--out", str(tmp_path / "m.csv")]
    assert main(["manifest", "csv", *out]) == 0
    assert (tmp_path / "m.left_out.csv").read_text() == "mine"
    assert [row["subject_id"] for row in read_csv(tmp_path / "m.csv")] == ["a"]


RAD_COLUMNS = (
    "Unnamed: 0",
    "NoteAcc_DEID",
    "nodule*right_upper",
    "nodulegr1cm*left_lower",
    "emphysema*lung",
    "pleural_effusion*lung",
)


def write_rad_chest(root: Path) -> None:
    """A small download of RAD-ChestCT; the arrays run to the feet, the back and the left."""
    volume = chest("normal").volume  # z to the head, y to the front, x to the left
    for name in ("trn00001", "trn00002", "val00001", "tst00001", "tst00002"):
        path = root / f"images/{name}.npz"
        path.parent.mkdir(exist_ok=True, parents=True)
        np.savez_compressed(path, ct=np.clip(volume.array[::-1, ::-1], -1000, 1000).astype(np.int16))
    marks = {"train": [["trn00001", 0, 1, 0, 1], ["trn00002", 0, 0, 0, 0]], "valid": [["val00001", 0, 0, 1, 0]]}
    marks["test"] = [["tst00001", 1, 0, 0, 0]]
    for split, rows in marks.items():
        table = root / f"img{split}_Abnormality_and_Location_Labels.csv"
        write_csv(table, [dict(zip(RAD_COLUMNS, (1, *row), strict=True)) for row in rows], RAD_COLUMNS)
    people = {"trn00001": "m1", "trn00002": "m1", "val00001": "m2", "tst00001": "m3"}
    rows = [{"NoteAcc_DEID": scan, "MRN_DEID": person} for scan, person in people.items()]
    write_csv(root / "CT_Scan_Metadata_Complete_35747.csv", rows, ("NoteAcc_DEID", "MRN_DEID"))


def test_rad_chestct(tmp_path: Path, capsys) -> None:
    write_rad_chest(tmp_path)
    rows, left_out = manifest_of(tmp_path, layout="rad-chest")
    assert not left_out
    assert rows["trn00001"]["findings"] == "Nodule larger than 1 cm: left lower. Pleural effusion: lung."
    assert rows["trn00001"]["labels"] == "nodulegr1cm*left_lower;pleural_effusion*lung"
    assert rows["trn00001"]["given_labels"] == "emphysema=0;nodule=1;pleural_effusion=1"
    assert rows["trn00002"]["findings"] == "No abnormality is labelled."
    assert rows["tst00002"]["findings"] == ""  # no row of labels: the cohort rejects it as without a report
    assert [rows[name]["patient_id"] for name in ("trn00001", "trn00002", "tst00002")] == ["m1", "m1", "tst00002"]
    assert [row["split"] for row in rows.values()] == ["train", "train", *["validation"] * 3]
    assert "1 of 5 scans (first: tst00002) have no patient" in capsys.readouterr().err
    cohort = build_cohort([tmp_path / "manifest.csv"], None, CohortConfig())
    assert [row["subject_id"] for row in cohort.rejects] == ["tst00002"]
    hints = parse_hints(cohort.subjects[0].hints)
    assert hints.spacing_mm == (0.8, 0.8, 0.8)


def test_rad_chestct_with_a_column_of_patients_of_ones_own(tmp_path: Path) -> None:
    write_rad_chest(tmp_path)
    people = [{"NoteAcc_DEID": name, "person": "p1"} for name in ("val00001", "tst00001")]
    write_csv(tmp_path / "people.csv", people, ("NoteAcc_DEID", "person"))
    options = ("--metadata", str(tmp_path / "people.csv"), "--patient-column", "person")
    rows, _ = manifest_of(tmp_path, *options, layout="rad-chest")
    assert rows["val00001"]["patient_id"] == rows["tst00001"]["patient_id"] == "p1"
    out = ["--out", str(tmp_path / "m.csv")]
    assert main(["manifest", "rad-chest", str(tmp_path), "--patient-column", "person", *out]) == 2


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def full_tree(root: Path) -> None:
    """64 volumes of 21 scans of 18 patients with every quirk of the data set; 15 volumes are padded."""
    kernels = ("['Br40f', '3']", "Bl57d", "Br60f")
    plain = ("",) * 3
    quirks = dict.fromkeys(("train_3", "train_4", "train_6", "valid_2"), ("padded",) * 3)
    quirks |= {"train_2": ("mirrored", "", ""), "train_8": ("clipped", "", ""), "valid_3": ("drifted", "", "")}
    scans = [
        Scan(f"train_{n}_{letter}", "effusion" if n % 2 else "normal", kernels, quirks.get(f"train_{n}", plain))
        for n in range(1, 9)
        for letter in ("ab" if n % 4 == 0 else "a")
    ]
    scans += [Scan(f"valid_{n}_a", "normal", kernels, quirks.get(f"valid_{n}", plain)) for n in range(1, 4)]
    scans += [
        Scan("train_1_b", "normal", kernels, plain, reported=(2,)),  # its report stands at another reconstruction
        Scan("train_21_a", "normal", kernels, ("no chest",) * 3),
        Scan("train_22_a", "normal", kernels, ("head",) * 3),
        Scan("train_23_a", "normal", kernels, ("no spacing",) * 3),
        Scan("train_24_a", "normal", kernels, ("truncated", "", "")),
        Scan("train_25_a", "normal", (*kernels, "B70s"), ("",) * 4, texts=("Not given.", "Not given.")),
        Scan("valid_24_a", "normal", kernels, ("empty", "", "")),
        Scan("valid_25_a", "normal", kernels, ("no chest", "", "")),
    ]
    write_tree(root, scans, voxels=True)


def test_a_download_with_every_quirk_goes_through_the_workflow_as_far_as_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_tree(tmp_path)
    assert len(list(tmp_path.rglob("*.nii.gz"))) >= 60
    rows, left_out = manifest_of(tmp_path)
    config = write_config(
        tmp_path / "config.yaml",
        "ct_rate",
        cohort={"manifest": "manifest.csv", "num_shards": 1},
        preprocess={"size": [64, 64, 64], "alignment": "lung_centre"},
        masks={"lobes": "classical", "airway": "classical", "vessels": "classical"},
        super_res={"train": {"crop_size": None}},
        methods={name: {"size": 64} for name in ("wgan", "alpha_gan", "hagan")},
    )
    results = tmp_path / "results/ct_rate"
    targets = ["results/ct_rate/store/0", "results/ct_rate/qc/labels.csv"]
    guard = os.pathsep.join(filter(None, [str(Path(__file__).with_name("no_network")), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", guard)
    monkeypatch.setenv("MEDSYN_NETWORK_LOG", str(tmp_path / "asked.txt"))
    run = run_snakemake(*targets, "--show-failed-logs", directory=tmp_path, config=config)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert not (tmp_path / "asked.txt").exists(), "no rule opens a connection"

    kinds = [reason.partition(":")[0] for reason in left_out.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "another reconstruction": 38,
        "no chest": 4,
        "no spacing": 3,
    }
    assert "valid_25_a_2" in rows, "of two sharp ones the lower number"
    cohort = read_table(results / "cohort/cohort.csv")
    assert [row["subject_id"] for row in read_table(results / "cohort/rejects.csv")] == ["train_25_a_1"]
    splits: dict[str, set[str]] = {}
    for row in cohort:
        splits.setdefault(row["patient_id"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert {row["split"] for row in cohort} == {"train", "validation"}
    index = read_table(results / "preprocessed/0/index.csv")
    refused = {row["subject_id"]: row["reason"] for row in index if row["status"] != "ok"}
    assert set(refused) == {"train_22_a_1", "train_24_a_1", "valid_24_a_1"}
    assert "not a chest" in refused["train_22_a_1"]
    assert "cannot be read" in refused["train_24_a_1"]
    assert "cannot be read" in refused["valid_24_a_1"]
    stored = {row["subject_id"] for row in read_table(results / "store/0/index.csv")}
    assert stored == {row["subject_id"] for row in cohort} - set(refused)
    assert stored >= {"train_3_a_1", "train_4_a_1", "train_4_b_1", "train_6_a_1", "valid_2_a_1"}, (
        "padding outside of the circle is no fault"
    )
    warned = {row["subject_id"]: topic_of(row["warnings"]) for row in index if row["warnings"]}
    assert warned == {"train_2_a_1": "mirrored", "train_8_a_1": "range", "train_8_b_1": "range"}
    qc = read_json(results / "preprocessed/0/valid_3_a_1/qc.json")
    assert qc["air_factor"] != 1.0, "the configuration corrects air that has drifted, so it is no warning"
    assert stored >= set(warned), "a warning never leaves a volume out"
    labels = {row["finding"]: row for row in read_table(results / "qc/labels.csv")}
    assert float(labels["pleural_effusion"]["f1"]) == 1.0
    assert int(labels["emphysema"]["n"]) == len({row["report_id"] for row in cohort})
