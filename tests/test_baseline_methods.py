"""The kinds wgan, alpha_gan and hagan: from an entry of the configuration to weights, volumes and their provenance."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_snakemake
from safetensors import safe_open
from test_hostile_workflow import commands
from test_methods import configuration, index, sample
from tiny_models import make_store

from medsyn.cli import main
from medsyn.config import PreprocessConfig, load_config
from medsyn.errors import InputError
from medsyn.files import read_csv, sha256, write_csv
from medsyn.methods.gans import ALPHA_GAN, AlphaGanConfig
from medsyn.tensors import read_metadata
from medsyn.training.volumes import ImageVolumes
from medsyn.volume import read_volume

WINDOW = (-1024.0, 600.0)
TRAIN = {"num_steps": 2, "batch_size": 2, "micro_batch_size": 2, "log_every": 1}
GAN = {"size": 16, "width": 4, "latent_dim": 8, "critic_width": 16, "train": TRAIN}
ENTRIES: dict[str, dict[str, Any]] = {
    "wgan": {"kind": "wgan", "label": "WGAN", "critic": "whole", **GAN},
    "alpha_gan": {"kind": "alpha_gan", "label": "alpha-GAN", "code_units": 8, **GAN},
    "hagan": {
        "kind": "hagan",
        "label": "HA-GAN",
        "size": 64,
        "width": 16,
        "latent_dim": 8,
        "discriminator_width": 32,
        "train": {**TRAIN, "batch_size": 1, "micro_batch_size": 1},
    },
}
NETWORKS = {
    "wgan": {"generator", "critic"},
    "alpha_gan": {"encoder", "generator", "discriminator", "code_discriminator"},
    "hagan": {"generator", "discriminator", "slab_encoder", "global_encoder"},
}


# --- configuration ---


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("wgan", {"size": 48}, "size: 48 is not a power of two of at least 16"),
        (
            "alpha_gan",
            {"size": 128},
            r"size: 128 does not fit preprocess.size \[64, 64, 64\], expected a cube",
        ),
        ("alpha_gan", {"width": 0}, "width: Input should be greater than or equal to 1"),
        ("wgan", {"critic_width": 9}, "critic_width: 9 is not a multiple of 2, expected one at size 16"),
        ("alpha_gan", {"size": 32, "critic_width": 10}, "critic_width: 10 is not a multiple of 4"),
        ("wgan", {"train": {**TRAIN, "compile": True}}, "train: compile is true, expected false"),
        ("hagan", {"size": 96}, "size: Input should be 32, 64, 128 or 256"),
        ("hagan", {"size": 128}, r"size: 128 does not fit preprocess.size \[64, 64, 64\], expected \[128, 128, 128\]"),
        ("hagan", {"width": 24}, "width: Input should be a multiple of 16"),
        ("hagan", {"discriminator_width": 48}, "discriminator_width: Input should be a multiple of 32"),
        ("hagan", {"critic_width": 32}, "critic_width: unknown key"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(name: str, change: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"c.yaml: methods.{name}.{fault}"):
        load_config(configuration(tmp_path / "c.yaml", {name: ENTRIES[name] | change}))


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize(
    ("micro", "gpus", "words"),
    [(3, 1, "micro_batch_size 3 times the 1 processes"), (2, 4, "micro_batch_size 2 times the 4 processes")],
)
def test_a_batch_that_cannot_be_shared_out_is_named(
    name: str, micro: int, gpus: int, words: str, tmp_path: Path
) -> None:
    train = {**TRAIN, "batch_size": 4, "micro_batch_size": micro}
    entry = {**ENTRIES[name], "num_gpus": gpus, "train": train}
    config = configuration(tmp_path / "c.yaml", {name: entry}, compute={"num_gpus_training": 4})
    with pytest.raises(InputError, match=rf"methods.{name}.train.batch_size: 4 is not a multiple of {words}"):
        load_config(config)


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("num_warmup_steps", 3, "3 is more than num_steps 2"),
        ("ema_decay", 0.9, "0.9 has no effect on this network; leave the key out"),
        ("ema_start_step", 1, "1 has no effect"),
        ("ema_every", 2, "2 has no effect"),
        ("activation_checkpointing", True, "True has no effect"),
    ],
)
def test_a_setting_of_the_training_that_cannot_take_effect_is_named(
    name: str, key: str, value: Any, fault: str, tmp_path: Path
) -> None:
    entry = {**ENTRIES[name], "train": {**TRAIN, key: value}}
    with pytest.raises(InputError, match=rf"c.yaml: methods.{name}.train.{key}: {fault}"):
        load_config(configuration(tmp_path / "c.yaml", {name: entry}))


def test_an_alpha_gan_of_single_volumes_is_refused(tmp_path: Path) -> None:
    entry = {**ENTRIES["alpha_gan"], "num_gpus": 2, "train": {**TRAIN, "micro_batch_size": 1}}
    with pytest.raises(InputError, match=r"alpha_gan.train.micro_batch_size: 1 in one process, expected at least 2"):
        load_config(configuration(tmp_path / "c.yaml", {"alpha_gan": entry}))
    two = SimpleNamespace(num_gpus_training=2)
    config: Any = SimpleNamespace(
        methods={"a": AlphaGanConfig(**entry)}, compute=two, preprocess=PreprocessConfig(size=(64, 64, 64))
    )
    assert ALPHA_GAN.fault(config, "a") is None, "two processes hold two volumes"


def test_what_the_workflow_runs_for_the_entries(tmp_path: Path) -> None:
    config = configuration(tmp_path / "c.yaml", ENTRIES)
    run = run_snakemake(
        "-n",
        "-p",
        *(f"results/test/samples/{name}/reports/0" for name in ENTRIES),
        directory=tmp_path,
        config=config,
    )
    assert run.returncode == 0, run.stderr
    planned = commands(run.stdout)
    trained = {words[words.index("--out") + 1]: words for words in planned if "train" in words}
    sampled = {words[words.index("--out") + 1]: words for words in planned if "sample" in words}
    assert set(trained) == {f"results/test/models/{name}/gan.safetensors" for name in ENTRIES}
    for name in ENTRIES:
        weights, settings = f"results/test/models/{name}/gan.safetensors", f"results/test/config/gan_{name}.json"
        training, sampling = trained[weights], sampled[f"results/test/samples/{name}/reports/0"]
        assert training[training.index("--config") + 1] == settings
        assert "results/test/store/0" in training
        assert "--embeddings" not in training and "--networks" not in training
        assert sampling[sampling.index("--config") + 1] == f"results/test/config/method_{name}.json"
        assert sampling[sampling.index("--files") + 1] == weights


# --- training ---


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training volumes of noise on a grid of 64^3."""
    return make_store(tmp_path_factory.mktemp("store") / "0", num_subjects=4, size=(64, 64, 64))


