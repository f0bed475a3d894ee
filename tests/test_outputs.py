"""What a verb may write: never an input, never what it did not make, and its unfinished work is never mistaken."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from chests import write_chest

from medsyn import outputs, scratch
from medsyn.cli import main
from medsyn.errors import InputError
from medsyn.files import atomic_dir, atomic_path, read_csv, staging_dir, write_csv, write_json

REPORTS = "report_id,findings,impression\na,Large right pleural effusion.,Effusion.\n"


@pytest.fixture(autouse=True)
def nobody_writes(monkeypatch):
    """Every test begins without a verb and without --force."""
    monkeypatch.setattr(outputs, "WRITER", outputs.Writer())
    monkeypatch.setattr("medsyn.cli.WRITER", outputs.WRITER)


def refused(capsys, *arguments: object) -> str:
    """The one line of a verb that must end with status 2."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--quiet"])


@pytest.fixture
def reports(tmp_path) -> Path:
    path = tmp_path / "reports.csv"
    path.write_text(REPORTS)
    return path


@pytest.mark.parametrize("kind", ["same", "link", "hard link", "dots"])
def test_an_output_is_never_an_input(reports, tmp_path, capsys, kind):
    out = {"same": reports, "dots": tmp_path / "x" / ".." / "reports.csv"}.get(kind, tmp_path / "labels.csv")
    (tmp_path / "x").mkdir()
    if kind == "link":
        out.symlink_to(reports)
    elif kind == "hard link":
        os.link(reports, out)
    for force in ([], ["--force"]):
        assert "is the input" in refused(capsys, "label", reports, "--out", out, *force)
    assert reports.read_text() == REPORTS


def test_a_file_that_the_verb_did_not_write_is_replaced_with_force_alone(reports, tmp_path, capsys):
    out = tmp_path / "labels.csv"
    out.write_text("id,pleural_effusion\na,1\n")  # a radiologist's
    assert "--force" in refused(capsys, "label", reports, "--out", out)
    assert out.read_text() == "id,pleural_effusion\na,1\n"
    assert run("label", reports, "--out", out, "--force") == 0
    assert read_csv(out)[0]["pleural_effusion"] == "1"


def test_a_verb_replaces_its_own_output_unless_it_was_changed(reports, tmp_path, capsys):
    out = tmp_path / "labels.csv"
    assert run("label", reports, "--out", out) == 0
    first = out.read_bytes()
    assert run("label", reports, "--out", out) == 0
    assert out.read_bytes() == first
    os.utime(out, (0, 0))  # Snakemake sets the time of every output at the end of a job
    assert run("label", reports, "--out", out) == 0
    facts = out.stat()
    out.write_bytes(first.replace(b"1", b"0", 1))
    os.utime(out, ns=(0, facts.st_mtime_ns + 1))
    assert "was changed since" in refused(capsys, "label", reports, "--out", out)
    assert run("phantom", "--reports-only", "--count", 2, "--out", tmp_path / "text.csv") == 0
    assert "was not written by `medsyn label`" in refused(capsys, "label", reports, "--out", tmp_path / "text.csv")


