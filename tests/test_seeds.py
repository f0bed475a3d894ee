"""The spread of the tables over seeds, on tables whose mean and deviation are known by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from seeds import read_results, spread


def write_run(folder, seed, table5="text,n,lobe_dice_mean,note\nwithout,2,0.5,\nwith,2,0.6,\n"):
    (folder / "config").mkdir(parents=True)
    (folder / "config/evaluation.json").write_text(json.dumps({"seed": seed}))
    (folder / "eval").mkdir()
    for number in range(1, 9):
        text = table5 if number == 5 else "method,fid,label\nmedsyn,1,MedSyn\n"
        (folder / f"eval/table{number}.csv").write_text(text)
    return folder


def run(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks/seeds.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False, cwd=ROOT)


def test_mean_deviation_and_every_value(tmp_path):
    runs = {}
    for seed, value in ((0, "0.5"), (1, "0.7"), (5, "")):
        text = f"text,n,lobe_dice_mean,note\nwithout,2,{value},words\nwith,2,0.6,\n"
        runs[seed] = read_results(write_run(tmp_path / str(seed), seed, text) / "eval/table5.csv")
    assert spread(runs, ["lobe*"]) == [
        "| row | result | mean ± sd | seed 0 | seed 1 | seed 5 |",
        "| --- | --- | --- | --- | --- | --- |",
        "| without | lobe_dice_mean | 0.6 ± 0.14 (n = 2) | 0.5 | 0.7 | - |",
        "| with | lobe_dice_mean | 0.6 ± 0 | 0.6 | 0.6 | 0.6 |",
    ]


def test_all_tables_are_printed_in_the_order_of_the_seeds(tmp_path):
    done = run(write_run(tmp_path / "b", 3), write_run(tmp_path / "a", 0))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("**Table ") == 8
    assert "| medsyn | fid | 1 ± 0 | 1 | 1 |" in done.stdout
    assert "| seed 0 | seed 3 |" in done.stdout
    assert "label" not in done.stdout and "note" not in done.stdout


@pytest.mark.parametrize(
    ("seeds", "table5", "words"),
    [
        ((0, 0), "text,n\nwith,1\n", "its seed 0 is that of"),
        ((0, 1), "text,n\nwith,1\nwith,2\n", "two rows are with"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, seeds, table5, words):
    done = run(*(write_run(tmp_path / str(place), seed, table5) for place, seed in enumerate(seeds)))
    assert done.returncode == 1
    assert words in done.stderr and done.stderr.count("\n") == 1


def test_an_unfinished_run_is_named(tmp_path):
    folder = write_run(tmp_path / "a", 0)
    (folder / "eval/table7.csv").unlink()
    done = run(folder)
    assert done.returncode == 1
    assert "table7.csv: no such file" in done.stderr
