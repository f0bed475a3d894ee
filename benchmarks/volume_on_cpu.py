"""Time one denoising step of each of the paper's networks on a processor within a limit of memory (Linux).

    OMP_NUM_THREADS=2 python benchmarks/volume_on_cpu.py --out volume_on_cpu.json

The networks are those of config/paper.yaml with random weights. They run one after the other, each in a process whose
address space is limited (`--limit-gb`, in 10^9 bytes): what does not fit ends with an error instead of swapping.
Measured are the seconds of one call, the processor time of it, and the largest resident memory of the process. The
whole volume is extrapolated: a solver calls a network once more than its steps. Super-resolution runs in slabs; with
bf16 they are computed in float32 and the activations between layers are held in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from medsyn.config import Config, load_config
from medsyn.device import device_name
from medsyn.models.fast.denoiser import prepared_denoiser
from medsyn.models.fast.unet import FastUNet
from medsyn.models.weights import build
from medsyn.planning.networks import denoiser, text_width
from medsyn.training.cost import peak_memory_gib

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def step(kind: str, config: Config, slices: int, precision: str, limit: int) -> dict[str, Any]:
    """Time one call of the `kind` network within `limit` bytes of address space."""
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.manual_seed(0)
    stage, size = denoiser(config, kind), config.preprocess.size
    width = text_width(config) if stage.sections else None
    network: FastUNet = build(stage, width).eval()
    shape = size if kind == "super_res" else tuple(edge // config.preprocess.low_res_factor for edge in size)
    given: dict[str, Any] = {}
    if kind == "super_res":
        network.slab_slices = slices
        network.slab_stored = torch.bfloat16 if precision == "bf16" else None
        given["condition"] = torch.randn(1, network.channels, *shape).clamp(-1, 1)
    elif width is not None:
        given |= {"text": torch.randn(1, stage.num_tokens, width), "guidance_scale": config.sampling.guidance_scale}
    with torch.no_grad():
        denoise, x = prepared_denoiser(network, **given), torch.randn(1, network.channels, *shape)
        held, seconds, processor = peak_memory_gib(CPU), time.monotonic(), time.process_time()
        predicted = denoise(x, 500.0)
    row = {
        "network": kind,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "grid": list(shape),
        "seconds": round(time.monotonic() - seconds, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "resident_gib_before": round(held, 2),
        "peak_resident_gib": round(peak_memory_gib(CPU), 2),
    }
    assert predicted.shape == x.shape and predicted.isfinite().all()
    return row


def main() -> None:
    """Measure what the command line asks for, and write a line after each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=256, help="of the volume; the low resolution has a quarter")
    parser.add_argument("--networks", nargs="+", choices=["low_res", "super_res"], default=["low_res", "super_res"])
    parser.add_argument("--slices", type=int, default=32, help="of a slab of super-resolution")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="in which activations are held")
    parser.add_argument("--limit-gb", type=float, default=16.0, help="address space of a process")
    parser.add_argument("--out", type=Path, default=Path("volume_on_cpu.json"))
    args = parser.parse_args()
    config = load_config(ROOT / "config/paper.yaml")
    preprocess = config.preprocess.model_copy(update={"size": (args.edge,) * 3})
    config = config.model_copy(update={"preprocess": preprocess})
    steps = {"low_res": config.sampling.num_steps_low_res, "super_res": config.sampling.num_steps_super_res}
    limit = int(args.limit_gb * 1e9)
    record: dict[str, Any] = {"device": device_name(CPU), "torch": torch.__version__, "limit_bytes": limit}
    record |= {"slices": args.slices, "held_in": args.precision, "measured": []}
    whole = {"seconds": 0.0, "processor_seconds": 0.0}
    for kind in args.networks:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
            row = worker.submit(step, kind, config, args.slices, args.precision, limit).result()
        record["measured"].append(row)
        for name in whole:
            whole[name] += row[name] * (steps[kind] + 1)
        record["extrapolated"] = {"calls": {name: steps[name] + 1 for name in args.networks}, **whole}
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(row), flush=True)
    print(json.dumps(record["extrapolated"]))


if __name__ == "__main__":
    main()
