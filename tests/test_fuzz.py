"""A small fuzzer: whatever a header, a table or a configuration holds, the answer is a result or one line.

The examples are the same in every run. `MEDSYN_FUZZ=5000 pytest tests/test_fuzz.py` looks further, at that many other
examples per test.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from medsyn.cohort import build_cohort
from medsyn.config import CohortConfig, Config, load_config, stage_configs, validate
from medsyn.ct.inspect import inspect
from medsyn.errors import InputError
from medsyn.evaluate.inputs import read_features, read_labels, read_measures, read_prompts
from medsyn.files import atomic_path, read_csv, read_json
from medsyn.header_hints import HINT_COLUMNS, HeaderHints, parse_hints
from medsyn.names import sample_fault, subject_fault
from medsyn.tensors import check_tensors, load_checkpoint, save_tensors
from medsyn.text.labels import default_labeler, label_table

NUM_EXAMPLES = int(os.environ.get("MEDSYN_FUZZ", "0"))
TEST_CONFIG = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
NUMBERS = st.one_of(
    st.integers(-2, 70), st.sampled_from([2**31, 2**63, 10**30, -(10**30)]), st.floats(allow_nan=True, width=64)
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6)


def fuzz(count: int):
    """Settings of a test: `count` fixed examples, or as many others as MEDSYN_FUZZ says."""
    return settings(
        max_examples=NUM_EXAMPLES or count,
        derandomize=not NUM_EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def one_line(error: InputError) -> None:
    text = str(error)
    assert text.strip()
    assert "\n" not in text
    assert "Traceback" not in text


def paths_of(values: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places of all values in nested mappings."""
    for key, value in values.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from paths_of(value, (*before, key))


KEYS = [
    path
    for path in paths_of(validate(Config, TEST_CONFIG, "test.yaml").model_dump(mode="json"))
    if path[0] != "methods" or len(path) > 1
]


@fuzz(80)
@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), min_size=1, max_size=2))
def test_a_configuration_is_accepted_whole_or_refused_with_a_line(changes):
    values = copy.deepcopy(TEST_CONFIG)
    for path, value in changes:
        section: Any = values
        for key in path[:-1]:
            section = section.setdefault(key, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict):
            section[path[-1]] = value
    try:
        config = validate(Config, values, "mine.yaml")
    except InputError as error:
        one_line(error)
        return
    for stage in stage_configs(config).values():  # what the workflow writes can be read back
        text = stage.model_dump_json()
        assert validate(type(stage), json.loads(text), "stage.json") == stage
    assert config.results_dir == os.path.normpath(config.results_dir)
    assert not set(config.results_dir) & set("{}<>\n\0")


@fuzz(60)
@given(EDITS, st.binary(max_size=40))
def test_a_configuration_file_of_any_bytes(tmp_path_factory, edits, tail):
    content = bytearray((ROOT / "config/test.yaml").read_bytes())
    for place, byte in edits:
        content[place % len(content)] = byte
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(bytes(content) + tail)
    try:
        load_config(path)
    except InputError as error:
        one_line(error)


FIELDS = st.one_of(
    st.sampled_from(["", "a", "train", "validation", "0", "-1", "nan", "1e400", "index.csv", "..", "a/b", "x" * 300]),
    st.text(max_size=30),
)
COLUMNS = ("subject_id", "image", "findings", "impression", "split", "patient_id", "report_id", "lobes")


