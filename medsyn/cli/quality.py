"""Verbs of quality control: mask-qc, alignment-qc."""

from __future__ import annotations

import argparse
from pathlib import Path

from medsyn.cli import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this group."""
    parser = verbs.add(
        "mask-qc",
        _mask_qc,
        summary="Dice of the masks against the true masks that phantoms come with.",
        example="medsyn mask-qc --masks results/masks/0 --cohort results/cohort/cohort.csv --out results/qc/masks.csv",
    )
    parser.add_argument("--masks", nargs="+", required=True, help="shards of masks")
    parser.add_argument("--cohort", required=True, help="cohort.csv whose column truth names truth.json files")
    parser.add_argument("--out", required=True, help="CSV file")

    parser = verbs.add(
        "alignment-qc",
        _alignment_qc,
        summary="Count CTs that were registered, fell back to centre alignment or were rejected, by finding.",
        example="medsyn alignment-qc --volumes results/preprocessed/* --masks results/masks/*"
        " --cohort results/cohort/cohort.csv --labels results/labels.csv --out results/qc/alignment.csv",
    )
    parser.add_argument("--volumes", nargs="+", required=True, type=Path, help="shards of preprocessed CTs")
    parser.add_argument("--masks", nargs="+", default=[], type=Path, help="shards of masks")
    parser.add_argument("--cohort", required=True, type=Path, help="cohort.csv")
    parser.add_argument("--labels", required=True, type=Path, help="labels of the reports, from `medsyn label`")
    parser.add_argument("--out", required=True, type=Path, help="CSV file")


def _mask_qc(args: argparse.Namespace) -> None:
    from medsyn.cohort import load_cohort
    from medsyn.stages.measures import mask_quality

    mask_quality([Path(folder) for folder in args.masks], load_cohort(args.cohort), Path(args.out))


def _alignment_qc(args: argparse.Namespace) -> None:
    from medsyn.stages.alignment import alignment_quality

    alignment_quality(args.volumes, args.masks, args.cohort, args.labels, args.out)
