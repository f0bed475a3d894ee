"""Labels of reports against labels that came with the data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsyn.cli import main
from medsyn.files import read_csv


def test_counts_precision_recall_and_f1_by_hand(tmp_path: Path) -> None:
    (tmp_path / "ours.csv").write_text("id,nodule,emphysema,mass\na,1,0,0\nb,1,0,1\nc,0,0,0\nd,1,0,0\nx,1,1,1\n")
    (tmp_path / "given.csv").write_text("id,emphysema,nodule,hernia\nd,0,1,1\nc,0,1,0\nb,0,0,0\na,0,1,0\ny,1,1,1\n")
    verb = ["label-qc", str(tmp_path / "ours.csv"), "--given", str(tmp_path / "given.csv")]
    assert main([*verb, "--out", str(tmp_path / "qc.csv")]) == 0
    nodule, emphysema = read_csv(tmp_path / "qc.csv")
    assert [nodule[name] for name in ("finding", "n", "tp", "fp", "fn", "tn")] == ["nodule", "4", "2", "1", "1", "0"]
    assert [float(nodule[name]) for name in ("precision", "recall", "f1")] == pytest.approx([2 / 3] * 3, abs=1e-6)
    assert [emphysema[name] for name in ("tn", "precision", "recall", "f1")] == ["4", "", "", ""]


def test_labels_of_other_reports_are_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "ours.csv").write_text("id,nodule\na,1\n")
    (tmp_path / "given.csv").write_text("id,nodule\nb,1\n")
    verb = ["label-qc", str(tmp_path / "ours.csv"), "--given", str(tmp_path / "given.csv")]
    assert main([*verb, "--out", str(tmp_path / "qc.csv")]) == 2
    assert "no report and finding" in capsys.readouterr().err
