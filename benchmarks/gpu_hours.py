"""Estimate the GPU hours of the paper's training and sampling from counted operations. Nothing is measured.

    python benchmarks/gpu_hours.py --share 0.3

Operations (2 per multiply-add: matrix products, convolutions, attention) of config/paper.yaml are counted on tensors
without data; a GPU is assumed to do `share` of its dense bfloat16 peak (V100: float16) in its maker's data sheet.
"""

from __future__ import annotations

import argparse
import math

from denoiser_steps import ROOT, Case, cases, count_flops

from medsyn.config import Config, StageModelConfig, load_config

NUM_VOLUMES = 1000
TEXT_WIDTH = 768  # BERT's
SHARE = 0.3
PEAK_TFLOPS = {"V100": 125.0, "A100": 312.0, "H100, H200": 989.0}


def hours(flops: float, share: float) -> dict[str, float]:
    """Return the hours of one GPU by its name, at `share` of its peak."""
    return {name: flops / (peak * 1e12 * share) / 3600 for name, peak in PEAK_TFLOPS.items()}


def training_flops(case: Case, stage: StageModelConfig) -> float:
    """Operations of all optimiser steps of one network."""
    return count_flops(case, True) / case.train[0] * stage.train.batch_size * stage.train.num_steps


def sampling_flops(config: Config, built: dict[str, Case]) -> float:
    """Operations of one volume: every step of both networks, and a last evaluation."""
    steps = {"low_res": config.sampling.num_steps_low_res, "super_res": config.sampling.num_steps_super_res}
    return sum(count_flops(case, False) * (steps[name] + 1) for name, case in built.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=SHARE, help="assumed share of the peak")
    share = parser.parse_args().share
    config = load_config(ROOT / "config/paper.yaml")
    built = cases(config, width=TEXT_WIDTH)
    work = {
        "train_network low_res, one network": training_flops(built["low_res"], config.low_res),
        "train_network super_res, one network": training_flops(built["super_res"], config.super_res),
        f"sample, {NUM_VOLUMES:,} volumes": NUM_VOLUMES * sampling_flops(config, built),
    }
    print(f"| estimate | EFLOP | {' | '.join(f'{name} (h)' for name in PEAK_TFLOPS)} |")
    print("|---" * (2 + len(PEAK_TFLOPS)) + "|")
    for name, flops in work.items():
        cells = [str(math.ceil(number)) for number in hours(flops, share).values()]
        print(f"| {name} | {flops / 1e18:.1f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
