"""Med3D's ResNet against the parity numbers of an independent implementation (deterministic fill)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from parity import hashed

from medsyn.models.resnet3d import ResNet3d, to_unit


def filled(depth: int) -> ResNet3d:
    """The network in evaluation mode with every parameter set from the hash of the parity numbers."""
    net = ResNet3d(depth, 64).eval()
    with torch.no_grad():
        for rank, (name, parameter) in enumerate(sorted(net.named_parameters())):
            values = hashed(parameter.numel(), rank)
            if parameter.ndim > 1:
                values *= np.sqrt(6 * parameter.shape[0] / parameter.numel())
            else:
                values = 0.1 * values + (1.0 if name.endswith(".weight") else 0.0)
            parameter.copy_(torch.from_numpy(values.astype(np.float32)).reshape(parameter.shape))
    return net


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    return torch.from_numpy(hashed(61440, 400001).astype(np.float32)).reshape(1, 1, 32, 40, 48)


def test_hash_rule() -> None:
    assert hashed(4, 0) == pytest.approx([-0.6660353, -0.17918372, 0.24587787, -0.29354237], abs=1e-7)


@pytest.mark.parametrize(
    ("depth", "mean", "std", "first"),
    [
        (10, 1.789192, 2.279834, [3.503236, 0.001512, 4.069125, 0.003846, 9.066043, 1.483555, 0.581975, 1.803415]),
        (
            50,
            51.304783,
            48.417877,
            [85.715599, 15.533292, 32.146633, 35.897335, 28.654163, 1.404971, 24.876875, 18.116041],
        ),
    ],
)
def test_parity(depth: int, mean: float, std: float, first: list[float], volume: torch.Tensor) -> None:
    with torch.no_grad():
        feature = filled(depth)(volume)[0].double().numpy()
    assert feature.mean() == pytest.approx(mean, rel=1e-4)
    assert feature.std() == pytest.approx(std, rel=1e-4)
    assert feature[:8] == pytest.approx(first, rel=1e-4, abs=2e-6)
    if depth == 50:
        assert feature.max() == pytest.approx(292.696259, rel=1e-4)


@pytest.mark.parametrize(("depth", "parameters", "keys"), [(10, 14_355_520, 72), (50, 46_155_072, 318)])
def test_size_of_the_checkpoint(depth: int, parameters: int, keys: int) -> None:
    with torch.device("meta"):
        net = ResNet3d(depth, 64)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert len(net.state_dict()) == keys


def test_shapes_and_output_stride(volume: torch.Tensor) -> None:
    net = ResNet3d(10, 4).eval()
    shapes = {}
    for name in ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        getattr(net, name).register_forward_hook(lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape)}))
    with torch.no_grad():
        assert net(volume).shape == (1, 32)
    assert shapes["conv1"] == (1, 4, 16, 20, 24)
    assert shapes["maxpool"] == shapes["layer1"] == (1, 4, 8, 10, 12)
    assert shapes["layer4"] == (1, 32, 4, 5, 6)


def test_unknown_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="depth"):
        ResNet3d(34)


def test_window_maps_to_plus_minus_one() -> None:
    hu = torch.tensor([-3000, -1024, -212, 600, 3000], dtype=torch.int16)
    assert to_unit(hu, (-1024.0, 600.0)).tolist() == pytest.approx([-1, -1, 0, 1, 1])