def test_of_a_large_file_the_time_counts(reports, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(outputs, "_MAX_HASHED", 10)
    out = tmp_path / "labels.csv"
    for _ in range(2):
        assert run("label", reports, "--out", out) == 0
    os.utime(out, (0, 0))
    assert "was changed since" in refused(capsys, "label", reports, "--out", out)


def test_without_attributes_of_files_force_is_needed(reports, tmp_path, capsys, monkeypatch):
    def none(*args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "setxattr", none)
    monkeypatch.setattr(os, "getxattr", none)
    out = tmp_path / "labels.csv"
    assert run("label", reports, "--out", out) == 0
    said = refused(capsys, "label", reports, "--out", out)
    assert "its file system keeps no attribute" in said
    assert "--force" in said


def test_a_list_of_rejects_never_stops_the_next_run(tmp_path, capsys):
    """The workflow gives no --force, and Snakemake removes declared outputs alone."""
    volumes, out, listed = (tmp_path / name for name in ("volumes", "masks", "masks.rejects.csv"))
    (volumes / "a").mkdir(parents=True)
    (volumes / "a/volume.nii.gz").write_text("not a volume")
    command = ("segment", "--volumes", volumes, "--out", out, "--quiet")
    assert main([*map(str, command)]) == 2
    listed.write_bytes(listed.read_bytes())  # a copy without attributes, or a file system that keeps none
    capsys.readouterr()
    assert main([*map(str, command)]) == 2
    assert "1 of 1 subjects are rejected" in capsys.readouterr().err
    listed.write_text("subject_id,my notes\na,ask the ward\n")
    assert "was not written by" in refused(capsys, *command)
    assert "ask the ward" in listed.read_text()


def test_a_file_that_is_a_mount_point_is_signed_too(reports, tmp_path, monkeypatch):
    def busy(source: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "replace", busy)
    for _ in range(2):
        assert run("label", reports, "--out", tmp_path / "labels.csv") == 0


def test_verbs_for_one_ct_run_twice(tmp_path):
    scan = write_chest(tmp_path / "ct")
    for _ in range(2):
        assert run("preprocess", scan, "--out", tmp_path / "prepared") == 0
        assert run("segment", scan, "--out", tmp_path / "masks") == 0
        assert run("measure", scan, "--masks", tmp_path / "masks", "--out", tmp_path / "scan.json") == 0
        assert run("atlas", "--out", tmp_path / "atlas.nii.gz") == 0
        assert run("config", Path(__file__).parents[1] / "config/test.yaml", "--out", tmp_path / "config") == 0


def test_an_empty_file_is_a_free_name(reports, tmp_path):
    out = tmp_path / "labels.csv"
    out.touch()
    assert run("label", reports, "--out", out) == 0


def test_a_link_is_followed_to_its_file(reports, tmp_path):
    (tmp_path / "far").mkdir()
    out = tmp_path / "labels.csv"
    out.symlink_to("far/labels.csv")
    assert run("label", reports, "--out", out) == 0
    assert out.is_symlink()
    assert read_csv(tmp_path / "far/labels.csv")
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["labels.csv"]


@pytest.mark.parametrize("out", ["folder", "file/labels.csv", "pipe", "/dev/null", "/proc/labels.csv"])
def test_a_place_that_cannot_be_written_is_told_before_the_work(reports, tmp_path, capsys, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("mine")
    os.mkfifo("pipe")
    monkeypatch.setattr("medsyn.text.labels.label_table", lambda *_: pytest.fail("the work must not begin"))
    said = refused(capsys, "label", reports, "--out", out, "--force")
    assert out.split("/", maxsplit=1)[0] in said
    assert Path("file").read_text() == "mine"
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)  # noqa: PTH116
    assert stat.S_ISFIFO(Path("pipe").stat().st_mode)


@pytest.mark.parametrize(
    "verb", ["segment --volumes .", "evaluate --real . --synthetic .", "schema", "phantom --count 1"]
)
def test_a_name_that_is_none_is_told_before_the_work(tmp_path, capsys, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    for out in ["", ".", "/"] if verb.startswith(("segment", "evaluate")) else [""]:
        assert f"--out '{out}': is not the name of" in refused(capsys, *verb.split(), "--out", out)


def test_an_empty_working_folder_is_filled_and_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    assert run("phantom", "--count", 1, "--size", 16, "--out", ".") == 0
    assert tmp_path.stat().st_ino == before
    assert sorted(path.name for path in Path().iterdir()) == ["cohort.csv", "phantom-00000", "provenance.json"]


def test_a_folder_that_cannot_be_written_is_told_before_the_work(reports, tmp_path, capsys, monkeypatch):
    def denied(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", denied)  # root may write everywhere
    assert "Permission denied" in refused(capsys, "label", reports, "--out", tmp_path / "new/labels.csv")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_told_before_the_work(reports, tmp_path, capsys, monkeypatch):
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", full)
    monkeypatch.setattr("medsyn.text.labels.label_table", lambda *_: pytest.fail("the work must not begin"))
    out = tmp_path / "labels.csv"
    assert main(["label", str(reports), "--out", str(out)]) == 1
    expected = f"medsyn label: {out}: No space left on device; make room and run the same command again\n"
    assert capsys.readouterr().err == expected


def test_a_name_too_long_is_one_line(reports, tmp_path, capsys):
    assert main(["label", str(reports), "--out", str(tmp_path / ("x" * 300))]) in (1, 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "too long" in said


def test_a_ct_and_its_folder_are_kept(tmp_path, capsys):
    scan = write_chest(tmp_path / "ct")
    before = {path.name: path.read_bytes() for path in scan.parent.iterdir()}
    for arguments in (
        ("measure", scan, "--out", scan),
        ("measure", scan, "--masks", scan.parent, "--out", scan.parent / "truth.json"),
        ("preprocess", scan, "--out", scan.parent),
        ("segment", scan, "--out", scan.parent),
        ("segment", scan, "--out", scan),
        ("atlas", "--out", scan),
        ("phantom", "--count", 1, "--out", scan.parent),
        ("phantom", "--count", 1, "--out", scan),
        ("measure", "--volumes", tmp_path, "--state", scan.parent, "--out", tmp_path / "m.csv"),
        ("measure", "--volumes", tmp_path, "--state", tmp_path / "s", "--out", tmp_path / "s/m.csv"),
        ("config", Path(__file__).parents[1] / "config/test.yaml", "--stage", "cohort", "--out", scan),
    ):
        refused(capsys, *arguments)
        assert {path.name: path.read_bytes() for path in scan.parent.iterdir()} == before


def test_the_provenance_never_replaces_the_table(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    folders = ("--real", tmp_path / "a", "--synthetic", tmp_path / "b")
    assert ".csv" in refused(capsys, "evaluate", *folders, "--out", tmp_path / "t.json")
    (tmp_path / "t.json").write_text('{"my": "notes"}')
    assert "t.json" in refused(capsys, "evaluate", *folders, "--out", tmp_path / "t.csv")
    assert json.loads((tmp_path / "t.json").read_text()) == {"my": "notes"}
    assert list(tmp_path.glob("*.csv")) == []


@pytest.mark.parametrize("name", ["out", "o*t", "[a-z]ut", "ü" * 100, "x" * 250])
def test_only_own_leftovers_are_removed(tmp_path, name):
    mine = [tmp_path / f".{name[:200]}.abcdefgh", tmp_path / ".out.abcdefgh", tmp_path / ".outt.12345678"]
    for folder in mine:
        folder.mkdir(exist_ok=True)
        (folder / "precious.txt").touch()
    leftover = tmp_path / f".{name[:200]}.of_a_killed_process"
    with scratch.beside(tmp_path / name) as folder:
        shutil.copytree(folder, leftover)
    with atomic_dir(tmp_path / name) as temporary:
        (temporary / "a").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({name, *(folder.name for folder in mine)})
    assert all((folder / "precious.txt").exists() for folder in mine)


def test_a_state_is_taken_over_only_if_it_is_one(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"mine: holds thesis\.tex"):
        scratch.claim_state(mine, tmp_path / "out")
    scratch.remove_state(mine)
    assert (mine / "thesis.tex").exists()
    state = scratch.claim_state(tmp_path / "state", tmp_path / "out")
    (state / "step_1").mkdir()
    assert scratch.claim_state(state, tmp_path / "out") == state
    (tmp_path / "link").symlink_to(state)
    scratch.remove_state(tmp_path / "link")
    assert not state.exists()


def test_a_folder_takes_the_place_of_an_empty_one_a_link_and_a_mount_point(tmp_path, monkeypatch):
    def write(out: Path) -> list[str]:
        with atomic_dir(out) as temporary:
            (temporary / "a").mkdir()
            (temporary / "a/b").write_text("b")
        assert (out / "a/b").read_text() == "b"
        return sorted(path.name for path in out.iterdir())

    for name in ("empty", "far", "mount", "bind"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("far")
    assert write(tmp_path / "empty") == ["a"]
    assert write(tmp_path / "link") == ["a"]
    assert (tmp_path / "link").is_symlink()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "mount")
    replace = os.replace

    def busy(source: Path, target: Path) -> None:
        if Path(target).name in ("mount", "bind"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    assert write(tmp_path / "mount") == ["a"]
    assert write(tmp_path / "bind") == ["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bind", "empty", "far", "link", "mount"]


def test_forced_files_join_a_folder_and_nothing_is_deleted(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    for name in ("mine", "a"):
        (tmp_path / "out" / name).write_text("old")
    with pytest.raises(InputError, match="--force"), atomic_dir(tmp_path / "out"):
        pytest.fail("the block must not run")
    monkeypatch.setattr(outputs.WRITER, "force", True)
    with atomic_dir(tmp_path / "out") as temporary:
        (temporary / "a").write_text("new")
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"mine": "old", "a": "new"}


def test_the_umask_decides_who_may_read(tmp_path):
    """Some libraries make their files with mode 0600."""

    def secret(path: Path) -> None:
        path.touch()
        path.chmod(0o600)

    old = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "a") as path:
            secret(path)
        with atomic_dir(tmp_path / "b") as path:
            secret(path / "x")
        with staging_dir(tmp_path / "c") as path:
            secret(path / "x")
        write_json(tmp_path / "d.json", {})
    finally:
        os.umask(old)
    files = [tmp_path / name for name in ("a", "b/x", "c/x", "d.json")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "bc"} == {0o750}


def test_weights_have_the_mode_of_other_files(tmp_path):
    import torch

    from medsyn.tensors import save_tensors

    save_tensors(tmp_path / "net.safetensors", {"a": torch.zeros(1)}, {})
    write_csv(tmp_path / "t.csv", [], ["a"])
    assert (tmp_path / "net.safetensors").stat().st_mode == (tmp_path / "t.csv").stat().st_mode
