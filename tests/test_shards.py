"""Sharded stages keep finished items: killed in the middle, run again, the same bytes and nothing done twice."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from chests import chest

from medsyn import registry
from medsyn.cohort import Subject
from medsyn.config import MasksConfig, MeasureStage, PreprocessConfig
from medsyn.errors import InputError
from medsyn.scratch import claim_state
from medsyn.stages import measures, shards, volumes
from medsyn.stages.shards import Outcome, identity_of, open_shard, run_shard, write_index
from medsyn.volume import write_volume

NAMES = list("abcde")


def texts(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Toy:
    """A stage that writes a file for each of five items; `fault` raises or kills before an item's file is whole."""

    def __init__(self, root: Path) -> None:
        self.root, self.out, self.state = root, root / "out", root / "state/toy/0"
        self.made: list[str] = []
        self.settings: dict[str, object] = {"size": 1}
        self.fault: Callable[[str], None] = lambda name: None
        root.mkdir(exist_ok=True)
        for name in NAMES:
            (root / name).write_text(f"input {name}")

    def work(self, name: str, target: Path) -> dict[str, float]:
        (target / "half.txt").write_text(name)
        self.fault(name)
        self.made.append(name)
        (target / "file.txt").write_text((self.root / name).read_text())
        return {"value": 1 / 3}

    def run(self, names: list[str] = NAMES) -> list[Outcome]:
        self.made.clear()
        with open_shard(self.out, self.state, self.settings) as shard:
            outcomes = run_shard(shard, names, self.work, lambda name: identity_of(name, self.root / name), "toy")
            write_index(shard.folder, outcomes)
            shard.publish(self.out)
        return outcomes

    def stopped_at(self, name: str) -> None:
        """Run in a process that SIGKILL ends in the middle of an item."""
        self.fault = lambda item: os.kill(os.getpid(), signal.SIGKILL) if item == name else None
        child = os.fork()
        if child == 0:
            self.run()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        self.fault = lambda item: None


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


@pytest.fixture
def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    whole = Toy(tmp_path / "whole")
    whole.run()
    return texts(whole.out)


def test_killed_in_the_middle_the_rest_is_done_and_the_bytes_are_equal(toy: Toy, undisturbed) -> None:
    toy.stopped_at("d")
    assert not toy.out.exists()
    outcomes = toy.run()
    assert toy.made == ["d", "e"]
    assert [item.result for item in outcomes] == [{"value": 1 / 3}] * 5
    assert texts(toy.out) == undisturbed
    assert not toy.state.exists()


