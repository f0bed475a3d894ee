"""What training reports: memory, operations, TensorBoard, previews."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import stage
from torch import nn
from training_runs import SETTINGS, command, quadratic

from medsyn.cli import main
from medsyn.files import read_csv
from medsyn.models.weights import build
from medsyn.training.cost import GIB, count_flops
from medsyn.training.loop import DivergedError, train
from medsyn.training.metrics import METRIC_COLUMNS
from medsyn.training.need import Need
from medsyn.training.processes import make_accelerator
from medsyn.training.throughput import Throughput


def test_pictures_on_the_way_and_event_files_outlive_the_state(training_data, tmp_path, monkeypatch):
    out = tmp_path / "low_res.safetensors"
    settings = {"preview_every": 5, "tensorboard": True, "activation_checkpointing": True}
    monkeypatch.setattr("medsyn.training.throughput.peak_tflops", lambda _device, _precision: 0.1)
    assert main([*command(training_data, out, **settings), "--quiet"]) == 0
    pictures = sorted((tmp_path / "low_res_previews").iterdir())
    assert [path.name for path in pictures] == ["step_00000005.png", "step_00000010.png"]
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    assert list((tmp_path / "low_res_tensorboard").glob("events.*")) and not (tmp_path / "low_res_state").exists()
    for row in read_csv(tmp_path / "low_res_metrics.csv", METRIC_COLUMNS):
        assert float(row["tflops_per_second"]) > 0 and 0 < float(row["flop_utilisation"]) < 10


def test_previews_show_the_average_and_leave_the_training_alone(tmp_path):
    seen = {}

    def preview(network, step):
        assert not network.training and not torch.is_grad_enabled()
        seen[step] = network.weight.detach().clone()

    task = replace(quadratic(), preview=preview)
    shown = train(task, SETTINGS.model_copy(update={"preview_every": 8}), tmp_path / "a")
    assert sorted(seen) == [8, 16]
    plain = train(quadratic(), SETTINGS, tmp_path / "b")
    assert torch.equal(shown.network.weight, plain.network.weight)
    short = train(quadratic(), SETTINGS.model_copy(update={"num_steps": 8}), tmp_path / "c")
    assert torch.equal(seen[8], short.network.weight)  # the average after step 8


def test_metrics_tell_memory_and_the_share_of_the_peak(tmp_path, monkeypatch):
    task = replace(quadratic(), flops=lambda: 2_000_000)
    monkeypatch.setattr("medsyn.training.throughput.peak_tflops", lambda _device, _precision: 0.5)
    rows = train(task, SETTINGS, tmp_path / "a").metrics
    for row in rows:
        assert row["tflops_per_second"] == pytest.approx(row["samples_per_second"] * 2e-6, rel=0.01)
        assert row["flop_utilisation"] == pytest.approx(row["tflops_per_second"] / 0.5, rel=0.01)
        assert 0.05 < row["peak_memory_gib"] < 100
    unknown = train(quadratic(), SETTINGS, tmp_path / "b").metrics[0]
    assert unknown["tflops_per_second"] is None and unknown["flop_utilisation"] is None


def test_the_log_says_counted_beside_measured_memory(tmp_path, monkeypatch, caplog):
    """On a GPU allocated and counted, and before the first step a warning where the card is too small."""
    settings = SETTINGS.model_copy(update={"num_steps": 1})
    accelerator = make_accelerator("fp32")
    task = replace(quadratic(), memory=lambda _config, processes: Need({"weights": processes * 2 * GIB}))
    run = Throughput(task.phased(), settings, accelerator)
    run.count()
    assert run.need is None and run.describe_memory(1.5) == "1.5 GiB resident"
    on_gpu = SimpleNamespace(device=torch.device("cuda"), num_processes=2)
    run.accelerator = on_gpu
    monkeypatch.setattr("medsyn.training.throughput.total_bytes", lambda _device: 4 * GIB)
    run.count()
    assert run.describe_memory(1.5) == "1.5 GiB allocated (counted 4.0)"
    assert "more than the GPU's 4.0 GiB" in caplog.text and "medsyn plan" in caplog.text


def test_the_peak_memory_of_a_process_is_not_that_of_its_parent():
    """1.5 GiB are resident when the program that measures begins; it takes about half a GiB itself."""
    measures = (
        "import torch; from medsyn.training.cost import peak_memory_gib; print(peak_memory_gib(torch.device('cpu')))"
    )
    words = [sys.executable, "-c", measures]
    code = f"import os; block = b'x' * (3 << 29); os.execv({sys.executable!r}, {words!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert 0.05 < float(run.stdout) < 1.3


def test_operations_are_counted_by_hand():
    def loss(network, batch):
        return network(batch["x"]).square().mean()

    # forward 2 * 5 * 3 * 2; backward the same for the weights (the input needs no gradient)
    assert count_flops(lambda: nn.Linear(3, 2), loss, {"x": torch.zeros(5, 3)}) == 2 * 60
    # a hidden layer's input needs one: forward 2 * 5 * (3 * 4 + 4 * 2), weights the same, hidden 2 * 5 * 4 * 2
    deep = count_flops(lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), loss, {"x": torch.zeros(5, 3)})
    assert deep == 2 * 200 + 80


def test_operations_of_a_crop_are_those_of_the_release():
    """Super-resolution, order B, crop 256 x 72 x 72: 5.090 TFLOP forward (the release, counted on meta tensors)."""
    settings = stage(
        "super_res", unet={"dim": 56, "mults": (1, 2, 4, 8), "num_heads": 4, "init_kernel": 7, "up_order": "B"}
    )
    x = torch.zeros(1, 4, 256, 72, 72, device="meta")
    flops = count_flops(
        lambda: build(settings, None),
        lambda net, b: net(b["x"], b["t"], condition=b["x"]).sum(),
        {"x": x, "t": torch.zeros(1)},
    )
    first_convolution = 2 * 8 * 56 * 7**3 * 256 * 72**2  # its input needs no gradient
    assert flops == pytest.approx(3 * 5.090e12 - first_convolution, rel=5e-4)


def test_operations_add_up_over_restarts_without_the_steps_that_were_lost(tmp_path):
    """Killed after step 12 with a checkpoint of step 10: 20 steps of 4 samples count, not 22."""
    task = replace(quadratic(), flops=lambda: 10**15)
    with pytest.raises(DivergedError):
        train(replace(quadratic(poison_at=12), flops=lambda: 10**15), SETTINGS, tmp_path / "a")
    rows = train(task, SETTINGS, tmp_path / "a").metrics
    assert [row["training_eflop"] for row in rows] == pytest.approx([0.001 * 4 * row["step"] for row in rows])
    assert rows[-1]["step"] == 20
    hours = [row["training_hours"] for row in rows]
    assert hours == sorted(hours) and hours[0] > 0
    unknown = train(quadratic(), SETTINGS, tmp_path / "b").metrics[-1]
    assert unknown["training_eflop"] is None and unknown["training_hours"] > 0


def test_a_finished_run_that_goes_on_adds_to_its_cost(tmp_path):
    task = replace(quadratic(), flops=lambda: 10**15)
    first = train(task, SETTINGS, tmp_path / "a").metrics[-1]
    last = train(task, SETTINGS.model_copy(update={"num_steps": 30}), tmp_path / "a").metrics[-1]
    assert last["training_eflop"] == pytest.approx(1.5 * first["training_eflop"])
    assert last["training_hours"] > first["training_hours"]


def test_hours_on_a_cpu_are_processor_time(tmp_path):
    """A task that sleeps costs nothing; one that computes costs what it computes."""

    def busy(_step):
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    idle = train(quadratic(on_step=lambda _step: time.sleep(0.02)), SETTINGS, tmp_path / "a").metrics[-1]
    work = train(quadratic(on_step=busy), SETTINGS, tmp_path / "b").metrics[-1]  # 40 micro-batches
    assert 3600 * work["training_hours"] > 0.8
    assert 3600 * (work["training_hours"] - idle["training_hours"]) > 0.4


def test_operations_are_those_of_the_phases_that_take_part():
    """A sample of a step has 3 operations, and 10 from step 4 on, where a second phase begins."""
    [phase] = quadratic().phased().phases
    phases = (phase, replace(phase, name="late", first_step=4))
    task = replace(quadratic().phased(), phases=phases, flops=lambda step: 3 if step < 4 else 10)
    run = Throughput(task, SETTINGS, make_accelerator("fp32"))
    run.count()
    sums = [run.cost(step)["flop"] for step in (3, 6, 7)]
    assert sums == [SETTINGS.batch_size * total for total in (3 * 3, 4 * 3 + 2 * 10, 4 * 3 + 3 * 10)]


@pytest.mark.parametrize(("device", "clock", "seconds"), [("cuda", "monotonic", 6.0), ("cpu", "process_time", 5.0)])
def test_hours_are_those_of_all_processes(device, clock, seconds, monkeypatch):
    """Two processes for 3 s on GPUs, 3 s of processor time here and 2 s in the other process."""
    now = [10.0]
    monkeypatch.setattr(f"medsyn.training.throughput.time.{clock}", lambda: now[0])
    both = SimpleNamespace(device=torch.device(device), num_processes=2, reduce=lambda value, _how: value + 2)
    run = Throughput(replace(quadratic(), flops=lambda: 7).phased(), SETTINGS, both)
    run.flops = {0: 7}
    run.resume({"flop": 100, "device_seconds": 50.0})
    run.start(5)
    now[0] += 3
    assert run.cost(8) == {"flop": 100 + 7 * SETTINGS.batch_size * 3, "device_seconds": 50 + seconds}


def test_tensorboard_gets_the_metrics(tmp_path):
    """Read by TensorBoard itself: a resumed run goes on in the same curves."""
    settings = SETTINGS.model_copy(update={"tensorboard": True})
    with pytest.raises(DivergedError):
        train(quadratic(poison_at=12), settings, tmp_path / "state")
    rows = train(quadratic(), settings, tmp_path / "state").metrics
    events = EventAccumulator(str(tmp_path / "state" / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {name for name in METRIC_COLUMNS[1:] if rows[0][name] is not None}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (row["step"], pytest.approx(row["loss"])) for row in rows
    ]


def test_without_tensorboard_training_says_so_and_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level("INFO", logger="medsyn"):
        train(quadratic(), SETTINGS.model_copy(update={"tensorboard": True}), tmp_path / "state")
    assert sum("tensorboard is not installed" in message for message in caplog.messages) == 1
    assert not (tmp_path / "state" / "tensorboard").exists()
