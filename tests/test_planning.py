"""Counting memory without data, and the plan made of it."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import ROOT, write_config
from torch import nn

from medsyn.cli import main
from medsyn.config import Config, TrainConfig, load_config
from medsyn.live_bytes import META, CudaRules, LiveBytes
from medsyn.planning.networks import batch_of, denoiser, text_training, training_of
from medsyn.planning.plan import Row, Search, _classifier, _method, _training, micro_batches, plan
from medsyn.planning.sampling import count_sampling
from medsyn.registry import METHODS
from medsyn.training.cost import GIB
from medsyn.training.need import Need, TrainingShapes, count_training

FLOAT = 4
IN_FLOAT32 = ("softmax", "layer_norm", "mse_loss", "interpolate")


def two_layers() -> TrainingShapes:
    """Linear 256 -> 512 -> 128 without biases, on (n, 256) inputs; the loss is a mean of squares."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(256, 512, bias=False), nn.SiLU(), nn.Linear(512, 128, bias=False))

    def batch(count: int) -> dict[str, torch.Tensor]:
        return {"x": torch.empty(count, 256, device=META)}

    return TrainingShapes(build, lambda network, given: network(given["x"]).float().square().mean(), batch)


def settings(micro: int, precision: str = "fp32", **changes) -> TrainConfig:
    return TrainConfig(batch_size=2 * micro, micro_batch_size=micro, precision=precision, **changes)


def test_every_part_of_a_tiny_training_is_the_one_computed_by_hand():
    """Kept for the backward pass: input, both sides of SiLU, the result that is squared; and the loss (512 bytes)."""
    weights = FLOAT * (256 * 512 + 512 * 128)
    n = 1024
    parts = count_training(two_layers(), settings(n)).parts
    assert [parts[name] for name in ("weights", "gradients", "ema", "moments")] == [weights] * 3 + [2 * weights]
    assert parts["buckets"] == parts["weight_copies"] == 0
    assert parts["activations"] == FLOAT * n * (256 + 512 + 512 + 128) + 512
    # backward of the first layer: gradients of SiLU's result and of its input, while the activations before are alive
    assert 0 < parts["temporaries"] <= FLOAT * n * (512 + 512)


def test_half_precision_halves_activations_and_copies_the_weights():
    parts = count_training(two_layers(), settings(1024, "bf16")).parts
    weights = 2 * (256 * 512 + 512 * 128)
    assert parts["weight_copies"] == weights
    # the 16-bit input, both sides of SiLU, and the float32 form of the result
    assert parts["activations"] == 1024 * (2 * 256 + 2 * 512 + 2 * 512 + 4 * 128) + 512


def test_buckets_are_a_second_copy_of_the_gradients():
    alone, four = (count_training(two_layers(), settings(64), num_processes=n) for n in (1, 4))
    assert four.parts["buckets"] == alone.parts["weights"]
    assert four.allowance - alone.allowance >= GIB // 2


def test_gradients_stand_beside_the_activations_only_when_they_accumulate():
    once = count_training(two_layers(), settings(1024).model_copy(update={"batch_size": 1024}))
    assert once.parts["gradients"] == 0 and once.counted < count_training(two_layers(), settings(1024)).counted


def test_a_small_batch_peaks_in_the_update_of_the_weights():
    """AdamW makes the square roots of all second moments at once."""
    parts = count_training(two_layers(), settings(1)).parts
    assert parts["temporaries"] >= parts["weights"] == parts["gradients"]


def attend(share_kept: list[int]) -> int:
    live, rules = LiveBytes(), CudaRules()
    with live, rules:
        q, k, v = (torch.empty(2, 4, 300, 32, device=META, requires_grad=True) for _ in range(3))
        before = live.live
        out = F.scaled_dot_product_attention(q, k, v)
        share_kept.append(live.live - before)
    rules.backward(out.sum())
    assert q.grad.shape == q.shape
    return live.peak


def test_attention_keeps_no_matrix():
    """Result and one float32 a query and head, where the plain path keeps 2 x 4 x 300 x 300 twice."""
    kept: list[int] = []
    attend(kept)
    assert FLOAT * 2 * 4 * 300 * 33 <= kept[0] <= FLOAT * 2 * 4 * 300 * 33 + 1024


def test_a_learned_bias_of_attention_has_a_gradient_for_every_sample():
    """2 x 4 x 300 x 300 numbers, which are then summed to the shape of the bias."""
    live, rules = LiveBytes(), CudaRules()
    with live:
        q = torch.empty(2, 4, 300, 32, device=META, requires_grad=True)
        bias = torch.empty(1, 4, 300, 300, device=META, requires_grad=True)
        with rules:
            loss = F.scaled_dot_product_attention(q, q, q, attn_mask=bias).sum()
        before = live.restart()
        rules.backward(loss)
    assert bias.grad is not None and bias.grad.shape == bias.shape
    assert live.peak - before >= FLOAT * 2 * 4 * 300 * 300


