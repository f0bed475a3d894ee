"""The command line: one verb a step, heavy imports only inside the verb that needs them.

Each module here adds the verbs of one part of the package through `add_verbs(verbs)`. Exit status: 0 success, 2 bad
input (one line on stderr, no traceback), 1 anything else.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medsyn import __version__
from medsyn.errors import InputError
from medsyn.progress import configure

OUT_OF_MEMORY = (
    "the GPU's memory does not suffice (`medsyn plan` says what fits); to train, lower train.micro_batch_size or set"
    " train.activation_checkpointing, to draw,"
    " set sampling.batch_size: 1 and sampling.precision: bf16, to segment, hide the GPU"
    " (CUDA_VISIBLE_DEVICES=)"
)


class Verbs:
    """Collects verbs; every verb gets --quiet and --progress."""

    def __init__(self, subparsers: Any) -> None:
        self._subparsers = subparsers

    def add(
        self, name: str, run: Callable[[argparse.Namespace], None], *, summary: str, example: str
    ) -> argparse.ArgumentParser:
        """Add verb `name`; `run` receives the parsed arguments. Returns the parser to add options to."""
        parser: argparse.ArgumentParser = self._subparsers.add_parser(
            name,
            help=summary.replace("%", "%%"),
            description=summary,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--quiet", action="store_true", help="log warnings only, no progress bar")
        parser.add_argument("--progress", action="store_true", help="draw progress bars even if stderr is no terminal")
        parser.set_defaults(run=run)
        return parser


def add_split(parser: argparse.ArgumentParser) -> None:
    """Add --cohort and --split, which choose real volumes by their split."""
    parser.add_argument("--cohort", help="cohort.csv, to use real volumes of one split only")
    parser.add_argument("--split", choices=("train", "validation"), help="which split (with --cohort)")


def add_state(parser: argparse.ArgumentParser) -> None:
    """Add --state to a verb whose items are kept when it is stopped."""
    parser.add_argument(
        "--state",
        type=Path,
        help="folder for what a stopped run has finished, removed at the end (default: a hidden one beside --out)",
    )


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from medsyn.cli import data, evaluation, manifest, model, phantom, planning, settings, text, weights

    parser = argparse.ArgumentParser(prog="medsyn", description="Text-guided, anatomy-aware synthesis of 3D chest CT.")
    parser.add_argument("--version", action="version", version=f"medsyn {__version__}")
    verbs = Verbs(parser.add_subparsers(dest="verb", required=True, metavar="VERB"))
    for group in (settings, planning, phantom, manifest, data, text, model, evaluation, weights):
        group.add_verbs(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    args = build_parser().parse_args(argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    configure(quiet=args.quiet, progress=args.progress)
    try:
        args.run(args)
    except InputError as error:
        print(f"medsyn {args.verb}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = error.filename or getattr(args, "out", None)
        remedy = "; make room and run the same command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        print(f"medsyn {args.verb}: {f'{where}: ' if where else ''}{error.strerror}{remedy}", file=sys.stderr)
        return 2 if isinstance(error, FileNotFoundError) else 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; the command line does without torch
            raise
        print(f"medsyn {args.verb}: {OUT_OF_MEMORY} ({str(error).split('. ')[0]})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"medsyn {args.verb}: interrupted", file=sys.stderr)
        return 1
    return 0
