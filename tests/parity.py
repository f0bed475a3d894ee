"""Deterministic values of the parity numbers (a hash of positions, parameters filled from it) and their comparison.

The rule sorts the authors' parameter names, so the fill also proves that the names are translated correctly.
`pytest --parity-table FILE` writes what `compare` saw as a table.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import nn

from medsyn.config import UNetConfig
from medsyn.models.medsyn_keys import medsyn_names
from medsyn.models.unet import UNet

Network = TypeVar("Network", bound=UNet)
AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)
SHAPE = (2, 4, 6, 16, 12)
TAU = torch.tensor([37.0, 912.5])
PAGE = Path(__file__).parents[1] / "docs/parity.md"
WRITING = any(word.startswith("--parity-table") for word in sys.argv)
ROWS: list[str] = []  # one line of the table per comparison
BASELINE_ROWS: list[str] = []
HEAD = """\
# Parity

A test fails if this page lacks a quantity that it compares.

## The authors' release

Numbers of a specification of the release (networks, intermediate values, schedule, one step, full loops), found with
deterministic weights and inputs by an independent re-implementation of the authors' text, against ours: float32, CPU.
`low` is the low-resolution network, `sr` the super-resolution network, A and B the two orders of the up path. Each row
is one assertion of the tests: all its numbers are compared, the first two are shown. The page is made by

    pytest tests/test_unet.py tests/test_diffusion.py tests/test_gan_networks.py tests/test_hagan.py \\
        tests/test_medical_diffusion.py --parity-table docs/parity.md

The state dict at mults 2-3-6-8 has 379 keys; the specification says 377, but its number of parameters, which we
reproduce, includes the two keys of a residual convolution, because the first level changes its width there.

| quantity | numbers | specification (first two) | ours | largest difference | tolerance |
| --- | ---: | --- | --- | ---: | ---: |
"""


BASELINES_HEAD = """
## The baselines

WGAN, alpha-GAN, HA-GAN and Medical Diffusion ([baselines.md](baselines.md)) against a specification of their public
code, with the same rule for weights and inputs: float32, CPU, training mode. Of a tensor the numbers are how many
values it has, their mean and population standard deviation, the first six and the last three. The form of HA-GAN at
64^3 is not the authors': its numbers are of the specification's own implementation. The rows of operations (TFLOP) are
counted at the paper's widths.

