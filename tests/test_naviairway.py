"""NaviAirway: parity with the authors' network and windows, checkpoints, and post-processing against brute force."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from parity import fill, hashed

import medsyn.masks.naviairway as naviairway
from medsyn.errors import InputError
from medsyn.masks.naviairway import (
    CROP,
    STRIDE,
    NaviAirway,
    blend,
    fit_windows,
    largest_tree,
    load_network,
    normalise,
    sliding_window,
    window_starts,
)
from medsyn.models.airway_net import AirwayNet

NARROW = {"width": 8, "num_groups": 4}
KEYS_SHA256 = "a4db7f11abc37ae429c5e6a64709355d4a5a01ceeafdd1aa192abdde4a6df474"
"""Of the lines "name<tab>shape" of the authors' 85 tensors, sorted."""


def filled(width: int = 32, num_groups: int = 8) -> AirwayNet:
    """The network with hashed parameters."""
    network = AirwayNet(width, num_groups).eval()
    state = network.state_dict()
    for rank, name in enumerate(sorted(state)):
        fill(state[name], name, rank)
    return network


def dark_finder(found: bool = True, **size: int) -> AirwayNet:
    """A network whose airway is, with two intensities in a crop, exactly the darker; with found=False, nothing."""
    network = AirwayNet(**size).eval()
    for parameter in network.parameters():
        parameter.data.zero_()
    first, last = network.encoders[0], network.decoders[2]
    for layer, tap in ((first.conv1, -1.0), (first.conv2, 1.0), (last.conv1, 1.0), (last.conv2, 1.0)):
        layer.groupnorm.weight.data[0] = 1.0
        layer.conv.weight.data[0, 0, 1, 1, 1] = tap
    network.final_conv.weight.data[1, 0, 1, 1, 1] = 100.0 if found else 0.0
    network.final_conv.bias.data[1] = -0.5
    return network


