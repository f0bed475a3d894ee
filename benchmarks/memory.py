"""Compare counted with measured memory (medsyn.training.need), one row per setting, written as it goes.

`python benchmarks/memory.py [--out memory.csv] [--case NAME ...]`, from the repository's root.

On a CPU: small networks of every kind through the project's own training loop (two steps of two micro-batches) and
sampler. `measured` is the highest sum of what PyTorch's CPU allocator holds, as its profiler records it; `reserved` is
the growth of the process's largest resident memory in a run without the profiler. On a GPU, which is taken when there
is one: the networks of config/paper.yaml; `measured` is torch.cuda.max_memory_allocated, `reserved`
max_memory_reserved. What is counted never sees data or device. Both ratios are counted over the other.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import resource
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from medsyn.config import Config, TextEncoderConfig, TrainConfig, UNetConfig, load_config
from medsyn.live_bytes import META, CudaRules, LiveBytes
from medsyn.models.fast.denoiser import prepared_denoiser
from medsyn.models.fast.unet import FastUNet
from medsyn.planning.networks import denoiser, sampling_of, text_training, training_of
from medsyn.planning.sampling import count_sampling, sample_both
from medsyn.text.bert import IGNORED
from medsyn.training.cost import GIB
from medsyn.training.loop import train
from medsyn.training.need import DTYPES, TrainingShapes, count_training
from medsyn.training.task import Task

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("case", "device", "counted_gib", "measured_gib", "ratio", "reserved_gib", "reserved_ratio")
_VOCABULARY = 4000
LARGEST = 256  # of the predictions: about 30 GiB, so only if it is named


@dataclass(frozen=True)
class Case:
    """One setting: the bytes that are counted, and what is to be measured on a device."""

    counted: Callable[[], int]
    work: Callable[[torch.device], object]


def training_case(shapes: TrainingShapes, config: TrainConfig) -> Case:
    """Two steps of the project's training loop on random batches."""
    settings = config.model_copy(update={"num_steps": 2, "batch_size": 2 * config.micro_batch_size, "log_every": 1})

    def work(_device: torch.device) -> None:
        def batch(_step: int, slots: Any) -> dict[str, Tensor]:
            return {name: random_like(name, value) for name, value in shapes.batch(len(slots)).items()}

        task = Task("memory", lambda: as_on_gpu(shapes.build()), batch, shapes.loss)
        with tempfile.TemporaryDirectory() as state:
            train(task, settings, Path(state))

    return Case(lambda: count_training(shapes, settings).counted, work)


def sampling_case(config: Config, batch_size: int) -> Case:
    """A few steps of both resolutions."""
    sampling = sampling_of(config)

    def work(device: torch.device) -> None:
        dtype = DTYPES[config.sampling.precision]
        networks = [as_on_gpu(build()).eval().to(device, dtype) for build in (sampling.low_res, sampling.super_res)]
        language = sampling.language().to(device) if sampling.language else None
        low, high = networks
        fixed = torch.zeros(batch_size, low.channels, *sampling.size, device=device)
        text = None if sampling.text is None else torch.randn(batch_size, *sampling.text, device=device)
        with torch.no_grad():
            sample_both(low, high, config.sampling, fixed, text, sampling.factor)
        del language

    return Case(lambda: max(need.counted for need in count_sampling(sampling, config.sampling, batch_size)), work)


def prediction_case(edge: int, slices: int | None, unet: UNetConfig) -> Case:
    """One prediction of super-resolution of edge^3 voxels in float32, whole or in slabs."""

    def predict(device: torch.device) -> None:
        with torch.no_grad(), device:
            network = as_on_gpu(FastUNet(unet, condition_channels=4)).eval()
            network.slab_slices = slices
            x = torch.zeros(1, 4, edge, edge, edge)
            prepared_denoiser(network, condition=torch.zeros_like(x))(x, 500.0)

    def counted() -> int:
        with LiveBytes() as live, CudaRules():
            predict(META)
        return live.peak

    return Case(counted, predict)


def as_on_gpu(network: nn.Module) -> Any:
    """The network without the memory layout that it would choose on a CPU."""
    if hasattr(network, "channels_last"):
        network.channels_last = False
    return network


def random_like(name: str, shape: Tensor) -> Tensor:
    """Values for a tensor without data."""
    if shape.dtype == torch.bool:
        return torch.zeros(shape.shape, dtype=torch.bool)
    if shape.dtype != torch.long:
        return torch.rand(shape.shape)
    if name == "labels":  # 0.15 of the tokens are predicted
        chosen = torch.rand(shape.shape) < 0.15
        return torch.where(chosen, 5, IGNORED)
    if name == "mask":  # one position is padding
        mask = torch.ones(shape.shape, dtype=torch.long)
        mask[0, -1] = 0
        return mask
    return torch.randint(2, shape.shape)


def small(**train: Any) -> Config:
    """A configuration of small networks: 48^3 volumes, 24^3 at low resolution."""
    values = load_config(ROOT / "config/paper.yaml").model_dump(mode="json")
    unet = {"dim": 16, "mults": [1, 2, 4], "num_heads": 4, "init_kernel": 3}
    values["preprocess"] |= {"size": [48, 48, 48], "low_res_factor": 2}
    values["text"]["num_tokens"] = 64
    for encoder in values["text"]["encoders"].values():
        encoder |= {"init": "scratch", "hidden_size": 128}
    for kind in ("low_res", "super_res"):
        values[kind]["unet"] |= unet
        values[kind]["train"] |= {"precision": "fp32", "ema_every": 1, **train}
    values["super_res"]["train"]["crop_size"] = [32, 24, 24]
    values["sampling"]["precision"] = "fp32"
    return Config(**values)


