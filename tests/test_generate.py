"""Drawing volumes from a run: files, determinism, independence of the batch, fixed channels, bad input."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import HIDDEN, SIZE, install_text_encoder, make_run, stage

from medsyn.cli import main
from medsyn.errors import InputError
from medsyn.files import read_csv, sha256, write_csv
from medsyn.methods import run as runs
from medsyn.methods import sampling
from medsyn.methods.base import Prompt
from medsyn.methods.cost import read_cost
from medsyn.methods.run import Run, open_run, sampling_with
from medsyn.methods.sampling_plan import SamplingPlan
from medsyn.models.fast.unet import FastUNet
from medsyn.models.linear_estimate import PrincipalComponents
from medsyn.models.weights import build, load, save
from medsyn.orientation import reorient
from medsyn.tensors import save_tensors
from medsyn.volume import Volume, centred_origin_mm, grid_spacing_mm, read_volume, write_volume

FIELDS = (
    *("sample_id", "prompt_type", "text", "seed", "section", "text_mode", "guidance_scale"),
    *("fix_image", "fix_lobes", "fix_airway"),
)


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    install_text_encoder(monkeypatch)
    folder = tmp_path / "model"
    folder.mkdir()
    return make_run(folder)


def write_prompts(path, rows):
    write_csv(path, [{**dict.fromkeys(FIELDS, ""), "text": "Effusion.", "seed": 1, **row} for row in rows], FIELDS)
    return path


def grid(array):
    spacing = grid_spacing_mm(SIZE, (292.0, 316.0, 316.0))
    return Volume(array, spacing, centred_origin_mm(SIZE, spacing))


def test_one_volume_same_seed_same_bytes(run_folder, tmp_path):
    command = ["generate", "--weights", str(run_folder), "--text", "Large effusion.", "--quiet"]
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        assert main([*command, "--seed", str(seed), "--out", str(tmp_path / name / "ct.nii.gz")]) == 0
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"ct.nii.gz", "ct_lobes.nii.gz", "ct_airway.nii.gz", "ct_vessels.nii.gz", "ct.json", "ct.png"}
    assert all(sha256(tmp_path / "a" / name) == sha256(tmp_path / "b" / name) for name in names)
    assert sha256(tmp_path / "a" / "ct.nii.gz") != sha256(tmp_path / "c" / "ct.nii.gz")
    volume = read_volume(tmp_path / "a" / "ct.nii.gz")
    assert volume.array.dtype == np.int16 and volume.array.shape == SIZE
    assert volume.spacing_mm == pytest.approx((18.25, 19.75, 19.75))
    assert volume.direction == pytest.approx((1, 0, 0, 0, -1, 0, 0, 0, 1))
    assert read_volume(tmp_path / "a" / "ct_lobes.nii.gz").array.max() <= 5
    record = json.loads((tmp_path / "a" / "ct.json").read_text(encoding="utf-8"))
    assert record["seed"] == 7 and record["text"] == "Large effusion." and record["weights"]["low_res"]


def test_prompts_in_shards_and_a_bad_row(run_folder, tmp_path):
    rows = [{"sample_id": f"p{i}", "seed": i} for i in range(5)] + [{"sample_id": "bad", "seed": "x"}]
    prompts = write_prompts(tmp_path / "prompts.csv", rows)
    done = {}
    for k in (0, 1):
        out = tmp_path / str(k)
        command = ["generate", "--weights", str(run_folder), "--prompts", str(prompts), "--shard", f"{k}/2"]
        assert main([*command, "--out", str(out), "--quiet"]) == 0
        done |= {row["sample_id"]: (k, row["status"]) for row in read_csv(out / "index.csv")}
    assert done == {
        **{f"p{i}": (i % 2, "ok") for i in range(5)},
        "bad": (1, "rejected"),
    }
    files = {path.name for path in (tmp_path / "0" / "p0").iterdir()}
    assert files == {"volume.nii.gz", "lobes.nii.gz", "airway.nii.gz", "vessels.nii.gz", "provenance.json"}


def stop_at_batch(monkeypatch, number):
    """Stop the process, as SIGTERM does, at its `number`-th batch; returns the list of the batches' sample_ids."""
    sampled, sample = [], Run.sample_arrays

    def stopped(run, batch):
        sampled.append([prompt.sample_id for prompt in batch])
        if len(sampled) == number:
            raise SystemExit(143)
        return sample(run, batch)

    monkeypatch.setattr(Run, "sample_arrays", stopped)
    return sampled


