"""Phantom subjects and their reports without images, for the tests of the text stages."""

import csv
from pathlib import Path

import numpy as np

from medsyn.phantom.findings import FindingSpec, Kind
from medsyn.phantom.report import Report, write_report

LOBES = ("left_upper", "left_lower", "right_upper", "right_middle", "right_lower")


def sample_specs(rng: np.random.Generator) -> list[FindingSpec]:
    """Any combination of findings, or none."""
    specs: list[FindingSpec] = []
    if rng.random() < 0.35:
        for side in (("left", "right"), ("left",), ("right",))[int(rng.integers(3))]:
            specs.append(FindingSpec("pleural_effusion", 0.5, float(np.exp(rng.uniform(4.5, 7.5))), side))  # type: ignore[arg-type]
    if rng.random() < 0.3:
        specs.append(FindingSpec("emphysema", 0.5, rng.uniform(3, 40)))
    if rng.random() < 0.3:
        specs.append(FindingSpec("cardiomegaly", 0.5, rng.uniform(0.51, 0.68)))
    ranges: dict[Kind, tuple[float, float]] = {
        "consolidation": (20, 400),
        "ground_glass_opacity": (20, 400),
        "nodule": (4, 35),
    }
    for kind, (low, high) in ranges.items():
        if rng.random() < 0.2:
            specs.append(FindingSpec(kind, 0.5, rng.uniform(low, high), lobe=LOBES[int(rng.integers(5))]))
    return specs


def sample_reports(count: int, seed: int = 0) -> list[tuple[list[FindingSpec], Report]]:
    """`count` subjects and their reports."""
    rng = np.random.default_rng(seed)
    subjects = [sample_specs(rng) for _ in range(count)]
    return [(specs, write_report(specs, rng)) for specs in subjects]


def write_reports_csv(path: Path, count: int, num_validation: int, seed: int = 0) -> list[list[FindingSpec]]:
    """A reports table, the first `num_validation` of them the validation split; gives the specs in the same order."""
    reports = sample_reports(count, seed)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["report_id", "findings", "impression", "split"])
        for number, (_, report) in enumerate(reports):
            split = "validation" if number < num_validation else ("train", "text_only")[number % 2]
            writer.writerow([f"r{number:04d}", report.findings, report.impression, split])
    return [specs for specs, _ in reports]
