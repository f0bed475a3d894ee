"""Parse the command line and run one verb per step. Heavy imports stand inside the verb that needs them.

Each module here adds the verbs of one part of the package through `add_verbs(verbs)`. Exit status: 0 success, 2 bad
input (one line on stderr, no traceback), 1 anything else.
"""

from __future__ import annotations

import argparse
import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from medsyn import __version__
from medsyn.errors import InputError
from medsyn.outputs import WRITER, Outputs, check_outputs, check_state
from medsyn.progress import configure
from medsyn.registry import load_plugins

OUT_OF_MEMORY = (
    "the GPU's memory does not suffice (`medsyn plan` says what fits); to train, set train.micro_batch_size and"
    " train.activation_checkpointing to auto, or lower the first, to sample,"
    " set sampling.batch_size: 1 and sampling.precision: bf16, to segment, hide the GPU"
    " (CUDA_VISIBLE_DEVICES=)"
)


def one_file(args: argparse.Namespace) -> Outputs:
    """Return the outputs of a verb that writes the file --out."""
    return Outputs(files=[Path(args.out)])


def one_folder(args: argparse.Namespace) -> Outputs:
    """Return the outputs of a verb that makes the folder --out."""
    return Outputs(folders=[Path(args.out)])


def table_and_json(args: argparse.Namespace) -> Outputs:
    """Return the outputs of a verb that writes a table --out and its provenance, of the same name with .json."""
    out = Path(args.out)
    if out.suffix.lower() == ".json":
        raise InputError(f"{out}: is the name of the provenance, expected a .csv file; name the table {out.stem}.csv")
    return Outputs(files=[out, out.with_suffix(".json")])


class Verbs:
    """Collects verbs; every verb gets --quiet and --progress. group: the word before the verbs, such as "study"."""

    def __init__(self, subparsers: Any, group: str = "") -> None:
        self._subparsers = subparsers
        self._prefix = f"{group} " if group else ""

    def group(self, name: str, *, summary: str, example: str) -> Verbs:
        """Add a word that stands before verbs of its own, as in `medsyn study make`, and return these verbs."""
        parser = self._subparsers.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        return Verbs(parser.add_subparsers(required=True, metavar="VERB"), name)

    def add(
        self,
        name: str,
        run: Callable[[argparse.Namespace], int | None],
        *,
        summary: str,
        example: str,
        outputs: Callable[[argparse.Namespace], Outputs] | None = one_file,
    ) -> argparse.ArgumentParser:
        """Add verb `name`; `run` receives the parsed arguments and returns the exit status or None for 0.

        Returns the parser to add options to. outputs: what the verb writes, by default the file --out; None for a verb
        that writes nothing.
        """
        parser: argparse.ArgumentParser = self._subparsers.add_parser(
            name,
            help=summary.replace("%", "%%"),
            description=summary,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--quiet", action="store_true", help="log warnings only, no progress bar")
        parser.add_argument("--progress", action="store_true", help="draw progress bars even if stderr is no terminal")
        if outputs is not None:
            parser.add_argument("--force", action="store_true", help="replace outputs that this verb did not write")
        parser.set_defaults(run=run, outputs=outputs, verb=f"{self._prefix}{name}")
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


def refuse_options(args: argparse.Namespace, names: Sequence[str], *, chosen: str, other: str) -> None:
    """Raise InputError at the first given option of `names`: the form `other` reads them, not `chosen`."""
    given = next((name for name in names if getattr(args, name)), None)
    if given is not None:
        raise InputError(f"--{given.replace('_', '-')} goes with {other}, not with {chosen}; leave it out")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    from medsyn.cli import (
        data,
        evaluation,
        exhibits,
        manifest,
        model,
        phantom,
        planning,
        quality,
        settings,
        study,
        text,
        viewing,
        weights,
    )

    parser = argparse.ArgumentParser(prog="medsyn", description="Text-guided, anatomy-aware synthesis of 3D chest CT.")
    parser.add_argument("--version", action="version", version=f"medsyn {__version__}")
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="your own Python module (a name, or the path of a .py file), imported as code; it registers methods,"
        " exhibits, mask tools or solvers (before the verb; repeat for more)",
    )
    verbs = Verbs(parser.add_subparsers(dest="verb", required=True, metavar="VERB"))
    for group in (
        *(settings, planning, phantom, manifest, data, quality, text, model, evaluation, exhibits, viewing, study),
        weights,
    ):
        group.add_verbs(verbs)
    return parser


def _check_outputs(args: argparse.Namespace) -> None:
    """Raise InputError if an output of the verb would replace an input or a file that the verb did not make."""
    WRITER.verb, WRITER.force = args.verb, getattr(args, "force", False)
    if args.outputs is None:
        return
    try:
        outputs = args.outputs(args)
    except ValueError:  # pathlib's: "." and "/" have no name from which others could be made
        outputs = None
    if outputs is None or getattr(args, "out", None) == "":
        raise InputError(f"--out '{args.out}': is not the name of a file or folder; give one")
    others = {name: value for name, value in vars(args).items() if name not in ("out", "state", "verb")}
    check_outputs(outputs, [path for value in others.values() for path in _existing(value)])
    if getattr(args, "state", None) is not None:
        check_state(args.state, outputs)


def _existing(value: object) -> Iterator[Path]:
    """Yield the files and folders that the value of an option names, NAME=FILE included."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _existing(part)
    elif isinstance(value, str | Path):
        for text in {str(value), str(value).partition("=")[2]} - {""}:
            if os.path.exists(text):  # noqa: PTH110 (a text that is too long for a path is none)
                yield Path(text)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed arguments, after importing the plugins, whose names some options accept."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--plugin", action="append", default=[])
    early.add_argument("rest", nargs=argparse.REMAINDER)
    words = list(sys.argv[1:] if argv is None else argv)
    with suppress(SystemExit):  # the whole parser says what is wrong
        load_plugins(early.parse_known_args(words)[0].plugin)
    return build_parser().parse_args(words)


def _is_stdout_closed() -> bool:
    """Return whether nobody reads what is printed any more (`medsyn inspect FILE | head`); then print to nowhere."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # not a file
        return False
    poll = select.poll()
    poll.register(number, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # Python flushes what is left when it ends
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    try:
        args = _parse(argv)
    except InputError as error:
        print(f"medsyn: {error}", file=sys.stderr)
        return 2
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    configure(quiet=args.quiet, progress=args.progress)
    try:
        _check_outputs(args)
        status: int | None = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_stdout_closed():
            raise
        return 128 + signal.SIGPIPE
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
    return status or 0