def test_stopped_in_the_middle_batches_that_are_whole_are_not_sampled_again(run_folder, tmp_path, monkeypatch):
    rows = [{"sample_id": f"p{i}", "seed": i if i != 4 else "x"} for i in range(6)]
    prompts = write_prompts(tmp_path / "prompts.csv", rows)
    command = ["generate", "--weights", str(run_folder), "--prompts", str(prompts), "--batch-size", "2", "--quiet"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    sampled = stop_at_batch(monkeypatch, 3)
    command += ["--out", str(tmp_path / "out"), "--state", str(tmp_path / "state")]
    for options in ([], ["--guidance", "3"]):  # other settings sample all of it again
        with pytest.raises(SystemExit):
            main([*command, *options])
        assert sampled == [["p0", "p1"], ["p2", "p3"], ["p5"]]
        sampled.clear()
    with pytest.raises(SystemExit):
        main(command)
    sampled.extend([[]] * 3)
    assert main(command) == 0
    assert sampled[6:] == [["p5"]]
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"index.csv", "volume.nii.gz"}
    files.remove(Path("cost.json"))  # it says how long the volumes of its own run took
    assert [path for path in files if sha256(tmp_path / "whole" / path) != sha256(tmp_path / "out" / path)] == []
    assert not (tmp_path / "state").exists()


def test_cost_is_that_of_the_volumes_sampled_in_this_run(run_folder, tmp_path, monkeypatch):
    rows = [{"sample_id": f"p{i}", "seed": i if i != 4 else "x"} for i in range(6)]
    prompts = write_prompts(tmp_path / "prompts.csv", rows)
    command = ["generate", "--weights", str(run_folder), "--prompts", str(prompts), "--batch-size", "2", "--quiet"]
    command += ["--out", str(tmp_path / "out")]
    sampled = stop_at_batch(monkeypatch, 3)
    with pytest.raises(SystemExit):
        main(command)
    sampled.extend([[]] * 3)
    sample, write = Run.sample_arrays, sampling.write_volume
    monkeypatch.setattr(Run, "sample_arrays", lambda run, batch: (time.sleep(0.5), sample(run, batch))[1])
    monkeypatch.setattr(sampling, "write_volume", lambda *given: (time.sleep(0.5), write(*given))[1])
    encoder = runs.open_text_encoder
    monkeypatch.setattr(runs, "open_text_encoder", lambda folder: (time.sleep(2), encoder(folder))[1])
    assert main(command) == 0
    cost = read_cost(tmp_path / "out")
    assert cost.num_volumes == 1, "four are kept from the run that was stopped, one is rejected"
    assert 0.5 <= cost.seconds_per_volume < 2, "writing four files or loading the language model would add 2 s"
    assert 0.05 < cost.peak_memory_gib < 100 and cost.device.endswith("thread")
    assert cost.num_parameters is None, "the folder of this run's language model is empty"
    save_tensors(run_folder / "text/model.safetensors", {"bert.a": torch.zeros(3, 5), "cls.b": torch.zeros(7)}, {})
    run = open_run(run_folder, sampling_with(run_folder, None))
    networks = [load(run_folder / f"{name}.safetensors")[0] for name in ("low_res", "super_res")]
    assert run.num_parameters == sum(value.numel() for net in networks for value in net.parameters()) + 15


