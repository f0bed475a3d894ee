"""`benchmarks/gpu.py` on a CPU with small networks, and the other ways to compute 1x3x3 convolutions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from torch import nn

SCRIPT = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--device", "cpu"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
ONLY = [
    "installation",
    "plain",
    "volume",
    "last, compiled",
    "last, checkpointing",
    "low_res bf16, fused norm, channels last, cudnn",
]
ONLY += ["norm 2 x 24", "1x3x3: conv2d"]


@pytest.fixture
def benchmark(monkeypatch):
    """The modules of benchmarks/ can be imported."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def rows_of(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_every_kind_of_row_and_the_settings_that_they_choose(tmp_path):
    command = [*SCRIPT, "--tiny", "--out", str(tmp_path), "--minutes", "20", "--only", *ONLY]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path)
    assert {row["part"] for row in rows} == {"installation", "denoising", "training", "volume", "norm", "end"}
    steps = [row for row in rows if row["part"] in ("denoising", "training")]
    for row in steps:
        if "cudnn attention" in row["form"]:  # a CPU does not have it
            assert row["seconds"] is None and row["note"].startswith("RuntimeError")
        else:
            assert row["seconds"] > 0 and row["tflops"] > 0 and not row["note"], row
            assert row["diff"] is None or row["diff"] < 0.05
    assert {row["form"] for row in steps} >= {
        "plain",
        "bf16, fused norm, channels last, compiled",
        "bf16, fused norm, channels last, checkpointing",
        "bf16, fused norm, channels last, 1x3x3: conv2d of slices",
    }
    assert {row["network"] for row in rows if row["part"] == "volume"} == {"4+2", "2+1"}
    assert rows[-1]["note"] == "complete"
    page = (tmp_path / "gpu.md").read_text()
    assert page.count("\n| ") == len(rows) + 2
    for part in ("low_res, denoising", "low_res, training", "super_res, training", "one volume at 4+2 steps"):
        assert f"\n- {part}: " in page


def test_the_activations_counted_with_the_fused_norm_are_fewer(tmp_path):
    command = [*SCRIPT, "--tiny", "--out", str(tmp_path), "--only", "training low_res bf16"]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    counted = {row["form"]: row["counted"] for row in rows_of(tmp_path) if row["counted"] is not None}
    assert counted["bf16, fused norm"] < counted["bf16, separate norm"]


def test_a_run_that_is_stopped_has_written_what_it_measured(tmp_path):
    with subprocess.Popen([*SCRIPT, "--tiny", "--out", str(tmp_path)], env=ENVIRONMENT, cwd=ROOT) as process:
        while not (tmp_path / "gpu.md").exists() or len(rows_of(tmp_path)) < 6:
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 1
    rows = rows_of(tmp_path)
    assert rows[-1]["note"] == "stopped by SIGTERM" and "stopped by SIGTERM" in (tmp_path / "gpu.md").read_text()
    assert sum(row["seconds"] is not None for row in rows) >= 1


def test_a_run_without_time_says_what_it_did_not_measure(tmp_path):
    command = [*SCRIPT, "--tiny", "--out", str(tmp_path), "--minutes", "0"]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(tmp_path)
    assert "measurements not made (installation versions, ...)" in row["note"]


def test_a_measurement_that_fails_or_takes_too_long_is_a_row(benchmark, tmp_path):
    from gpu_report import Measurement, Report, Row

    def fails():
        yield Row("norm", "first", "half", seconds=1.0)
        raise ValueError("second half\nand more")

    def hangs():
        time.sleep(30)
        yield Row("norm", "never", "")

    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    report = Report(tmp_path, torch.device("cpu"), "title")
    work = {"fails": (fails, 9.0), "hangs": (hangs, 0.2), "large": (too_large, 9.0)}
    report.run([Measurement(Row("norm", name, ""), *given) for name, given in work.items()], 60.0)
    notes = {row["network"]: row["note"] for row in rows_of(tmp_path)}
    assert notes["first"] == "" and notes["fails"] == "ValueError: second half"
    assert notes["hangs"].startswith("TimeoutError: given up after") and notes["large"] == "does not fit the memory"


def test_what_is_chosen_is_quick_and_right(benchmark):
    from gpu_report import Row, advice, best

    rows = [
        Row("denoising", "low_res", "plain", 1, seconds=0.1, ratio=1.0),
        Row("denoising", "low_res", "wrong", 1, seconds=0.2, diff=0.5),
        Row("denoising", "low_res", "wrong", 4, seconds=0.4),
        Row("denoising", "low_res", "one", 1, seconds=0.4, diff=0.01, ratio=3.0),
        Row("denoising", "low_res", "four", 4, seconds=1.2, ratio=4.0),
        Row("denoising", "low_res", "failed", 1, note="does not fit the memory"),
    ]
    assert best(rows, "denoising", "low_res").form == "four"
    assert best(rows[:3], "denoising", "low_res") is None
    [line] = advice(rows)[2:]
    assert line == (
        "- low_res, denoising: four, batch 4: 1.2 s, 4.0 times the plain form; its difference was not measured"
    )
    [line] = advice([*rows, Row("denoising", "low_res", "four", 1, seconds=0.5, diff=0.02)])[2:]
    assert line.endswith("4.0 times the plain form")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("way", ["conv2d of slices", "gradient as a convolution", "gradient in float32", "as 3x3x3"])
def test_other_ways_of_1x3x3_convolutions_give_its_values_and_gradients(benchmark, way, last):
    import flat_convolutions

    torch.manual_seed(0)
    layer = nn.Conv3d(6, 10, (1, 3, 3), padding=(0, 1, 1)).double()
    layout = torch.channels_last_3d if last else torch.contiguous_format
    x = torch.randn(2, 6, 3, 5, 4, dtype=torch.double).contiguous(memory_format=layout)
    dy = torch.randn(2, 10, 3, 5, 4, dtype=torch.double).contiguous(memory_format=layout)
    found = []
    for name in ("conv3d", way):
        flat_convolutions.use(nn.Sequential(layer), name)
        assert type(layer) is flat_convolutions.WAYS[name]
        given = x.clone().requires_grad_()
        layer.zero_grad()
        y = layer(given)
        y.backward(dy)
        found.append([y.detach(), given.grad, layer.weight.grad.clone(), layer.bias.grad.clone()])
    tolerance = 1e-5 if way == "gradient in float32" else 1e-12
    for ours, wanted in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("way", ["gradient as a convolution", "gradient in float32"])
def test_their_own_gradients_follow_autocast(benchmark, way):
    import flat_convolutions

    layer = nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1))
    flat_convolutions.use(nn.Sequential(layer), way)
    x = torch.randn(1, 4, 2, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad.dtype == layer.weight.grad.dtype == torch.float32
