"""Verbs of the data group: cohort, atlas, inspect, preprocess, segment, measure, store, export."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medsyn.cli import Verbs, add_split, add_state, one_folder, refuse_options
from medsyn.errors import InputError
from medsyn.mask_tools import MASK_TOOLS, tools_for
from medsyn.outputs import Outputs

if TYPE_CHECKING:
    from medsyn.config import PreprocessConfig
    from medsyn.header_hints import HeaderHints

MASKS = ("lobes.nii.gz", "airway.nii.gz", "vessels.nii.gz")
CT_HELP = "one CT in HU: .nii, .nii.gz, .mha, .nrrd, .npz, or a folder with DICOM slices"


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this group."""
    _add_cohort(verbs)
    _add_one_ct(verbs)
    _add_tables(verbs)


def _add_cohort(verbs: Verbs) -> None:
    parser = verbs.add(
        "cohort",
        _cohort,
        summary="Validate manifests; write cohort.csv, rejects.csv, reports.csv (splits, shards) and given_labels.csv.",
        example="medsyn cohort --config results/config/cohort.json --manifest config/cohort.csv --out results/cohort",
        outputs=lambda args: Outputs(
            files=[Path(args.out) / f"{name}.csv" for name in ("cohort", "rejects", "reports", "given_labels")]
        ),
    )
    parser.add_argument("--config", help="settings of the stage (JSON); none: the defaults")
    parser.add_argument(
        "--manifest",
        nargs="+",
        required=True,
        help="CSV with subject_id, image, findings, impression; paths relative to it",
    )
    parser.add_argument(
        "--reports", help="CSV with report_id, findings, impression (patient_id): reports without images"
    )
    parser.add_argument("--out", required=True, help="folder for the four tables")

    parser = verbs.add(
        "atlas",
        _atlas,
        summary="Write the lung atlas that `preprocess.alignment: atlas` registers to (0/1, about 5 mm).",
        example="medsyn atlas --out atlas.nii.gz",
    )
    parser.add_argument("--atlas", help="your own lung mask, brought to where it is used; none: the phantoms' mean")
    parser.add_argument("--out", required=True, help="image file")


