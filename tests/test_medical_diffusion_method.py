"""The kind `medical_diffusion`: its settings, the training of both networks by the verb, the latents, sampling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, run_snakemake
from safetensors.torch import load_file
from test_hostile_workflow import commands
from test_methods import configuration, prompts
from tiny_models import make_store
from torch import nn

from medsyn.cli import main
from medsyn.config import Config, stage_configs, validate
from medsyn.errors import InputError
from medsyn.files import read_csv, write_json
from medsyn.methods.medical_diffusion_settings import VqganSettings
from medsyn.methods.unconditional import provenance_of
from medsyn.models.vqgan import VQGAN
from medsyn.training.latents import CachedLatents, LatentBatches, VolumesWithSlices, flipped
from medsyn.training.perceptual import load_lpips
from medsyn.training.processes import make_accelerator
from medsyn.training.volumes import ImageVolumes
from medsyn.volume import read_volume

SIZE = (8, 16, 24)
NUM_TRAINING = 4  # of make_store
TRAIN = {"num_steps": 2, "batch_size": 2, "micro_batch_size": 2, "log_every": 1, "checkpoint_every": 1}
ENTRY: dict[str, Any] = {
    "kind": "medical_diffusion",
    "label": "Theirs",
    "vqgan": {
        "compression": 4,
        "width": 4,
        "num_groups": 4,
        "embedding_dim": 4,
        "num_codes": 16,
        "discriminator_width": 4,
        "loss": {"adversarial_start": 1},
        "train": {**TRAIN, "precision": "fp32"},
    },
    "denoiser": {"dim": 8, "mults": [1, 2], "num_diffusion_steps": 5, "train": {**TRAIN, "ema_start_step": 0}},
    "sampling": {"num_steps": 3},
}


def changed(entry: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of an entry with another value at the dotted `path`."""
    copy = json.loads(json.dumps(entry))
    *parents, name = path.split(".")
    section = copy
    for parent in parents:
        section = section.setdefault(parent, {})
    section[name] = value
    return copy


def config(entry: dict[str, Any], **changes: Any) -> Config:
    """The test configuration with this entry instead of its baselines, which allow one grid only."""
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    for section, update in changes.items():
        values[section] = values.get(section, {}) | update
    values["methods"] = {name: values["methods"][name] for name in ("medsyn", "without_shape")} | {"md": entry}
    values["evaluation"].pop("figure3_methods", None)
    return validate(Config, values, "c.yaml")


def write_stages(folder: Path, entry: dict[str, Any]) -> Path:
    """Write the settings of both networks and of sampling on the grid SIZE."""
    for name in ("vqgan_md", "denoiser_md", "method_md"):
        values = stage_configs(config(entry))[name].model_dump(mode="json")
        if name == "method_md":
            values["preprocess"] |= {"size": SIZE}
        write_json(folder / f"{name}.json", values)
    return folder


def train(folder: Path, network: str, store: Path, *more: object, out: Path | None = None) -> int:
    out = out or folder / f"{network}.safetensors"
    words = ["train", "--config", folder / f"{network}_md.json", "--store", store, *more, "--out", out]
    return main([str(word) for word in (*words, "--state", folder / f"state_{network}", "--quiet")])


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "0", size=SIZE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, store) -> Path:
    """A folder with both networks, trained by the verb for two steps."""
    folder = write_stages(tmp_path_factory.mktemp("trained"), ENTRY)
    assert train(folder, "vqgan", store) == 0
    assert train(folder, "denoiser", store, "--networks", folder / "vqgan.safetensors") == 0
    return folder


