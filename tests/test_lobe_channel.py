"""Decoding the lobe channel: clean maps come back exactly, blurred and noisy ones better than by rounding."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medsyn.masks.labels import mean_label_dice
from medsyn.models.channels import from_channel, to_channel
from medsyn.phantom.subject import render_subject

WINDOW = (-1024.0, 600.0)
LOBES = range(1, 6)


def encode(labels):
    return to_channel("lobe", labels, WINDOW)


def decode(channel):
    return from_channel("lobe", channel, WINDOW)


def rounded(channel):
    return np.clip(np.round((channel + 1) * 2.5), 0, 5).astype(np.uint8)


def generated(labels, blur, noise, seed=0):
    """What a network makes of a label map: borders blurred by `blur` voxels, noise of `noise` labels, clipped."""
    rng = np.random.default_rng(seed)
    grain = ndimage.gaussian_filter(rng.standard_normal(labels.shape).astype(np.float32), 0.7)
    values = ndimage.gaussian_filter(encode(labels), blur) + grain * (noise * 0.4 / grain.std())
    return np.clip(values, -1, 1)


def slabs(size=40):
    """Two boxes of lobes that touch the background and each other: 1, 2 on the left, 3, 4, 5 on the right."""
    labels = np.zeros((size, size, size), np.uint8)
    labels[6:20, 6:34, 24:36], labels[20:34, 6:34, 24:36] = 2, 1
    labels[6:15, 6:34, 4:16], labels[15:24, 6:34, 4:16], labels[24:34, 6:34, 4:16] = 5, 4, 3
    return labels


@pytest.fixture(scope="module")
def phantom():
    return render_subject(0, 0, 64, ()).masks["lobes"]


@pytest.fixture(scope="module")
def compressed():
    """Lobes of a phantom whose right lower lobe an effusion has left 688 thin voxels of."""
    return render_subject(0, 1, 64).masks["lobes"]


def clean_maps():
    rng = np.random.default_rng(0)
    shape = (12, 17, 9)
    yield "empty", np.zeros(shape, np.uint8)
    yield "noise", rng.integers(0, 6, shape)
    yield "noise with gaps", rng.integers(0, 6, shape) * (rng.random(shape) < 0.1)
    for label in LOBES:
        yield f"only {label}", np.full(shape, label)
        single = np.zeros(shape, np.uint8)
        single[3, 4, 5] = label
        yield f"one voxel of {label}", single
    layers = np.zeros(shape, np.uint8)
    layers[3:8, :, 2:7] = np.array([5, 1, 4, 2, 3])[:, None, None]
    yield "layers of one voxel", layers
    yield "one slice", rng.integers(0, 6, (1, 20, 20))
    yield "one voxel in all", np.full((1, 1, 1), 4)
    islands = slabs()
    islands[10, 10, 10], islands[0, 0, 0], islands[12:14, 20, 8] = 1, 3, 0
    yield "islands and holes", islands
    absent = slabs()
    absent[absent == 4] = 0
    yield "a lobe is absent", absent


@pytest.mark.parametrize(("name", "labels"), list(clean_maps()), ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_a_clean_map_comes_back_exactly(name, labels, dtype):
    found = decode(encode(labels.astype(np.uint8)).astype(dtype))
    assert found.dtype == np.uint8
    assert np.array_equal(found, labels), name


@pytest.mark.parametrize("seed", range(60))
def test_any_map_of_boxes_sheets_lines_and_voxels_comes_back_exactly(seed):
    rng = np.random.default_rng(seed)
    labels = np.zeros(rng.integers(1, 24, 3), np.uint8)
    present = rng.permutation(6)[: rng.integers(1, 7)]
    for _ in range(rng.integers(0, 30)):
        start, edge = rng.integers(labels.shape), rng.choice([1, 1, 2, 3, 8, 24], 3)
        labels[tuple(slice(a, a + n) for a, n in zip(start, edge, strict=True))] = rng.choice(present)
    channel = encode(labels)
    before = channel.copy()
    assert np.array_equal(decode(channel), labels)
    assert np.array_equal(channel, before)


def test_a_phantoms_map_comes_back_exactly(phantom, compressed):
    for labels in (phantom, compressed):
        assert np.array_equal(decode(encode(labels)), labels)


@pytest.mark.parametrize(
    ("blur", "noise", "least"), [(0.7, 0.1, 0.95), (1.5, 0.1, 0.88), (1.5, 0.3, 0.83), (2.0, 0.1, 0.8)]
)
def test_blurred_phantoms_are_decoded_better_than_by_rounding(phantom, blur, noise, least):
    channel = generated(phantom, blur, noise)
    ours, theirs = (mean_label_dice(decoder(channel), phantom, LOBES) for decoder in (decode, rounded))
    assert ours > theirs + 0.15
    assert ours > least


@pytest.mark.parametrize("blur", [0, 0.7, 1.5])
@pytest.mark.parametrize("noise", [0.12, 0.5])
def test_white_noise_costs_no_lobes(phantom, blur, noise):
    """Noise of `noise` labels that differs from voxel to voxel: at 0.5 a third of the voxels rounds wrong."""
    random = np.random.default_rng(0).standard_normal(phantom.shape).astype(np.float32)
    channel = np.clip(ndimage.gaussian_filter(encode(phantom), blur) + random * (0.4 * noise), -1, 1)
    ours, theirs = (mean_label_dice(decoder(channel), phantom, LOBES) for decoder in (decode, rounded))
    assert ours > 0.75
    assert ours > theirs + 0.15 if blur >= 0.7 else ours > theirs - 0.01


@pytest.mark.parametrize("blur", [0.7, 1.0])
@pytest.mark.parametrize("size", [24, 32])
def test_a_small_volume_keeps_its_lobes(blur, size):
    labels = ndimage.zoom(slabs(), size / 40, order=0)
    channel = generated(labels, blur, 0.2)
    ours, theirs = (mean_label_dice(decoder(channel), labels, LOBES) for decoder in (decode, rounded))
    assert ours > theirs + 0.1
    assert min(mean_label_dice(decode(channel), labels, [label]) for label in LOBES) > 0.6


@pytest.mark.parametrize(("blur", "least"), [(0.5, 0.75), (0.7, 0.7), (1.0, 0.6)])
def test_a_thin_lobe_is_not_lost(compressed, blur, least):
    channel = generated(compressed, blur, 0.1)
    ours, theirs = (mean_label_dice(decoder(channel), compressed, LOBES) for decoder in (decode, rounded))
    assert ours > theirs + 0.05
    assert mean_label_dice(decode(channel), compressed, [5]) > least


@pytest.mark.parametrize("blur", [0.8, 1.2, 1.6])
def test_a_blurred_border_has_no_shells(blur):
    labels = slabs()
    channel = generated(labels, blur, 0.05)
    found = decode(channel)
    right, left = (slice(None), slice(None), slice(0, 20)), (slice(None), slice(None), slice(20, 40))
    assert {1, 2} <= set(np.unique(rounded(channel)[right]))  # what rounding makes of 0 to 5
    assert set(np.unique(found[right])) == {0, 3, 4, 5}
    assert set(np.unique(found[left])) == {0, 1, 2}
    assert (found == labels).mean() > (rounded(channel) == labels).mean()


def test_the_border_lies_at_half_the_step():
    for label in LOBES:
        labels = np.zeros((40, 40, 40), np.uint8)
        labels[10:30, 10:30, 10:30] = label
        line = decode(ndimage.gaussian_filter(encode(labels), 1.5))[20, 20]
        assert np.array_equal(line, labels[20, 20])


def test_an_absent_lobe_stays_absent():
    labels = np.where(slabs() == 4, 5, slabs())
    assert 4 in rounded(generated(labels, 1.5, 0.1))
    assert set(np.unique(decode(generated(labels, 1.5, 0.1)))) == {0, 1, 2, 3, 5}


@pytest.mark.parametrize("channel", [np.full((9, 9, 9), -1.3), np.random.default_rng(0).uniform(-1, 1, (9, 9, 9))])
def test_channels_without_any_core_of_a_lobe_are_rounded(channel):
    assert np.array_equal(decode(channel.astype(np.float32)), rounded(channel))
