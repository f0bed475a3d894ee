"""The command line as a whole: every verb explains itself, bad input is one line and status 2."""

import errno
import os
import re
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from medsyn.cli import build_parser, main
from medsyn.header_hints import HINT_COLUMNS

VERBS = sorted(next(action for action in build_parser()._actions if action.dest == "verb").choices)
COMMAND = re.compile(r"(?:^|`|python -m |&& )medsyn ([a-z]+(?:-[a-z]+)*)", re.MULTILINE)


def test_help_says_in_a_sentence_what_each_verb_does(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out.split("VERB\n")[1]
    lines = re.findall(r"^    ([a-z-]+)\s+([A-Z](?:.|\n {5,})*)", text, re.MULTILINE)
    assert sorted(verb for verb, _ in lines) == VERBS
    assert all(summary.endswith(".") for _, summary in lines)


def test_every_verb_that_the_pages_and_the_rules_call_is_there():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "workflow/rules").glob("*.smk")]
    called = {verb: page.name for page in pages for verb in COMMAND.findall(page.read_text(encoding="utf-8"))}
    assert {"inspect", "generate", "evaluate", "cohort", "classify"} <= set(called), "the pattern finds commands"
    assert set(called) <= set(VERBS), {verb: called[verb] for verb in called if verb not in VERBS}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    assert f"example:\n  medsyn {verb} " in capsys.readouterr().out


def test_a_reader_that_has_enough_is_no_error():
    """`medsyn weights list | head -0`: nobody reads, nothing is said."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "medsyn", "weights", "list"]
    run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, encoding="utf-8")
    os.close(writer)
    assert run.returncode == 128 + signal.SIGPIPE
    assert run.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(tmp_path):
    import resource

    command = [sys.executable, "-m", "medsyn", "phantom", "--count", "1", "--size", "16", "--out", str(tmp_path / "p")]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # noqa: E731
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}  # or the limit would leave truncated .pyc files
    run = subprocess.run(command, preexec_fn=limit, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1, run.stderr
    assert run.stderr.startswith("medsyn phantom: ")
    assert f"{tmp_path}/" in run.stderr
    assert "make room" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_what_to_do(monkeypatch, capsys, tmp_path):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("medsyn.phantom.cohort.write_cohort", fail)
    assert main(["phantom", "--count", "1", "--out", str(tmp_path / "p")]) == 1
    assert "make room and run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_shard_stops_at_a_fault_of_the_machine_and_not_at_one_of_a_scan(number, tmp_path):
    from torch import AcceleratorError, OutOfMemoryError

    from medsyn.stages.shards import open_shard, run_shard

    def work(name, folder):
        raise faults[name]

    def run(*names):
        with open_shard(tmp_path / "out", None, {}) as shard:
            return run_shard(shard, names, work, lambda name: name, "test")

    faults = {"a": ValueError("odd"), "b": OSError(errno.EIO, "no file"), "c": OutOfMemoryError("no GPU memory")}
    faults |= {
        "d": OSError(number, os.strerror(number)),
        "e": AcceleratorError("CUDA error: unspecified launch failure"),
    }
    assert [item.reason for item in run("a", "b")] == ["odd", "[Errno 5] no file"]
    for name in "cde":
        with pytest.raises(type(faults[name])):
            run(name)


ONE_CT_OPTIONS = [f"--{name.replace('_', '-')}" for name in HINT_COLUMNS]


@pytest.mark.parametrize(
    ("verb", "many", "only_many"),
    [
        ("preprocess", "--cohort", ["--shard", "--state"]),
        ("segment", "--volumes", ["--state"]),
        ("measure", "--volumes", ["--cohort", "--split", "--state"]),
    ],
)
def test_an_option_of_the_other_form_is_refused(verb, many, only_many, tmp_path, capsys):
    value = {"--split": "train"}
    for form, options in ([str(tmp_path / "scan.nii.gz")], only_many), ([many, str(tmp_path / "x")], ONE_CT_OPTIONS):
        for option in options:
            command = [verb, *form, option, value.get(option, "1"), "--out", str(tmp_path / "out")]
            assert main(command) == 2
            assert f"medsyn {verb}: {option} goes with" in capsys.readouterr().err
        assert main([verb, *form, "--out", str(tmp_path / "out")]) == 2  # there is no such file
        assert "goes with" not in capsys.readouterr().err
    assert main([verb, "--out", str(tmp_path / "out")]) == 2
    assert f"give either PATH or {many}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--shard", "--state", "--masks-root", "--volumes-root"])
def test_one_text_refuses_options_of_a_table_of_prompts(option, tmp_path, capsys):
    command = ["generate", "--weights", str(tmp_path), "--text", "Clear.", "--out", str(tmp_path / "a.nii.gz")]
    assert main([*command, option, "1/2"]) == 2
    assert f"{option} goes with --prompts" in capsys.readouterr().err
