"""Verbs of the reader study: `medsyn study make`, `analyse`, `plan` and those of its server."""

from __future__ import annotations

import argparse

from medsyn.cli import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Add the group `study`."""
    group = verbs.group(
        "study",
        summary="Make, serve, analyse and plan a blind study with human readers (Figures 7 and 8).",
        example="medsyn study make --config results/config/study.json --results results --out reader_study",
    )
    _add_make(group)
    _add_server_verbs(group)


def _add_server_verbs(group: Verbs) -> None:
    """Add serve, export, withdraw and backup."""


def _add_make(group: Verbs) -> None:
    parser = group.add(
        "make",
        _make,
        summary="Make a study folder whose bytes do not say which method a volume is of, and its sealed key.",
        example="medsyn study make --config results/config/study.json --results results --out reader_study",
        outputs=None,
    )
    parser.add_argument("--config", required=True, help="study.json of the verb config")
    parser.add_argument("--results", help="results folder of a run, for its CTs and the volumes of its methods")
    parser.add_argument("--out", required=True, help="folder of the study, a new one")
    parser.add_argument("--key", help="file of the key, a new one outside of that folder (default: OUT.key.json)")


def _make(args: argparse.Namespace) -> None:
    raise NotImplementedError