@pytest.mark.parametrize(
    "name", ["softmax", "layer_norm", "mse_loss", "interpolate", "linear", "conv3d", "matmul", "gelu"]
)
def test_autocast_gives_the_types_of_cuda(name):
    """The functions that the networks use; PyTorch's lists for CUDA: float32 for norms, softmax and losses."""
    x = torch.empty(2, 4, 8, 8, 8, dtype=torch.bfloat16, device=META)
    w = torch.empty(8, 8, device=META, requires_grad=True)
    calls = {
        "softmax": lambda: F.softmax(x, dim=-1),
        "layer_norm": lambda: F.layer_norm(x, (8,)),
        "mse_loss": lambda: F.mse_loss(x, x),
        "interpolate": lambda: F.interpolate(x, scale_factor=2),
        "gelu": lambda: F.gelu(x),
        "linear": lambda: F.linear(x.float(), w),
        "matmul": lambda: x.float() @ w,
        "conv3d": lambda: F.conv3d(x.float(), torch.empty(3, 4, 1, 1, 1, device=META)),
    }
    rules = CudaRules()
    with rules, rules.autocast(torch.bfloat16):
        found = calls[name]().dtype
    assert found == (torch.float32 if name in IN_FLOAT32 else torch.bfloat16)
    with rules, rules.autocast(torch.float32):
        assert F.linear(x.float(), w).dtype == torch.float32


def tiny(**changes) -> Config:
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    values["low_res"]["train"] |= changes
    values["super_res"]["train"] |= changes
    return Config(**values)


def counted(config: Config, kind: str) -> Need:
    stage = denoiser(config, kind)
    return count_training(replace(training_of(config, stage), preview=None), stage.train)


@pytest.mark.parametrize("kind", ["low_res", "super_res"])
def test_need_rises_with_the_batch_and_falls_with_checkpointing(kind):
    sizes = {"batch_size": 64}
    needs = [counted(tiny(**sizes, micro_batch_size=micro), kind).counted for micro in (8, 16, 32)]
    assert needs[0] < needs[1] < needs[2]
    saved = counted(tiny(**sizes, micro_batch_size=32, activation_checkpointing=True), kind).counted
    assert saved < 0.9 * needs[2]
    half = counted(tiny(**sizes, micro_batch_size=32, precision="bf16"), kind).counted
    assert half < needs[2]


def test_shapes_are_those_of_the_training_data(tmp_path):
    from tiny_models import SIZE, make_store, stage

    from medsyn.training.data import Store, TrainingData

    store = make_store(tmp_path / "high", size=SIZE)
    settings = stage("super_res")
    data = TrainingData(settings, Store([store], "high"), None)
    config = load_config(ROOT / "config/test.yaml")
    shapes = batch_of(config, settings, 12, 3)
    real = data.batch(0, [0, 1, 2])
    assert {name: (x.shape, x.dtype) for name, x in shapes.items()} == {
        name: (x.shape, x.dtype) for name, x in real.items()
    }


def test_text_encoder_counts_only_the_predicted_tokens():
    encoder = next(iter(load_config(ROOT / "config/test.yaml").text.encoders.values()))
    few = text_training(encoder.model_copy(update={"vocabulary_size": 20000}))
    many = text_training(encoder.model_copy(update={"vocabulary_size": 20000, "mask_fraction": 0.6}))
    activations = [count_training(shapes, settings(32)).parts["activations"] for shapes in (few, many)]
    assert 3 < activations[1] / activations[0] < 4


def test_what_is_proposed_fits_and_the_next_larger_does_not():
    config = tiny(batch_size=64, micro_batch_size=64)
    whole = counted(config, "low_res")
    budget = whole.total - whole.parts["activations"] // 3
    row = _training(config, "low_res", 1, budget)
    assert row.proposed is not None and not row.fits(budget)
    assert row.proposed.settings["micro_batch_size"] == 32
    assert not row.proposed.settings["activation_checkpointing"] and row.proposed.settings["precision"] == "fp32"
    assert row.proposed.need.total <= budget < row.configured.need.total


def test_the_search_takes_the_largest_that_fits_and_counts_nothing_twice():
    for budget in range(0, 110, 10):
        calls: list[int] = []

        def count(options, calls=calls):
            calls.append(options["size"])
            return Need({"weights": 10 * options["size"] - GIB})

        found = Search(count, budget).largest("size", (1, 2, 4, 8), {})
        fitting = [size for size in (1, 2, 4, 8) if 10 * size <= budget]
        assert (found.settings["size"] if found else None) == (fitting[-1] if fitting else None)
        assert len(calls) == len(set(calls)) <= 3


