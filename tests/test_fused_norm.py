"""Group norm, affine and SiLU as one operation: its values, gradients, layouts and memory; the kernels without a GPU.

The Triton kernels run in Triton's interpreter. It is not in the locked environment, because its wheel has 190 MB; where
it is missing, these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from parity import filled_network
from test_fast import TOLERANCE, pair
from torch import nn

from medsyn.live_bytes import META, CudaRules, LiveBytes
from medsyn.models.blocks import ConvUnit
from medsyn.models.fast import fused_norm
from medsyn.models.fast.blocks import conv_unit
from medsyn.models.fast.context import is_channels_last
from medsyn.models.fast.fused_norm import norm_silu, triton_kernels, without_triton
from medsyn.models.fast.unet import FastUNet, set_activation_checkpointing, set_channels_last_on_gpu

CPU = torch.device("cpu")
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def case(layout, dtype=torch.float32, ratio=0.5, channels=56, shared=False):
    """A norm, x, scale, shift and a gradient; the mean of x is `ratio` of its deviation."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(8, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, dy = (torch.randn(2, channels, 5, 8, 6, device=CPU).contiguous(memory_format=layout) for _ in range(2))
    scale, shift = torch.randn(2, 1 if shared else 2, channels)
    return norm, (x + ratio).to(dtype), scale, shift, dy.to(dtype)


def results(function, norm, x, scale, shift, dy):
    """Value and gradients of x, scale, shift, and the norm's weights."""
    given = [value.detach().clone().requires_grad_() for value in (x, scale, shift)]
    norm.zero_grad()
    y = function(norm, *given)
    y.backward(dy)
    return [y.detach(), *(value.grad for value in given), norm.weight.grad.clone(), norm.bias.grad.clone()]


def plain(norm, x, scale, shift):
    x = norm(x) * (1 + scale)[:, :, None, None, None] + shift[:, :, None, None, None]
    return torch.nn.functional.silu(x)


