"""Preprocess and segment one CT or a shard of the cohort, and write the files of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import SimpleITK as sitk

from medsyn.cohort import Subject
from medsyn.config import MasksConfig, PreprocessConfig
from medsyn.ct.atlas import load_atlas
from medsyn.ct.inspect import read_hu
from medsyn.ct.preprocess import preprocess
from medsyn.ct.preview import combine, coronal_view, sheet, three_views, write_png
from medsyn.ct.reading import read_scan
from medsyn.errors import InputError
from medsyn.files import atomic_path, read_json, sha256, write_json
from medsyn.header_hints import HeaderHints, parse_hints
from medsyn.masks.segment import open_tools, segment
from medsyn.nifti import files_of
from medsyn.orientation import reorient
from medsyn.outputs import check_folder
from medsyn.progress import log
from medsyn.provenance import provenance
from medsyn.scan_warnings import count_topics
from medsyn.stages.shards import VOLUME, accepted_ids, check_rejects, identity_of, open_shard, run_shard, write_index
from medsyn.volume import STRUCTURES, read_volume, write_volume

CONTACT_SHEET_SUBJECTS = 64


def preprocess_one(
    path: str | Path,
    out: Path,
    config: PreprocessConfig,
    masks: Mapping[str, str | Path] | None = None,
    hints: HeaderHints | None = None,
) -> list[str]:
    """Write volume.nii.gz, transform.tfm, qc.json, preview.png (and given_*.nii.gz) of one CT into folder `out`.

    Return the warnings that qc.json holds.
    """
    scan = read_scan(path, hints)
    if scan.faults:
        raise InputError(f"{path}: rejected, {'; '.join(scan.faults)}")
    given = {name: read_volume(mask) for name, mask in (masks or {}).items()}
    try:
        result = preprocess(scan.volume, config, given, str(path))
    except InputError as error:
        raise InputError("; ".join([str(error), *scan.warnings])) from None  # what the header leaves open may be why
    write_volume(out / VOLUME, result.volume)
    with atomic_path(out / "transform.tfm") as temporary:
        sitk.WriteTransform(result.transform, str(temporary))
    for name, mask in result.given.items():
        write_volume(out / f"given_{name}.nii.gz", mask)
    facts = {"image": Path(path).name, "sha256": sha256(path) if Path(path).is_file() else None}
    warnings = [*scan.warnings, *result.qc["warnings"]]
    qc = result.qc | scan.facts | {"warnings": warnings, "given_masks": sorted(result.given)}
    write_json(out / "qc.json", qc | {"provenance": provenance(config, input=facts)})
    write_png(out / "preview.png", three_views(result.volume))
    for warning in warnings:
        log.warning("%s: warning, %s", path, warning)
    return warnings


def preprocess_shard(subjects: list[Subject], out: Path, config: PreprocessConfig, state: Path | None = None) -> None:
    """Preprocess subjects of a cohort into one sub-folder each, with index.csv and contact_sheet.png.

    state: where finished subjects lie until the end (`open_shard`).
    """
    by_name = {subject.subject_id: subject for subject in subjects}

    def work(name: str, target: Path) -> dict[str, list[str]]:
        subject = by_name[name]
        hints = parse_hints(subject.hints)
        return {"warnings": preprocess_one(subject.image, target, config, subject.masks, hints)}

    def identify(name: str) -> str | None:
        subject = by_name[name]
        files = [*files_of(Path(subject.image)), *(Path(mask) for mask in subject.masks.values())]
        return identity_of(subject.image, subject.masks, subject.hints, *files)

    check_folder(out)
    settings = provenance(config, stage="preprocess")
    if config.alignment == "atlas":
        load_atlas(config.atlas)  # a wrong one is found before the first scan
        settings["atlas"] = identity_of(Path(config.atlas)) if config.atlas else None
    with open_shard(out, state, settings) as shard:
        outcomes = run_shard(shard, by_name, work, identify, "preprocess")
        rows = write_index(shard.folder, outcomes)
        counts = count_topics(outcome.warnings for outcome in outcomes)
        if counts:
            log.info("preprocess: warnings: %s", ", ".join(f"{topic} ({n})" for topic, n in counts.items()))
        check_rejects(rows, config.max_reject_fraction, out)
        names = [row["subject_id"] for row in rows if row["status"] == "ok"][:CONTACT_SHEET_SUBJECTS]
        views = [coronal_view(read_volume(shard.folder / name / VOLUME)) for name in names]
        write_png(shard.folder / "contact_sheet.png", sheet(views))
        shard.publish(out)


def segment_one(path: str | Path, out: Path, config: MasksConfig, hints: HeaderHints | None = None) -> None:
    """Write lobes, airway, vessels (.nii.gz), segment.json and preview.png of one CT into folder `out`.

    Masks that lie beside a preprocessed volume as given_*.nii.gz replace a tool's.
    """
    path = Path(path)
    volume = read_hu(path, hints)
    given = {}
    if path.name == VOLUME:
        files = {name: path.parent / f"given_{name}.nii.gz" for name in STRUCTURES}
        given = {name: read_volume(file) for name, file in files.items() if file.exists()}
    masks = segment(volume, config, given, str(path))
    for name, label in masks.labels.items():
        write_volume(out / f"{name}.nii.gz", label)
    record: dict[str, object] = {"structures": masks.record, "provenance": provenance(config)}
    qc = path.parent / "qc.json"
    if path.name == VOLUME and qc.exists():
        facts = read_json(qc)
        names = ("model_to_scanner_matrix", "model_to_scanner_translation_mm")
        record |= {name: facts[name] for name in names if name in facts}
    write_json(out / "segment.json", record)
    painted = combine({name: reorient(label).array for name, label in masks.labels.items()})
    write_png(out / "preview.png", three_views(reorient(volume), painted))


def segment_shard(volumes: Path, out: Path, config: MasksConfig, state: Path | None = None) -> None:
    """Segment every accepted subject of a shard of preprocessed volumes; index.csv lists them.

    state: where finished subjects lie until the end (`open_shard`).
    """

    def work(name: str, target: Path) -> None:
        segment_one(volumes / name / VOLUME, target, config)

    def identify(name: str) -> str | None:
        files = [volumes / name / VOLUME, *sorted((volumes / name).glob("given_*")), volumes / name / "qc.json"]
        return identity_of(str(volumes), *(file for file in files if file.name == VOLUME or file.exists()))

    check_folder(out)
    names = accepted_ids(volumes)
    tools = {name: [tool.version, tool.weights_hash] for name, tool in open_tools(config).items()}
    with open_shard(out, state, provenance(config, stage="segment", tools=tools)) as shard:
        rows = write_index(shard.folder, run_shard(shard, names, work, identify, "segment"))
        check_rejects(rows, config.max_reject_fraction, out)
        shard.publish(out)