def test_a_row_whose_file_is_missing_does_not_have_its_batch_sampled_again(run_folder, tmp_path, monkeypatch):
    lobes = tmp_path / "lobes.nii.gz"
    write_volume(lobes, grid(np.zeros(SIZE, np.uint8)))
    rows = [{"sample_id": "a", "fix_lobes": str(lobes)}, {"sample_id": "b", "fix_lobes": "missing"}]
    prompts = write_prompts(tmp_path / "prompts.csv", [*rows, rows[0] | {"sample_id": "c", "guidance_scale": "3"}])
    command = ["generate", "--weights", str(run_folder), "--prompts", str(prompts), "--batch-size", "2", "--quiet"]
    sampled = stop_at_batch(monkeypatch, 2)
    with pytest.raises(SystemExit):
        main([*command, "--out", str(tmp_path / "out")])
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert sampled == [["a"], ["c"], ["c"]]
    index = read_csv(tmp_path / "out" / "index.csv")
    assert {row["sample_id"]: row["status"] for row in index} == {"a": "ok", "b": "rejected", "c": "ok"}


def test_a_volume_does_not_depend_on_its_batch(run_folder):
    run = open_run(run_folder, sampling_with(run_folder, None, guidance_scale=1.0))
    prompts = [Prompt(f"p{i}", text, seed=i) for i, text in enumerate(("Effusion.", None, "Normal.", "Nodule."))]
    together = run.sample_arrays(prompts)
    for i, prompt in enumerate(prompts):
        difference = np.abs(run.sample_arrays([prompt])[0] - together[i])
        assert difference.mean() < 1e-5 and difference.max() < 1e-3  # rounding, amplified by random weights
    assert np.abs(together[0] - together[2]).max() > 0.01


def test_text_guidance_and_null_text_matter(run_folder):
    plain = open_run(run_folder, sampling_with(run_folder, None, guidance_scale=1.0))
    strong = open_run(run_folder, sampling_with(run_folder, None, guidance_scale=4.0))
    draws = [run.sample_arrays([Prompt("p", text, 3)]) for run in (plain, strong) for text in ("Effusion.", None)]
    with_text, null, guided, null_again = draws
    assert np.abs(with_text - null).max() > 1e-4
    assert np.abs(with_text - guided).max() > 1e-4
    assert np.abs(null - null_again).max() < 1e-5


def test_text_reaches_the_super_resolution_of_a_network_that_takes_it(run_folder, tmp_path):
    """The same low resolution, by a network that is told nothing: volumes of two texts differ with the option only."""
    for text, folder in ((True, tmp_path / "text"), (False, tmp_path / "none")):
        folder.mkdir()
        make_run(folder, unet={"pooled_text": True}, text=text)
        settings = stage("low_res", text=False)
        save(folder / "low_res.safetensors", build(settings, None).state_dict(), settings, {})
        run = open_run(folder, sampling_with(folder, None))
        prompts = [Prompt(name, name, 5) for name in ("Effusion.", "No effusion.")]
        one, two = run.sample_arrays(prompts)
        assert np.array_equal(one, two) != text
        alone = run.sample_arrays(prompts[1:])[0]
        assert np.array_equal(alone, two)


@pytest.mark.parametrize("option", [{"sigma_share": 0.5}, {"num_components": 2}])
def test_a_network_keeps_its_statistics_of_the_training_volumes(tmp_path, option):
    settings = stage("low_res", unet={"mean_volume": True, **option})
    network = build(settings, HIDDEN)
    components = PrincipalComponents(torch.rand(2, 4, 4, 4, 4), torch.rand(2), torch.rand(4))
    network.set_statistics(torch.rand(4, 4, 4, 4), torch.rand(4), components)
    save(tmp_path / "low_res.safetensors", network.state_dict(), settings, {})
    loaded, _ = load(tmp_path / "low_res.safetensors")
    x, tau = torch.randn(1, 4, 4, 4, 4), torch.tensor([400.0])
    with torch.no_grad():
        assert torch.equal(loaded(x, tau), network(x, tau))
    loaded.set_precision(torch.bfloat16)
    kept = {name: value for name, value in network.named_buffers() if name.startswith("data_")}
    assert len(kept) in (2, 6) and all(torch.equal(loaded.get_buffer(name), value) for name, value in kept.items())