def test_micro_batches_share_out_the_batch():
    assert micro_batches(TrainConfig(batch_size=64), 4) == [1, 2, 4, 8, 16]
    assert micro_batches(TrainConfig(batch_size=12), 1) == [1, 2, 3, 4, 6, 12]


def test_sampling_holds_both_networks_and_grows_with_the_volumes():
    from medsyn.planning.networks import sampling_of

    config = load_config(ROOT / "config/test.yaml")
    one, eight = (count_sampling(sampling_of(config), config.sampling, size) for size in (1, 8))
    assert one[0].parts["weights"] == one[1].parts["weights"] == eight[0].parts["weights"]
    assert one[0].counted < eight[0].counted


def test_components_are_counted_as_they_lie_in_the_file():
    from medsyn.planning.networks import sampling_of

    config = load_config(ROOT / "config/test.yaml")
    sampling = config.sampling.model_copy(update={"precision": "bf16"})
    unet = config.low_res.unet.model_copy(update={"mean_volume": True, "num_components": 6})
    low_res = config.low_res.model_copy(update={"unet": unet})
    given = (config, config.model_copy(update={"low_res": low_res}))
    without, counted = (count_sampling(sampling_of(one), sampling, 1)[0].parts["weights"] for one in given)
    counted -= without
    volume = 4 * 16**3 * 4
    assert 7 * volume <= counted < 8 * volume  # the mean, six components, and what their text and the first layer add


def test_the_papers_configuration_fits_its_own_gpus():
    """48 GB: A6000, as in the paper; 40 GB: A100. Four processes; the batches are the paper's."""
    config = load_config(ROOT / "config/paper.yaml")
    assert (config.low_res.train.batch_size, config.super_res.train.batch_size) == (64, 32)
    for kind in ("low_res", "super_res"):
        stage = denoiser(config, kind)
        need = count_training(replace(training_of(config, stage), preview=None), stage.train, num_processes=4)
        assert need.total <= 40 * GIB < 48 * GIB, f"{kind}: {need.in_words()}"
    larger = config.low_res.train.model_copy(update={"micro_batch_size": 4})
    shapes = replace(training_of(config, denoiser(config, "low_res")), preview=None)
    need = count_training(shapes, larger, num_processes=4)
    assert 49 * GIB < need.counted < 50 * GIB and need.total > 48 * GIB
    assert 31.5 * GIB < need.parts["activations"] < 32 * GIB


