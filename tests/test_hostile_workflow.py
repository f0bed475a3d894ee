"""The workflow under hostile names: nothing of a configuration is run as shell code or read as a wildcard."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from chests import write_chest, write_manifest
from conftest import ROOT, run_snakemake
from test_workflow import planned_jobs

from medsyn import manifest_files
from medsyn.config import Config, load_config, stage_configs, validate
from medsyn.errors import InputError
from medsyn.files import read_csv
from medsyn.manifest_files import manifest_state, shard_state
from medsyn.volume import Volume, write_volume

HOSTILE = "re s'ults\";$(touch pwned)&`touch pwned` #*?[a]\\x | $HOME"
LABEL = "Med{Syn} '$(touch pwned)'; \"x\""


def configuration(path: Path, **changes: Any) -> Path:
    """The test configuration with other top-level values."""
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def commands(output: str) -> list[list[str]]:
    """The words of every command line of the package that Snakemake prints with -p."""
    lines = [line.removeprefix("Shell command: ") for line in output.splitlines() if " -m medsyn " in line]
    return [shlex.split(line) for line in lines]


def test_every_path_and_word_of_a_command_is_quoted(tmp_path):
    methods = {"medsyn": {"label": LABEL}, "bare": {"label": "{x}", "channels": ["image"]}}
    config = configuration(tmp_path / "c.yaml", results_dir=HOSTILE, methods=methods, compare_with="bare")
    run = run_snakemake("-n", "-p", "all", directory=tmp_path, config=config)
    assert run.returncode == 0, run.stderr
    found = commands(run.stdout)
    assert len(found) > 40
    for words in found:
        paths = [word for word in words if "pwned" in word or "re s" in word]
        assert len(paths) >= 3
        assert all(f"{word}/".startswith(f"{HOSTILE}/") or word == LABEL for word in paths)
    assert not (tmp_path / "pwned").exists()
    # a label is in the commands of exhibits and in the settings of the reader study alone, so that a changed one
    # samples no volume again
    shown = [words[3:5] for words in found if LABEL in words or "{x}" in words]
    assert {"figure", "table"} >= {verb for verb, _ in shown}
    assert all(exhibit in shown for exhibit in (["figure", "3"], ["figure", "hero"], ["table", "1"], ["table", "6"]))
    texts = {name: stage.model_dump_json() for name, stage in stage_configs(load_config(config)).items()}
    assert {name for name, text in texts.items() if LABEL in text or "{x}" in text} <= {"study"}


def test_a_hostile_results_folder_is_a_folder_like_any_other(tmp_path):
    config = configuration(tmp_path / "c.yaml", results_dir=HOSTILE)
    (tmp_path / "re").write_text("mine")
    run = run_snakemake("--", f"{HOSTILE}/config/cohort.json", directory=tmp_path, config=config)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / HOSTILE / "config/cohort.json").read_text(encoding="utf-8").startswith("{")
    assert (tmp_path / "re").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".snakemake", "c.yaml", "re", HOSTILE])


def test_braces_in_the_path_of_a_manifest_are_plain_text(tmp_path):
    folder = tmp_path / "{x} $(touch pwned)"
    folder.mkdir()
    for name in ("c.csv", "r.csv"):
        (folder / name).touch()
    cohort = {"source": "manifest", "manifest": f"{folder}/c.csv", "reports": f"{folder}/r.csv"}
    config = configuration(tmp_path / "c.yaml", cohort=cohort)
    run = run_snakemake("-n", "-p", "results/test/cohort/cohort.csv", directory=tmp_path, config=config)
    assert run.returncode == 0, run.stderr
    (words,) = commands(run.stdout)
    assert words[words.index("--manifest") + 1] == f"{folder}/c.csv"
    assert words[words.index("--reports") + 1] == f"{folder}/r.csv"


def test_a_scan_that_is_replaced_is_picked_up_by_the_same_command(tmp_path):
    good, bad = tmp_path / "scans/a.nii.gz", tmp_path / "scans/b.nii.gz"
    good.parent.mkdir()
    write_chest(tmp_path / "chest").rename(good)
    write_volume(bad, Volume(np.zeros((16, 16, 16), np.int16), (5.0, 5.0, 5.0)))
    rows = [{"subject_id": name, "image": f"{name}.nii.gz"} for name in "abc"]
    write_manifest(tmp_path / "scans/cohort.csv", rows)
    limits = {"max_reject_fraction": 0.6, "num_shards": 1}
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    cohort = {"source": "manifest", "manifest": "scans/cohort.csv", **limits}
    preprocess = values["preprocess"] | {"max_reject_fraction": 0.6}
    config = configuration(tmp_path / "c.yaml", cohort=cohort, preprocess=preprocess)
    target = "results/test/preprocessed/0"

    def planned() -> set[str]:
        run = run_snakemake("-n", target, directory=tmp_path, config=config)
        assert run.returncode == 0, run.stderr
        return set(planned_jobs(run.stdout)) - {"all", "write_config"}

    run = run_snakemake(target, directory=tmp_path, config=config)
    assert run.returncode == 0, run.stdout + run.stderr
    status = {row["subject_id"]: row["status"] for row in read_csv(tmp_path / target / "index.csv")}
    assert status == {"a": "ok", "b": "rejected"}
    assert planned() == set()
    shutil.copyfile(good, bad)
    assert planned() == {"preprocess"}
    shutil.copyfile(good, tmp_path / "scans/c.nii.gz")
    assert planned() == {"validate_cohort", "preprocess"}


def test_only_names_sizes_and_times_of_files_count(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"a")
    write_manifest(tmp_path / "c.csv", [{"subject_id": "a", "image": "a.nii"}, {"subject_id": "b", "image": "b.nii"}])
    (tmp_path / "cohort.csv").write_text(f"subject_id,shard,image\na,0,{tmp_path}/a.nii\nb,1,{tmp_path}/b.nii\n")
    state = fresh_states(tmp_path)
    assert fresh_states(tmp_path) == state
    os.utime(tmp_path / "a.nii", (1, 1))
    replaced = fresh_states(tmp_path)
    assert [old == new for old, new in zip(state, replaced, strict=True)] == [True, False, True]
    (tmp_path / "b.nii").touch()
    added = fresh_states(tmp_path)
    assert [old == new for old, new in zip(replaced, added, strict=True)] == [False, True, False]
    assert shard_state(tmp_path / "absent.csv", "0") == ""


def fresh_states(folder: Path) -> list[str]:
    """States of the manifest and of two shards, as another process would see them."""
    manifest_files._facts.cache_clear()
    table = folder / "cohort.csv"
    return [manifest_state([folder / "c.csv"], None), shard_state(table, "0"), shard_state(table, "1")]


@pytest.mark.parametrize(
    "name", ["", " ", "a{x}", "a<b>", "-x", "~/x", "a\nb", "a\tb", " a", "a ", "x" * 256, "a/" + "x" * 256, "a\x00"]
)
def test_a_results_folder_that_cannot_work_is_refused_by_the_configuration(name):
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    with pytest.raises(InputError, match=r"c\.yaml: results_dir: "):
        validate(Config, values | {"results_dir": name}, "c.yaml")


def test_slashes_too_many_are_dropped():
    values = load_config(ROOT / "config/test.yaml").model_dump(mode="json")
    assert validate(Config, values | {"results_dir": "a//b/"}, "c.yaml").results_dir == "a/b"
    assert validate(Config, values | {"results_dir": "/a/./b"}, "c.yaml").results_dir == "/a/b"
