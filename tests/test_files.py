"""Outputs appear whole or not at all."""

import pytest

from medsyn.errors import InputError
from medsyn.files import atomic_dir, atomic_path, read_csv, read_json, write_csv, write_json


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(OSError, match="full"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "disk full")
    assert read_json(path) == {"x": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "out"
    for name in ("first", "second"):
        with atomic_dir(folder, replace=True) as temporary:
            (temporary / name).touch()
    assert [file.name for file in folder.iterdir()] == ["second"]
    with pytest.raises(RuntimeError), atomic_dir(folder, replace=True) as temporary:
        (temporary / "third").touch()
        raise RuntimeError
    assert [file.name for file in folder.iterdir()] == ["second"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_csv_round_trip_and_missing_column(tmp_path):
    path = tmp_path / "t.csv"
    write_csv(path, [{"a": 1, "b": None}], ["a", "b"])
    assert read_csv(path, ["a"]) == [{"a": "1", "b": ""}]
    with pytest.raises(InputError, match=r"t\.csv: missing column c; it has a, b"):
        read_csv(path, ["c"])


def test_unreadable_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"x\.json: not valid JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(InputError, match=r"y\.json: no such file"):
        read_json(tmp_path / "y.json")


def test_a_folder_with_something_in_it_is_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").touch()
    with pytest.raises(InputError, match="not an empty folder"), atomic_dir(tmp_path / "out"):
        raise AssertionError("the block must not run")
    assert (tmp_path / "out/precious.txt").exists()
