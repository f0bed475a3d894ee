"""Safetensors files: equal content gives equal bytes, whatever the order of the metadata."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medsyn.errors import InputError
from medsyn.files import sha256
from medsyn.tensors import read_metadata, save_tensors


def test_bytes_do_not_depend_on_the_order_of_metadata(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    metadata = {"config": '{"x": "ä\\n"}', "seed": "1", "hash": "abc", "ids": "[]", "label": "\t"}
    hashes = set()
    for order in itertools.islice(itertools.permutations(metadata), 20):
        save_tensors(tmp_path / "t.safetensors", tensors, {key: metadata[key] for key in order})
        hashes.add(sha256(tmp_path / "t.safetensors"))
    assert len(hashes) == 1
    assert read_metadata(tmp_path / "t.safetensors") == metadata
    loaded = load_file(tmp_path / "t.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_unreadable_files_are_input_errors(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"not a tensor file")
    for name in ("broken.safetensors", "missing.safetensors"):
        with pytest.raises(InputError, match=name):
            read_metadata(tmp_path / name)


def test_tied_weights_are_written_under_both_names(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    save_tensors(tmp_path / "tied.safetensors", {"embedding": weight, "decoder": weight}, {})
    read = load_file(tmp_path / "tied.safetensors")
    assert torch.equal(read["embedding"], weight) and torch.equal(read["decoder"], weight)
