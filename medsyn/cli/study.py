"""Verbs of the reader study: `medsyn study make`, `analyse`, `plan` and those of its server."""

from __future__ import annotations

import argparse
from pathlib import Path

from medsyn.cli import Verbs
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
