"""Verb `phantom`: the embedded cohort of procedural chest CTs with reports, masks and truth."""

from __future__ import annotations

import argparse

from medsyn.cli import Verbs, one_file, one_folder, refuse_options
from medsyn.errors import InputError


def add_verbs(verbs: Verbs) -> None:
    """Add `phantom`."""
    parser = verbs.add(
        "phantom",
        _phantom,
        summary="Make procedural chest CTs with findings, reports, true masks and truth.",
        example="medsyn phantom --out phantoms --count 4 --size 64 --seed 1",
        outputs=lambda args: one_file(args) if args.reports_only else one_folder(args),
    )
    parser.add_argument("--out", required=True, help="folder to write (with --reports-only: the CSV file)")
    parser.add_argument("--config", metavar="JSON", help="settings of the workflow; instead of --count, --size, --seed")
    parser.add_argument("--count", type=int, help="number of subjects")
    parser.add_argument("--size", type=int, help="voxels along each axis (64)")
    parser.add_argument("--seed", type=int, help="seed of the cohort (0)")
    parser.add_argument("--shard", metavar="K/N", help="every N-th subject, from K (default 0/1, all)")
    parser.add_argument("--reports-only", action="store_true", help="reports without images, as CSV")


def _phantom(args: argparse.Namespace) -> None:
    from medsyn.config import PhantomConfig, load_stage
    from medsyn.names import parse_shard
    from medsyn.phantom.cohort import shard_indices, write_cohort, write_reports

    if args.config:
        if any(value is not None for value in (args.count, args.size, args.seed)):
            raise InputError("--config holds count, size and seed; leave --count, --size and --seed away")
        config = load_stage(PhantomConfig, args.config)
    elif args.count is None:
        raise InputError("give --count N, the number of subjects, or --config FILE")
    else:
        if args.count < 1 or (args.size is not None and args.size < 16) or (args.seed or 0) < 0:
            raise InputError("--count must be at least 1, --size at least 16 and --seed at least 0")
        config = PhantomConfig(
            num_subjects=args.count,
            num_text_only_reports=args.count,
            size=64 if args.size is None else args.size,
            seed=args.seed or 0,
        )
    if args.reports_only:
        refuse_options(args, ("size", "shard"), chosen="--reports-only", other="volumes")
        write_reports(args.out, config.num_text_only_reports, seed=config.seed)
    else:
        indices = shard_indices(config.num_subjects, parse_shard("0/1" if args.shard is None else args.shard))
        write_cohort(args.out, indices, seed=config.seed, size=config.size)
