"""Processor time of a training sample of the low-resolution network, with its means kept in memory or made again.

    python benchmarks/training_samples.py results/phantom_model [--count 100]

For networks with `reduction: mean`. The folder holds the settings, store and text states of a run of the workflow. All
volumes are read once before samples are timed, one after the other on one thread, so the files are in the page cache;
noise and text states are part of a sample.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from medsyn.config import ModelStage, load_stage
from medsyn.layout import Layout
from medsyn.training import data as training_data
from medsyn.training.data import Embeddings, Store, TrainingData

KEEP = training_data._IN_MEMORY_BYTES


def milliseconds(stage: ModelStage, store: Store, embeddings: Embeddings, count: int, keep: bool) -> float:
    """Return the processor time of a sample in ms, after every volume has been read."""
    training_data._IN_MEMORY_BYTES = KEEP if keep else 0
    data = TrainingData(stage, store, embeddings)
    data.loss_weights(torch.tensor(0.5))
    for index in range(len(store)):
        data.clean(index)
    began = time.process_time()
    for number in range(count):
        data.sample(number)
    return (time.process_time() - began) / count * 1e3


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results folder of the workflow")
    parser.add_argument("--method", default="medsyn")
    parser.add_argument("--encoder", default="biomedical", help="text encoder of the method")
    parser.add_argument("--count", type=int, default=100, help="samples to time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    layout = Layout(str(args.results))
    stage = load_stage(ModelStage, Path(layout.config(f"low_res_{args.method}")))
    store = Store(sorted((args.results / "store").iterdir()), "high")
    embeddings = Embeddings(Path(layout.embeddings(args.encoder)), stage.sections)
    again, kept = (milliseconds(stage, store, embeddings, args.count, keep) for keep in (False, True))
    print(f"{len(store)} of {store.size}: {again:.2f} ms made again, {kept:.2f} ms kept, ratio {again / kept:.1f}")


if __name__ == "__main__":
    main()
