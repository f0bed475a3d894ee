"""What Table VIII says of a perfect model: phantoms that have exactly the stated finding, for docs/faithfulness.md.

    python benchmarks/faithfulness.py [--config config/config.yaml] [--num-real 150] [--map map.png]

Every prompt of the configuration's grid is answered by a phantom of 64^3 voxels with the stated finding or without any;
both phantoms of a seed are one person. Emphysema of phantoms is in both lungs, so that of a lobe is put into the
person's healthy volume. Two thirds of the real volumes are training, the rest validation. Prints each answer with its
bounds and chance, and --map draws the heat map. About 5 minutes of one core.
"""

from __future__ import annotations

import argparse

import numpy as np

from medsyn.config import load_config, prompts_stage
from medsyn.evaluate.faithfulness import Trial, answers, answers_of_real, yardstick
from medsyn.evaluate.regions import changes, find_regions, regional_measures
from medsyn.exhibits.faithfulness import heat_map
from medsyn.exhibits.panels import write_figure
from medsyn.phantom.findings import FindingSpec
from medsyn.phantom.subject import render_subject
from medsyn.text.prompts import Sources, build_prompts
from medsyn.volume import LOBE_NAMES, Volume

AMOUNTS = {
    "pleural_effusion": (200.0, 600.0, 1200.0),
    "emphysema": (9.0, 18.0, 35.0),
    "cardiomegaly": (0.535, 0.575, 0.64),
    "consolidation": (60.0, 150.0, 300.0),
    "ground_glass_opacity": (70.0, 150.0, 350.0),
}
"""Amount of each severity word, in the unit of the finding; the grades are those of `medsyn.phantom.report`."""
COHORT_SEED, MODEL_SEED = 0, 7


def main() -> None:
    """Print the answers of a perfect model and of the real volumes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="config/config.yaml")
    parser.add_argument("--num-real", type=int, default=150)
    parser.add_argument("--map", help="PNG of the heat map")
    args = parser.parse_args()
    config = load_config(args.config)
    rows = build_prompts("faithfulness", Sources(prompts_stage(config.evaluation), [], []))
    real = [render_subject(COHORT_SEED, index) for index in range(args.num_real)]
    measured = [regional_measures(r.volume, find_regions(r.volume, None)) for r in real]
    kinds = [{spec["kind"] for spec in r.truth["findings"]} for r in real]
    trials: dict[str, list[Trial]] = {}
    for number, row in enumerate(rows[::2]):
        trials.setdefault(row["finding"], []).append(trial(row, number))
    train = 2 * args.num_real // 3
    for finding, each in trials.items():
        labels = [finding in found for found in kinds]
        scale = yardstick(finding, measured[:train], labels[:train])
        both = {
            "perfect": answers(finding, each, scale),
            "real": answers_of_real(finding, measured[train:], labels[train:], scale),
        }
        for name, found in both.items():
            print(f"{finding}, {name}")
            for question, a in found.items():
                if a.value is not None:
                    bounds = "" if a.low is None else f" ({a.low:.2f} to {a.high:.2f})"
                    print(f"  {question:9s} {a.value:6.2f}{bounds}, chance {a.chance:.2f}, n {a.n}")
    if args.map:
        write_figure(args.map, heat_map(trials, measured[train:], "a perfect model", True))


def trial(row: dict, person: int) -> Trial:
    """Return the measures of a person with the stated finding and without any."""
    well = render_subject(MODEL_SEED, person, specs=()).volume
    regions = find_regions(well, None)
    ill = with_finding(row, person, well)
    measures = regional_measures(ill, find_regions(ill, None)) | changes(ill, well, regions)
    return Trial(row["place"], row["severity_rank"], measures, regional_measures(well, regions))


def with_finding(row: dict, person: int, well: Volume) -> Volume:
    """Return the person's volume with the finding that a row of the prompts states."""
    kind, place, amount = row["finding"], row["place"], AMOUNTS[row["finding"]][row["severity_rank"] - 1]
    sides = ("left", "right") if place == "both" else (place.split("_")[0],)
    lobe = place if kind in ("consolidation", "ground_glass_opacity") else ""
    specs = tuple(FindingSpec(kind, 0.5, amount, side, lobe) for side in sides)
    ill = render_subject(MODEL_SEED, person, specs=specs)
    if kind != "emphysema" or not place:
        return ill.volume
    there = ill.masks["lobes"] == LOBE_NAMES.index(place) + 1
    return well.with_array(np.where(there, ill.volume.array, well.array))


if __name__ == "__main__":
    main()
