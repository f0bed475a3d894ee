"""The verb on external weight files."""

from __future__ import annotations

import argparse
from pathlib import Path

from medsyn.cli import Verbs
from medsyn.errors import InputError


def add_verbs(verbs: Verbs) -> None:
    """Add `weights`."""
    parser = verbs.add(
        "weights",
        _weights,
        summary="External weight files: what for, licence, size (MB), where they belong; or which are there and whole.",
        example="medsyn weights check --config config/paper.yaml",
        outputs=None,
    )
    parser.add_argument("action", choices=("list", "check"), help="list: the table; check: files and their SHA-256")
    parser.add_argument("--config", help="YAML file: only what it needs; then a missing file is an error too")
    parser.add_argument("--weights-dir", type=Path, help="folder to look in (default: masks.weights_dir of --config)")


def _weights(args: argparse.Namespace) -> None:
    from medsyn.config import MasksConfig, load_config
    from medsyn.masks.weights import needed_weights, weight_files
    from medsyn.weight_files import hash_weights

    config = load_config(args.config) if args.config else None
    root = args.weights_dir or Path(config.masks.weights_dir if config else MasksConfig().weights_dir)
    rows = needed_weights(config) if config else weight_files()
    faults: list[InputError] = []
    for row in rows:
        try:
            found = row.find(root)
        except InputError as error:
            faults += [error] if config else []
            found = []
        if args.action == "list":
            print(f"{row.name}: {row.tool}, {row.use}")
            print(f"  {root / row.path} ({'present' if found else 'missing'}; {row.size}; {row.licence})")
            print(f"  from the {row.source}" + (f": {row.how_to_fetch(root)}" if row.fetch else ""))
            continue
        digest = hash_weights(found, root / row.path) if found else "missing"
        verdict = "" if not found or row.sha256 is None else " as known" if digest == row.sha256 else " NOT AS KNOWN"
        print(f"{digest}{verdict}  {row.path}")
        if verdict == " NOT AS KNOWN":
            faults.append(InputError(f"{root / row.path}: SHA-256 {digest}, expected {row.sha256}; copy it again"))
    if not rows:
        print("this configuration needs no weight file")
    if args.action == "check" and faults:
        raise InputError(f"{len(faults)} of {len(rows)} files are not usable; the first: {faults[0]}")
