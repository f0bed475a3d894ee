"""Batches of training: functions of step and slot, sections, crops, augmentation, settings that do not fit."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform
from tiny_models import HIDDEN, NUM_TOKENS, SIZE, make_embeddings, stage
from training_runs import SETTINGS, quadratic

from medsyn.cli import main
from medsyn.ct.store import pack_labels
from medsyn.errors import InputError
from medsyn.files import write_json
from medsyn.models.channels import CHANNELS, from_channel
from medsyn.models.weights import build
from medsyn.training.augment import NUM_UNIFORM, random_affine
from medsyn.training.data import Embeddings, Store, TrainingData, to_channels
from medsyn.training.loop import train
from medsyn.training.processes import prefetch


def test_prefetched_batches_are_the_same_in_the_same_order(tmp_path, monkeypatch):
    def slow(key):
        time.sleep(0.01 * (key % 3))
        return key

    assert list(prefetch(slow, range(20), 4)) == list(range(20))
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda key: 1 // key, range(3), 2))
    plain = train(quadratic(), SETTINGS, tmp_path / "a")
    monkeypatch.setattr("medsyn.training.loop.num_data_threads", lambda _device: 3)
    ahead = train(quadratic(), SETTINGS, tmp_path / "b")
    assert torch.equal(plain.network.weight, ahead.network.weight)


def test_channels_round_trip():
    rng = np.random.default_rng(0)
    lobes, airway, vessels = rng.integers(0, 6, SIZE), rng.integers(0, 2, SIZE), rng.integers(0, 2, SIZE)
    hu = rng.integers(-1024, 601, SIZE).astype(np.int16)
    values = to_channels(CHANNELS, hu, pack_labels(lobes, airway, vessels), (-1024.0, 600.0))
    assert values.dtype == np.float32 and values.min() >= -1 and values.max() <= 1
    for name, expected, array in zip(CHANNELS, (hu, lobes, airway, vessels), values, strict=True):
        assert np.array_equal(from_channel(name, array, (-1024.0, 600.0)), expected)
    assert to_channels(
        ("image",), np.array([[[3000, -2000]]]), np.zeros((1, 1, 2), np.uint8), (-1024, 600)
    ).tolist() == [[[[1.0, -1.0]]]]


def test_batches_are_functions_of_step_and_slot(training_data):
    settings = stage(batch_size=3, micro_batch_size=3)
    shards = [training_data / "store" / "0", training_data / "store" / "1"]
    embeddings = Embeddings(training_data / "embeddings.json", settings.sections)
    data = TrainingData(settings, Store(shards, "low"), embeddings)
    assert len(data.store) == 6 and "s4" not in data.store.subject_ids[:4]
    whole, slot = data.batch(5, range(3)), data.batch(5, [2])
    assert all(torch.equal(whole[key][2:], slot[key]) for key in whole)
    assert whole["x0"].shape == (3, 4, 4, 4, 4) and whole["text"].shape == (3, NUM_TOKENS, HIDDEN)
    clean = torch.stack([data.clean(i) for i in range(6)])
    seen = [data.batch(step, range(3))["x0"] for step in (0, 1)]  # one epoch: every volume once
    found = [int((clean == x).flatten(1).all(1).nonzero()[0, 0]) for x in torch.cat(seen)]
    assert sorted(found) == list(range(6))


def test_text_is_dropped_and_sections_are_drawn_evenly(training_data):
    settings = stage(text_dropout=0.25)
    embeddings = Embeddings(training_data / "embeddings.json", settings.sections)
    data = TrainingData(settings, Store([training_data / "store" / "0"], "low"), embeddings)
    samples = [data.sample(i) for i in range(600)]
    dropped = np.mean([bool(s["drop_text"]) for s in samples])
    assert 0.19 < dropped < 0.31
    times = np.array([float(s["t"]) for s in samples])
    assert 0 <= times.min() < 0.02 and 0.98 < times.max() < 1 and abs(times.mean() - 0.5) < 0.04
    states = [embeddings.states(row, section) for row in range(5) for section in range(3)]
    which = [next(i for i, st in enumerate(states) if torch.equal(st, s["text"])) % 3 for s in samples]
    assert min(np.bincount(which, minlength=3)) > 160


def test_only_sections_that_a_report_has_are_drawn(training_data, tmp_path):
    settings = stage(text_dropout=0.0)
    path = make_embeddings(tmp_path / "embeddings.json")
    index = json.loads(path.read_text(encoding="utf-8"))
    for keys in index["texts"].values():
        keys[1] = None  # no Findings
    path.write_text(json.dumps(index), encoding="utf-8")
    embeddings = Embeddings(path, settings.sections)
    data = TrainingData(settings, Store([training_data / "store" / "0"], "low"), embeddings)
    states = [embeddings.states(row, section) for row in range(5) for section in range(2)]
    texts = [data.sample(i)["text"] for i in range(400)]
    which = [next(i for i, state in enumerate(states) if torch.equal(state, text)) % 2 for text in texts]
    assert min(np.bincount(which, minlength=2)) > 160


def test_super_res_crops(training_data):
    settings = stage("super_res", max_low_res_noise=0.4)
    data = TrainingData(settings, Store([training_data / "store" / "0"], "high"), None)
    batch = data.batch(0, range(4))
    assert batch["x0"].shape == (4, 4, 8, 8, 8)
    levels = torch.stack([data.sample(i)["condition_level"] for i in range(200)])
    assert levels.min() >= 0 and 0.35 < levels.max() < 0.4
    volume = data.clean(0, (0.0, 0.5, 0.999))
    data.crop = None
    assert torch.equal(volume, data.clean(0)[:, :8, 4:12, 8:])


def test_low_resolution_by_means_is_made_from_the_full_resolution(training_data):
    settings = stage(reduction="mean")
    shards = [training_data / "store" / "0"]
    data = TrainingData(settings, Store(shards, "high"), None)
    whole = TrainingData(stage("super_res", crop_size=SIZE), data.store, None).clean(2)
    assert data.size == (4, 4, 4)
    torch.testing.assert_close(data.clean(2)[:, 1, 2, 3], whole[:, 4:8, 8:12, 12:16].mean(dim=(1, 2, 3)))


def test_means_of_a_small_data_set_are_computed_once(training_data, monkeypatch):
    settings, shards = stage(reduction="mean"), [training_data / "store" / "0"]
    kept = TrainingData(settings, Store(shards, "high"), None)
    with monkeypatch.context() as patch:
        patch.setattr("medsyn.training.data._IN_MEMORY_BYTES", 0)
        fresh = TrainingData(settings, Store(shards, "high"), None)
    batch, means = kept.batch(0, range(3)), [kept.clean(index) for index in range(3)]
    turned = random_affine([0.1] * NUM_UNIFORM)
    assert torch.equal(kept.clean(1, affine=turned), fresh.clean(1, affine=turned))
    assert not torch.equal(kept.clean(1, affine=turned), means[1])
    monkeypatch.setattr(Store, "volume", lambda *_: pytest.fail("the volume is read again"))
    for index, mean in enumerate(means):
        assert torch.equal(kept.clean(index), mean)
    assert torch.equal(kept.batch(0, range(3))["x0"], batch["x0"])
    monkeypatch.undo()
    assert torch.equal(fresh.batch(0, range(3))["x0"], batch["x0"])
    assert torch.equal(torch.stack([fresh.clean(index) for index in range(3)]), torch.stack(means))


def test_components_need_more_training_volumes(training_data):
    store = Store([training_data / "store" / "0"], "low")
    most = len(store) - 2
    data = TrainingData(stage(unet={"mean_volume": True, "num_components": most}), store, None)
    assert data.components.vectors.shape == (most, 4, *data.size)
    too_many = TrainingData(stage(unet={"mean_volume": True, "num_components": most + 1}), store, None)
    with pytest.raises(InputError, match=rf"num_components: {most + 1}, expected at most {most}, .* lower it"):
        _ = too_many.components


@pytest.mark.parametrize("option", [{"sigma_data": 0.4}, {"sigma_share": 0.5}, {"num_components": 2}])
def test_balanced_noise_weighs_each_time_by_what_the_linear_estimate_leaves(training_data, option):
    unet = {"mean_volume": True, **option}
    store = Store([training_data / "store" / "0"], "low")
    data = TrainingData(stage(unet=unet, balance_noise=True, balance_channels=1.0), store, None)
    network = build(data.stage, None)
    network.set_statistics(data.mean, data.deviations, data.components if "num_components" in option else None)
    sample = data.sample(3)
    _, share = network.estimate(sample["x0"][None], 1000 * sample["t"][None], None)
    expected = data.channel_weights / share.expand(1, 4, 1, 1, 1)[0, :, 0, 0, 0].square()
    torch.testing.assert_close(sample["weights"], expected)
    assert "weights" not in TrainingData(stage(unet=unet), store, None).sample(3)


def test_deviations_are_from_what_is_known_without_the_network(training_data):
    shards = [training_data / "store" / "0"]
    low = TrainingData(stage(unet={"mean_volume": True}, balance_channels=1.0), Store(shards, "low"), None)
    volumes = torch.stack([low.clean(i) for i in range(len(low.store))])
    torch.testing.assert_close(low.mean, volumes.mean(0))
    variance = (volumes - volumes.mean(0)).square().mean(dim=(0, 2, 3, 4))
    torch.testing.assert_close(low.deviations, variance.sqrt())
    weights = low.channel_weights
    torch.testing.assert_close(weights * variance, (weights * variance).mean().expand(4))
    assert weights.mean().item() == pytest.approx(1)
    plain = TrainingData(stage(), low.store, None)
    torch.testing.assert_close(plain.deviations, volumes.square().mean(dim=(0, 2, 3, 4)).sqrt())
    high = TrainingData(stage("super_res", unet={"add_condition": True}), Store(shards, "high"), None)
    crops = torch.stack([high.clean(i) for i in range(len(high.store))])
    rest = crops - crops[..., ::4, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    torch.testing.assert_close(high.deviations, rest.square().mean(dim=(0, 2, 3, 4)).sqrt())
    assert high.channel_weights is None  # balance_channels 0


def test_super_resolution_may_take_text(training_data):
    settings = stage("super_res", text=True)
    embeddings = Embeddings(training_data / "embeddings.json", settings.sections)
    sample = TrainingData(settings, Store([training_data / "store" / "0"], "high"), embeddings).sample(3)
    assert sample["text"].shape == (NUM_TOKENS, HIDDEN) and sample["condition_noise"].shape == (4, 8, 8, 8)


def test_augmentation_moves_image_and_masks_together(training_data):
    """A crop of the augmented volume, read from a part of the source, against the whole volume moved by scipy."""
    settings = stage("super_res", augment=True)
    data = TrainingData(settings, Store([training_data / "store" / "0"], "high"), None)
    affine = random_affine([0.3, 0.9, 0.2, 0.9, 0.1, 0.7])
    assert torch.linalg.det(affine).item() == pytest.approx((1 / 1.08) ** 3)  # a zoom by 1.08 and a rotation
    place = (0.4, 0.7, 0.2)
    moved = data.clean(1, place, affine)
    data.crop = None
    whole, centre = data.clean(1), (np.array(SIZE) - 1) / 2
    offset = centre - affine.numpy() @ centre
    z, y, x = (int(u * (s - 8 + 1)) for u, s in zip(place, SIZE, strict=True))
    for channel, ours in zip(whole.numpy(), moved.numpy(), strict=True):
        theirs = affine_transform(channel.astype(float), affine.numpy(), offset, order=1, mode="grid-constant", cval=-1)
        assert np.abs(theirs[z : z + 8, y : y + 8, x : x + 8] - ours).max() < 1e-5
    assert random_affine([0.5, 0.1, 0.5, 0, 0, 0]) is None
    plain = TrainingData(stage("super_res"), data.store, None)
    data.crop = plain.crop
    same = [torch.equal(data.sample(k)["x0"], plain.sample(k)["x0"]) for k in range(40)]
    assert 3 < sum(same) < 20  # a quarter is left alone


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": ("image",), "num_tokens": 7}, "tokens"),
        ({"train": {"crop_size": (6, 8, 8)}, "stage": "super_res"}, "crop_size"),
        ({"unet": {"mults": (1, 1, 1, 1)}}, "divisible by 8"),
    ],
)
def test_settings_that_do_not_fit_the_data(training_data, tmp_path, capsys, change, words):
    values = stage(change.pop("stage", "low_res")).model_dump(mode="json")
    for key, value in change.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    config = tmp_path / "c.json"
    write_json(config, values)
    text = ["--embeddings", str(training_data / "embeddings.json")] if values["stage"] == "low_res" else []
    store = ["--store", str(training_data / "store" / "0")]
    folders = ["--state", str(tmp_path / "s"), "--out", str(tmp_path / "w.safetensors")]
    assert main(["train", "--config", str(config), *store, *text, *folders, "--quiet"]) == 2
    assert words in capsys.readouterr().err
