"""The verb `manifest`: the cohort's CSV from the download of a public data set, or from any table."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medsyn.cli import Verbs
from medsyn.errors import InputError
from medsyn.outputs import Outputs

if TYPE_CHECKING:
    from medsyn.cohort.layouts import Manifest

LAYOUTS = {"ct-rate": "ct-rate", "rad-chest": "rad-chest", "rad-chestct": "rad-chest", "csv": "csv"}
"""Names of the layouts as the command line takes them, and the layout."""
OPTIONS = {
    "ct-rate": ("images", "reports", "metadata", "labels", "no_chest", "reconstructions"),
    "rad-chest": ("images", "metadata", "labels", "patient_column"),
    "csv": ("images", "table", "columns"),
}
"""Options of each layout."""


def add_verbs(verbs: Verbs) -> None:
    """Add `manifest`."""
    parser = verbs.add(
        "manifest",
        _manifest,
        summary="Write the manifest of a data set: a download of CT-RATE or RAD-ChestCT, or your own table. Volumes of"
        " a download that are not in it are listed with their reason in <out>.left_out.csv.",
        example="medsyn manifest ct-rate data/CT-RATE --out config/ct_rate.csv",
        outputs=_outputs,
    )
    parser.add_argument("layout", nargs="?", choices=LAYOUTS, help="the data set, or csv for a table of your own")
    parser.add_argument("folder", nargs="?", help="folder of the download; tables and volumes are looked for below it")
    parser.add_argument("--layout", dest="layout_option", choices=LAYOUTS, help="the same as the first word")
    parser.add_argument("--images", help="folder of the volumes, if it is another (csv: what paths are relative to)")
    parser.add_argument(
        "--reconstructions",
        choices=("one", "all"),
        help="ct-rate: one per scan (soft kernel, thin slices; the default), or all, which share a report",
    )
    for name, text in (
        ("reports", "ct-rate: tables with VolumeName, Findings_EN, Impressions_EN, instead of those below the folder"),
        ("metadata", "tables with rescaling and spacing (ct-rate) or patients (rad-chest), instead of those found"),
        ("labels", "tables of labels, one 0/1 column each, instead of those found"),
        ("no-chest", "ct-rate: lists of volumes that show no chest, one name per line, instead of those found"),
    ):
        parser.add_argument(f"--{name}", nargs="*", metavar="FILE", help=text)
    parser.add_argument("--patient-column", help="rad-chest: column of --metadata that names the patient (MRN_DEID)")
    parser.add_argument("--table", help="csv: the table to take rows from")
    parser.add_argument("--columns", nargs="*", metavar="OURS=THEIRS", help="csv: columns that have another name there")
    parser.add_argument("--out", required=True, help="CSV file, for `medsyn cohort` or cohort.manifest")


def _outputs(args: argparse.Namespace) -> Outputs:
    """Return the manifest and, where volumes of a download can be left out, the table of these."""
    layout = LAYOUTS.get(args.layout or args.layout_option)
    return Outputs(files=[Path(args.out), *([] if layout == "csv" else [_left_out(args.out)])])


def _manifest(args: argparse.Namespace) -> None:
    from medsyn.cohort.layouts import LEFT_OUT_COLUMNS, MANIFEST_COLUMNS
    from medsyn.files import write_csv
    from medsyn.progress import log

    layout = LAYOUTS.get(args.layout or args.layout_option)
    if layout is None or (args.layout and args.layout_option):
        raise InputError(f"name the data set once, as the first word: {', '.join(OPTIONS)}")
    known = {option for options in OPTIONS.values() for option in options}
    for option in sorted(known.difference(OPTIONS[layout])):
        if getattr(args, option) is not None:
            raise InputError(f"--{option.replace('_', '-')} is not an option of {layout}; remove it")
    manifest = {"ct-rate": _ct_rate, "rad-chest": _rad_chest, "csv": _csv}[layout](args)
    write_csv(args.out, manifest.rows, MANIFEST_COLUMNS)
    for note in manifest.notes:
        log.warning("%s", note)
    patients = {row["patient_id"] or row["subject_id"] for row in manifest.rows}
    silent = sum(not row["findings"] and not row["impression"] for row in manifest.rows)
    log.info("manifest: %d volumes of %d patients, %d without a report", len(manifest.rows), len(patients), silent)
    if layout == "csv":
        return
    left_out = _left_out(args.out)
    write_csv(left_out, manifest.left_out, LEFT_OUT_COLUMNS)
    for kind, count in Counter(row["reason"].partition(":")[0] for row in manifest.left_out).most_common():
        log.info("left out: %d, %s (%s)", count, kind, left_out)


def _left_out(out: str) -> Path:
    """Return the table of the volumes that are not in the manifest `out`."""
    return Path(out).with_name(f"{Path(out).stem}.left_out.csv")


def _ct_rate(args: argparse.Namespace) -> Manifest:
    from medsyn.cohort.ct_rate import find_download, from_ct_rate

    download = find_download(_folder(args), args.images)
    download = replace(
        download,
        reports=_named(args.reports, download.reports),
        metadata=_named(args.metadata, download.metadata),
        labels=_named(args.labels, download.labels),
        no_chest=_named(args.no_chest, download.no_chest),
    )
    return from_ct_rate(download, args.reconstructions or "one")


def _rad_chest(args: argparse.Namespace) -> Manifest:
    from medsyn.cohort.rad_chestct import PATIENT, find_download, from_rad_chestct

    download = find_download(_folder(args), args.images)
    if args.patient_column and args.metadata is None:
        raise InputError("--patient-column names a column of --metadata; give both")
    download = replace(
        download,
        labels=_named(args.labels, download.labels),
        patients=_named(args.metadata, download.patients),
        patient_column=args.patient_column or PATIENT,
    )
    return from_rad_chestct(download)


def _csv(args: argparse.Namespace) -> Manifest:
    from medsyn.cohort.layouts import from_csv

    if args.table is None or args.folder is not None:
        raise InputError("csv needs --table, and --images for a folder that its paths are relative to")
    pairs = [pair.partition("=") for pair in args.columns or ()]
    if not all(ours and theirs for ours, _, theirs in pairs):
        raise InputError("--columns takes OURS=THEIRS, such as subject_id=ScanID")
    return from_csv(args.table, {ours: theirs for ours, _, theirs in pairs}, args.images)


def _folder(args: argparse.Namespace) -> str:
    """Return the folder of the download, else that of the volumes."""
    folder: str | None = args.folder or args.images
    if folder is None:
        raise InputError(
            "give the folder of the download: medsyn manifest ct-rate data/CT-RATE --out config/ct_rate.csv"
        )
    return folder


def _named(names: Sequence[str] | None, found: Sequence[Path]) -> Sequence[Path]:
    """Return the files that an option names, else those that were found."""
    return found if names is None else [Path(name) for name in names]