def _add_one_ct(verbs: Verbs) -> None:
    parser = verbs.add(
        "inspect",
        _inspect,
        summary="Say whether a file is a usable chest CT: size, spacing (mm), orientation, HU range, verdict.",
        example="medsyn inspect scan.nii.gz --json",
        outputs=None,
    )
    parser.add_argument("path", help=CT_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_hints(parser)

    parser = verbs.add(
        "preprocess",
        _preprocess,
        summary="Bring one CT, or a shard of a cohort, to the model's grid (int16 HU, spacing in mm).",
        example="medsyn preprocess scan.nii.gz --out prepared",
        outputs=lambda args: _shard_outputs(args, ("volume.nii.gz", "transform.tfm", "qc.json", "preview.png")),
    )
    parser.add_argument("path", nargs="?", help=CT_HELP)
    parser.add_argument("--cohort", help="cohort.csv (instead of PATH)")
    parser.add_argument("--shard", metavar="K/N", help="the K-th of the cohort's N shards, from 0 (/N may be left out)")
    parser.add_argument("--config", help="settings of the stage (JSON); none: the defaults")
    parser.add_argument("--out", required=True, help="folder for volume.nii.gz, transform.tfm, qc.json, preview.png")
    add_state(parser)
    _add_hints(parser)

    parser = verbs.add(
        "segment",
        _segment,
        summary="Lobes (0..5), airway and vessels (0/1) of one CT or of a folder of CTs, on the input's own grid.",
        example="medsyn segment scan.nii.gz --out masks --airway classical",
        outputs=lambda args: _shard_outputs(args, (*MASKS, "segment.json", "preview.png")),
    )
    parser.add_argument("path", nargs="?", help=CT_HELP)
    parser.add_argument("--volumes", help="folder with <subject_id>/volume.nii.gz (instead of PATH)")
    parser.add_argument("--config", help="settings of the stage (JSON); none: the defaults")
    for structure in ("lobes", "airway", "vessels"):
        own = ", ".join(tools_for(structure, MASK_TOOLS.builtin))
        text = f"tool for the {structure}, instead of the configured one: {own}, or one of a plugin"
        parser.add_argument(f"--{structure}", metavar="TOOL", help=text)
    parser.add_argument("--weights", help="folder with the tools' weights, instead of the configured one")
    parser.add_argument("--out", required=True, help="folder for the masks and segment.json")
    add_state(parser)
    _add_hints(parser)


def _shard_outputs(args: argparse.Namespace, names: Sequence[str]) -> Outputs:
    """Return what a verb for one CT or a shard writes: the files `names` of one CT, or the folder of the shard."""
    out = Path(args.out)
    if args.path is not None:
        return Outputs(files=[out / name for name in names])
    from medsyn.stages.shards import is_rejects_file, rejects_file

    listed = rejects_file(out)  # Snakemake, which gives no --force, does not remove it
    return Outputs(files=[] if is_rejects_file(listed) else [listed], folders=[out])


def _add_hints(parser: argparse.ArgumentParser) -> None:
    """Add the options of header hints; in a manifest these are columns."""
    parser.add_argument("--series", help="DICOM: SeriesInstanceUID or SeriesDescription; none: chosen by rules")
    parser.add_argument("--spacing-mm", help="'z y x' in mm, for npz or instead of a wrong header")
    parser.add_argument("--orientation", help="where x, y, z run to, such as LPS, instead of the header; npz: or auto")
    parser.add_argument("--rescale-slope", help="of raw values; applied only if the values are not in HU yet")
    parser.add_argument("--rescale-intercept", help="of raw values, HU")


def _hints(args: argparse.Namespace) -> HeaderHints:
    from medsyn.header_hints import HINT_COLUMNS, parse_hints

    return parse_hints({name: getattr(args, name) or "" for name in HINT_COLUMNS}, "command line")


def _add_tables(verbs: Verbs) -> None:
    parser = verbs.add(
        "measure",
        _measure,
        summary="Lung and effusion volume (ml), airway volume (mm3), %LAA-950 and cardiothoracic ratio.",
        example="medsyn measure scan.nii.gz --masks masks --out measures.json",
    )
    parser.add_argument("path", nargs="?", help=CT_HELP)
    parser.add_argument("--volumes", help="folder with <subject_id>/volume.nii.gz (instead of PATH)")
    parser.add_argument("--masks", help="folder of masks on the same grid; none: the configured tool finds them")
    parser.add_argument("--config", help="settings of the stage (JSON)")
    add_split(parser)
    parser.add_argument("--out", required=True, help="JSON file (one CT) or CSV file (--volumes)")
    add_state(parser)
    _add_hints(parser)

    parser = verbs.add(
        "store",
        _store,
        summary="Pack preprocessed volumes and masks of a shard into compressed arrays for training.",
        example="medsyn store --volumes preprocessed/0 --masks masks/0 --cohort cohort.csv --out store/0",
        outputs=one_folder,
    )
    for name, text in (("volumes", "preprocessed shard"), ("masks", "masks of it"), ("cohort", "cohort.csv")):
        parser.add_argument(f"--{name}", required=True, help=text)
    parser.add_argument("--config", help="settings of the preprocessing (JSON); none: the defaults")
    parser.add_argument("--out", required=True, help="folder for the arrays and index.csv")

    parser = verbs.add(
        "export",
        _export,
        summary="Write a generated volume as a DICOM series, or one subject of the training store as NIfTI (HU, mm).",
        example="medsyn export effusion.nii.gz --dicom --out effusion_dicom",
        outputs=lambda args: (
            Outputs(folders=[args.out])
            if args.dicom
            else Outputs(files=[args.out / name for name in ("volume.nii.gz", *MASKS)])
        ),
    )
    parser.add_argument("subject", help="with --dicom: the volume's file in HU; with --store: a subject_id")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--dicom", action="store_true", help="one derived CT series with new UIDs, marked as synthetic")
    form.add_argument("--store", type=Path, nargs="+", help="shard folders of the training store")
    parser.add_argument(
        "--out", required=True, type=Path, help="folder for the slices, or for volume, lobes, airway, vessels (.nii.gz)"
    )


def _cohort(args: argparse.Namespace) -> None:
    from medsyn.cohort import build_cohort, write_cohort
    from medsyn.config import CohortStage, load_stage
    from medsyn.progress import log

    config = load_stage(CohortStage, args.config) if args.config else CohortStage()
    if config.source == "manifest" and args.reports is None:
        log.warning(
            "cohort.reports is empty: the text encoder trains on the training subjects' reports alone (paper: 209,683"
            " reports without images as well); name a CSV with report_id, patient_id, findings, impression there"
        )
    cohort = build_cohort(args.manifest, args.reports, config)
    write_cohort(cohort, args.out, config.max_reject_fraction)
    held_out = sum(subject.split == "validation" for subject in cohort.subjects)
    log.info(
        "cohort: %d subjects (%d for validation), %d rows rejected, %d reports",
        *(len(cohort.subjects), held_out, len(cohort.rejects), len(cohort.reports)),
    )


def _atlas(args: argparse.Namespace) -> None:
    from medsyn.ct.atlas import load_atlas
    from medsyn.volume import write_volume

    write_volume(args.out, load_atlas(args.atlas))


def _inspect(args: argparse.Namespace) -> None:
    from medsyn.ct.inspect import inspect

    facts = inspect(args.path, _hints(args))
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        for key, value in facts.items():
            text = "; ".join(value) if key in ("reasons", "warnings") else value
            if text not in ("", None):
                print(f"{key}: {text}")
    sys.stdout.flush()


def _is_one_ct(args: argparse.Namespace, many: str, *, only_many: Sequence[str]) -> bool:
    """Return whether one CT, PATH, is asked for and not the option `many`; neither or both is an InputError.

    only_many: options of the form with `many` alone. An option that the chosen form does not read is an InputError.
    """
    from medsyn.header_hints import HINT_COLUMNS

    one = args.path is not None
    if one == (getattr(args, many) is not None):
        raise InputError(f"give either PATH or --{many}")
    if one:
        refuse_options(args, only_many, chosen="PATH", other=f"--{many}")
    else:
        refuse_options(args, HINT_COLUMNS, chosen=f"--{many}", other="PATH")
    return one


def _preprocess_config(path: str | None) -> PreprocessConfig:
    from medsyn.config import PreprocessConfig, load_stage

    return load_stage(PreprocessConfig, path) if path else PreprocessConfig()


def _preprocess(args: argparse.Namespace) -> None:
    from medsyn.cohort import load_cohort
    from medsyn.files import staging_dir
    from medsyn.names import parse_shard
    from medsyn.stages.volumes import preprocess_one, preprocess_shard

    config = _preprocess_config(args.config)
    out = Path(args.out)
    if _is_one_ct(args, "cohort", only_many=("shard", "state")):
        with staging_dir(out) as folder:
            preprocess_one(args.path, folder, config, hints=_hints(args))
    else:
        shard: int | None = None
        num_shards: int | None = None
        if args.shard is not None and args.shard.isdecimal():
            shard = int(args.shard)
        elif args.shard is not None:
            shard, num_shards = parse_shard(args.shard)
        preprocess_shard(load_cohort(args.cohort, shard, num_shards), out, config, args.state)


def _segment(args: argparse.Namespace) -> None:
    from medsyn.config import MasksConfig, load_stage, validate
    from medsyn.files import staging_dir
    from medsyn.stages.volumes import segment_one, segment_shard

    config = load_stage(MasksConfig, args.config) if args.config else MasksConfig()
    chosen = {"lobes": args.lobes, "airway": args.airway, "vessels": args.vessels, "weights_dir": args.weights}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    if chosen:
        config = validate(MasksConfig, config.model_dump() | chosen, "command line")
    out = Path(args.out)
    if _is_one_ct(args, "volumes", only_many=("state",)):
        with staging_dir(out) as folder:
            segment_one(args.path, folder, config, _hints(args))
    else:
        segment_shard(Path(args.volumes), out, config, args.state)


def _measure(args: argparse.Namespace) -> None:
    from medsyn.config import MeasureStage, load_stage
    from medsyn.stages.measures import measure_json, measure_shard

    config = load_stage(MeasureStage, args.config) if args.config else MeasureStage()
    if _is_one_ct(args, "volumes", only_many=("cohort", "split", "state")):
        measure_json(args.path, args.masks, args.out, config, _hints(args))
    else:
        masks = Path(args.masks) if args.masks else None
        measure_shard(Path(args.volumes), masks, Path(args.out), config, args.cohort, args.split, args.state)


def _store(args: argparse.Namespace) -> None:
    from medsyn.cohort import load_cohort
    from medsyn.stages.store import store_shard

    config = _preprocess_config(args.config)
    store_shard(Path(args.volumes), Path(args.masks), load_cohort(args.cohort), Path(args.out), config)


def _export(args: argparse.Namespace) -> None:
    from medsyn.files import staging_dir
    from medsyn.stages.store import export_subject

    if args.dicom:
        from medsyn.ct.dicom_export import export_dicom

        export_dicom(args.subject, args.out)
        return
    with staging_dir(args.out) as folder:
        export_subject(args.store, args.subject, folder)
