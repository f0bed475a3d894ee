"""Verbs that make what people read: tables, figures and the report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medsyn.cli import Verbs, add_split, one_file, table_and_json
from medsyn.errors import InputError

VOLUMES_HELP = "folders <id>/volume.nii.gz, one per shard"
GROUP_HELP = "a label, then its files or folders (repeat the option for every label)"
ALL_OPTIONS = (
    *("features", "measures", "volumes", "training", "samples", "prompts", "scores", "masks", "labels", "file"),
    *("label", "against", "without_text", "finding", "num", "phantom", "cohort", "split"),
)
"""Options of which every exhibit reads some."""
REPORT_ROLES = {
    "settings": "JSON files of `medsyn config`",
    "cohort": "cohort.csv, rejects.csv and reports.csv of `medsyn cohort`",
    "labels": "labels.csv",
    "preprocessed": "folders of `medsyn preprocess`",
    "masks": "folders of `medsyn segment`",
    "quality": "tables of quality control: masks.csv, alignment.csv",
    "encoders": "folders of language models",
    "training": "tables and pictures of training runs: <network>_metrics.csv and <network>_preview.png",
    "samples": "folders of generated volumes, <method>/<prompt set>/<shard>",
    "viewer": "page of `medsyn view`, which lies beside the report",
    "exhibits": "tables (CSV and JSON) and figures (PNG)",
}
"""Options of `medsyn report`: role -> what it takes."""


def add_verbs(verbs: Verbs) -> None:
    """Add table, figure and report."""
    from medsyn.registry import builtin_exhibits

    parser = verbs.add(
        "table",
        _exhibit,
        summary="Write a table as tidy CSV, with its provenance beside it.",
        example="medsyn table 2 --config results/config/evaluation.json --prompts results/prompts/pairs.csv"
        " --measures medsyn results/measures/medsyn/pairs/0.csv --out results/eval/table2.csv",
        outputs=table_and_json,
    )
    _add_exhibit_options(parser, builtin_exhibits("table"), "CSV file; the provenance goes to the same name with .json")
    parser = verbs.add(
        "figure",
        _exhibit,
        summary="Draw a figure as PNG.",
        example="medsyn figure 3 --volumes real results/preprocessed/0 --volumes medsyn"
        " results/samples/medsyn/reports/0 --out results/eval/figures/figure3.png",
        outputs=one_file,
    )
    _add_exhibit_options(parser, builtin_exhibits("figure"), "PNG file")
    _add_verify_verb(verbs)
    _add_report_verb(verbs)


def _add_exhibit_options(parser: argparse.ArgumentParser, names: list[str], out: str) -> None:
    numbers = ", ".join(name.removeprefix("table").removeprefix("figure") for name in names)
    parser.add_argument("which", help=f"{numbers}, or the name of one that a plugin or another package adds")
    parser.add_argument("--config", help="evaluation.json of the verb config")
    parser.add_argument(
        "--features", nargs="+", action="append", metavar="LABEL FILE", help=f"of features: {GROUP_HELP}"
    )
    parser.add_argument(
        "--measures", nargs="+", action="append", metavar="LABEL FILE", help=f"of measure: {GROUP_HELP}"
    )
    parser.add_argument(
        "--volumes", nargs="+", action="append", metavar="LABEL DIR", help=f"{VOLUMES_HELP}: {GROUP_HELP}"
    )
    parser.add_argument(
        "--training",
        nargs="+",
        action="append",
        metavar="LABEL PATH",
        help=f"metrics tables of train, folders of pretrain-text, whose cost is read: {GROUP_HELP}",
    )
    parser.add_argument(
        "--samples",
        nargs="+",
        action="append",
        metavar="LABEL DIR",
        help=f"folders of sample, whose cost.json is read: {GROUP_HELP}",
    )
    parser.add_argument("--file", nargs="+", action="append", metavar="LABEL FILE", help=f"of any kind: {GROUP_HELP}")
    parser.add_argument("--prompts", nargs="+", metavar="FILE", help="prompt CSVs of the samples")
    parser.add_argument("--scores", nargs="+", metavar="FILE", help="CSVs of score-segmentation or classify")
    parser.add_argument("--masks", nargs="+", metavar="DIR", help="folders <subject_id>/{lobes,airway,vessels}.nii.gz")
    parser.add_argument("--labels", metavar="FILE", help="labels.csv")
    parser.add_argument("--label", nargs=2, action="append", metavar=("LABEL", "TEXT"), help="how a label is printed")
    parser.add_argument("--against", metavar="LABEL", help="method whose airway the others' must exceed; none: no test")
    parser.add_argument("--without-text", action="append", metavar="LABEL", help="method that takes no text")
    parser.add_argument("--finding", help="another finding than the paper's")
    parser.add_argument("--num", type=int, help="volumes of each method")
    parser.add_argument("--phantom", action="store_true", help="say that the cohort consists of procedural phantoms")
    parser.add_argument("--out", required=True, help=out)
    add_split(parser)


def _exhibit(args: argparse.Namespace) -> None:
    from medsyn.config import EvaluationConfig, load_stage
    from medsyn.exhibits.base import EXHIBITS, name_of
    from medsyn.exhibits.inputs import parse_inputs

    config = load_stage(EvaluationConfig, args.config) if args.config else None  # and its plugins, which add exhibits
    exhibit = EXHIBITS[name_of(args.verb, args.which)]
    if exhibit.kind != args.verb:
        raise InputError(f"'{args.which}' is a {exhibit.kind}; run `medsyn {exhibit.kind} {args.which}`")
    name = f"{exhibit.kind} {exhibit.number}"
    for option in ALL_OPTIONS:
        if getattr(args, option) and option not in exhibit.options:
            words, known = (
                ", ".join(f"--{o.replace('_', '-')}" for o in group) for group in ([option], exhibit.options)
            )
            raise InputError(f"{words} is not read by {name}, which takes {known}; leave it out")
    if config is None and exhibit.uses_settings:
        raise InputError(f"{name}: --config is needed: evaluation.json of `medsyn config`")
    inputs = parse_inputs(args, name)
    made = exhibit.make(inputs, config)  # type: ignore[arg-type]
    if isinstance(made, tuple):
        from medsyn.exhibits.rows import write_table

        write_table(args.out, made, exhibit, config, inputs)
    else:
        from medsyn.exhibits.panels import write_figure

        write_figure(args.out, made)


def _add_verify_verb(verbs: Verbs) -> None:
    parser = verbs.add(
        "verify",
        _verify,
        summary="Make tables again from the files that they were made from, and say what differs (exit status 1).",
        example="medsyn verify results/eval/table1.csv",
        outputs=None,
    )
    parser.add_argument("tables", nargs="+", type=Path, metavar="TABLE", help="tables of `medsyn table`, .csv or .json")
    parser.add_argument(
        "--root", type=Path, default=Path(), help="folder to which the recorded paths are relative (default: here)"
    )


def _verify(args: argparse.Namespace) -> int:
    from medsyn.exhibits.verify import verify_table

    status = 0
    for table in args.tables:
        try:
            lines = verify_table(table, args.root)
        except InputError as error:
            print(f"{table}: cannot be verified")
            print(f"medsyn verify: {error}", file=sys.stderr)
            status = 2
            continue
        status = max(status, int(bool(lines)))
        print(f"{table}: {'differs' if lines else 'equal'}")
        for line in lines:
            print(f"  {line}")
    return status


def _add_report_verb(verbs: Verbs) -> None:
    parser = verbs.add(
        "report",
        _report,
        summary="Write one self-contained HTML page about a run; what is absent is named as absent.",
        example="medsyn report --results results --phantom --out results/report.html",
    )
    parser.add_argument(
        "--results", help="results folder of a run, searched for everything that the other options name"
    )
    for role, what in REPORT_ROLES.items():
        parser.add_argument(f"--{role}", nargs="+", type=Path, metavar="PATH", help=what)
    parser.add_argument("--phantom", action="store_true", help="say that the cohort consists of procedural phantoms")
    parser.add_argument("--out", required=True, help="HTML file")


def _report(args: argparse.Namespace) -> None:
    from medsyn.report.files import find_files
    from medsyn.report.page import write_report

    given = {role: paths for role in REPORT_ROLES if (paths := getattr(args, role))}
    if args.results is not None and given:
        raise InputError(f"--{next(iter(given))}: --results finds such files itself; leave out one of the two")
    if args.results is None and not given:
        raise InputError("nothing to report on; give --results, or the files that `medsyn report --help` lists")
    files = given if args.results is None else find_files(Path(args.results))
    write_report(files, Path(args.out), phantom=args.phantom)