| quantity | specification | ours | largest difference | tolerance |
| --- | --- | --- | ---: | ---: |
"""


def compare(quantity: str, ours: Sequence[float], specified: Sequence[float], tolerance: float, relative=False) -> None:
    """Assert that `ours` equal the numbers `specified` to an absolute or relative `tolerance`; keep a row."""
    shown = [" ".join(f"{value:.9g}" for value in values[:2]) for values in (specified, ours)]
    cells = [quantity, str(len(ours)), *shown]
    ROWS.append(_row(cells, ours, specified, tolerance, relative))
    _check(quantity, ours, specified, tolerance, relative)


def compare_baseline(
    quantity: str, ours: Sequence[float], specified: str | Sequence[float], tolerance: float, relative=False
) -> None:
    """As `compare`, for a network of a baseline; the row shows all numbers. A text has them separated by spaces."""
    numbers = [float(word) for word in specified.split()] if isinstance(specified, str) else list(specified)
    shown = [
        " ".join(f"{value:.9g}" if value == int(value) else f"{value:.6f}" for value in values)
        for values in (numbers, ours)
    ]
    BASELINE_ROWS.append(_row([quantity, *shown], ours, numbers, tolerance, relative))
    _check(quantity, ours, numbers, tolerance, relative)


def _row(cells: list[str], ours: Sequence[float], specified: Sequence[float], tolerance: float, relative: bool) -> str:
    differences = [abs(a - b) / (abs(b) if relative else 1) for a, b in zip(ours, specified, strict=True)]
    kind = " relative" if relative else ""
    return f"| {' | '.join(cells)} | {max(differences):.1e} | {tolerance:.1e}{kind} |\n"


def _check(quantity: str, ours: Sequence[float], specified: Sequence[float], tolerance: float, relative: bool) -> None:
    assert list(ours) == pytest.approx(list(specified), **{"rel" if relative else "abs": tolerance}), quantity
    if not WRITING:
        assert f"\n| {quantity} | " in PAGE.read_text(encoding="utf-8"), f"{PAGE}: {quantity} is missing; make it again"


def table() -> str:
    """Return the page with all rows so far."""
    return HEAD + "".join(ROWS) + BASELINES_HEAD + "".join(BASELINE_ROWS)


def summary(values: torch.Tensor) -> list[float]:
    """Number of elements, mean, population standard deviation, the first six and the last three."""
    flat = values.detach().double().flatten()
    return [len(flat), flat.mean().item(), flat.std(unbiased=False).item(), *flat[:6].tolist(), *flat[-3:].tolist()]


def count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def hashed(count: int, tag: int) -> np.ndarray:
    """`count` values in [-1, 1) of stream `tag`."""
    mask = np.uint64(0xFFFFFFFF)
    h = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(2654435761) + np.uint64((tag + 1) * 2246822519 % 2**32)
    h &= mask
    for shift, factor in ((15, 2246822519), (13, 3266489917)):
        h ^= h >> np.uint64(shift)
        h = h * np.uint64(factor) & mask
    h ^= h >> np.uint64(16)
    return h.astype(np.float64) / 2**31 - 1


def tensor(shape: tuple[int, ...], tag: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of hashed values."""
    return torch.from_numpy(scale * hashed(int(np.prod(shape)), tag)).to(dtype).reshape(shape)


def fill(value: torch.Tensor, name: str, rank: int) -> None:
    """Set the parameter `name`, number `rank` of the sorted names, to its hashed values."""
    v = hashed(value.numel(), rank)
    if name.endswith(".gamma") or (name.endswith(".weight") and value.ndim == 1):
        v = 1 + 0.1 * v
    elif name.endswith(".bias"):
        v = 0.1 * v
    elif name != "null_cond_emb":
        v = v * np.sqrt(3 * value.shape[0] / value.numel())
    value.copy_(torch.from_numpy(v).float().reshape(value.shape))


@torch.no_grad()
def filled(network: AnyNetwork, names: Mapping[str, str] | None = None) -> AnyNetwork:
    """Fill every parameter by the rank of its public name; `names` has our name of each, if they differ."""
    own = {name: name for name, _ in network.named_parameters()} if names is None else names
    for rank, name in enumerate(sorted(own)):
        fill(network.get_parameter(own[name]), name, rank)
    return network.train()


def filled_network(kind: str, order: str, build: type[Network] = UNet) -> Network:  # type: ignore[assignment]
    """Build the tiny low-resolution ("low") or super-resolution ("sr") network with hashed parameters."""
    text = kind == "low"
    config = UNetConfig(dim=8, mults=(1, 2, 4), num_heads=2, up_order=order, num_bottom_blocks=4 if text else 1)
    network = build(config, condition_channels=0 if text else 4, cond_dim=24 if text else None, num_tokens=192)
    state = network.state_dict()
    names = {own: several[0] for own, several in medsyn_names(state, config.num_bottom_blocks).items()}
    rank = {name: i for i, name in enumerate(sorted(names.values()))}
    for own, name in names.items():
        fill(state[own], name, rank[name])
    return network.eval()


def inputs(kind: str) -> dict[str, torch.Tensor]:
    """Arguments of the network besides the text."""
    given = {"x": tensor(SHAPE, 100001, 1.7), "tau": TAU}
    return given if kind == "low" else {**given, "condition": tensor(SHAPE, 100003)}


def text_states() -> torch.Tensor:
    """Text states [2, 192, 24]."""
    return tensor((2, 192, 24), 100002, 1.7)
