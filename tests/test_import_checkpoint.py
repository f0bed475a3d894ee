"""The authors' checkpoints: every form they come in gives the same network, and bad ones are one clear line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from parity import filled_network, inputs, text_states
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import HIDDEN, SIZE, install_text_encoder, sampling_stage, stage
from torch import nn

from medsyn.cli import main
from medsyn.evaluate.features import read_med3d
from medsyn.files import sha256, write_json
from medsyn.masks.naviairway import load_network
from medsyn.masks.weights import find_weights
from medsyn.models.airway_net import AirwayNet
from medsyn.models.fast.unet import FastUNet
from medsyn.models.medsyn_keys import to_medsyn_keys
from medsyn.models.resnet3d import ResNet3d
from medsyn.models.weights import build, load, save
from medsyn.volume import read_volume

STAGE_OF = {"low": "low_res", "sr": "super_res"}


def their_model(state: dict[str, torch.Tensor]) -> nn.Module:
    """A module whose state dict is `state`; equal tensors become one shared parameter, as in the release."""
    root, parameters = nn.Module(), {}
    for name, value in state.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        module.register_parameter(last, parameters.setdefault(id(value), nn.Parameter(value)))
    return root


def their_keys(network, scale: float = 1.0, prefix: str = "denoise_fn.") -> dict[str, torch.Tensor]:
    state = {name: value * scale for name, value in network.state_dict().items()}
    return {prefix + name: value for name, value in to_medsyn_keys(state, network.config.num_bottom_blocks).items()}


def accelerate_folder(folder: Path, *networks, safe: bool, scale: float = 0.5) -> Path:
    """What the authors' trainers leave: the raw weights (here scaled), then the EMA, saved by accelerate itself."""
    accelerator = Accelerator(cpu=True)
    scales = [scale, 1.0][: len(networks)]
    models = [their_model(their_keys(net, factor)) for net, factor in zip(networks, scales, strict=True)]
    accelerator.prepare(*models)
    accelerator.save_state(str(folder), safe_serialization=safe)
    return folder


def imported(tmp_path: Path, source: Path, kind: str, *options: str):
    out = tmp_path / "out.safetensors"
    command = ["import-checkpoint", "--source", "medsyn", "--stage", STAGE_OF[kind], str(source), str(out)]
    assert main([*command, *options, "--quiet"]) == 0
    return load(out)[0], out


def assert_equal(network, other) -> None:
    first, second = network.state_dict(), other.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("order", ["A", "B"])
@pytest.mark.parametrize("kind", ["low", "sr"])
def test_imported_network_has_the_outputs_of_the_release(tmp_path, kind, order):
    """The parity network as a checkpoint file: its outputs at both orders are checked in test_unet and test_fast."""
    network = filled_network(kind, order, FastUNet)  # what `load` builds, to the last bit
    torch.save({"state_dict": their_keys(network, prefix="module.denoise_fn.")}, tmp_path / "theirs.pt")
    twin, out = imported(tmp_path, tmp_path / "theirs.pt", kind, "--up-order", order)
    assert twin.config == network.config
    text = {"text": text_states()} if kind == "low" else {}
    with torch.no_grad():
        assert torch.equal(twin(**inputs(kind), **text), network(**inputs(kind), **text))
    with safe_open(out, framework="pt") as handle:
        record = json.loads(handle.metadata()["provenance"])
    assert record["source"] == {
        "kind": "medsyn",
        "file": "theirs.pt",
        "sha256": sha256(tmp_path / "theirs.pt"),
        "weights": "only",
    }


def test_released_weights_are_sampled_with_order_b(tmp_path):
    torch.save(their_keys(filled_network("sr", "A")), tmp_path / "theirs.pt")
    assert imported(tmp_path, tmp_path / "theirs.pt", "sr")[0].config.up_order == "B"


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("kind", ["low", "sr"])
def test_folders_of_accelerate(tmp_path, kind, safe):
    network = filled_network(kind, "B")
    folder = accelerate_folder(tmp_path / "40_ckpt", network, network, safe=safe)
    assert_equal(imported(tmp_path, folder, kind)[0], network)
    assert_equal(imported(tmp_path, folder, kind, "--weights", "ema")[0], network)
    raw = imported(tmp_path, folder, kind, "--weights", "raw")[0]
    halved = {name: value * 0.5 for name, value in network.state_dict().items()}
    assert all(torch.equal(value, halved[name]) for name, value in raw.state_dict().items())
    single = accelerate_folder(tmp_path / "41_ckpt", network, safe=safe, scale=1.0)
    assert_equal(imported(tmp_path, single, kind)[0], network)


