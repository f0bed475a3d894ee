"""Verbs of the reader study: `medsyn study make`, `analyse`, `plan` and those of its server."""

from __future__ import annotations

import argparse
from pathlib import Path

from medsyn.cli import Verbs, one_folder
from medsyn.cli.study_server import add_server_verbs


def add_verbs(verbs: Verbs) -> None:
    """Add the group `study`."""
    group = verbs.group(
        "study",
        summary="Make, serve, analyse and plan a blind study with human readers (Figures 7 and 8).",
        example="medsyn study make --config results/config/study.json --results results --out reader_study",
    )
    _add_prompts(group)
    _add_make(group)
    add_server_verbs(group)
    _add_analyse(group)
    _add_plan(group)


def _add_prompts(group: Verbs) -> None:
    parser = group.add(
        "prompts",
        _prompts,
        summary="Write the prompts whose volumes the recognition items show.",
        example="medsyn study prompts --config results/config/study.json --out results/prompts/study.csv",
    )
    parser.add_argument("--config", required=True, help="study.json of the verb config")
    parser.add_argument("--out", required=True, help="CSV, which `medsyn sample` takes")


def _prompts(args: argparse.Namespace) -> None:
    from medsyn.config import StudyStage, load_stage
    from medsyn.study.cases import write_study_prompts

    write_study_prompts(load_stage(StudyStage, args.config), Path(args.out))


def _add_make(group: Verbs) -> None:
    parser = group.add(
        "make",
        _make,
        summary="Make a study folder whose bytes do not say which method a volume is of, and its sealed key.",
        example="medsyn study make --config results/config/study.json --results results --out reader_study",
        outputs=None,  # never replaced, also not with --force
    )
    parser.add_argument("--config", required=True, help="study.json of the verb config")
    parser.add_argument("--results", help="results folder of a run, for its CTs and the volumes of its methods")
    parser.add_argument("--out", required=True, help="folder of the study, a new one")
    parser.add_argument("--key", help="file of the key, a new one outside of that folder (default: OUT.key.json)")


def _make(args: argparse.Namespace) -> None:
    from medsyn.config import StudyStage, load_stage
    from medsyn.study.make import make_study

    stage = load_stage(StudyStage, args.config)
    results = Path(args.results) if args.results else None
    make_study(stage, results, Path(args.out), Path(args.key) if args.key else None)


def _add_analyse(group: Verbs) -> None:
    parser = group.add(
        "analyse",
        _analyse,
        summary="Write tables, tests and Figures 7 and 8 of the readers' answers.",
        example="medsyn study analyse answers.csv --key reader_study.key.json --out analysis",
        outputs=one_folder,
    )
    parser.add_argument("answers", type=Path, help="CSV of `medsyn study export`, or of your own with method and truth")
    parser.add_argument("--key", type=Path, help="key of the study; none: the answers say method and truth themselves")
    parser.add_argument("--reference", help="method that the others are compared with (default: of recognition items)")
    parser.add_argument("--out", required=True, help="folder, a new one")


def _analyse(args: argparse.Namespace) -> None:
    from medsyn.exhibits.reader_analysis import analyse

    summary = analyse(args.answers, args.key, Path(args.out), args.reference)
    missing = summary["num_missing_recognition"], sum(summary["num_incomplete_rankings"].values())
    print(f"{summary['num_readers']} readers, {summary['num_items']} items; {missing[0]} missing answers,", end=" ")
    print(f"{missing[1]} incomplete rankings")


def _add_plan(group: Verbs) -> None:
    parser = group.add(
        "plan",
        _plan,
        summary="Simulate how many readers and sets a study needs to find a difference between two methods.",
        example="medsyn study plan --preferred 0.7 --readers 6 8 10 15 --sets 4 8 --out power.csv",
    )
    parser.add_argument(
        "--preferred",
        type=float,
        default=0.7,
        help="probability that a reader ranks the better method above another (default %(default)s)",
    )
    parser.add_argument("--readers", type=int, nargs="+", default=[4, 6, 8, 10, 15, 20], help="numbers of readers")
    parser.add_argument("--sets", type=int, nargs="+", default=[2, 4, 8], help="numbers of sets per structure")
    parser.add_argument("--methods", type=int, default=4, help="methods in a set (default %(default)s)")
    spread = "standard deviation of a method's quality between %s; 1 is that between two looks (default %%(default)s)"
    parser.add_argument("--reader-spread", type=float, default=0.5, help=spread % "readers")
    parser.add_argument("--set-spread", type=float, default=0.5, help=spread % "volumes")
    parser.add_argument("--power", type=float, default=0.8, help="wanted power (default %(default)s)")
    parser.add_argument("--num-simulations", type=int, default=1000, help="per design (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--out", required=True, help="CSV, one row per number of readers and sets")


def _plan(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from medsyn.exhibits.reader_analysis import write_rows
    from medsyn.study.power import Model, simulate, smallest

    model = Model(args.preferred, args.methods, args.reader_spread, args.set_spread)
    found = simulate(model, args.readers, args.sets, args.num_simulations, args.seed)
    rows = [asdict(model) | asdict(each) for each in found]
    write_rows(Path(args.out), (list(rows[0]), rows))
    best = smallest(found, args.power)
    if best is None:
        print(f"none of these designs finds the difference in {args.power:.0%} of studies")
    else:
        print(f"{best.num_readers} readers and {best.num_sets} sets per structure: found in {best.reader_power:.0%}")
