"""Show what a trained run makes of graded prompts, and let somebody read volumes without knowing the prompts.

    python benchmarks/prompt_sheet.py sheet results/models/medsyn SHEET.png          # and SHEET.csv
    python benchmarks/prompt_sheet.py blind results/models/medsyn FOLDER --seed 7    # case_01.png ... and key.csv
    python benchmarks/prompt_sheet.py score FOLDER                                   # readings.csv against key.csv

sheet: a row per finding with its negation and three severities, and one with the sides of an effusion; all samples of a
column share a seed. Under each: what is measured in the image (fluid by side in ml, %LAA-950, cardiothoracic ratio).
blind: twelve volumes of random prompts in two windows. A reader who has not seen key.csv writes readings.csv with the
columns case, finding, side ("" for a finding without side), in the words of key.csv, and `score` counts what agrees.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np

from medsyn.ct.preview import two_windows, write_png
from medsyn.evaluate.measures import measure
from medsyn.files import read_csv, write_csv
from medsyn.masks.effusion import fluid_on_grid, pleural_cavities
from medsyn.masks.lungs import LEFT, RIGHT, segment_lungs
from medsyn.methods.base import Prompt, Rejected
from medsyn.methods.run import Run, open_run, sampling_with
from medsyn.volume import Volume

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROWS = (
    (
        "There is no pleural effusion.",
        "There is a small left pleural effusion.",
        "There is a moderate left pleural effusion.",
        "There is a large left pleural effusion.",
        "There is a large right pleural effusion.",
    ),
    (
        "There is no emphysema.",
        "There is mild emphysema.",
        "There is moderate emphysema.",
        "There is severe emphysema.",
        "There is severe bullous emphysema.",
    ),
    (
        "There is no cardiomegaly.",
        "There is mild cardiomegaly.",
        "There is moderate cardiomegaly.",
        "There is severe cardiomegaly.",
        "There is severe cardiomegaly. There is a large right pleural effusion.",
    ),
)
CASES = (
    ("normal", "", "No acute abnormality. There is no pleural effusion."),
    ("effusion", "left", "There is a large left pleural effusion."),
    ("effusion", "right", "There is a large right pleural effusion."),
    ("effusion", "both", "There are large bilateral pleural effusions."),
    ("emphysema", "", "There is severe bullous emphysema."),
    ("cardiomegaly", "", "There is severe cardiomegaly."),
)
"""Finding, side and prompt of the blind cases."""
NUM_CASES = 12
COLUMNS = ("case", "finding", "side")


def sample(run: Run, text: str, seed: int) -> Volume:
    """Sample the image of one prompt."""
    answer = next(iter(run.sample([Prompt("a", text, seed)])))
    assert not isinstance(answer, Rejected)
    return answer["volume"]


def fluid_by_side(volume: Volume) -> dict[str, float]:
    """Return the pleural fluid of the right and the left side in ml, as the classical tool finds it."""
    lungs = segment_lungs(volume.array, volume.spacing_mm).label
    fluid = fluid_on_grid(volume.array, lungs, volume.spacing_mm) if (lungs > 0).any() else np.zeros(lungs.shape, bool)
    sides = pleural_cavities(lungs, fluid)
    return {
        name: float((fluid & (sides == side)).sum()) * volume.voxel_mm3 / 1000
        for name, side in (("right", RIGHT), ("left", LEFT))
    }


def sheet(run: Run, out: Path, seed: int) -> None:
    """Draw the graded prompts; the CSV beside it holds the measures."""
    figure, axes = plt.subplots(len(ROWS), len(ROWS[0]), figsize=(4.2 * len(ROWS[0]), 3.7 * len(ROWS)), dpi=80)
    rows = []
    for texts, panels in zip(ROWS, axes, strict=True):
        for text, panel in zip(texts, panels, strict=True):
            volume = sample(run, text, seed)
            fluid = fluid_by_side(volume)
            row = {"text": text, "seed": seed, "right_ml": fluid["right"], "left_ml": fluid["left"]}
            row |= measure(volume).values
            rows.append(row)
            panel.imshow(two_windows(volume, height=220))
            panel.set_title(text, fontsize=8, wrap=True)
            emphysema, ratio = (
                "none" if row[name] is None else f"{row[name]:.{digits}f}"
                for name, digits in (("laa950_percent", 0), ("cardiothoracic_ratio", 2))
            )
            panel.set_xlabel(
                f"fluid R {fluid['right']:.0f}, L {fluid['left']:.0f} ml; LAA-950 {emphysema} %; CTR {ratio}",
                fontsize=7,
            )
            panel.set_xticks([])
            panel.set_yticks([])
    figure.tight_layout()
    figure.savefig(out)
    write_csv(out.with_suffix(".csv"), rows, list(rows[0]))


def blind(run: Run, out: Path, seed: int) -> None:
    """Write pictures under numbers, and the key."""
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True)
    key = []
    for number in range(1, NUM_CASES + 1):
        finding, side, text = CASES[rng.integers(len(CASES))]
        volume = sample(run, text, int(rng.integers(2**31)))
        write_png(out / f"case_{number:02d}.png", two_windows(volume))
        key.append({"case": number, "finding": finding, "side": side, "text": text})
    write_csv(out / "key.csv", key, (*COLUMNS, "text"))


def score(folder: Path) -> None:
    """Print each case with its reading, and how many agree."""
    key = {row["case"]: row for row in read_csv(folder / "key.csv", COLUMNS)}
    read = {row["case"]: row for row in read_csv(folder / "readings.csv", COLUMNS)}
    right = 0
    for case, truth in key.items():
        given = read.get(case, {"finding": "not read", "side": ""})
        agrees = (given["finding"], given["side"]) == (truth["finding"], truth["side"])
        right += agrees
        said, was = (f"{row['finding']} {row['side']}".strip() for row in (given, truth))
        print(f"{case:>2} {'right' if agrees else 'wrong'}  read: {said:<18} prompt: {was}")
    print(f"{right} of {len(key)} right")


def main() -> None:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("sheet", "PNG to write"), ("blind", "folder to make")):
        command = commands.add_parser(name)
        command.add_argument("run", type=Path, help="run.json, or the folder that holds it")
        command.add_argument("out", type=Path, help=what)
        command.add_argument("--seed", type=int, default=0)
    commands.add_parser("score").add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.command == "score":
        score(args.folder)
    else:
        run = open_run(args.run, sampling_with(args.run, None))
        (sheet if args.command == "sheet" else blind)(run, args.out, args.seed)


if __name__ == "__main__":
    main()