def denoiser_case(config: Config, kind: str) -> Case:
    """Training of the larger of a configuration's networks of one resolution."""
    stage = denoiser(config, kind)
    return training_case(training_of(config, stage), stage.train)


def text_case() -> Case:
    """Pretraining of a small language model."""
    encoder = TextEncoderConfig(vocabulary_size=_VOCABULARY, hidden_size=128, num_layers=3, max_tokens=128)
    return training_case(text_training(encoder), TrainConfig(batch_size=16, micro_batch_size=8))


def cases(on_gpu: bool) -> dict[str, Callable[[], Case]]:
    """Every setting by name."""
    if not on_gpu:
        return {
            "low_res, fp32, micro batch 2": lambda: denoiser_case(small(micro_batch_size=2), "low_res"),
            "low_res, fp32, micro batch 4, checkpointing": lambda: denoiser_case(
                small(micro_batch_size=4, activation_checkpointing=True), "low_res"
            ),
            "low_res, bf16, micro batch 4": lambda: denoiser_case(
                small(micro_batch_size=4, precision="bf16"), "low_res"
            ),
            "super_res, fp32, micro batch 2": lambda: denoiser_case(small(micro_batch_size=2), "super_res"),
            "super_res, bf16, micro batch 4, checkpointing": lambda: denoiser_case(
                small(micro_batch_size=4, precision="bf16", activation_checkpointing=True), "super_res"
            ),
            "text encoder, fp32, micro batch 8": text_case,
            "sampling, fp32, 4 volumes": lambda: sampling_case(small(), 4),
            **predictions(),
        }
    paper = load_config(ROOT / "config/paper.yaml")
    found: dict[str, Callable[[], Case]] = {}
    for kind, micro, checkpointing in (
        *(("low_res", micro, False) for micro in (1, 2, 4)),
        *(("low_res", micro, True) for micro in (4, 8)),
        *(("super_res", micro, False) for micro in (1, 2)),
        ("super_res", 4, True),
    ):
        section = getattr(paper, kind)
        changes = {"micro_batch_size": micro, "activation_checkpointing": checkpointing}
        changed = section.model_copy(update={"train": section.train.model_copy(update=changes)})
        config = paper.model_copy(update={kind: changed})
        name = f"{kind}, {section.train.precision}, micro batch {micro}" + (", checkpointing" if checkpointing else "")
        found[name] = lambda config=config, kind=kind: denoiser_case(config, kind)  # type: ignore[misc]
    for size in (1, 8):
        name = f"sampling, {paper.sampling.precision}, {size} volumes"
        found[name] = lambda size=size: sampling_case(paper, size)  # type: ignore[misc]
    return found


def predictions() -> dict[str, Callable[[], Case]]:
    """One prediction of super-resolution, whole and in slabs; the last two, of the paper's network, by name only."""
    tiny = UNetConfig(dim=16, mults=(1, 2, 4), num_heads=4, num_groups=8)
    papers = UNetConfig(dim=56, mults=(1, 2, 4, 8), num_heads=4, num_bottom_blocks=1)
    forms = [(edge, slices, tiny) for edge in (48, 96) for slices in (None, edge // 4, edge // 12)]
    forms += [(LARGEST, slices, papers) for slices in (None, 16)]
    return {
        f"prediction, fp32, {edge}^3, {'whole' if slices is None else f'slabs of {slices}'}": partial(
            prediction_case, edge, slices, unet
        )
        for edge, slices, unet in forms
    }


def measure(name: str, profiled: bool) -> tuple[int, int, int]:
    """Return (counted, measured, reserved) bytes of a case; profiled False: on a CPU, only the resident memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = cases(device.type == "cuda")[name]()
    if device.type == "cuda":
        case.work(device)
        return case.counted(), torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    if profiled:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            case.work(device)
        return case.counted(), recorded_peak(record), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case.work(device)
    return 0, 0, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def recorded_peak(record: Any) -> int:
    """Highest sum of the allocations that a profile recorded."""
    sizes: list[tuple[int, int]] = []
    waiting = list(record.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.name == "[memory]":
            sizes.append((event.start_time_ns, event.extra_fields.alloc_size))
    held = peak = 0
    for _, size in sorted(sizes, key=lambda entry: entry[0]):
        held += size
        peak = max(peak, held)
    return peak


def in_process(name: str, profiled: bool) -> tuple[int, int, int]:
    """Measure in a process of its own, whose memory begins low."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
        return worker.submit(measure, name, profiled).result()


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    names = list(cases(on_gpu))
    usual = [name for name in names if f"{LARGEST}^3" not in name]
    parser.add_argument("--case", nargs="+", choices=names, default=usual, metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("memory.csv"))
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    with args.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name in args.case:
            try:
                counted, measured, reserved = in_process(name, True)
            except torch.OutOfMemoryError as error:
                print(f"{name}: {str(error).splitlines()[0]}", flush=True)
                continue
            if not on_gpu:
                reserved = in_process(name, False)[2]
            values = [f"{size / GIB:.3f}" for size in (counted, measured, reserved)]
            ratios = [f"{counted / size:.3f}" for size in (measured, reserved)]
            row = (name, device, values[0], values[1], ratios[0], values[2], ratios[1])
            writer.writerow(row)
            file.flush()
            print(" | ".join(row), flush=True)


if __name__ == "__main__":
    main()