def test_an_edited_plugin_is_other_code(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_plugin_files", {})
    plugin = tmp_path / "plugin.py"
    plugin.write_text("")
    registry.load_plugins([str(plugin)])
    toy.stopped_at("d")
    plugin.write_text("# edited\n")
    toy.run()
    assert toy.made == NAMES


def test_killed_while_it_publishes(toy: Toy, undisturbed, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "replace", lambda a, b: stop() if Path(b) == toy.out else Path(a).rename(b))
        with pytest.raises(KeyboardInterrupt):
            toy.run()
    toy.run()
    assert toy.made == []
    assert texts(toy.out) == undisturbed


def test_the_state_may_lie_on_another_file_system(toy: Toy, undisturbed, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(a: Path, b: Path) -> None:
        if Path(a).name == "output":
            raise OSError(shards.errno.EXDEV, "another file system")
        Path(a).rename(b)

    monkeypatch.setattr(shards.os, "replace", replace)
    toy.run()
    assert texts(toy.out) == undisturbed
    assert not toy.state.exists()


def test_other_settings_code_or_packages_start_again(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.stopped_at("d")
    toy.settings = {"size": 2}
    toy.stopped_at("c")
    monkeypatch.setattr(shards, "installation", lambda: "another version")
    toy.run()
    assert toy.made == NAMES


def test_a_commit_that_leaves_the_code_as_it_is_keeps_what_is_finished(toy: Toy) -> None:
    toy.settings = {"size": 1, "commit": "1a2b"}
    toy.stopped_at("d")
    toy.settings = {"size": 1, "commit": "1a2b-dirty"}
    toy.run()
    assert toy.made == ["d", "e"]


@pytest.mark.parametrize("damage", ["other input", "no file", "cut record"])
def test_only_what_is_whole_and_of_the_same_input_is_kept(toy: Toy, damage: str) -> None:
    toy.stopped_at("d")
    if damage == "other input":
        before = (toy.root / "b").stat()
        (toy.root / "b").write_text("other b")
        os.utime(toy.root / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
    elif damage == "no file":
        (toy.state / "output/b/file.txt").unlink()
    else:
        (toy.state / "records/b.json").write_text("")
    toy.run()
    assert toy.made == ["b", "d", "e"]
    assert (toy.out / "b/file.txt").read_text() == (toy.root / "b").read_text()


def test_who_is_no_longer_in_the_shard_is_not_published(toy: Toy) -> None:
    toy.stopped_at("d")
    toy.run(["b", "e"])
    assert toy.made == ["e"]
    assert {path.name for path in toy.out.iterdir()} == {"b", "e", "index.csv"}


@pytest.mark.parametrize(("error", "kept"), [(InputError("no chest"), True), (OSError(5, "no answer"), False)])
def test_a_rejection_is_kept_only_if_the_fault_is_the_subjects(toy: Toy, error: Exception, kept: bool) -> None:
    def fault(name: str) -> None:
        if name == "b":
            raise error
        if name == "d":
            raise KeyboardInterrupt

    toy.fault = fault
    with pytest.raises(KeyboardInterrupt):
        toy.run()
    toy.fault = lambda name: None
    outcomes = toy.run()
    assert toy.made == (["d", "e"] if kept else ["b", "d", "e"])
    assert [item.status for item in outcomes] == ["ok", "rejected" if kept else "ok", "ok", "ok", "ok"]
    assert (toy.out / "b").exists() is not kept


def test_two_processes_never_share_a_state(toy: Toy) -> None:
    claim_state(toy.state, toy.out)
    with (toy.state / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="lock: another process works on this shard; wait for its end"):
            toy.run()
    toy.run()
    assert toy.made == NAMES


@pytest.mark.parametrize("stop_at", ["a", "c"])
def test_sigterm_after_an_item_asks_for_the_job_again(toy: Toy, monkeypatch: pytest.MonkeyPatch, stop_at: str) -> None:
    def fault(name: str) -> None:
        if name == stop_at:
            raise SystemExit(143)

    asked: list[bool] = []
    monkeypatch.setattr(shards, "requeue_job", lambda: asked.append(True))
    toy.fault = fault
    with pytest.raises(SystemExit):
        toy.run()
    assert asked == ([True] if stop_at == "c" else [])


@pytest.mark.parametrize("fault", ["not kept", "kept, then damaged"])
def test_a_shard_that_only_repeats_itself_does_not_ask_for_the_job_again(toy: Toy, monkeypatch, fault: str) -> None:
    def stop_at_b(name: str) -> None:
        if name == "b":
            raise SystemExit(143)
        if fault == "not kept":
            raise OSError(5, "no answer")

    asked: list[bool] = []
    toy.fault = stop_at_b
    for _ in range(2):
        monkeypatch.setattr(shards, "requeue_job", lambda: asked.append(True))
        with pytest.raises(SystemExit):
            toy.run()
        (toy.state / "output/a/file.txt").unlink(missing_ok=True)
    assert asked == ([] if fault == "not kept" else [True])


# --- the stages ---


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three chests, preprocessed."""
    root = tmp_path_factory.mktemp("cohort")
    for name in "abc":
        write_volume(root / f"ct/{name}.nii.gz", chest("normal").volume)
    volumes.preprocess_shard(subjects(root), root / "pre", PreprocessConfig())
    return root


def subjects(root: Path) -> list[Subject]:
    return [Subject(name, str(root / f"ct/{name}.nii.gz"), "", "Clear.", "train", name, name) for name in "abc"]


def stage(name: str, root: Path, out: Path, state: Path | None) -> None:
    if name == "preprocess":
        volumes.preprocess_shard(subjects(root), out, PreprocessConfig(), state)
    elif name == "segment":
        volumes.segment_shard(root / "pre", out, MasksConfig(), state)
    else:
        measures.measure_shard(root / "pre", None, out, MeasureStage(), state=state)


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [
        ("preprocess", volumes, "preprocess_one"),
        ("segment", volumes, "segment_one"),
        ("measure", measures, "measure_volume"),
    ],
)
def test_a_stage_goes_on_where_it_was(cohort: Path, tmp_path: Path, monkeypatch, name, module, function) -> None:
    calls: list[Path] = []
    one = getattr(module, function)

    def counted(path: Path, *rest: object) -> object:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return one(path, *rest)

    monkeypatch.setattr(module, function, counted)
    out, state = tmp_path / "out", tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        stage(name, cohort, out, state)
    assert not out.exists()
    stage(name, cohort, out, state)
    assert len(calls) == 4, "two subjects, the one that was stopped, and that one again"
    stage(name, cohort, tmp_path / "whole", None)
    if out.is_file():
        assert out.read_bytes() == (tmp_path / "whole").read_bytes()
        return
    found, whole = texts(out), texts(tmp_path / "whole")
    timed = {path for path in whole if path.endswith("segment.json")}  # it says how long it took
    assert set(found) == set(whole)
    assert {path for path in whole if found[path] != whole[path]} <= timed
    assert not [path for path in tmp_path.iterdir() if path.name not in ("out", "whole")]