@pytest.mark.parametrize("slab", [2**25, 700])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "ratio", "tolerance"),
    [
        (torch.float32, 0.5, 2e-6),
        (torch.float32, 1000.0, 2e-4),  # x itself is rounded to 3e-5 of its deviation
        (torch.bfloat16, 0.5, 8e-3),
        (torch.float16, 0.5, 1e-3),
    ],
)
def test_values_and_gradients_are_those_of_double_precision(dtype, ratio, tolerance, layout, shared, slab, monkeypatch):
    monkeypatch.setattr(fused_norm, "_SLAB", slab)
    norm, *given = case(layout, dtype, ratio, shared=shared)
    ours = results(norm_silu, norm, *given)
    assert ours[0].dtype == dtype and ours[0].stride() == given[0].stride() == ours[1].stride()
    exact = results(plain, norm.double(), *(value.double() for value in given))
    for a, b in zip(ours, exact, strict=True):
        assert (a.double() - b).abs().max() < tolerance * b.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_those_of_finite_differences(layout):
    torch.manual_seed(0)
    norm = nn.GroupNorm(3, 6).double()
    x = torch.randn(2, 6, 2, 3, 2, dtype=torch.double).contiguous(memory_format=layout).requires_grad_()
    scale, shift = (torch.randn(1, 6, dtype=torch.double, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *given: norm_silu(norm, *given), (x, scale, shift))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_operator_is_registered_as_the_compiler_needs_it(layout):
    """Schema, shapes and strides without data, autograd, and capture with changing shapes."""
    x = torch.randn(2, 6, 2, 3, 2).contiguous(memory_format=layout).requires_grad_()
    gain = torch.randn(2, 6, requires_grad=True)
    torch.library.opcheck(torch.ops.medsyn.norm_silu.default, (x, gain, torch.randn(1, 6).expand(2, 6), 3, 1e-5))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_compiled_unit_is_one_graph_with_the_same_gradients(layout):
    norm, *given = case(layout)
    plainly = results(norm_silu, norm, *given)
    compiled = results(torch.compile(norm_silu, backend="aot_eager", fullgraph=True), norm, *given)
    for a, b in zip(compiled, plainly, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("text", [True, False])
def test_a_network_with_it_gives_the_prediction_and_gradients_of_the_plain_one(text, last):
    reference, network, x, given = pair({}, text)
    network.norm, network.channels_last = "fused", last
    if text:
        given["drop_text"] = torch.tensor([True, False])
    tau = torch.tensor([37.0, 912.5])
    exact = reference.double()(
        x.double(),
        tau.double(),
        **{name: value if value.dtype == torch.bool else value.double() for name, value in given.items()},
    )
    exact.square().mean().backward()
    trained = network(x, tau, **given)
    trained.square().mean().backward()
    with torch.no_grad():
        assert (network(x, tau, **given) - exact).abs().max() < TOLERANCE
    assert (trained - exact).abs().max() < TOLERANCE
    for (name, parameter), wanted in zip(network.named_parameters(), reference.parameters(), strict=True):
        assert (parameter.grad - wanted.grad).abs().max() < 1e-3 * (1e-3 + wanted.grad.abs().max()), name


def test_a_compiled_network_with_it_trains_alike_under_mixed_precision_and_checkpointing():
    def gradients(compiled):
        _, network, x, given = pair({"mults": (1,)}, text=False)
        set_activation_checkpointing(network.train(), True).norm = "fused"
        if compiled:
            network.compile(backend="aot_eager")
        with torch.autocast("cpu", torch.bfloat16):
            network(x, torch.tensor([37.0, 912.5]), **given).float().square().mean().backward()
        return [parameter.grad for parameter in network.parameters()]

    for a, b in zip(gradients(True), gradients(False), strict=True):
        assert (a - b).abs().max() <= 0.02 * b.abs().max()  # the compiler rounds to bfloat16 in other places


def test_the_layout_on_a_gpu_is_a_switch_that_keeps_the_weights_values():
    network = filled_network("sr", "A", FastUNet)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert not network.channels_last_on_gpu
    set_channels_last_on_gpu(network, True)
    assert network.channels_last_on_gpu and is_channels_last(network.downs[0].first.block1.proj.weight)
    assert is_channels_last(network.bfloat16().downs[0].first.block1.proj.weight)
    set_channels_last_on_gpu(network, False)
    assert all(value.is_contiguous() for value in network.state_dict().values())
    assert all(torch.equal(before[name].bfloat16(), value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("norm", ["separate", "fused"])
def test_what_is_kept_for_the_backward_pass_is_counted_without_data(norm):
    """The same bytes as on a CPU, with data; one operation keeps x only, where three keep three volumes."""
    kept = []
    for device in (META, CPU):
        unit = ConvUnit(8, 24, (1, 3, 3), 4).to(device)
        x = torch.empty(2, 8, 4, 16, 16, device=device).requires_grad_()
        scale, shift = torch.empty(2, 2, 24, device=device).requires_grad_()
        live = LiveBytes(device)
        with live, CudaRules():
            y = conv_unit(unit, x, scale, shift, norm=norm)
        kept.append(live.live)
        del y
    volume = 4 * 2 * 24 * 4 * 16 * 16
    assert kept[0] == pytest.approx(kept[1], rel=0.01)
    assert kept[0] == pytest.approx(volume * (2 if norm == "fused" else 4), rel=0.05)


def test_kernels_that_fail_or_err_are_not_used_and_named(monkeypatch, caplog):
    """No compiler on the node, or a wrong result: PyTorch's reductions take over with one line."""

    def fails(*_given):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    def wrong(*given):
        return tuple(2 * value for value in fused_norm._torch_forward(*given))

    for forward, words in ((fails, "fails: Failed to find C compiler."), (wrong, "wrong by")):
        module = SimpleNamespace(forward=forward, backward=fused_norm._torch_backward)
        monkeypatch.setattr("medsyn.models.fast.norm_kernels", module, raising=False)
        monkeypatch.setitem(sys.modules, "medsyn.models.fast.norm_kernels", module)
        triton_kernels.cache_clear()
        caplog.clear()
        assert triton_kernels(CPU) is None
        (record,) = caplog.records
        assert words in record.message and "\n" not in record.message
    module.forward = fused_norm._torch_forward
    triton_kernels.cache_clear()
    assert triton_kernels(CPU) is module
    triton_kernels.cache_clear()


def test_the_kernels_can_be_switched_off():
    assert fused_norm._triton_allowed
    with pytest.raises(ZeroDivisionError), without_triton():
        assert not fused_norm._triton_allowed
        raise ZeroDivisionError
    assert fused_norm._triton_allowed


def start(task, **environment):
    command = [sys.executable, str(ROOT / "tests/interpreted_norms.py"), task]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
def test_the_kernels_in_the_interpreter_against_double_precision():
    """Every channel count, layout and type; loops with several turns; 64-bit offsets (volumes above 2^31 values)."""
    found = start("run", TRITON_INTERPRET="1")  # half a minute of one core
    assert found["offsets"] == ["int64"]
    assert found["loops"] == ["chunks", "steps", "tiles"]
    assert len(found["errors"]) == 14
    for name, errors in found["errors"].items():
        tolerance = 8e-3 if "bfloat16" in name else 1e-3 if "float16" in name else 2e-4 if "far" in name else 3e-6
        assert max(errors.values()) < tolerance, (name, errors)


@needs_triton
def test_the_kernels_compile_for_gpus():
    """For compute capability 8.0 and 9.0 and for AMD's CDNA 3, to machine code."""
    found = start("compile", TRITON_INTERPRET="0")
    assert {name: len(kernels) for name, kernels in found.items()} == {"80": 24, "90": 24, "gfx942": 24}
