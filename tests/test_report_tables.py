"""Tables and reports as other people's exports write them: placeholders, broken rows, one image twice, mark-up."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from chests import write_manifest

from medsyn.cli import main
from medsyn.cohort import build_cohort
from medsyn.cohort.manifest import Cohort
from medsyn.config import CohortConfig
from medsyn.csv_reading import MAX_FIELD, read_table
from medsyn.errors import InputError
from medsyn.files import read_csv
from medsyn.text.corpus import read_reports
from medsyn.text.labels import default_labeler, label_table
from medsyn.text.plain import plain_text
from medsyn.text.sections import find_sections, split_sections

HEADER = "subject_id,image,findings,impression\n"


def cohort_of(tmp_path: Path, rows: str, reports: str | None = None, header: str = HEADER) -> Cohort:
    """The cohort of a manifest with the given rows; a.nii, b.nii, ... exist."""
    for name in "abcdef":
        (tmp_path / f"{name}.nii").touch()
    (tmp_path / "m.csv").write_bytes((header + rows).encode())
    if reports is not None:
        (tmp_path / "r.csv").write_text("report_id,findings,impression\n" + reports)
    return build_cohort([tmp_path / "m.csv"], tmp_path / "r.csv" if reports is not None else None, CohortConfig())


@pytest.mark.parametrize(
    "text",
    [
        *("Not given.", "not given", "nan", "NaN", "N/A", "n.a.", "NA", "-", "--", ".", "None", "NULL", "<NA>", "#N/A"),
        *(
            "not available",
            "Report not available.",
            "Not yet dictated",
            "[Not provided]",
            "Findings: not given.",
            "0.0",
        ),
        *(
            "Pending.",
            "(none)",
            "?",
            "No report available",
            "&nbsp;",
            "<p></p>",
            " \t",
            "Impression is not given",
            "___",
        ),
    ],
)
def test_a_text_that_says_there_is_none_is_empty(tmp_path: Path, text: str) -> None:
    assert plain_text(text) == ""
    rows = [
        {"subject_id": "a", "image": "a.nii", "findings": text, "impression": "Effusion."},
        {"subject_id": "b", "image": "b.nii", "findings": "Effusion.", "impression": text},
        {"subject_id": "c", "image": "c.nii", "findings": text, "impression": text},
    ]
    for row in rows:
        (tmp_path / row["image"]).touch()
    cohort = build_cohort([write_manifest(tmp_path / "m.csv", rows)], None, CohortConfig())
    assert [(row.findings, row.impression) for row in cohort.subjects] == [("", "Effusion."), ("Effusion.", "")]
    assert [(row["subject_id"], row["reason"]) for row in cohort.rejects] == [
        ("c", "empty report: neither findings nor impression")
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("Normal.", "No findings.", "None of the nodules grew.", "Unremarkable", "No change.", "Nil acute.", "Clear"),
        *(
            "Nodule <3 mm and > 2 mm, 5*3*4 mm.",
            "[**Name**] went ___ home & <NAME> has [DATE].",
            "* nodule\n* effusion",
        ),
        *("Not enlarged.", "#1 nodule #2 effusion", "3.5 x 4_2 mm ~ 3", "- nodule -- stable\n- effusion"),
    ],
)
def test_a_text_that_says_something_stays_as_it_is(text: str) -> None:
    assert plain_text(text) == text


def test_reports_without_images_and_tables_of_reports_know_no_text_too(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, "a,a.nii,Clear.,\n", 't1,Not given.,"n/a"\nt2,Not given.,Nodule.\n')
    assert [(row["report_id"], row["findings"], row["impression"]) for row in cohort.reports[1:]] == [
        ("t2", "", "Nodule.")
    ]
    assert [row["subject_id"] for row in cohort.rejects] == ["t1"]
    (tmp_path / "c.csv").write_text("report_id,findings,impression,split\nt,Not given.,<b>Nodule</b>,train\n")
    assert [vars(row)["findings"] + row.impression for row in read_reports(tmp_path / "c.csv")] == ["Nodule"]
    (tmp_path / "l.csv").write_text("id,findings,impression\n1,Not given.,\n2,nan,Nodule.\n")
    assert [row["id"] for row in label_table(tmp_path / "l.csv", default_labeler())] == ["2"]
    assert find_sections("Findings: Not given. Impression: Nodule.").findings == ""


def test_a_row_with_more_fields_than_the_header_is_rejected_by_its_line(tmp_path: Path) -> None:
    rows = (
        'a,a.nii,"Two\nlines.",Normal.\nb,b.nii,Clear, no effusion,Normal.\nc,c.nii,Clear.,Normal.\nd,d.nii,Clear.,,\n'
    )
    cohort = cohort_of(tmp_path, rows)
    assert [row.subject_id for row in cohort.subjects] == ["a", "c", "d"]
    assert [row["subject_id"] for row in cohort.rejects] == ["b"]
    assert "m.csv: line 4 has 5 fields, the header has 4" in cohort.rejects[0]["reason"]
    reports = "t1,Clear, no effusion,Normal.\nt2,Clear.,Normal.\nt3,Cut\n"
    cohort = cohort_of(tmp_path, "a,a.nii,Clear.,\n", reports)
    assert [row["report_id"] for row in cohort.reports] == ["a", "t2"]
    assert [row["reason"].split("; ")[0] for row in cohort.rejects] == [
        f"{tmp_path}/r.csv: line 2 has 4 fields, the header has 3",
        f"{tmp_path}/r.csv: line 4 has 2 fields, the header has 3",
    ]
    with pytest.raises(InputError, match=r"r\.csv: line 2 has 4 fields"):
        read_csv(tmp_path / "r.csv")


@pytest.mark.parametrize(
    ("rows", "line", "kept"),
    [
        ('a,a.nii,"Clear.,Normal.\nb,b.nii,"Effusion.","Effusion."\nc,c.nii,x,y\n', 2, "bc"),
        ('a,a.nii,"Clear.,Normal.\nb,b.nii,Effusion.,Effusion.\nc,c.nii,x,y\n', 2, "bc"),
        ('a,a.nii,"Clear.,Normal.\nb,b.nii,Effusion.,"Effusion."\nc,c.nii,x,y\n', 2, "bc"),
        ('a,a.nii,"Clear.,Normal.\r\nb,b.nii,"",Effusion.\r\nc,c.nii,x,y\r\n', 2, "bc"),
        ('a,a.nii,"Two\nlines","Normal.\nb,b.nii,x,y\nc,c.nii,"x","y"\n', 3, "bc"),
        ('b,b.nii,x,y\nc,c.nii,x,y\na,a.nii,x,"y\n', 4, "bc"),
        ('b,b.nii,x,y\na,a.nii,"A "spiculated" nodule",y\nc,c.nii,x,y\n', 3, "bc"),
        ('a,a.nii,"x,y\nd,d.nii,"x,y\nb,b.nii,x,y\nc,c.nii,x,y\n', 2, "bc"),
    ],
)
def test_an_open_quotation_mark_is_named_by_its_line_and_swallows_nothing(
    tmp_path: Path, rows: str, line: int, kept: str
) -> None:
    cohort = cohort_of(tmp_path, rows)
    assert "".join(row.subject_id for row in cohort.subjects) == kept
    assert cohort.rejects[0]["subject_id"] == "a"
    assert f"the quotation mark that opens a field on line {line} is not closed" in cohort.rejects[0]["reason"]


def test_a_table_whose_rows_cannot_be_told_apart_is_refused_with_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.csv").write_text(HEADER + 'a,a.nii,"A\n"large" nodule\nin the lung",y\nb,b.nii,x,y\n')
    assert main(["cohort", "--manifest", str(tmp_path / "m.csv"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert "m.csv: the quotation mark that opens a field on line 2 is not closed" in error
    assert "\n" not in error
    for header, message in (
        ("a,b,b", "column b twice"),
        ("a;b", "separated by ';'"),
        ('"a,b', "header cannot be read"),
    ):
        (tmp_path / "h.csv").write_text(f"{header}\n1,2,3\n")
        with pytest.raises(InputError, match=message):
            read_table(tmp_path / "h.csv", ["a"])


def test_the_verb_label_leaves_broken_rows_out_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "l.csv").write_text("id,report\n1,Clear, but a nodule.\n2,Small effusion.\n")
    assert [row["id"] for row in label_table(tmp_path / "l.csv", default_labeler())] == ["2"]
    assert "1 rows cannot be read and get no labels: line 2 has 3 fields" in caplog.text


def test_one_image_has_one_patient(tmp_path: Path) -> None:
    header = "subject_id,image,findings,impression,patient_id,split\n"
    (tmp_path / "link.nii").symlink_to("a.nii")
    (tmp_path / "b.nii").touch()
    os.link(tmp_path / "b.nii", tmp_path / "hard.nii")
    rows = (
        "s1,a.nii,x,y,p1,train\ns2,a.nii,x2,y2,p2,validation\ns3,./sub/../a.nii,x,y,p3,\ns4,link.nii,x,y,,\n"
        "s5,b.nii,x,y,p5,\ns6,hard.nii,x,y,p6,\ns7,a.nii,z,z,p1,\n"
    )
    (tmp_path / "sub").mkdir()
    cohort = cohort_of(tmp_path, rows, header=header)
    assert [row.subject_id for row in cohort.subjects] == ["s1", "s5", "s7"]
    assert [row["subject_id"] for row in cohort.rejects] == ["s2", "s3", "s4", "s6"]
    assert "is that of subject s1, patient p1, expected one patient per image" in cohort.rejects[0]["reason"]


@pytest.mark.parametrize(
    ("report", "findings", "impression"),
    [
        ("FINDINGS: Clear.\nIMPRESSION: Normal.\nADDENDUM: A 4 mm nodule.", "Clear.", "Normal.\nA 4 mm nodule."),
        ("**FINDINGS**\nClear.\n\n**IMPRESSION** Normal.", "Clear.", "Normal."),
        ("<b>Findings:</b> Clear.<br><b>Impression:</b> Normal.", "Clear.", "Normal."),
        ("<P><STRONG>Findings</STRONG></P>Clear &lt; 3 mm.<h2>Impression</h2>Normal.", "Clear < 3 mm.", "Normal."),
        ("## Findings\nClear.\n### Impression ###\nNormal.", "Clear.", "Normal."),
        ("__Findings:__ Clear. == IMPRESSION ==\nNormal.", "Clear.", "Normal."),
        ("[FINDINGS] Clear.\n--- IMPRESSION ---\nNormal.", "Clear.", "Normal."),
        (r"{\rtf1{\fonttbl{\f0 Arial;}}\b FINDINGS:\b0\par Clear.\par IMPRESSION: Normal.\par}", "Clear.", "Normal."),
        (r"FINDINGS:\.br\Clear.\.br\IMPRESSION: \H\Normal\N\.", "Clear.", "Normal."),
        ('<A Label="FINDINGS">Clear.</A><A Label="IMPRESSION">Normal.</A>', "Clear.", "Normal."),
        (
            "FINDINGS Clear lungs. IMPRESSION Normal chest. ADDENDUM A nodule.",
            "Clear lungs.",
            "Normal chest.\nA nodule.",
        ),
        (
            "ADDENDUM #2 3/4/2021 10:30 AM: A nodule.\nEnd of addendum\nFINDINGS: Clear. IMPRESSION: Normal.",
            "Clear.",
            "",
        ),
        ("Findings: Clear. Impression: Normal.\n<i>Addendum by Dr. X. Y, 3.4.2021:</i> A nodule.", "Clear.", ""),
        ("Findings: Clear. Impression: Normal.\n**Addendum (final)** - A nodule.", "Clear.", ""),
        ('Clear. " Normal." Addendum: A nodule.', "Clear.", ""),
    ],
)
def test_an_addendum_joins_the_impression_and_mark_up_goes(report: str, findings: str, impression: str) -> None:
    sections = find_sections(report)
    expected = impression or "Normal.\nA nodule."
    assert (sections.findings, sections.impression) == (findings, expected)


def test_columns_lose_their_mark_up_and_the_encoder_sees_an_addendum_as_impression(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, 'a,a.nii,"<p>Clear,<br/>no effusion &amp; nodule</p>",**Normal**\n')
    assert (cohort.subjects[0].findings, cohort.subjects[0].impression) == ("Clear,\nno effusion & nodule", "Normal")
    parts = split_sections("FINDINGS: a. IMPRESSION: b. ADDENDUM: c. Technique: d.")
    assert [name for name, _ in parts] == ["findings", "impression", "impression", "rejected"]


def test_a_field_of_20_mb_costs_its_row_and_200000_rows_take_seconds(tmp_path: Path) -> None:
    huge = "effusion " * (20_000_000 // 9)
    cohort = cohort_of(tmp_path, f'a,a.nii,"{huge}",y\nb,b.nii,{huge[: MAX_FIELD + 1]},y\nc,c.nii,x,y\n')
    assert [row.subject_id for row in cohort.subjects] == ["c"]
    assert [row["reason"] for row in cohort.rejects] == [
        f"{tmp_path}/m.csv: line {line} has a field of more than {MAX_FIELD} characters; shorten it" for line in (2, 3)
    ]
    number = 10_000  # a twentieth of 200,000 rows, in CPU seconds: the machine may be shared
    text = "".join(f's{row},a.nii,"Clear, case {row}.",Normal.,one\n' for row in range(number))
    seconds = []
    for _ in range(2):
        start = time.process_time()
        assert len(cohort_of(tmp_path, text, header=HEADER.strip() + ",patient_id\n").subjects) == number
        seconds.append(time.process_time() - start)
    assert min(seconds) < 20 / 20


@pytest.mark.parametrize("unit", ["<b ", "&lt;", "**a", "__a", "{\\rtf", "<!--", "[x ", "ADDENDUM by ", "\\H\\", "# "])
def test_cleaning_time_grows_with_length_only(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    find_sections(text)
    assert time.process_time() - start < 2