def test_zero_null_text_has_no_mean_of_its_own(run_folder):
    settings = stage("low_res", unet={"mean_volume": True, "num_components": 2})
    network = build(settings, HIDDEN)
    network.reserve_statistics((4, 4, 4))
    save(run_folder / "low_res.safetensors", network.state_dict(), settings, {})
    with pytest.raises(InputError, match="zero is all padding, a text to num_components; expected learned"):
        open_run(run_folder, sampling_with(run_folder, None, null_text="zero"))


def test_networks_that_read_other_texts_are_refused(run_folder):
    settings = stage("super_res", text=True)
    save(run_folder / "super_res.safetensors", build(settings, HIDDEN + 2).state_dict(), settings, {})
    with pytest.raises(InputError, match=r"text states of shape \(5, 14\) .* those of \(5, 12\)"):
        open_run(run_folder, sampling_with(run_folder, None))


def test_a_mean_volume_of_another_grid_is_refused(run_folder):
    settings = stage("low_res", unet={"mean_volume": True})
    network = build(settings, HIDDEN)
    network.set_statistics(torch.zeros(4, 8, 8, 8))
    save(run_folder / "low_res.safetensors", network.state_dict(), settings, {})
    with pytest.raises(InputError, match=r"mean volume of a grid \[8, 8, 8\], expected \[4, 4, 4\]"):
        open_run(run_folder, sampling_with(run_folder, None))


def test_a_row_keeps_its_own_guidance(run_folder, tmp_path):
    rows = [{"sample_id": f"w{scale}", "guidance_scale": scale} for scale in ("", "1", "1.0", "2", "3")]
    rows.append({"sample_id": "bad", "guidance_scale": "nan"})
    command = ["generate", "--weights", str(run_folder), "--quiet", "--prompts"]  # the run's own guidance is 2
    assert main([*command, str(write_prompts(tmp_path / "own.csv", rows)), "--out", str(tmp_path / "own")]) == 0
    for scale in ("1", "2", "3"):
        prompts = write_prompts(tmp_path / f"{scale}.csv", [{"sample_id": f"w{scale}"}])
        assert main([*command, str(prompts), "--guidance", scale, "--out", str(tmp_path / scale)]) == 0
    own = {path.parent.name: sha256(path) for path in (tmp_path / "own").glob("*/volume.nii.gz")}
    plain = {path.parent.name: sha256(path) for path in tmp_path.glob("[123]/*/volume.nii.gz")}
    assert own == plain | {"w": plain["w2"], "w1.0": plain["w1"]}
    assert len(set(plain.values())) == 3
    record = json.loads((tmp_path / "own/w1/provenance.json").read_text(encoding="utf-8"))
    assert record["guidance_scale"] == 1.0 and record["config"]["sampling"]["guidance_scale"] == 2.0
    assert {row["sample_id"]: row["reason"] for row in read_csv(tmp_path / "own/index.csv")}["bad"] == (
        "guidance_scale 'nan' is not a number; give one, or leave the field empty"
    )


def test_zero_null_text_is_zeros_in_place_of_the_learned_states(run_folder):
    learned, zero = (
        open_run(run_folder, sampling_with(run_folder, None, null_text=name)) for name in ("learned", "zero")
    )
    cleared = open_run(run_folder, sampling_with(run_folder, None))
    torch.nn.init.zeros_(cleared.low_res.null_cond_emb)
    for prompts in (
        [Prompt("p", None, 3)],
        [Prompt("p", "Effusion.", 3)],
        [Prompt("p", text, 3) for text in ("", None)],
    ):
        assert np.array_equal(zero.sample_arrays(prompts), cleared.sample_arrays(prompts))
        assert (
            np.abs(zero.sample_arrays(prompts) - learned.sample_arrays(prompts)).max() > 1e-4
        )  # guidance 2: in its second branch too
    one = Prompt("p", "Effusion.", 3, guidance_scale=1.0)
    assert np.array_equal(
        zero.sample_arrays([one]), learned.sample_arrays([one])
    )  # without guidance a text is read alone


