"""The results of the seconds-scale run (`config/test.yaml`) are the golden ones in tests/golden, one test per entry.

The suite compares the end-to-end run that it makes anyway. To compare a run that you have made:

    snakemake --configfile config/test.yaml --cores 2 all
    pytest tests/test_golden.py --results=results/test                  # everything
    pytest tests/test_golden.py --results=results/test -k table3        # one entry
    python tests/write_golden.py results/test --dry-run                 # what has moved, also within the tolerances
    python tests/write_golden.py results/test table3                    # write one entry again

A commit that writes an entry again says why it has moved. `tests/golden_set.py` lists the entries and their tolerances.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import golden_set
import pytest
import SimpleITK as sitk
import write_golden
from golden_set import SET, Tolerance, moved


@pytest.fixture(scope="session")
def results(request) -> Path:
    """The results folder that `--results` names, or that of the end-to-end run."""
    named = request.config.getoption("--results")
    return named or request.getfixturevalue("finished") / "results/test"


@pytest.mark.parametrize("name", SET)
def test_the_run_gives_the_golden_values(name, results):
    wrong = [str(value) for value in golden_set.compare(name, results) if not value.allowed]
    assert not wrong, f"{len(wrong)} values of {name} have moved beyond their tolerance:\n" + "\n".join(wrong[:20])


def test_every_golden_file_has_an_entry():
    assert {path.stem for path in golden_set.GOLDEN.glob("*.json")} == set(SET)
    assert sum(path.stat().st_size for path in golden_set.GOLDEN.iterdir()) < 400_000


def scale_fid(copy: Path) -> None:
    """Change the first method's FID in Table I by 10%."""
    path = copy / "eval/table1.csv"
    with path.open(newline="", encoding="utf-8") as handle:
        head, first, *others = csv.reader(handle)
    first[head.index("fid")] = str(1.1 * float(first[head.index("fid")]))
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([head, first, *others])


def flip_one_label(copy: Path) -> None:
    """Change one finding of the last report."""
    path = copy / "labels.csv"
    text = path.read_text().rstrip("\n")
    path.write_text(text[:-1] + str(1 - int(text[-1])) + "\n")


def mirror_one_grid(copy: Path) -> None:
    """Mirror one grid; the sum of its voxels stays."""
    path = copy / "preprocessed/0/phantom-00003/volume.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(path))[::-1], str(path))


@pytest.mark.parametrize(
    ("name", "files", "change", "where"),
    [
        ("table1", "eval/table1.csv", scale_fid, ["/medsyn/fid"]),
        ("labels", "labels.csv", flip_one_label, ["/text-00059"]),
        ("preprocessed", "preprocessed/0", mirror_one_grid, ["/phantom-00003/weighted"]),
    ],
)
def test_one_changed_value_is_found(name, files, change: Callable[[Path], None], where, results, tmp_path):
    source, copy = results / files, tmp_path / files
    copy.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copy)(source, copy)
    change(tmp_path)
    assert [value.path for value in golden_set.compare(name, tmp_path) if not value.allowed] == where


@pytest.mark.parametrize(
    ("golden", "found", "paths"),
    [
        ({"a": 1.0}, {"a": 1.009}, []),
        ({"a": 1.0}, {"a": 1.011}, ["/a"]),
        ({"a": 1.0}, {"a": ""}, ["/a"]),
        ({"a": 1.0}, {}, ["/a"]),
        ({"a": 1.0}, {"a": 1.0, "b": 2.0}, ["/b"]),
        ({"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0}, ["/order"]),
        ({"a": [1.0, 2.0]}, {"a": [1.0]}, ["/a/length"]),
        ({"a": {"loose": 1.0}}, {"a": {"loose": 1.4}}, []),
        ({"a": 1}, {"a": 2}, ["/a"]),
    ],
)
def test_what_counts_as_moved(golden, found, paths):
    tolerance = Tolerance(relative=0.01, columns={"/loose$": (0.5, 0)})
    assert [value.path for value in moved(golden, found, tolerance) if not value.allowed] == paths


def test_writing_the_set_again_prints_what_moved_and_by_how_much(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(golden_set, "GOLDEN", tmp_path / "golden")
    (tmp_path / "eval").mkdir()
    shutil.copy(results / "eval/table1.csv", tmp_path / "eval")
    write_golden.main([str(tmp_path), "table1"])
    scale_fid(tmp_path)
    capsys.readouterr()
    write_golden.main([str(tmp_path), "table1", "--dry-run"])
    said = capsys.readouterr().out
    assert "table1: 1 values beyond their tolerance, 0 moved within it" in said
    assert "/medsyn/fid: golden " in said
    assert "+10.00%" in said
    write_golden.main([str(tmp_path), "table1"])
    write_golden.main([str(tmp_path), "table1", "--dry-run"])
    assert "table1: 0 values beyond their tolerance, 0 moved within it" in capsys.readouterr().out
