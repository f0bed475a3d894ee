"""Compare the volumes of a run with those of its packaged form, whose weights are rounded to 16 bits.

    python benchmarks/sixteen_bits.py results/models/medsyn medsyn/phantom_model

Samples the same prompts and seeds with both. Columns: mean and largest absolute difference of the image (HU), the share
of its voxels that differ by more than 10 HU, and the voxels whose lobe, airway or vessel label differs (%).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from medsyn.methods.base import Prompt
from medsyn.methods.run import Run, open_run, sampling_with
from medsyn.volume import Volume

TEXTS = (
    "There is a large left pleural effusion.",
    "There is severe bullous emphysema.",
    "There is severe cardiomegaly.",
    "There is extensive consolidation in the right lower lobe.",
    "There is no pleural effusion.",
)


def sample(run: Run, text: str, seed: int) -> dict[str, Volume]:
    """Sample one prompt."""
    return next(run.sample([Prompt("a", text, seed)]))


def main() -> None:
    """Print a line per prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="run.json, or the folder that holds it")
    args = parser.parse_args()
    whole, rounded = (open_run(path, sampling_with(path, None)) for path in args.runs)
    print(f"{'mean':>7} {'max':>6} {'>10 HU':>7} {'labels':>7}  text")
    for seed, text in enumerate(TEXTS):
        first, second = sample(whole, text, seed), sample(rounded, text, seed)
        difference = np.abs(first["volume"].array.astype(float) - second["volume"].array)
        labels = [first[name].array != second[name].array for name in first if name != "volume"]
        share = 100 * float(np.mean(labels)) if labels else 0.0
        far = 100 * float((difference > 10).mean())
        print(f"{difference.mean():7.2f} {difference.max():6.0f} {far:6.2f}% {share:6.2f}%  {text}")


if __name__ == "__main__":
    main()
