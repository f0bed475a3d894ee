"""Sub-verbs of `medsyn study` about a running study: serve, export, backup, withdraw."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from medsyn.cli import Verbs


def add_server_verbs(group: Verbs) -> None:
    """Add serve, export, backup and withdraw to the group `study`."""
    parser = group.add(
        "serve",
        _serve,
        summary="Serve a study to its readers in the browser, on this machine unless told otherwise.",
        example="medsyn study serve reader_study --port 8000",
        outputs=None,  # only its own file of answers, and links that it never replaces unasked
    )
    _add_study(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at; 0 takes a free one (default: 8000)")
    parser.add_argument("--url", help="address by which readers reach the server, such as https://study.example.org")
    parser.add_argument("--links", type=Path, help="CSV of the invitation links (default: STUDY.links.csv beside it)")
    parser.add_argument("--new-links", action="store_true", help="write new invitation links; earlier ones end")
    parser = group.add(
        "export",
        _export,
        summary="Write the answers as CSV, also while the server runs.",
        example="medsyn study export reader_study --out answers.csv",
    )
    _add_study(parser)
    parser.add_argument("--out", required=True, help="CSV with one row per reader, item and volume")
    parser = group.add(
        "backup",
        _backup,
        summary="Copy the file of answers as it is at one moment, also while the server runs.",
        example="medsyn study backup reader_study --out answers-backup.sqlite",
    )
    _add_study(parser)
    parser.add_argument("--out", required=True, help="SQLite file, which `medsyn study serve --answers` takes")
    parser = group.add(
        "withdraw",
        _withdraw,
        summary="Delete all answers of a reader and end the reader's invitation, also while the server runs.",
        example="medsyn study withdraw reader_study R07",
        outputs=None,
    )
    _add_study(parser)
    parser.add_argument("reader", help="code of the reader, such as R07")


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of `medsyn study make`")
    parser.add_argument("--answers", type=Path, help="file of the answers (default: STUDY.answers.sqlite beside it)")


def _serve(args: argparse.Namespace) -> None:
    from medsyn.study.serving import serve

    serve(
        args.study,
        answers=args.answers,
        host=args.host,
        port=args.port,
        url=args.url,
        links=args.links,
        new_links=args.new_links,
    )


def _export(args: argparse.Namespace) -> None:
    from medsyn.study.answers_table import export
    from medsyn.study.serving import open_answers

    study, store = open_answers(args.study, args.answers)
    number = export(study, store, Path(args.out))
    store.close()
    print(f"{args.out}: {number} answers", file=sys.stderr)


def _backup(args: argparse.Namespace) -> None:
    from medsyn.files import atomic_path
    from medsyn.study.serving import open_answers

    _, store = open_answers(args.study, args.answers)
    with atomic_path(args.out) as temporary:
        store.backup(temporary)
    os.chmod(args.out, 0o600)  # noqa: PTH101 (answers are for their owner alone)
    store.close()


def _withdraw(args: argparse.Namespace) -> None:
    from medsyn.study.serving import open_answers

    _, store = open_answers(args.study, args.answers)
    number = store.withdraw(args.reader)
    store.close()
    print(f"{args.reader}: {number} answers deleted; copies and exports made earlier still hold them", file=sys.stderr)