# --- settings ---


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("vqgan.compression", 3, "vqgan.compression: Input should be 2, 4 or 8"),
        ("vqgan.num_groups", 3, "num_groups: 3 does not divide 2 * width, which is 8"),
        ("vqgan.train.batch_size", 3, "methods.md.vqgan.train.batch_size: 3 is not a multiple of micro_batch_size 2"),
        ("denoiser.train.batch_size", 3, "methods.md.denoiser.train.batch_size: 3 is not a multiple"),
        ("denoiser.dim", 12, "denoiser.dim: Input should be a multiple of 8"),
        ("denoiser.mults", [], "denoiser.mults: Tuple should have at least 1 item"),
        (
            "denoiser.mults",
            [1] * 6,
            "methods.md.denoiser.mults: 6 levels on latents of 16 x 16 x 16 voxels need the last two axes of"
            " preprocess.size [64, 64, 64] to be multiples of 128",
        ),
        ("sampling.num_steps", 6, "methods.md.sampling.num_steps: 6 is more than denoiser.num_diffusion_steps"),
        (
            "vqgan.loss.adversarial_start",
            2,
            "methods.md.vqgan.loss.adversarial_start: 2 is not below train.num_steps 2, so the discriminators would"
            " never learn",
        ),
        ("vqgan.perceptual_weights", "no/lpips.pt", "methods.md.vqgan.perceptual_weights: no/lpips.pt: no such file"),
        ("vqgan.train.num_warmup_steps", 3, "methods.md.vqgan.train.num_warmup_steps: 3 is more than num_steps 2"),
        ("denoiser.train.num_warmup_steps", 3, "methods.md.denoiser.train.num_warmup_steps: 3 is more than num_steps"),
        ("vqgan.train.ema_start_step", 9, "methods.md.vqgan.train.ema_start_step: 9 has no effect on this network"),
        (
            "denoiser.train.activation_checkpointing",
            True,
            "methods.md.denoiser.train.activation_checkpointing: True has no effect on this network",
        ),
        ("sampling.solver", "ddim", "sampling.solver: unknown key"),
    ],
)
def test_a_wrong_entry_is_one_line(path, value, words):
    with pytest.raises(InputError) as error:
        config(changed(ENTRY, path, value))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_vqgan_without_discriminators_may_say_so():
    late = changed(ENTRY, "vqgan.loss.adversarial_start", 2)
    assert config(changed(late, "vqgan.loss.adversarial", 0.0)).methods["md"]


def test_a_grid_that_cannot_be_compressed_is_one_line():
    with pytest.raises(InputError, match=r"vqgan.compression: 8 does not divide preprocess.size \[60, 64, 64\]"):
        config(changed(ENTRY, "vqgan.compression", 8), preprocess={"size": [60, 64, 64]})


@pytest.mark.parametrize(
    ("path", "value", "changes"),
    [
        ("vqgan.train.num_steps", 7, {"vqgan_md", "method_md"}),
        ("vqgan.loss.perceptual", 1.0, {"vqgan_md", "method_md"}),
        ("denoiser.dim", 16, {"denoiser_md", "method_md"}),
        ("denoiser.train.seed", 7, {"denoiser_md", "method_md"}),
        ("sampling.num_steps", 5, {"method_md"}),
        ("num_gpus", 2, set()),
        ("label", "Other", {"study"}),
    ],
)
def test_a_setting_changes_what_depends_on_it_alone(path, value, changes):
    before, after = stage_configs(config(ENTRY)), stage_configs(config(changed(ENTRY, path, value)))
    assert {name for name in before if before[name] != after[name]} == changes


def test_the_defaults_fit_the_grid_of_the_paper():
    values = {"kind": "medical_diffusion", "label": "Medical Diffusion"}
    stages = stage_configs(config(values, preprocess={"size": [256, 256, 256]}))
    assert stages["denoiser_md"].settings.train.ema_decay == 0.995
    assert stages["vqgan_md"].settings.train.betas == (0.5, 0.9)


def test_the_workflow_trains_the_vqgan_first_and_gives_it_to_the_denoiser(tmp_path):
    path = configuration(tmp_path / "c.yaml", {"md": ENTRY})
    run = run_snakemake("-n", "-p", "results/test/samples/md/reports/0", directory=tmp_path, config=path)
    assert run.returncode == 0, run.stderr
    found = [words for words in commands(run.stdout) if "train" in words or "sample" in words]
    models = "results/test/models/md"
    assert [words[words.index("--config") + 1].rsplit("/")[-1] for words in found] == [
        "vqgan_md.json",
        "denoiser_md.json",
        "method_md.json",
    ]
    assert "--networks" not in found[0]
    assert found[1][found[1].index("--networks") + 1] == f"{models}/vqgan.safetensors"
    first = found[2].index("--files") + 1
    assert found[2][first : first + 2] == [f"{models}/vqgan.safetensors", f"{models}/denoiser.safetensors"]