def test_zero_null_text_stands_in_the_provenance(run_folder, tmp_path):
    command = ["generate", "--weights", str(run_folder), "--text", "", "--null-text", "zero", "--quiet"]
    assert main([*command, "--out", str(tmp_path / "a.nii.gz")]) == 0
    record = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert record["config"]["sampling"]["null_text"] == "zero"


def test_zero_null_text_needs_a_network_that_reads_zeros(tmp_path, run_folder, capsys):
    settings = stage(unet={"mask_padding": True})
    save(run_folder / "low_res.safetensors", build(settings, HIDDEN).state_dict(), settings, {})
    command = ["generate", "--weights", str(run_folder), "--text", "", "--null-text", "zero", "--quiet"]
    assert main([*command, "--out", str(tmp_path / "a.nii.gz")]) == 2
    assert "null_text zero is all padding to this network" in capsys.readouterr().err


def count_batches(monkeypatch, run, **blocks):
    """Return, by name, lists that collect the batch sizes which the ResBlocks `blocks` of low_res are given."""
    sizes, plain = {name: [] for name in blocks}, FastUNet._block

    def counted(network, block, x, *others, **named):
        for name, wanted in blocks.items():
            if block is wanted:
                sizes[name].append(len(x))
        return plain(network, block, x, *others, **named)

    monkeypatch.setattr(FastUNet, "_block", counted)
    return sizes


def test_guidance_runs_the_down_path_once_and_the_rest_twice_only_if_needed(run_folder, monkeypatch):
    run = open_run(run_folder, sampling_with(run_folder, None, guidance_scale=1.0, num_steps_low_res=2))
    calls = count_batches(monkeypatch, run, downs=run.low_res.downs[0].first, bottom_out=run.low_res.bottom_out)
    run.sample_arrays([Prompt("p", "Effusion.", 0)])
    assert calls == {"downs": [1] * 3, "bottom_out": [1] * 3}  # two steps and the call at tau = 0
    run.settings = sampling_with(run_folder, None, guidance_scale=2.0, num_steps_low_res=2)
    run.sample_arrays([Prompt("p", "Effusion.", 0)])
    assert calls == {"downs": [1] * 6, "bottom_out": [1] * 3 + [2] * 3}


def test_text_is_encoded_to_keys_once_a_volume(run_folder):
    run = open_run(run_folder, sampling_with(run_folder, None, num_steps_low_res=10))
    calls = []
    for block in run.low_res.bottom:
        block.cross_attention.to_kv.register_forward_hook(lambda *_: calls.append(1))
    run.sample_arrays([Prompt("p", "Effusion.", 0)])
    assert len(calls) == len(run.low_res.bottom)


