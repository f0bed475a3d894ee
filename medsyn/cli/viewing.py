"""The verb that shows volumes in a browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from medsyn.cli import Verbs
from medsyn.errors import InputError


def add_verbs(verbs: Verbs) -> None:
    """Add view."""
    parser = verbs.add(
        "view",
        _view,
        summary="Write one HTML page that shows volumes with masks, text and measures, without a network.",
        example="medsyn view results --out viewer.html",
    )
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="results folder of a run, folder of volumes, or a volume"
    )
    parser.add_argument("--volumes", nargs="+", type=Path, default=[], metavar="DIR", help="further paths")
    parser.add_argument("--masks", nargs="+", type=Path, default=[], metavar="DIR", help="folders of `medsyn segment`")
    parser.add_argument("--measures", nargs="+", type=Path, default=[], metavar="FILE", help="CSVs of `medsyn measure`")
    parser.add_argument("--cohort", type=Path, help="cohort.csv: reports of real CTs; those of training are left out")
    parser.add_argument("--num", type=int, default=16, help="most volumes, in turn one of every group (default 16)")
    parser.add_argument("--max-mb", type=float, default=100.0, help="largest size of the page in MB (default 100)")
    parser.add_argument("--out", required=True, help="HTML file")


def _view(args: argparse.Namespace) -> None:
    from medsyn.progress import log
    from medsyn.viewer.cases import choose, find_cases
    from medsyn.viewer.page import write_page

    if args.num < 1 or not args.max_mb > 0:
        raise InputError(f"--num {args.num}, --max-mb {args.max_mb:g}: expected positive numbers; raise them")
    paths = [*args.paths, *args.volumes]
    if not paths:
        raise InputError("nothing to show; name a results folder, a folder of volumes, or a volume")
    cases = find_cases(paths, masks=args.masks, measures=args.measures, cohort=args.cohort)
    chosen = choose(cases, args.num)
    out = Path(args.out)
    notes = write_page(out, chosen, title="MedSyn viewer", left_out=len(cases) - len(chosen), max_mb=args.max_mb)
    for note in notes:
        log.warning("%s", note)
    log.info("%s: %.1f MB; open it in a browser", out, out.stat().st_size / 1e6)
