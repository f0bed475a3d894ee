"""The self-test of 3-D convolutions before a GPU stage, with other versions and other results in place of a GPU."""

from __future__ import annotations

import tomllib
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from packaging.requirements import Requirement

from medsyn import device
from medsyn.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA device by name: versions and results are set by the test."""

    def set_up(torch_version="2.13.0+cu130", cudnn=92000, error=0.002):
        monkeypatch.setattr(torch, "__version__", torch_version)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Test GPU")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(device, "convolution_error", lambda _device, _dtype: error)
        device.check_convolutions.cache_clear()

    yield set_up
    device.check_convolutions.cache_clear()


@pytest.mark.parametrize(
    ("torch_version", "cudnn", "fault"),
    [
        ("2.6.0+cu124", 90100, None),
        ("2.7.1+cu128", 90701, None),
        ("2.8.0+cu128", 91002, "wrong"),
        ("2.8.0+cu128", 90800, "wrong"),
        ("2.9.0+cu130", 91300, "slow"),
        ("2.9.0+cu130", 92000, "slow"),
        ("2.9.1+cu130", 91300, "slow"),
        ("2.9.1+cu130", 92000, None),
        ("2.10.0+cu128", 91002, "slow"),
        ("2.11.0+cu130", 91900, None),
        ("2.13.0+cpu", None, None),
    ],
)
def test_versions_that_are_known_to_be_wrong_or_slow(torch_version, cudnn, fault):
    assert device.known_fault(torch_version, cudnn) == fault


def test_a_wrong_convolution_ends_a_gpu_stage_with_one_line(gpu):
    gpu(error=0.3)
    with pytest.raises(InputError, match=r"torch 2\.13\.0\+cu130 with cuDNN 92000 .* Test GPU: .* 0\.3, .*; install"):
        device.network_device()
    gpu(error=float("nan"))
    with pytest.raises(InputError, match="nan"):
        device.network_device()
    gpu("2.8.0+cu128", 91002)
    with pytest.raises(InputError, match=r"torch 2\.8\.0\+cu128 with cuDNN 91002 .*; install torch 2\.11"):
        device.network_device()


def test_a_slow_convolution_is_a_warning_and_a_right_one_is_silent(gpu, caplog):
    gpu("2.9.1+cu130", 91300)
    assert device.network_device() == torch.device("cuda")
    device.network_device()
    assert len(caplog.messages) == 1, "once per process"
    assert "torch 2.9.1+cu130 with cuDNN 91300" in caplog.text and "install torch 2.11" in caplog.text
    caplog.clear()
    gpu()
    device.network_device()
    assert not caplog.messages


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_error_of_a_convolution(dtype, monkeypatch):
    """On a CPU, where both are right; then with the last slices left out, as an overflowing index does."""
    assert 1e-4 < device.convolution_error(CPU, dtype) < device.TOLERANCE / 4
    convolve = torch.nn.functional.conv3d

    def broken(volume, kernel, padding):
        result = convolve(volume, kernel, padding=padding)
        if volume.dtype == dtype:
            result[:, :, -1] = 0
        return result

    monkeypatch.setattr(device.functional, "conv3d", broken)
    assert device.convolution_error(CPU, dtype) > device.TOLERANCE


def test_a_training_run_on_a_gpu_begins_with_the_test(gpu, monkeypatch):
    from medsyn.training import processes

    gpu(error=1.0)
    facts = {"device": torch.device("cuda"), "num_processes": 1, "is_main_process": True, "scaler": None}
    accelerator = SimpleNamespace(**facts)
    monkeypatch.setattr(processes, "Accelerator", lambda **_settings: accelerator)
    with pytest.raises(InputError, match="convolves volumes wrongly"):
        processes.make_accelerator("bf16")


def test_the_package_admits_no_torch_whose_wheels_convolve_wrongly_or_slowly():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    torch_needed = next(r for r in map(Requirement, project["dependencies"]) if r.name == "torch")
    assert not list(torch_needed.specifier.filter(["2.8.0", "2.9.0", "2.9.1", "2.10.0"]))
    assert torch_needed.specifier.contains("2.13.0")