def test_plan_prints_what_to_write_and_what_is_proposed_fits(capsys, monkeypatch, tmp_path):
    path = write_config(tmp_path / "mine.yaml", low_res={"train": {"batch_size": 64, "micro_batch_size": 64}})
    rows: list[Row] = []

    def once(config, gpu_bytes):
        rows.extend([] if rows else plan(config, gpu_bytes))
        return rows

    monkeypatch.setattr("medsyn.planning.plan.plan", once)
    command = ["plan", "--gpu-memory", "1.1", "--config", str(path)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "low_res training: fp32, micro batch 64" in out and "does NOT fit" in out
    proposed = yaml.safe_load(out.split("Settings that fit:")[1])
    values = yaml.safe_load(path.read_text())
    for section in ("low_res", "super_res"):
        values[section]["train"] |= proposed[section]["train"]
    values["sampling"] |= proposed["sampling"]
    assert Config(**values).low_res.train.micro_batch_size < 64
    assert main([*command, "--json"]) == 0
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    names = ["text encoder biomedical", "text encoder generic", "low_res training", "super_res training"]
    names += [f"{name} gan training" for name in ("wgan", "alpha_gan", "hagan")]
    names += [f"medical_diffusion {network} training" for network in ("vqgan", "denoiser")]
    assert [job["name"] for job in jobs] == [*names, "sampling", "features", "classifier"]
    for name in ("wgan", "alpha_gan", "hagan"):
        values["methods"][name]["train"] |= proposed["methods"][name]["train"]
    for network, settings in proposed["methods"]["medical_diffusion"].items():
        values["methods"]["medical_diffusion"][network]["train"] |= settings["train"]
    assert Config(**values).methods["medical_diffusion"].vqgan.train.activation_checkpointing
    assert [job["name"] for job in jobs if not job["fits"]] == ["low_res training", "medical_diffusion vqgan training"]
    for job in jobs:
        assert job["proposed"]["total_bytes"] <= 1.1 * GIB
        for option in (job["configured"], job["proposed"]):
            assert option["total_bytes"] == sum(option["counted_bytes"].values()) + option["allowance_bytes"]


def rows_of(config: Config, name: str, gpu_bytes: int) -> dict[str, Row]:
    rows = _method(config, name, METHODS[config.methods[name].kind], 4, gpu_bytes)
    return {row.name.removeprefix(f"{name} ").removesuffix(" training"): row for row in rows}


def changed(**methods) -> Config:
    """config/test.yaml on four GPUs, with other settings of the methods."""
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    values["compute"] = {"num_gpus_training": 4}
    for section in ("low_res", "super_res"):
        values[section]["train"] |= {"batch_size": 4, "micro_batch_size": 1}
    for name, settings in methods.items():
        values["methods"][name] |= settings
    return Config(**values)


def test_the_papers_vqgan_fits_40_gib_as_configured_and_with_checkpointing_24():
    config = load_config(ROOT / "config/paper.yaml")
    row = next(_method(config, "medical_diffusion", METHODS["medical_diffusion"], 4, 24 * GIB))
    need = row.configured.need
    assert row.section == ("methods", "medical_diffusion", "vqgan", "train")
    assert 30 * GIB < need.parts["activations"] + need.parts["temporaries"] < need.total < 36 * GIB
    settings = {"activation_checkpointing": True, "precision": "bf16", "micro_batch_size": 1}
    assert row.proposed.settings == settings


def test_a_method_is_planned_for_its_own_number_of_gpus():
    train = {"batch_size": 4, "micro_batch_size": 2}
    for num_gpus, processes in ((1, 1), (2, 2), (9, 4)):
        config = changed(hagan={"num_gpus": num_gpus, "train": train | {"micro_batch_size": 4 // processes}})
        row = rows_of(config, "hagan", 2**40)["gan"]
        assert row.configured.need.num_processes == processes
        assert row.proposed.settings["micro_batch_size"] == 4 // processes
        assert "activation_checkpointing" not in row.proposed.settings


def test_what_is_proposed_for_a_gan_is_what_its_training_accepts():
    """The discriminator of codes refuses a single volume, so none is counted or proposed."""
    rows = rows_of(changed(), "alpha_gan", 1)
    assert rows["gan"].proposed is None
    assert rows["gan"].smallest.settings == {"precision": "bf16", "micro_batch_size": 2}
    assert rows["gan"].section == ("methods", "alpha_gan", "train")


def test_a_method_that_trains_nothing_of_its_own_has_no_row():
    assert rows_of(changed(), "medsyn", 2**40) == {}


@pytest.mark.parametrize("value", ["0", "-3", "nan", "inf", "lots", ""])
def test_a_bad_amount_of_memory_is_one_line(value, capsys):
    assert main(["plan", f"--gpu-memory={value}", "--config", str(ROOT / "config/test.yaml")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"--gpu-memory {value}" in err and "48" in err


def test_too_small_a_gpu_is_one_line_that_names_the_smallest_need(capsys, monkeypatch):
    config = load_config(ROOT / "config/test.yaml")
    rows = [_training(config, "low_res", 1, GIB // 2)]
    assert rows[0].proposed is None
    assert rows[0].smallest.settings == {
        "activation_checkpointing": True,
        "precision": "bf16",
        "micro_batch_size": 1,
    }
    capsys.readouterr()
    monkeypatch.setattr("medsyn.planning.plan.plan", lambda _config, _bytes: rows)
    assert main(["plan", "--quiet", "--gpu-memory", "0.5", "--config", str(ROOT / "config/test.yaml")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "low_res training needs at least 1.0 GiB (checkpointing, bf16, micro batch 1)" in err


def test_an_unknown_key_or_a_missing_file_is_one_line(capsys, tmp_path):
    path = write_config(tmp_path / "odd.yaml", low_res={"trian": {}})
    assert main(["plan", "--gpu-memory", "48", "--config", str(path)]) == 2
    assert "low_res.trian: unknown key" in capsys.readouterr().err
    assert main(["plan", "--gpu-memory", "48", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err
    uneven = write_config(tmp_path / "uneven.yaml", compute={"num_gpus_training": 3})
    assert main(["plan", "--gpu-memory", "48", "--config", str(uneven)]) == 2
    assert "not a multiple of the 3 processes" in capsys.readouterr().err


def test_a_classifier_that_does_not_fit_is_proposed_with_a_smaller_input() -> None:
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    values["evaluation"]["augmentation"] |= {"input_size": None, "batch_size": 4}
    config = Config(**values)
    whole = _classifier(config, 2**60)
    assert whole.proposed == whole.configured
    row = _classifier(config, whole.configured.need.total - 1)
    assert row.proposed is not None
    assert row.proposed.settings == {"input_size": 32}
    assert row.proposed.need.total < whole.configured.need.total