# --- training ---


def test_both_networks_are_trained_with_metrics_and_pictures(trained):
    [_, row] = read_csv(trained / "vqgan_metrics.csv")
    assert 0 < float(row["autoencoder_code_share"]) <= 1
    assert float(row["autoencoder_codes_used"]) == pytest.approx(16 * float(row["autoencoder_code_share"]))
    for name in ("autoencoder_reconstruction", "discriminators_slices", "discriminators_volumes"):
        assert float(row[name]) > 0
    assert float(read_csv(trained / "denoiser_metrics.csv")[-1]["loss"]) > 0
    assert {path.name for path in trained.iterdir() if path.suffix == ".png"} == {
        "vqgan_preview.png",
        "denoiser_preview.png",
    }
    assert not list(trained.glob("state_*")), "the states, with the latents, are removed"
    assert provenance_of(trained / "denoiser.safetensors")["num_volumes"] == NUM_TRAINING


def test_the_denoiser_needs_a_vqgan(tmp_path, store, capsys):
    folder = write_stages(tmp_path, ENTRY)
    assert train(folder, "denoiser", store) == 2
    assert "trains on the latents of a VQ-GAN; give its weights by --networks" in capsys.readouterr().err
    assert not (folder / "state_denoiser").exists()


# --- latents ---


@pytest.fixture
def encodings(monkeypatch) -> SimpleNamespace:
    """Count the calls of VQGAN.encode; the one number `stop_at` raises KeyboardInterrupt."""
    counted, encode = SimpleNamespace(count=0, stop_at=None), VQGAN.encode

    def counting(self: VQGAN, x: torch.Tensor) -> torch.Tensor:
        if counted.count == counted.stop_at:
            raise KeyboardInterrupt
        counted.count += 1
        return encode(self, x)

    monkeypatch.setattr(VQGAN, "encode", counting)
    return counted


@pytest.mark.parametrize("flip", [False, True])
def test_volumes_are_encoded_once(trained, tmp_path, store, encodings, flip):
    folder = write_stages(tmp_path, changed(changed(ENTRY, "denoiser.flip", flip), "denoiser.train.num_steps", 6))
    assert train(folder, "denoiser", store, "--networks", trained / "vqgan.safetensors") == 0
    assert encodings.count == NUM_TRAINING * (1 + flip), "six steps of two latents"


def test_a_killed_training_encodes_only_what_is_missing(trained, tmp_path, store, encodings, monkeypatch):
    """Killed after two volumes, then in the training; a file is damaged; at the end the same bits."""
    folder, options = write_stages(tmp_path, ENTRY), ("--networks", trained / "vqgan.safetensors")
    encodings.stop_at = 2
    assert train(folder, "denoiser", store, *options) != 0
    [latents] = (folder / "state_denoiser").glob("latents_*")
    assert sorted(path.name for path in latents.iterdir()) == ["000000.safetensors", "000001.safetensors"]
    (latents / "000001.safetensors").write_bytes(b"damaged")
    encodings.stop_at = None
    with monkeypatch.context() as patch:
        patch.setattr(LatentBatches, "__call__", killed_in_step_1(LatentBatches.__call__))
        assert train(folder, "denoiser", store, *options) != 0
    assert encodings.count == 2 + 3
    assert train(folder, "denoiser", store, *options) == 0
    assert encodings.count == 2 + 3
    assert (folder / "denoiser.safetensors").read_bytes() == (trained / "denoiser.safetensors").read_bytes()


def killed_in_step_1(batch):
    def interrupted(self, step, slots):
        if step == 1:
            raise KeyboardInterrupt
        return batch(self, step, slots)

    return interrupted


