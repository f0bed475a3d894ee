"""Memory of the processes of one training run: the low-resolution store, the network and what AdamW and EMA keep.

    python benchmarks/training_memory.py
    torchrun --standalone --nproc-per-node 2 benchmarks/training_memory.py

Each process opens the same store, reads every training volume and does three optimiser steps on a network of known
size. Printed is the proportional set size (Linux: a page that n processes map counts 1/n in each) after these steps,
less that before, summed over the processes. On a CPU, gradients are exchanged by gloo.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed, nn

from medsyn.config import TrainConfig
from medsyn.ct.store import write_shard
from medsyn.training.data import Store
from medsyn.training.loop import train
from medsyn.training.task import Task

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=300, help="in the store; one in eight is for validation")
    parser.add_argument("--size", type=int, default=64, help="edge of a low-resolution volume")
    parser.add_argument("--million-parameters", type=int, default=16)
    arguments = parser.parse_args()
    rank = int(os.environ.get("RANK", "0"))
    folder = Path(tempfile.gettempdir()) / f"training_memory.{os.getppid() if 'RANK' in os.environ else os.getpid()}"
    if rank == 0:
        write_store(folder / "store", arguments.subjects, arguments.size)
        (folder / "ready").touch()
    while not (folder / "ready").exists():
        time.sleep(0.1)
    warm_up()
    before = proportional_bytes()
    store = Store([folder / "store"], "low")
    task = Task("memory", lambda: network(arguments.million_parameters), lambda step, slots: batch(store, slots), loss)
    several = int(os.environ.get("WORLD_SIZE", "1"))
    settings = TrainConfig(num_steps=3, batch_size=several, micro_batch_size=1, log_every=3, checkpoint_every=9)
    trained = train(task, settings, folder / "state")
    if several > 1:
        distributed.barrier()
    total = torch.tensor(float(proportional_bytes() - before))
    if several > 1:
        distributed.all_reduce(total)
    if trained.is_main_process:
        print(f"{several} processes: {float(total) / MIB:.0f} MiB")
        shutil.rmtree(folder)


def warm_up() -> None:
    """Load the libraries that any training loads, so that they do not count."""
    network(1)(torch.zeros(1, 1000)).sum().backward()


def write_store(folder: Path, subjects: int, edge: int) -> None:
    """Write a shard whose low resolution has volumes of edge^3 voxels."""
    folder.mkdir(parents=True)
    rows = [
        {"subject_id": f"s{k}", "report_id": f"r{k}", "split": "train" if k % 8 else "validation"}
        for k in range(subjects)
    ]
    shape = (edge, edge, edge)
    volumes = ((np.full(shape, k, np.int16), np.full(shape, k % 6, np.uint8)) for k in range(subjects))
    write_shard(folder, rows, volumes, shape, 1)


def network(million_parameters: int) -> nn.Module:
    """Build layers of a million parameters each."""
    return nn.Sequential(*(nn.Linear(1000, 1000, bias=False) for _ in range(million_parameters)))


def batch(store: Store, slots: Sequence[int]) -> dict[str, Tensor]:
    """Read every volume of the store; a thousand voxels of them are the sample."""
    voxels = [np.ascontiguousarray(store.volume(i)[0]).ravel()[:1000] for i in range(len(store))]
    return {"x": torch.from_numpy(np.stack(voxels[: len(slots)]).astype(np.float32))}


def loss(module: nn.Module, samples: dict[str, Tensor]) -> Tensor:
    """Return a number with a gradient for every parameter."""
    value: Tensor = module(samples["x"]).square().mean()
    return value


def proportional_bytes() -> int:
    """Return the proportional set size of this process."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    return int(text.split("\nPss:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
