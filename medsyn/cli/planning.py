"""The verb that plans memory."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from medsyn.cli import Verbs
from medsyn.errors import InputError


def add_verbs(verbs: Verbs) -> None:
    """Add `plan`."""
    parser = verbs.add(
        "plan",
        _plan,
        summary="Count the GPU memory of every training and sampling job, and propose settings that fit.",
        example="medsyn plan --gpu-memory 48 --config config/paper.yaml",
        outputs=None,
    )
    parser.add_argument("--gpu-memory", required=True, metavar="GIB", help="memory of one GPU in GiB, for example 48")
    parser.add_argument(
        "--config", type=Path, default=Path("config/paper.yaml"), help="YAML configuration (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON with the bytes of every part")


def _plan(args: argparse.Namespace) -> None:
    gpu_gib = gpu_memory_gib(args.gpu_memory)

    import json

    from medsyn.config import load_config
    from medsyn.planning.plan import as_json, check, plan, table, yaml_lines

    config = load_config(args.config)
    gpu_bytes = round(gpu_gib * 2**30)
    rows = plan(config, gpu_bytes)
    check(rows, gpu_bytes)
    if args.json:
        print(json.dumps(as_json(rows, gpu_bytes), indent=2))
        return
    processes = max(config.compute.num_gpus_training, 1) * config.compute.num_nodes_training
    print(f"{args.config} on GPUs of {gpu_gib:g} GiB, processes per training run: {processes}; GiB of one GPU:\n")
    print("\n".join(table(rows, gpu_bytes)))
    print(f"\nSettings that fit:\n\n{yaml_lines(rows)}", end="")


def gpu_memory_gib(text: str) -> float:
    """Read a positive, finite number of GiB."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(
            f"--gpu-memory {text}: not a number of GiB above 0; give the memory of one GPU, for example 48"
        )
    return value