@pytest.mark.parametrize("suffix", ["pt", "bin", "safetensors"])
def test_single_files(tmp_path, suffix):
    """Stale schedule buffers are ignored, half precision is widened, a file with both sets gives the EMA."""
    network = filled_network("low", "B")
    state = {name: value.clone() for name, value in their_keys(network).items()}
    state["betas"] = torch.linspace(0, 1, 1000)
    path = tmp_path / f"theirs.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    assert_equal(imported(tmp_path, path, "low")[0], network)
    halves = {name: value.half() for name, value in state.items()}
    save_file(halves, path) if suffix == "safetensors" else torch.save(halves, path)
    twin = imported(tmp_path, path, "low")[0]
    assert all(
        value.dtype == torch.float32 and torch.equal(value, network.state_dict()[name].half().float())
        for name, value in twin.state_dict().items()
    )
    if suffix != "safetensors":
        torch.save({"step": 3, "model": their_keys(network, 0.5), "ema": state, "scaler": {"scale": 1.0}}, path)
        assert_equal(imported(tmp_path, path, "low")[0], network)
        raw = imported(tmp_path, path, "low", "--weights", "raw")[0]
        assert torch.equal(raw.null_cond_emb, network.null_cond_emb * 0.5)


def test_imported_networks_draw_the_volume_of_the_originals(tmp_path, monkeypatch):
    """import-checkpoint, assemble, generate: the volume of the networks that the checkpoints hold."""
    install_text_encoder(monkeypatch)
    torch.manual_seed(3)
    (tmp_path / "text").mkdir()
    write_json(tmp_path / "sampling.json", sampling_stage().model_dump(mode="json"))
    volumes = []
    for name in ("low_res", "super_res"):
        settings = stage(name, unet={"up_order": "B", "num_bottom_blocks": 2 if name == "low_res" else 1})
        network = build(settings, HIDDEN if settings.sections else None)
        save(tmp_path / "own" / f"{name}.safetensors", network.state_dict(), settings, {})
        folder = accelerate_folder(tmp_path / f"{name}_ckpt", network, network, safe=True)
        out = tmp_path / "theirs" / f"{name}.safetensors"
        command = ["import-checkpoint", "--source", "medsyn", "--stage", name, str(folder), str(out)]
        assert main([*command, "--quiet"]) == 0
    for who in ("own", "theirs"):
        files = [f"--{name.replace('_', '-')}={tmp_path / who / name}.safetensors" for name in ("low_res", "super_res")]
        texts = ["--text-encoder", str(tmp_path / "text"), "--sampling", str(tmp_path / "sampling.json")]
        run = ["--out", str(tmp_path / who / "run.json"), "--quiet"]
        assert main(["assemble", "--label", "MedSyn", *files, *texts, *run]) == 0
        out = tmp_path / who / "ct.nii.gz"
        draw = ["generate", "--weights", str(tmp_path / who), "--text", "Effusion.", "--seed", "4", "--out", str(out)]
        assert main([*draw, "--quiet"]) == 0
        volumes.append(read_volume(out).array)
    assert volumes[0].shape == SIZE and volumes[0].std() > 0
    assert np.abs(volumes[0].astype(int) - volumes[1]).max() <= 1  # sums round by where a file's tensors lie in memory


class Evil:
    """Runs code when unpickled."""

    def __reduce__(self):
        return (print, ("code of the checkpoint ran",))


def _damage(kind: str, path: Path) -> None:
    state = {name: value.clone() for name, value in their_keys(filled_network("low", "B")).items()}
    name = "denoise_fn.downs.0.0.block1.proj.weight"
    attention = "denoise_fn.mid_spatial_attn2.fn.fn.fn.to_qkv.weight"
    if kind == "missing":
        del state[name]
    elif kind == "nan":
        state[name][0, 0, 0, 0, 0] = float("nan")
    elif kind == "untied":
        state[attention] = state[attention] + 1
    elif kind == "narrow":
        state["denoise_fn.init_conv.weight"] = torch.zeros(8)
    elif kind == "other":
        state = {"fc.weight": torch.zeros(3, 3)}
    elif kind == "list":
        torch.save([torch.zeros(2)], path)
        return
    elif kind == "empty":
        state = {"epoch": 3}
    elif kind == "code":
        with path.open("wb") as handle:
            pickle.dump({"model": Evil()}, handle)
        return
    elif kind == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:5000])
        return
    elif kind == "channels":
        state["denoise_fn.final_conv.1.weight"] = torch.zeros(3, 8, 1, 1, 1)
    torch.save(state, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", "downs.0.0.block1.proj.weight is missing"),
        ("nan", "not finite"),
        ("untied", "differ"),
        ("narrow", "not a checkpoint of the authors' networks"),
        ("other", "not a checkpoint of the authors' networks"),
        ("list", "holds a list"),
        ("empty", "holds no tensors"),
        ("code", "cannot be read as tensors"),
        ("truncated", "cannot be read as tensors"),
        ("channels", "3 output"),
    ],
)
def test_damaged_checkpoints_are_one_line(tmp_path, capsys, damage, words):
    path = tmp_path / "theirs.pt"
    _damage(damage, path)
    _assert_refused(capsys, tmp_path, path, words)


