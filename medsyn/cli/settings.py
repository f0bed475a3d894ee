"""Verbs on the configuration itself."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medsyn.cli import Verbs
from medsyn.errors import InputError
from medsyn.files import read_json, write_text
from medsyn.outputs import Outputs, check_outputs


def add_verbs(verbs: Verbs) -> None:
    """Add `config` and `schema`."""
    parser = verbs.add(
        "config",
        _config,
        summary="Validate a YAML configuration; write one JSON file per stage, or one named stage.",
        example="medsyn config config/config.yaml --stage cohort --out results/config/cohort.json",
        outputs=_config_outputs,
    )
    parser.add_argument("path", help="YAML file")
    parser.add_argument("--stage", help="write only this stage")
    parser.add_argument("--out", help="JSON file (with --stage) or folder; none: only validate")

    parser = verbs.add(
        "schema",
        _schema,
        summary="Write the JSON schema of the configuration.",
        example="medsyn schema --out config/schema.json",
        outputs=_schema_outputs,
    )
    parser.add_argument("--out", required=True, help="JSON schema file")


def _config_outputs(args: argparse.Namespace) -> Outputs:
    """Return the file of one stage; those of all stages are known once the configuration is read."""
    return Outputs(files=[Path(args.out)] if args.out is not None and args.stage is not None else [])


def _schema_outputs(args: argparse.Namespace) -> Outputs:
    """Return the file --out, unless it is an older schema of the configuration, which may be replaced."""
    out = Path(args.out)
    try:
        is_schema = out.is_file() and read_json(out).get("title") == "Config"
    except (InputError, AttributeError):
        is_schema = False
    return Outputs() if is_schema else Outputs(files=[out])


def _config(args: argparse.Namespace) -> None:
    from medsyn.config import load_config, stage_texts

    texts = stage_texts(load_config(args.path))
    if args.stage is not None and args.stage not in texts:
        raise InputError(f"--stage {args.stage}: no such stage; there are {', '.join(texts)}")
    if args.out is None:
        return
    if args.stage is not None:
        write_text(args.out, texts[args.stage] + "\n")
        return
    check_outputs(Outputs(files=[Path(args.out) / f"{name}.json" for name in texts]), [Path(args.path)])
    for name, text in texts.items():
        write_text(Path(args.out) / f"{name}.json", text + "\n")


def _schema(args: argparse.Namespace) -> None:
    from medsyn.config import Config

    write_text(args.out, json.dumps(Config.model_json_schema(), indent=2) + "\n")