def bent_tube(shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """A tube along z with a branch towards high x, not symmetric in any axis, and a speck far from it."""
    z, y, x = shape
    tube = np.zeros(shape, bool)
    tube[2:, y // 3 : y // 3 + 3, 4:7] = True
    tube[z - 5 : z - 2, y // 3 : y // 3 + 2, 4 : x - 3] = True
    tube[1, y - 2, 1] = True
    return tube


@pytest.fixture(scope="module")
def crop() -> torch.Tensor:
    return torch.from_numpy(127.5 * hashed(12288, 300001) + 127.5).float().reshape(1, 1, 16, 24, 32)


@pytest.fixture(scope="module")
def scan() -> NDArray[np.float64]:
    return (1100 * hashed(34560, 300002) - 300).reshape(24, 40, 36)


def test_names_and_shapes_are_the_authors() -> None:
    with torch.device("meta"):
        state = AirwayNet().state_dict()
    lines = sorted(f"{name}\t{tuple(value.shape)}" for name, value in state.items())
    assert len(lines) == 85
    assert sum(value.numel() for value in state.values()) == 10_764_916
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == KEYS_SHA256


def test_parity_of_the_network(crop: torch.Tensor) -> None:
    with torch.no_grad():
        logits = filled()(crop)
    flat = logits.flatten().double().numpy()
    assert (flat.mean(), flat.std()) == pytest.approx((0.348436, 0.796180), abs=1e-4)
    assert flat[:4] == pytest.approx([-0.278567, -0.456778, -0.109558, -0.023315], abs=1e-4)
    probability = logits.softmax(1).double().numpy()
    assert (probability.mean(), probability.std()) == pytest.approx((0.5, 0.258615), abs=1e-4)
    assert probability[:, 1].mean() == pytest.approx(0.708376, abs=1e-4)
    first = [0.343205, 0.299043, 0.337774, 0.433040, 0.363017, 0.360229, 0.389038, 0.498371]
    assert probability.ravel()[:8] == pytest.approx(first, abs=1e-4)
    assert probability.ravel()[-4:] == pytest.approx([0.529383, 0.615690, 0.559158, 0.572610], abs=1e-4)
    assert probability[0, 1, 5, 6, 7:11] == pytest.approx([0.8660, 0.9135, 0.7516, 0.6325], abs=1e-4)


def test_parity_of_the_narrow_network(crop: torch.Tensor) -> None:
    network = filled(**NARROW)
    assert sum(parameter.numel() for parameter in network.parameters()) == 675_376
    with torch.no_grad():
        probability = network(crop).softmax(1).double().numpy().ravel()
    assert probability.std() == pytest.approx(0.201378, abs=1e-4)
    assert probability[:4] == pytest.approx([0.429524, 0.468109, 0.295688, 0.339942], abs=1e-4)


def test_network_refuses_sides_it_cannot_halve() -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        AirwayNet(**NARROW)(torch.zeros(1, 1, 16, 12, 16))


def test_parity_of_the_normalisation(scan: NDArray) -> None:
    values = normalise(scan)
    assert values.dtype == np.float32
    assert values.mean(dtype=float) == pytest.approx(116.004537, abs=1e-4)
    assert values.ravel()[:4] == pytest.approx([175.578830, 175.803952, 8.404633, 254.750938], abs=1e-4)


def test_normalisation_of_integers_and_constants() -> None:
    assert normalise(np.arange(-1000, -899)).max() == pytest.approx(255 * 100 / 99)  # the percentile is 99 of 100
    hu = np.array([-2000, -1000, 0, 600, 3000] * 20, np.int16)
    before = hu.copy()
    np.testing.assert_allclose(np.unique(normalise(hu)), [0, 1000 / 1600 * 255, 255], rtol=1e-6)
    np.testing.assert_array_equal(hu, before)
    assert not normalise(np.full((2, 3, 4), 70, np.uint8)).any()
    mostly_air = np.full(200, -1000.0)
    mostly_air[7] = 40
    np.testing.assert_array_equal(normalise(mostly_air), mostly_air + 1000)  # 99th percentile 0: no scaling


def test_parity_of_the_sliding_window(scan: NDArray) -> None:
    network = NaviAirway([filled(**NARROW)])
    with torch.inference_mode():
        p = sliding_window(normalise(scan), lambda crops: network._predict(crops, 1), (16, 32, 32), (8, 16, 16))[0]
    assert (p.mean(dtype=float), p.std(dtype=float)) == pytest.approx((0.626573, 0.143959), abs=1e-4)
    assert p.ravel()[:4] == pytest.approx([0.600363, 0.554888, 0.545112, 0.636806], abs=1e-4)
    assert p.ravel()[-4:] == pytest.approx([0.431515, 0.528201, 0.613842, 0.461931], abs=1e-4)
    assert (p > 0.5).sum() == 28_053


def test_blending_halves_what_was_there() -> None:
    blended = np.full(20, np.nan, np.float32)
    for number, start in enumerate(window_starts(20, 8, 4), 1):
        blend(blended[start : start + 8], np.full(8, number, np.float32))
    assert blended.tolist() == [1.0] * 4 + [1.5] * 4 + [2.5] * 4 + [4.25] * 4 + [4.5] * 4


@pytest.mark.parametrize(
    ("shape", "crop", "stride"),
    [
        ((256, 256, 256), (32, 128, 128), (16, 64, 64)),
        ((32, 128, 129), (32, 128, 128), (16, 64, 64)),
        ((31, 127, 64), (16, 64, 64), (16, 64, 64)),
        ((24, 40, 8), (16, 32, 8), (16, 32, 8)),
    ],
)
def test_crop_is_halved_until_it_fits(shape: tuple, crop: tuple, stride: tuple) -> None:
    assert fit_windows(shape) == (crop, stride)


def test_repeated_windows_are_evaluated_once() -> None:
    starts = [window_starts(256, side, step) for side, step in zip(CROP, STRIDE, strict=True)]
    assert starts[0] == [*range(0, 225, 16), 224]
    assert starts[1] == starts[2] == [0, 64, 128, 128]
    assert (np.prod([len(s) for s in starts]), np.prod([len(set(s)) for s in starts])) == (256, 135)
    evaluated = []

    def predict(crops: NDArray[np.float32]) -> NDArray[np.float32]:
        evaluated.append(len(crops))
        return crops[None]

    volume = np.random.default_rng(0).random((32, 32, 32), np.float32)  # 256^3 and its windows at an eighth
    sliding_window(volume, predict, (4, 16, 16), (2, 8, 8))
    assert evaluated == [9] * 15


def test_equal_to_evaluating_every_window(scan: NDArray) -> None:
    navi = NaviAirway([filled(**NARROW), dark_finder(**NARROW)])
    volume, side, step = normalise(scan)[:, :39], (8, 16, 16), (4, 8, 8)
    expected, seen, count = np.zeros((2, *volume.shape), np.float32), np.zeros(volume.shape, bool), 0
    for corner in product(*(range(0, n, s) for n, s in zip(volume.shape, step, strict=True))):
        box = tuple(slice(min(i, n - c), min(i, n - c) + c) for i, n, c in zip(corner, volume.shape, side, strict=True))
        x = torch.from_numpy(normalise(volume[box]))[None, None]
        for old, network in zip(expected, navi.networks, strict=True):
            with torch.no_grad():
                new = network(x).softmax(1)[0, 1].numpy()
            old[box] = np.where(seen[box], (old[box] + new) / 2, new)
        seen[box] = True
        count += 1
    assert count == 6 * 5 * 5  # of which 5 * 4 * 4 differ
    with torch.inference_mode():
        np.testing.assert_array_equal(sliding_window(volume, lambda c: navi._predict(c, 1), side, step), expected)
        batched = sliding_window(volume, lambda c: navi._predict(c, 5), side, step)
    np.testing.assert_allclose(batched, expected, atol=1e-5)


def components_by_search(mask: NDArray[np.bool_], reach: int) -> list[set[tuple[int, ...]]]:
    """Connected voxels by flood fill; neighbours differ by at most 1 along at most `reach` axes."""
    steps = [s for s in product((-1, 0, 1), repeat=3) if 0 < np.abs(s).sum() <= reach]
    left = {tuple(map(int, voxel)) for voxel in np.argwhere(mask)}
    parts = []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            voxel = edge.pop()
            part.add(voxel)
            near = {tuple(a + b for a, b in zip(voxel, step, strict=True)) for step in steps} & left
            left -= near
            edge += near
        parts.append(part)
    return parts


def largest(parts: list[set[tuple[int, ...]]]) -> list[set[tuple[int, ...]]]:
    return [part for part in parts if len(part) == max(map(len, parts))]


@pytest.mark.parametrize("density", [0.04, 0.08, 0.15, 0.3, 0.7, 0.85, 0.95])
def test_largest_tree_equals_brute_force(density: float) -> None:
    rng = np.random.default_rng(int(100 * density))
    for _ in range(4):
        mask = rng.random((7, 9, 8)) < density
        answers = []
        for tree in largest(components_by_search(mask, 2)):
            outside = np.ones(mask.shape, bool)
            outside[tuple(np.array(sorted(tree)).T)] = False
            for background in largest(components_by_search(outside, 3)):
                filled_tree = np.ones(mask.shape, bool)
                filled_tree[tuple(np.array(sorted(background)).T)] = False
                answers.append(filled_tree)
        assert any(np.array_equal(largest_tree(mask), answer) for answer in answers)


def test_largest_tree_contacts_cavities_and_extremes() -> None:
    mask = np.zeros((12, 12, 12), bool)
    mask[1:6, 1:6, 1:6] = True
    mask[3, 3, 3] = False  # a closed cavity
    mask[6, 6, 2] = True  # by an edge: kept
    mask[7, 7, 3] = True  # by a corner: another part
    expected = mask.copy()
    expected[3, 3, 3], expected[7, 7, 3] = True, False
    np.testing.assert_array_equal(largest_tree(mask), expected)
    mask[3, 3, 1:3] = mask[3, 3, 4:6] = False  # opened to both sides
    assert not largest_tree(mask)[3, 3, 3]
    assert not largest_tree(np.zeros((4, 5, 6), bool)).any()
    assert largest_tree(np.ones((4, 5, 6), bool)).all()


def checkpoint(path: Path, network: AirwayNet, change: Callable[[dict], object] = lambda state: None) -> Path:
    """What the authors' training leaves; `change` edits the state dict before."""
    state = dict(network.state_dict())
    change(state)
    torch.save({"model_state_dict": state}, path)
    return path


@pytest.mark.parametrize("finder", [0, 1])
def test_segment_from_files(tmp_path: Path, finder: int) -> None:
    files = [checkpoint(tmp_path / f"{i}.pkl", dark_finder(found=i == finder)) for i in (0, 1)]
    tube = bent_tube((20, 25, 40))
    hu = np.where(tube, -950, 40).astype(np.int16)
    mask = NaviAirway.load(*files).segment(hu)
    assert mask.dtype == np.uint8
    tube[1, 23, 1] = False  # the speck
    np.testing.assert_array_equal(mask, tube)


def test_segment_over_several_windows() -> None:
    tube = bent_tube((34, 132, 40))
    navi = NaviAirway([dark_finder(**NARROW), dark_finder(found=False, **NARROW)])
    mask = navi.segment(np.where(tube, -950.0, 40.0))
    tube[1, 130, 1] = False
    np.testing.assert_array_equal(mask, tube)
    assert not navi.segment(np.full((16, 16, 16), 40)).any()


def test_mask_is_the_union_above_one_half(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = np.random.default_rng(5).choice([0.2, 0.5, np.nextafter(np.float32(0.5), np.float32(1))], (2, 9, 8, 10))
    monkeypatch.setattr(NaviAirway, "probabilities", lambda self, hu: maps)
    expected = largest_tree((maps[0] > 0.5) | (maps[1] > 0.5))
    np.testing.assert_array_equal(NaviAirway([]).segment(np.zeros((9, 8, 10))), expected)
    assert 0 < expected.mean() < 1


def test_full_precision_while_predicting() -> None:
    seen = []
    network = dark_finder(**NARROW)
    network.register_forward_hook(lambda _m, inputs, out: seen.append((inputs[0].dtype, out.dtype, tf32())))

    def tf32() -> bool:
        return torch.backends.cudnn.allow_tf32

    before = tf32()
    NaviAirway([network]).probabilities(np.zeros((8, 8, 8), np.int16))
    assert seen == [(torch.float32, torch.float32, False)]
    assert tf32() is before


def test_batches_fill_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    navi = NaviAirway([dark_finder(**NARROW)])
    assert navi._batch_size(CROP) == 1
    navi.device = torch.device("cuda")
    monkeypatch.setattr(naviairway, "peak_bytes", lambda call, device: 10)
    for available, expected in ((100, 7), (5, 1)):
        monkeypatch.setattr(naviairway, "available_bytes", lambda device, n=available: n)
        assert navi._batch_size(CROP) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_equals_cpu(scan: NDArray) -> None:
    cpu, gpu = (NaviAirway([filled(), filled(**NARROW)], device).probabilities(scan) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu, cpu, atol=1e-4)


@pytest.mark.parametrize(
    ("hu", "message"),
    [
        (np.zeros((8, 7, 8)), "s01: \\(8, 7, 8\\) voxels, .* three axes of at least 8"),
        (np.zeros((8, 8)), "s01: .* three axes"),
        (np.full((8, 8, 8), np.nan), "s01: .*not finite; replace"),
    ],
)
def test_volumes_it_cannot_take(hu: NDArray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NaviAirway([dark_finder(**NARROW)]).segment(hu, "s01")


def test_forms_of_a_checkpoint(tmp_path: Path) -> None:
    network = filled()
    plain = network.state_dict()
    torch.save(
        {"model_state_dict": {f"module.{k}": v for k, v in plain.items()}, "epoch": 3}, tmp_path / "parallel.pkl"
    )
    torch.save({k: v.double() for k, v in plain.items()}, tmp_path / "alone.pth")
    for name in ("parallel.pkl", "alone.pth"):
        loaded = load_network(tmp_path / name)
        assert not loaded.training
        for key, value in loaded.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, plain[key])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("final_conv.bias"), "tensor final_conv.bias is missing; give checkpoint.pkl or"),
        (lambda s: s.update(extra=torch.zeros(1)), "tensor extra is unknown; give"),
        (lambda s: s.update({"final_conv.bias": torch.zeros(3)}), r"shape \(3,\), expected \(2,\); give"),
        (lambda s: s["final_conv.bias"].fill_(np.inf), "final_conv.bias holds values that are not finite; fetch"),
        (lambda s: s.update(epoch=3), "holds no state dict; give"),
    ],
)
def test_checkpoint_that_does_not_fit(tmp_path: Path, change: Callable[[dict], object], message: str) -> None:
    path = checkpoint(tmp_path / "wrong.pkl", dark_finder(), change)
    with pytest.raises(InputError, match=f"wrong.pkl: .*{message}"):
        load_network(path)


def test_narrow_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wants"):
        load_network(checkpoint(tmp_path / "narrow.pkl", AirwayNet(**NARROW)))


class Code:
    def __reduce__(self):
        return (print, ("code of a checkpoint was run",))


def test_files_that_are_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.pkl"
    with pytest.raises(InputError, match=r"x.pkl: no such file; .*checkpoint_semi_supervise_learning.pkl, 43 MB"):
        load_network(path)
    whole = checkpoint(tmp_path / "whole.pkl", AirwayNet(**NARROW)).read_bytes()
    for content in (b"", b"<html>sign in</html>", whole[: len(whole) // 2], pickle.dumps({"model_state_dict": Code()})):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x.pkl: cannot be read as tensors"):
            load_network(path)
    for value, message in ((torch.zeros(2), "holds a Tensor"), ({"model_state_dict": [1]}, "no state dict")):
        torch.save(value, path)
        with pytest.raises(InputError, match=f"x.pkl: holds.*{message.split()[-1]}"):
            load_network(path)
    assert "was run" not in capsys.readouterr().out


def test_the_same_checkpoint_twice_is_refused(tmp_path: Path) -> None:
    files = [checkpoint(tmp_path / f"{name}.pkl", dark_finder()) for name in "ab"]
    with pytest.raises(InputError, match=r"b.pkl: holds the same weights as .*a.pkl; give checkpoint.pkl"):
        NaviAirway.load(*files)