def test_guidance_in_two_batches_when_memory_is_short(run_folder, monkeypatch):
    run = open_run(run_folder, sampling_with(run_folder, None))
    sizes = count_batches(monkeypatch, run, bottom_out=run.low_res.bottom_out)["bottom_out"]
    prompts = [Prompt("p", "Effusion.", 0), Prompt("q", "Normal.", 1)]
    plenty = run.sample_arrays(prompts)
    monkeypatch.setattr("medsyn.methods.run.available_bytes", lambda _device: 1000)
    short = run.sample_arrays(prompts)
    assert set(sizes[: len(sizes) // 3]) == {4} and set(sizes[len(sizes) // 3 :]) == {2}
    difference = np.abs(plenty - short)
    assert difference.mean() < 5e-5 and difference.max() < 1e-2  # rounding, amplified by random weights and guidance


def test_automatic_batches_follow_the_memory_and_hold_the_same_volumes(run_folder, tmp_path, monkeypatch):
    auto = open_run(run_folder, sampling_with(run_folder, None, batch_size="auto"))
    monkeypatch.setattr("medsyn.methods.run.available_bytes", lambda _device: 1 << 40)
    assert auto.batch_size == 32
    each = 2 * auto._low_res_bytes + 12 * 4 * 16**3  # guidance: two branches; three float32 copies of 4 channels
    for count in (0.5, 1.5, 3.5):
        few = open_run(run_folder, sampling_with(run_folder, None, batch_size="auto"))
        monkeypatch.setattr("medsyn.methods.run.available_bytes", lambda _device, n=count: int(n * each / 0.7))
        assert few.batch_size == max(int(count), 1)
    prompts = write_prompts(tmp_path / "p.csv", [{"sample_id": f"p{i}", "seed": i} for i in range(4)])
    volumes = {}
    monkeypatch.setattr("medsyn.methods.run.available_bytes", lambda _device: int(3.5 * each / 0.7))
    monkeypatch.setattr("medsyn.methods.run.plan_sampling", lambda *_: SamplingPlan(None, 0, 0))  # too little for it
    for size in ("auto", "1"):
        command = ["generate", "--weights", str(run_folder), "--prompts", str(prompts), "--batch-size", size]
        assert main([*command, "--out", str(tmp_path / size), "--quiet"]) == 0
        volumes[size] = [read_volume(tmp_path / size / f"p{i}" / "volume.nii.gz").array for i in range(4)]
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(*volumes.values(), strict=True)) <= 2  # HU


def test_slabs_give_the_same_volume(run_folder):
    prompts = [Prompt("p", "Effusion.", 0)]
    run = open_run(run_folder, sampling_with(run_folder, None))
    whole = run.sample_arrays(prompts)
    assert "super-resolution in whole volumes" in run.plan.in_words()
    run = open_run(run_folder, sampling_with(run_folder, None, tile=5))
    slabs = run.sample_arrays(prompts)
    assert "super-resolution in slabs of 5 slices" in run.plan.in_words() and run.super_res.slab_slices == 5
    difference = np.abs(whole - slabs)
    assert 0 < difference.max() < 1e-2 and difference.mean() < 5e-5


def test_too_little_memory_is_refused_before_anything_is_sampled(run_folder, monkeypatch):
    run = open_run(run_folder, sampling_with(run_folder, None))
    monkeypatch.setattr("medsyn.methods.run.available_bytes", lambda _device: 1000)
    monkeypatch.setattr(run, "encode", lambda _texts: pytest.fail("the text was encoded"))
    with pytest.raises(InputError, match=r"sampling.tile auto: one volume of 16 x 16 x 16 needs about"):
        run.sample_arrays([Prompt("p", "Effusion.", 0)])


def test_the_solver_is_chosen_by_settings_and_by_flag(run_folder, tmp_path):
    draws = {}
    for solver in ("ddim", "dpmpp_2m"):
        run = open_run(run_folder, sampling_with(run_folder, None, solver=solver, num_steps_low_res=4))
        draws[solver] = run.sample_arrays([Prompt("p", "Effusion.", 3)])
    assert np.isfinite(draws["dpmpp_2m"]).all() and np.abs(draws["ddim"] - draws["dpmpp_2m"]).max() > 1e-3
    out = tmp_path / "ct.nii.gz"
    command = ["generate", "--weights", str(run_folder), "--text", "x", "--solver", "dpmpp_2m", "--out", str(out)]
    assert main([*command, "--quiet"]) == 0
    record = json.loads((tmp_path / "ct.json").read_text(encoding="utf-8"))
    assert record["config"]["sampling"]["solver"] == "dpmpp_2m"


def test_channels_may_be_fixed_at_low_resolution_only(run_folder):
    lobes = np.random.default_rng(0).integers(0, 6, SIZE).astype(np.uint8)
    draws = {}
    for fix in (True, False):
        run = open_run(run_folder, sampling_with(run_folder, None, fix_super_res=fix))
        draws[fix] = [run.sample_arrays([Prompt("p", "x", 3, fixed=given)])[0] for given in ({"lobe": lobes}, {})]
    wanted = 2 * lobes.astype(np.float32) / 5 - 1
    channel = 1
    assert np.abs(draws[True][0][channel] - wanted).max() < 1e-6
    assert np.abs(draws[False][0][channel] - wanted).max() > 0.01  # the network's own, as the authors have it
    assert np.abs(draws[False][0] - draws[False][1]).max() > 1e-3  # but it saw the fixed lobes at low resolution


def test_a_compiled_run_draws_the_same_volume(run_folder, monkeypatch):
    """Capture by the compiler with its plain backend: the program is the same, only the machine code is not made."""
    prompts = [Prompt("p", "Effusion.", 0)]
    expected = open_run(run_folder, sampling_with(run_folder, None)).sample_arrays(prompts)
    compiled = []
    original = torch.nn.Module.compile

    def plain_backend(network, **options):
        compiled.append(options)
        original(network, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch.nn.Module, "compile", plain_backend)
    run = open_run(run_folder, sampling_with(run_folder, None, compile=True))
    difference = np.abs(run.sample_arrays(prompts) - expected)
    assert len(compiled) == 2
    assert difference.mean() < 5e-5 and difference.max() < 1e-2  # rounding, amplified by random weights and guidance


def test_fixed_channels_come_back_exactly(run_folder, tmp_path):
    rng = np.random.default_rng(0)
    lobes = rng.integers(0, 6, SIZE).astype(np.uint8)
    image = rng.integers(-1024, 601, SIZE).astype(np.int16)
    write_volume(tmp_path / "masks" / "0" / "s1" / "lobes.nii.gz", grid(lobes))
    write_volume(tmp_path / "volumes" / "1" / "s1" / "volume.nii.gz", grid(image))
    rows = [
        {"sample_id": "a", "fix_lobes": "s1", "text_mode": "none"},
        {"sample_id": "b", "fix_image": "s1", "fix_lobes": str(tmp_path / "masks" / "0" / "s1" / "lobes.nii.gz")},
        {"sample_id": "c"},
        {"sample_id": "d", "fix_airway": "s1"},
    ]
    prompts = write_prompts(tmp_path / "prompts.csv", rows)
    roots = ["--masks-root", str(tmp_path / "masks"), "--volumes-root", str(tmp_path / "volumes")]
    out = tmp_path / "out"
    command = ["generate", "--weights", str(run_folder), "--prompts", str(prompts), "--out", str(out), "--quiet"]
    assert main([*command, *roots]) == 0
    assert {row["sample_id"]: row["status"] for row in read_csv(out / "index.csv")} == {
        "a": "ok",
        "b": "ok",
        "c": "ok",
        "d": "rejected",
    }
    assert np.array_equal(read_volume(out / "a" / "lobes.nii.gz").array, lobes)
    assert np.array_equal(read_volume(out / "b" / "lobes.nii.gz").array, lobes)
    assert np.array_equal(read_volume(out / "b" / "volume.nii.gz").array, image)
    assert not np.array_equal(read_volume(out / "c" / "lobes.nii.gz").array, lobes)
    assert json.loads((out / "a" / "provenance.json").read_text(encoding="utf-8"))["text"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--text", "x", "--fix", "heart=a.nii.gz", "--out", "x.nii.gz"], "heart"),
        (["--text", "x", "--fix", "lobes", "--out", "x.nii.gz"], "NAME=FILE"),
        (["--text", "x", "--out", "x.txt"], ".nii.gz"),
        (["--text", "x", "--seed", "-1", "--out", "x.nii.gz"], "--seed"),
        (["--text", "x", "--steps-low-res", "2000", "--out", "x.nii.gz"], "1000"),
        (["--prompts", "missing.csv", "--out", "x"], "missing.csv"),
    ],
)
def test_bad_input_is_one_line(run_folder, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--weights", str(run_folder), "--quiet", *options]) == 2
    message = capsys.readouterr().err.strip()
    assert words in message and "\n" not in message
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.nii.gz").exists()


def test_run_without_shape_channels(tmp_path, monkeypatch):
    install_text_encoder(monkeypatch)
    (tmp_path / "model").mkdir()
    folder = make_run(tmp_path / "model", ("image",))
    out = tmp_path / "ct.nii.gz"
    assert main(["generate", "--weights", str(folder), "--text", "x", "--out", str(out), "--quiet"]) == 0
    assert not (tmp_path / "ct_lobes.nii.gz").exists()
    fix = ["--fix", f"lobes={out}"]
    assert main(["generate", "--weights", str(folder), "--text", "x", "--out", str(out), "--quiet", *fix]) == 2


def test_assemble_refuses_the_wrong_pair(run_folder, tmp_path, capsys):
    weights = str(run_folder / "low_res.safetensors")
    options = ["--low-res", weights, "--super-res", weights, "--text-encoder", str(run_folder / "text")]
    sampling = ["--sampling", str(run_folder / "sampling.json"), "--out", str(tmp_path / "run.json")]
    assert main(["assemble", "--label", "x", *options, *sampling]) == 2
    assert "super_res is wanted" in capsys.readouterr().err
    assert not (tmp_path / "run.json").exists()


def test_moved_run_still_opens(run_folder, tmp_path):
    moved = tmp_path / "elsewhere"
    run_folder.rename(moved)
    run = open_run(moved, sampling_with(moved, None))
    assert torch.isfinite(torch.from_numpy(run.sample_arrays([Prompt("p", "x", 0)]))).all()


def test_a_mask_to_fix_may_lie_in_any_orientation_but_must_be_of_the_models_grid(run_folder, tmp_path, capsys):
    lobes = grid(np.random.default_rng(0).integers(0, 6, SIZE).astype(np.uint8))
    command = ["generate", "--weights", str(run_folder), "--text", "x", "--quiet"]
    out, mask = tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz"
    write_volume(mask, reorient(lobes, "RPS"))
    assert main([*command, "--fix", f"lobes={mask}", "--out", str(out)]) == 0
    assert np.array_equal(read_volume(tmp_path / "ct_lobes.nii.gz").array, lobes.array)
    write_volume(mask, replace(lobes, spacing_mm=(1.0, 1.0, 1.0)))
    assert main([*command, "--fix", f"lobes={mask}", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "mask.nii.gz: its grid is" in error and "[1.0, 1.0, 1.0] mm" in error and error.count("\n") == 1
    prompts = write_prompts(tmp_path / "prompts.csv", [{"sample_id": "a"}])
    table = [
        "generate",
        "--weights",
        str(run_folder),
        "--prompts",
        str(prompts),
        "--out",
        str(tmp_path / "o"),
        "--quiet",
    ]
    for more in (["--seed", "3"], ["--fix", f"lobes={mask}"]):
        assert main([*table, *more, "--quiet"]) == 2 and "go with --text" in capsys.readouterr().err


def test_the_networks_place_in_memory_does_not_depend_on_the_provenance_in_the_file(tmp_path):
    """The last bits of a volume drawn on a CPU depend on how the weights are aligned."""
    settings = stage("low_res")
    for length in range(8):
        path = tmp_path / f"{length}.safetensors"
        save(path, build(settings, HIDDEN).state_dict(), settings, {"commit": "x" * 8 * length})
        network, _ = load(path)
        assert {parameter.data_ptr() % 64 for parameter in network.parameters()} == {0}