def test_latents_of_another_vqgan_are_made_again(trained, tmp_path, store, encodings, monkeypatch, capsys):
    folder = write_stages(tmp_path, changed(ENTRY, "vqgan.train.seed", 1))
    assert train(folder, "vqgan", store) == 0
    encodings.stop_at = 3
    assert train(folder, "denoiser", store, "--networks", trained / "vqgan.safetensors") != 0
    encodings.stop_at, other = None, ("--networks", folder / "vqgan.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(LatentBatches, "__call__", killed_in_step_1(LatentBatches.__call__))
        assert train(folder, "denoiser", store, *other) != 0
    assert encodings.count == 3 + NUM_TRAINING
    capsys.readouterr()
    assert train(folder, "denoiser", store, "--networks", trained / "vqgan.safetensors") == 2
    assert "this state belongs to a training with data.vqgan = " in capsys.readouterr().err


def test_two_processes_share_the_encoding_and_train_as_one_does(trained, tmp_path, store):
    folder = write_stages(tmp_path, changed(ENTRY, "denoiser.train.micro_batch_size", 1))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "medsyn", "train"]
    words += ["--config", folder / "denoiser_md.json", "--store", store, "--networks", trained / "vqgan.safetensors"]
    words += ["--state", folder / "state", "--out", folder / "denoiser.safetensors"]
    run = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "encoding 2 of 2 volumes" in run.stderr, "a share of the four"
    one, two = (load_file(place / "denoiser.safetensors") for place in (trained, folder))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5


def image_volumes(store: Path) -> ImageVolumes:
    return ImageVolumes([store], None, window_hu=(-1024.0, 600.0), batch_size=4, seed=5)


def test_latents_are_those_of_the_volume_in_the_order_of_the_volumes(tmp_path, store):
    volumes = image_volumes(store)
    latents = CachedLatents(tmp_path, len(volumes), flip=True)
    latents.complete(lambda x: x * 2, volumes.volume, make_accelerator("fp32"))
    for index in range(NUM_TRAINING):
        assert torch.equal(latents(index), 2 * volumes.volume(index))
        assert torch.equal(latents(index, flip=True), 2 * flipped(volumes.volume(index)))
    batches = LatentBatches(latents, volumes, 300)
    batch = batches(3, range(4))
    real = volumes(3, range(4))
    same = [torch.equal(made, 2 * x) for made, x in zip(batch["latents"], real, strict=True)]
    mirrored = [torch.equal(made, 2 * flipped(x)) for made, x in zip(batch["latents"], real, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert torch.equal(batches(3, [2])["noise"][0], batch["noise"][2]), "a function of step and slot"
    many = torch.cat([batches(step, range(4))["step"] for step in range(100)])
    assert many.min() < 10 and many.max() > 289 and 140 < many.float().mean() < 160


@pytest.mark.parametrize("flip", [False, True])
def test_batches_of_the_vqgan_hold_a_slice_of_each_volume(store, flip):
    volumes = image_volumes(store)
    batches = VolumesWithSlices(volumes, flip=flip)
    samples = [batches(number, range(4)) for number in range(20)]
    real = torch.cat([volumes(number, range(4)) for number in range(20)])
    made = torch.cat([sample["volume"] for sample in samples])
    mirrored = [torch.equal(a, flipped(b)) for a, b in zip(made, real, strict=True)]
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, made, real, strict=True))
    assert (20 < sum(mirrored) < 60) if flip else not any(mirrored)
    assert set(torch.cat([sample["slice"] for sample in samples]).tolist()) == set(range(SIZE[0]))
    assert torch.equal(batches(7, [3])["slice"][0], samples[7]["slice"][3]), "a function of number and slot"


def test_latents_that_are_not_finite_are_one_line(tmp_path, store):
    volumes = image_volumes(store)
    latents = CachedLatents(tmp_path, len(volumes), flip=False)
    with pytest.raises(InputError, match="latents of training volume 0 are not finite; train the VQ-GAN again"):
        latents.complete(lambda x: x / 0, volumes.volume, make_accelerator("fp32"))
    assert not list(tmp_path.iterdir())


# --- sampling ---


def sample(folder: Path, files: list[Path], ids: list[str], out: Path) -> int:
    table = prompts(folder / "prompts.csv", ids)
    words = ["sample", "--config", folder / "method_md.json", "--files", *files, "--prompts", table, "--out", out]
    return main([str(word) for word in (*words, "--quiet")])


