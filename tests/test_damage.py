"""Damaged files and full disks: a flipped byte is found where a hash is known, a fault of the disk is one line."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors import SafetensorError

from medsyn.cli import main
from medsyn.errors import InputError
from medsyn.evaluate.features import load_extractor
from medsyn.files import write_json
from medsyn.methods.run import open_run
from medsyn.models.weights import build, load, save
from medsyn.tensors import check_tensors, load_checkpoint, save_tensors
from medsyn.text import embed
from medsyn.text.encoder import TextEncoder
from medsyn.training.checkpoint import newest_checkpoint as resume
from medsyn.training.checkpoint import save_checkpoint
from medsyn.training.data import Embeddings
from medsyn.training.denoiser import train_denoiser


def flip(path: Path, place: int = -5) -> None:
    """Flip one bit of the byte at `place`."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_of_a_network_is_found(tmp_path):
    run = tiny_models.make_run(tmp_path)
    settings = tiny_models.sampling_stage()
    open_run(run, settings)
    flip(run / "super_res.safetensors")
    with pytest.raises(InputError, match=r"super_res\.safetensors: is damaged: .* expected [0-9a-f]{16}; copy"):
        open_run(run, settings)


@pytest.mark.parametrize("read", [load, check_tensors, load_checkpoint, load_extractor])
def test_every_reader_of_tensors_looks_at_the_hash(tmp_path, read):
    stage = tiny_models.stage()
    save(tmp_path / "net.safetensors", build(stage, None).state_dict(), stage, {})
    flip(tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="is damaged"):
        read(tmp_path / "net.safetensors")


def test_a_file_of_another_program_has_no_hash_to_compare(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    flip(tmp_path / "a.safetensors")
    check_tensors(tmp_path / "a.safetensors")


def test_a_flipped_byte_of_an_embeddings_shard_is_found_by_training(tmp_path):
    path = tiny_models.make_embeddings(tmp_path / "embeddings.json")
    Embeddings(path, tiny_models.SECTIONS)
    flip(path.with_suffix("") / "shard.safetensors")
    with pytest.raises(InputError, match=r"shard\.safetensors: is damaged"):
        Embeddings(path, tiny_models.SECTIONS)


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-100])])
def test_embed_makes_a_damaged_shard_again(tmp_path, damage):
    whole, broken = (tmp_path / f"{digit * 16}.safetensors" for digit in "ab")
    for path, key in ((whole, "x"), (broken, "y")):
        save_tensors(path, {"states": torch.ones(1, 4, 8).half()}, {"encoder": "e", "keys": f'["{key}"]'})
    damage(broken)
    (tmp_path / "mine.safetensors").write_bytes(b"not a shard")
    with pytest.raises(InputError, match=r"mine\.safetensors"):
        embed._usable_shards(tmp_path, "e", {"x", "y"})
    (tmp_path / "mine.safetensors").unlink()
    assert embed._usable_shards(tmp_path, "e", {"x", "y"}) == {whole.name: ["x"]}
    assert not broken.exists()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"network": {"a": torch.full((9,), float(step))}}, {"identity": {}})
    flip(tmp_path / "step_00000002/tensors.safetensors")
    tensors, facts = resume(tmp_path, {})
    assert facts["step"] == 1
    assert tensors["network"]["a"][0] == 1


def test_a_flipped_byte_of_a_language_model_is_found(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    settings = {"num_tokens": 8, "mask_padding": True, "max_tokens": 16, "model_sha256": "0" * 64}
    write_json(tmp_path / "medsyn_text.json", settings)
    with pytest.raises(InputError, match=r"model\.safetensors: is damaged"):
        TextEncoder.from_folder(tmp_path)
    for odd in ([], {"num_tokens": 8}):
        write_json(tmp_path / "medsyn_text.json", odd)
        with pytest.raises(InputError, match=r"medsyn_text\.json: not the settings of a text encoder"):
            TextEncoder.from_folder(tmp_path)


def test_a_full_disk_is_an_error_of_the_system_with_the_file(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("medsyn.tensors.save_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        save_tensors(tmp_path / "net.safetensors", {"a": torch.zeros(1)}, {})
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "net.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_a_limit_of_the_system_is_an_error_of_the_system(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            save_tensors(tmp_path / "net.safetensors", {"a": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("verb", "function", "options"),
    [
        (
            "train",
            "medsyn.training.driver.train",
            ["--store", "store", "--state", "state", "--out", "net.safetensors"],
        ),
        ("pretrain-text", "medsyn.text.pretrain.read_corpus", ["--reports", "r.csv", "--out", "model"]),
        ("embed", "medsyn.text.embed.TextEncoder", ["--reports", "r.csv", "--encoder", "e", "--out", "e.json"]),
    ],
)
def test_a_full_disk_in_a_long_verb_is_one_line(tmp_path, monkeypatch, capsys, verb, function, options):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoint")

    monkeypatch.chdir(tmp_path)
    tiny_models.make_store(Path("store"))
    stage = tiny_models.stage("super_res") if verb == "train" else text_stage()
    write_json("c.json", stage.model_dump(mode="json"))
    target = f"{function}.from_folder" if verb == "embed" else function
    monkeypatch.setattr(target, full)
    assert main([verb, "--config", "c.json", *options, "--quiet"]) == 1
    assert capsys.readouterr().err == (
        f"medsyn {verb}: checkpoint: No space left on device; make room and run the same command again\n"
    )


def text_stage():
    from medsyn.config import TextEncoderConfig, TextEncoderStage

    return TextEncoderStage(encoder=TextEncoderConfig(), num_tokens=8, mask_padding=True, sections=("report",))


def test_a_damaged_network_is_trained_again_and_a_whole_one_is_kept(tmp_path, monkeypatch):
    class Trained(Exception):
        pass

    def begin(*_: object) -> None:
        raise Trained

    monkeypatch.setattr("medsyn.training.driver.train", begin)
    store, out = tiny_models.make_store(tmp_path / "store"), tmp_path / "net.safetensors"
    stage = tiny_models.stage("super_res")
    save(out, build(stage, None).state_dict(), stage, {})
    with pytest.raises(InputError, match="this network is trained"):
        train_denoiser(stage, [store], None, tmp_path / "state", out)
    flip(out)
    with pytest.raises(Trained):
        train_denoiser(stage, [store], None, tmp_path / "state", out)