def _assert_refused(capsys, tmp_path, path, words, stage_name="low_res", *options):
    out = tmp_path / "out.safetensors"
    command = ["import-checkpoint", "--source", "medsyn", "--stage", stage_name, str(path), str(out)]
    assert main([*command, *options, "--quiet"]) == 2
    printed = capsys.readouterr()
    assert words in printed.err and path.name in printed.err and printed.err.count("\n") == 1
    assert not printed.out and not out.exists()


def test_what_cannot_be_imported_names_the_remedy(tmp_path, capsys):
    network = filled_network("low", "B")
    (tmp_path / "empty").mkdir()
    torch.save(their_keys(network), tmp_path / "theirs.pt")
    (tmp_path / "theirs.h5").write_bytes(b"x")
    for path, words, *more in (
        (tmp_path / "theirs.pt", "--stage low_res", "super_res"),
        (tmp_path / "theirs.pt", "leave --weights out", "low_res", "--weights", "ema"),
        (tmp_path / "empty", "name the weight file itself"),
        (tmp_path / "missing.pt", "no such file"),
        (tmp_path / "theirs.h5", ".safetensors"),
    ):
        _assert_refused(capsys, tmp_path, path, words, *more)
    single = accelerate_folder(tmp_path / "40_ckpt", network, safe=False)
    _assert_refused(capsys, tmp_path, single, "no ema weights", "low_res", "--weights", "ema")


def test_naviairway_and_med3d_become_safetensors_that_stand_in_for_the_originals(tmp_path: Path, capsys) -> None:
    """Found in the weights folder and read as the originals are; the metadata say what they were made of."""
    weights, airway = tmp_path / "weights/naviairway", AirwayNet()
    for name, scale in (("checkpoint", 1.0), ("checkpoint_semi_supervise_learning", 2.0)):
        original = tmp_path / f"{name}.pkl"
        torch.save({"model_state_dict": {f"module.{k}": v * scale for k, v in airway.state_dict().items()}}, original)
        command = ["import-checkpoint", "--source", "naviairway", str(original), str(weights / f"{name}.safetensors")]
        assert main([*command, "--quiet"]) == 0
    files = find_weights("naviairway", ["airway"], tmp_path / "weights")
    assert [path.name for path in files] == ["checkpoint.safetensors", "checkpoint_semi_supervise_learning.safetensors"]
    twice = load_network(files[1]).state_dict()
    assert all(torch.equal(twice[name], value * 2) for name, value in airway.state_dict().items())
    resnet = ResNet3d(50, 2)
    torch.save({"state_dict": {f"module.{k}": v for k, v in resnet.state_dict().items()}}, tmp_path / "resnet.pth")
    command = ["import-checkpoint", "--quiet", "--source", "med3d", str(tmp_path / "resnet.pth")]
    assert main([*command, str(tmp_path / "resnet.safetensors")]) == 0
    read = read_med3d(tmp_path / "resnet.safetensors", 50, 2).state_dict()
    assert all(torch.equal(read[name], value) for name, value in resnet.state_dict().items())
    with safe_open(tmp_path / "resnet.safetensors", framework="pt") as handle:
        source = json.loads(handle.metadata()["provenance"])["source"]
    assert source == {"kind": "med3d", "file": "resnet.pth", "sha256": sha256(tmp_path / "resnet.pth")}
    assert main([*command[:3], "naviairway", *command[4:], str(tmp_path / "no.safetensors")]) == 2
    assert "resnet.pth: holds no state dict" in capsys.readouterr().err
    assert not (tmp_path / "no.safetensors").exists()


@pytest.mark.parametrize("option", ["--stage low_res", "--weights ema", "--up-order A"])
def test_options_of_the_authors_denoisers_are_refused_for_other_networks(tmp_path, capsys, option):
    command = ["import-checkpoint", "--source", "med3d", *option.split(), str(tmp_path / "a.pth")]
    assert main([*command, str(tmp_path / "a.safetensors")]) == 2
    assert f"{option.split()[0]} goes with --source medsyn, not with --source med3d" in capsys.readouterr().err