@fuzz(100)
@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys((*COLUMNS, *HINT_COLUMNS), FIELDS)), max_size=6))
def test_a_manifest_of_any_rows(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "manifest.csv"
    with path.open("w", newline="", encoding="utf-8", errors="replace") as handle:
        writer = csv.DictWriter(handle, [*COLUMNS, *HINT_COLUMNS])
        writer.writeheader()
        writer.writerows(rows)
    try:
        cohort = build_cohort([path], None, CohortConfig(num_shards=3))
    except InputError as error:
        one_line(error)
        return
    ids = [subject.subject_id for subject in cohort.subjects]
    assert len(ids) == len(set(ids))
    assert all(subject_fault(name) is None for name in ids)
    splits: dict[str, set[str]] = {}
    for subject in cohort.subjects:
        splits.setdefault(subject.patient_id, set()).add(subject.split)
    assert all(len(found) == 1 for found in splits.values())
    assert all(row["reason"] for row in cohort.rejects)


READERS = {
    "reports": lambda path: label_table(path, default_labeler()),
    "labels": read_labels,
    "measures": lambda path: read_measures([path]),
    "prompts": lambda path: read_prompts([path]),
    "plain": read_csv,
}
HEADERS = (
    "id,findings,impression\n",
    "id,nodule\n",
    "subject_id,lung_volume_ml,airway_volume_mm3,effusion_volume_ml,laa950_percent,cardiothoracic_ratio\n",
    "sample_id,prompt_type,text\n",
    "",
)


@fuzz(100)
@given(st.sampled_from(sorted(READERS)), st.sampled_from(HEADERS), st.binary(max_size=60) | st.text(max_size=60))
def test_a_table_of_any_bytes(tmp_path_factory, reader, header, body):
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    rest = body if isinstance(body, bytes) else body.encode("utf-8", errors="surrogatepass")
    path.write_bytes(header.encode() + rest)
    try:
        READERS[reader](path)
    except InputError as error:
        one_line(error)


@fuzz(100)
@given(st.dictionaries(st.sampled_from(HINT_COLUMNS), FIELDS))
def test_what_a_manifest_says_of_a_file(row):
    try:
        assert isinstance(parse_hints(row), HeaderHints)
    except InputError as error:
        one_line(error)


@fuzz(60)
@given(st.binary(max_size=80) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_json_of_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_bytes(content)
    try:
        read_json(path)
    except InputError as error:
        one_line(error)


@fuzz(100)
@given(st.text(max_size=120))
def test_an_id_that_is_accepted_names_a_folder(name):
    for fault in (subject_fault(name), sample_fault(name)):
        if fault is None:
            assert Path(name).name == name
            assert len(os.fsencode(name)) <= 200
        else:
            assert "\n" not in fault or "\n" in name


@fuzz(40)
@given(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=250))
def test_a_file_of_any_name_is_written_whole(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("names", numbered=True)
    if name in (".", "..") or len(os.fsencode(name)) > 255:
        return
    with atomic_path(folder / name) as temporary:
        temporary.write_text("whole")
    assert os.listdir(folder) == [name]  # noqa: PTH208


def nifti(compressed: bool) -> bytes:
    array = np.random.default_rng(0).normal(-500, 300, (12, 12, 12)).astype(np.int16)
    image = nib.Nifti1Image(array, np.diag([3.0, 3.0, 3.0, 1.0]))
    if not compressed:
        return image.to_bytes()
    import gzip

    return gzip.compress(image.to_bytes())


def archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, ids=np.array(["a", "b"]), features=np.zeros((2, 3), np.float32), extractor=np.array("x"))
    return buffer.getvalue()


def edited(content: bytes, edits: list[tuple[int, int]], first: int) -> bytes:
    """The content with some of its first bytes replaced."""
    changed = bytearray(content)
    for place, byte in edits:
        changed[place % min(first, len(changed))] = byte
    return bytes(changed)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npz"])
def test_a_header_of_any_bytes(tmp_path, suffix):
    content = archive() if suffix == ".npz" else nifti(suffix == ".nii.gz")
    path = tmp_path / f"scan{suffix}"

    @fuzz(80)
    @given(EDITS)
    def look(edits):
        path.write_bytes(edited(content, edits, 352))
        try:
            assert inspect(path, HeaderHints(spacing_mm=(3.0, 3.0, 3.0)))["verdict"] in ("ok", "rejected")
        except InputError as error:
            one_line(error)

    look()


@fuzz(60)
@given(EDITS)
@example([(2198, 1)])  # the mark of an encrypted member
def test_a_feature_file_of_any_bytes(tmp_path_factory, edits):
    path = tmp_path_factory.getbasetemp() / "fuzz.npz"
    path.write_bytes(edited(archive(), edits, 10**6))
    try:
        assert zipfile.is_zipfile(path) and read_features([path]).ids
    except InputError as error:
        one_line(error)
    except AssertionError:
        assert not zipfile.is_zipfile(path)


@fuzz(60)
@given(EDITS)
def test_tensors_of_any_bytes(tmp_path_factory, edits):
    folder = tmp_path_factory.getbasetemp()
    save_tensors(folder / "whole.safetensors", {"a": torch.arange(6.0)}, {"label": "x"})
    path = folder / "fuzz.safetensors"
    whole = (folder / "whole.safetensors").read_bytes()
    path.write_bytes(edited(whole, edits, 10**6))
    try:
        check_tensors(path)
        tensors = load_checkpoint(path)
    except InputError as error:
        one_line(error)
        return
    if path.read_bytes()[-24:] != whole[-24:]:
        assert "data_sha256" not in path.read_bytes().decode(errors="replace"), "a changed byte is found"
    assert isinstance(tensors, dict)