@pytest.fixture(scope="module", params=ENTRIES)
def trained(request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Name of an entry, and the folder of its settings and of its network after two steps, made by the verbs."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    config = configuration(folder / "c.yaml", {name: ENTRIES[name]})
    for stage in (f"gan_{name}", f"method_{name}"):
        assert main(["config", str(config), "--stage", stage, "--out", str(folder / f"{stage}.json"), "--quiet"]) == 0
    assert main(training(name, folder, store)) == 0
    return name, folder


def training(name: str, folder: Path, store: Path) -> list[str]:
    """Return the words of the verb that trains an entry."""
    words = ["--config", f"{folder}/gan_{name}.json", "--store", str(store), "--state", f"{folder}/state"]
    return ["train", *words, "--out", f"{folder}/gan.safetensors", "--quiet"]


def test_training_writes_all_networks_with_their_origin(trained: tuple[str, Path], store: Path) -> None:
    name, folder = trained
    weights = folder / "gan.safetensors"
    with safe_open(weights, framework="pt") as handle:
        assert {key.split(".")[0] for key in handle.keys()} == NETWORKS[name]  # noqa: SIM118
    settings = json.loads((folder / f"gan_{name}.json").read_text(encoding="utf-8"))
    record = json.loads(read_metadata(weights)["provenance"])
    assert record["config"] == json.loads(read_metadata(weights)["config"]) == settings
    volumes = ImageVolumes([store], 16, window_hu=WINDOW, batch_size=2, seed=0)
    assert (record["num_volumes"], record["store"], record["num_processes"]) == (3, volumes.store.hash, 1)
    assert (folder / "gan_preview.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "state").exists()
    rows = read_csv(folder / "gan_metrics.csv")
    losses = [column for column in rows[0] if column.endswith("_loss")]
    assert [row["step"] for row in rows] == ["1", "2"] and len(losses) >= 2
    assert all(math.isfinite(float(row[column])) for row in rows for column in losses)


def test_a_trained_network_is_not_trained_again(
    trained: tuple[str, Path], store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, folder = trained
    before = sha256(folder / "gan.safetensors")
    assert main(training(name, folder, store)) == 2
    assert "gan.safetensors: this network is trained; remove the file" in capsys.readouterr().err
    assert sha256(folder / "gan.safetensors") == before


# --- sampling ---


def shards(trained: tuple[str, Path], out: Path, seeds: list[int], num_shards: int, text: str) -> dict[int, Path]:
    """Sample a table of these seeds: seed -> the folder of its volume."""
    name, folder = trained
    table = out / "prompts.csv"
    rows = [{"sample_id": f"report_{seed:05d}", "text": text, "seed": seed} for seed in seeds]
    write_csv(table, rows, ("sample_id", "text", "seed"))
    found: dict[int, Path] = {}
    for shard in range(num_shards):
        words = ("--config", folder / f"method_{name}.json", "--files", folder / "gan.safetensors")
        part = out / str(shard)
        assert sample(*words, "--prompts", table, "--shard", f"{shard}/{num_shards}", "--out", part) == 0
        assert set(index(part).values()) == {"ok"}
        found |= {int(path.name[-5:]): path for path in part.glob("report_*")}
    return found


def test_a_volume_depends_on_its_seed_alone(trained: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = trained
    whole = shards(trained, tmp_path / "whole", [1, 2, 3], 1, "No nodule.")
    parts = shards(trained, tmp_path / "parts", [3, 1, 4, 2], 2, "A nodule.")
    assert set(whole) == {1, 2, 3} and set(parts) == {1, 2, 3, 4}
    contents = [whole[seed].joinpath("volume.nii.gz").read_bytes() for seed in whole]
    assert contents == [parts[seed].joinpath("volume.nii.gz").read_bytes() for seed in whole]
    assert len(set(contents)) == 3
    volume = read_volume(whole[2] / "volume.nii.gz")
    assert volume.array.dtype == np.int16 and volume.array.shape == (64, 64, 64)
    assert WINDOW[0] <= volume.array.min() < volume.array.max() <= WINDOW[1]
    enlarged = 64 // ENTRIES[name]["size"]
    blocks = volume.array.reshape(64 // enlarged, enlarged, 64, 64)
    assert (blocks == blocks[:, :1]).all()
    record = json.loads((whole[2] / "provenance.json").read_text(encoding="utf-8"))
    assert (record["label"], record["seed"], record["text"]) == (name, 2, None)
    assert record["weights"] == {"gan": sha256(folder / "gan.safetensors")}


def test_weights_of_another_kind_are_refused(
    trained: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, folder = trained
    other = next(other for other in ENTRIES if other != name)
    config = configuration(tmp_path / "c.yaml", {other: ENTRIES[other]})
    settings, table = tmp_path / "method.json", tmp_path / "p.csv"
    words = ["config", str(config), "--stage", f"method_{other}", "--out", str(settings), "--quiet"]
    assert main(words) == 0
    write_csv(table, [{"sample_id": "a", "text": "", "seed": 1}], ("sample_id", "text", "seed"))
    files = ("--files", folder / "gan.safetensors")
    assert sample("--config", settings, *files, "--prompts", table, "--out", tmp_path / "out") == 2
    assert "gan.safetensors: not a network that `medsyn train` wrote for this method" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- training volumes ---


def image_volumes(store: Path, edge: int = 16) -> ImageVolumes:
    return ImageVolumes([store], edge, window_hu=WINDOW, batch_size=2, seed=5)


def test_training_volumes_are_means_over_blocks_in_an_order_of_their_own_per_epoch(store: Path) -> None:
    volumes = image_volumes(store)
    hu = volumes.store.image(1).astype(np.float64)
    mean = hu[:4, 4:8, 8:12].mean()
    assert volumes.volume(1)[0, 0, 1, 2].item() == pytest.approx(2 * (mean + 1024) / 1624 - 1, abs=1e-5)
    epochs = [[volumes.index(3 * epoch + place) for place in range(3)] for epoch in range(6)]
    assert all(sorted(epoch) == [0, 1, 2] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    expected = [volumes.volume(volumes.index(number)) for number in (8, 9)]
    assert torch.equal(volumes(4, [0, 1]), torch.stack(expected))
    assert torch.equal(volumes(4, [1]), expected[1][None])


def test_means_over_blocks_are_computed_once_if_all_are_small(store: Path, monkeypatch) -> None:
    kept = image_volumes(store)
    monkeypatch.setattr("medsyn.training.data._IN_MEMORY_BYTES", 0)
    fresh = image_volumes(store)
    assert kept.volume(1) is kept.volume(1) and fresh.volume(1) is not fresh.volume(1)
    assert torch.equal(kept.volume(1), fresh.volume(1))


def test_the_phases_of_a_step_read_a_volume_once_in_any_number_of_threads(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = image_volumes(store)
    original, read = volumes.volume, list[int]()

    def counted(index: int) -> torch.Tensor:
        read.append(index)
        return original(index)

    monkeypatch.setattr(volumes, "volume", counted)
    for step in range(3):
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda place: volumes(*place), [(step, [place % 2]) for place in range(16)]))
        assert len(read) == 2 * (step + 1)
        for place, batch in enumerate(made):
            assert torch.equal(batch[0], original(volumes.index(2 * step + place % 2)))


def test_a_grid_that_does_not_fit_is_refused(store: Path) -> None:
    with pytest.raises(InputError, match=r"its grid is \[64, 64, 64\], expected a cube of 48 voxels or a multiple"):
        image_volumes(store, 48)