def test_a_volume_depends_on_its_seed_alone(trained, tmp_path):
    folder = write_stages(tmp_path, ENTRY)
    files = [trained / "vqgan.safetensors", trained / "denoiser.safetensors"]
    assert sample(folder, files, ["a", "b"], tmp_path / "two") == 0
    assert sample(folder, files, ["c"], tmp_path / "one") == 0
    a, b = (read_volume(tmp_path / f"two/{name}/volume.nii.gz") for name in "ab")
    c = read_volume(tmp_path / "one/c/volume.nii.gz")
    assert a.array.shape == SIZE and a.array.min() >= -1024 and a.array.max() <= 600
    assert (a.array == c.array).all() and (a.array != b.array).any(), "rows a and c have the seed 0"
    write_stages(tmp_path, changed(ENTRY, "sampling.num_steps", None))
    assert sample(folder, files, ["c"], tmp_path / "all_steps") == 0
    assert (read_volume(tmp_path / "all_steps/c/volume.nii.gz").array != c.array).any()


def test_a_denoiser_of_another_vqgan_is_refused(trained, tmp_path, store, capsys):
    folder = write_stages(tmp_path, changed(ENTRY, "vqgan.train.seed", 1))
    assert train(folder, "vqgan", store) == 0
    files = [folder / "vqgan.safetensors", trained / "denoiser.safetensors"]
    assert sample(folder, files, ["a"], tmp_path / "out") == 2
    assert f"was not trained on latents of {files[0]}, expected the VQ-GAN of its training" in capsys.readouterr().err
    assert sample(folder, files[1:], ["a"], tmp_path / "out") == 2
    assert "found 1 files, expected those of the VQ-GAN and the denoiser" in capsys.readouterr().err


# --- the perceptual distance ---


class Lpips(nn.Module):
    """In place of lpips.LPIPS: the mean absolute difference times a weight."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        assert options["net"] == "vgg" and not options["pretrained"] and options["pnet_rand"], "downloads nothing"
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return self.weight * (made - real).abs().mean((1, 2, 3), keepdim=True)


def test_perceptual_weights_are_used_where_they_are_given(tmp_path, store, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Lpips))
    torch.save({"weight": torch.tensor([3.0])}, tmp_path / "lpips.pt")
    distance = load_lpips(tmp_path / "lpips.pt")
    assert distance(*torch.empty(2, 1, 1, 4, 4, device="meta")).device.type == "meta", "to count operations"
    x = torch.zeros(2, 1, 4, 4, requires_grad=True)
    distance(x, torch.ones(2, 1, 4, 4)).backward()
    assert x.grad is not None and x.grad.sum().item() == pytest.approx(-3)
    folder = write_stages(tmp_path, changed(ENTRY, "vqgan.perceptual_weights", str(tmp_path / "lpips.pt")))
    assert train(folder, "vqgan", store) == 0
    assert float(read_csv(folder / "vqgan_metrics.csv")[0]["autoencoder_perceptual"]) > 0
    assert len(provenance_of(folder / "vqgan.safetensors")["perceptual_weights"]) == 64
    torch.save({"other": torch.ones(1)}, tmp_path / "lpips.pt")
    with pytest.raises(InputError, match=r"lpips.pt: not the weights of LPIPS .*expected the state dict of lpips"):
        load_lpips(tmp_path / "lpips.pt")


def test_perceptual_weights_without_the_package_are_one_line(tmp_path, store, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lpips", None)
    weights = tmp_path / "lpips.pt"
    weights.touch()
    folder = write_stages(tmp_path, changed(ENTRY, "vqgan.perceptual_weights", str(weights)))
    assert train(folder, "vqgan", store) == 2
    error = capsys.readouterr().err
    assert f"perceptual_weights: {weights} needs the package lpips" in error and error.count("\n") == 1


def test_the_recipe_of_the_vqgan_is_that_of_the_public_code():
    """Its rate for one GPU and a batch of 2: 3e-4 * 1 / 8 * 2 / 4."""
    train = VqganSettings().train
    assert train.learning_rate == pytest.approx(3e-4 / 8 * 2 / 4) and train.batch_size == 2
    assert (train.max_grad_norm, train.weight_decay, train.precision) == (1.0, 0.0, "fp16")
