"""Anatomical measures and mask quality of a shard: tables made from preprocessed volumes and their masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from medsyn.cohort import Subject
from medsyn.config import MasksConfig, MeasureStage
from medsyn.ct.inspect import Chest, judge, read_hu, read_hu_scan
from medsyn.ct.reading import read_ct
from medsyn.errors import InputError, NothingFoundError
from medsyn.evaluate.inputs import VALIDITY, keep_split
from medsyn.evaluate.measure_names import MEASURES
from medsyn.evaluate.measures import Measured, measure
from medsyn.files import read_json, write_csv, write_json
from medsyn.header_hints import HeaderHints
from medsyn.mask_tools import ANATOMY, MASK_TOOLS, Segmenter, open_tool
from medsyn.masks.labels import as_labels, dice
from medsyn.orientation import reorient, reorient_to
from medsyn.progress import log
from medsyn.provenance import provenance
from medsyn.scan_warnings import join_warnings, of_measures
from medsyn.stages.shards import (
    SUBJECT_FAULTS,
    VOLUME,
    accepted_ids,
    identity_of,
    is_machine_fault,
    open_shard,
    run_shard,
)
from medsyn.volume import LOBE_NAMES, STRUCTURES, Volume, read_volume, to_sitk

MEASURE_COLUMNS = ("subject_id", *MEASURES, *VALIDITY, "reason", "warnings")
GIVEN_STRUCTURES = ("lobes", "airway")
"""Masks that `measure --masks` reads."""
QC_COLUMNS = ("subject_id", "lung", *LOBE_NAMES, "lobes_mean", "airway", "vessels")


def open_anatomy_tool(config: MeasureStage) -> Segmenter | None:
    """Return the tool that finds the anatomy to be measured, or None where `measure` has the tool's method itself."""
    if MASK_TOOLS[config.anatomy_tool].measures_itself:
        return None
    return open_tool(config.anatomy_tool, MasksConfig(weights_dir=config.weights_dir), ANATOMY)


def measure_one(
    path: str | Path, masks: str | Path | None = None, tool: Segmenter | None = None, hints: HeaderHints | None = None
) -> Measured:
    """Return the measures of one CT file; values that cannot be those of a CT are an InputError.

    masks: folder with lobes.nii.gz and airway.nii.gz on its grid; without them, what `tool` finds, or the classical
    segmentation.
    """
    return measure_volume(read_hu(path, hints), masks, tool)


def measure_volume(
    volume: Volume, masks: str | Path | None = None, tool: Segmenter | None = None, chest: Chest | None = None
) -> Measured:
    """Return the measures of a volume in HU, whatever it shows; see `measure_one`.

    chest: what `medsyn.ct.inspect.judge` found in the same volume, so that its lungs are not searched twice.
    """
    model = reorient(volume)
    if masks is not None:
        return measure(model, *_read_masks(Path(masks), model))
    if tool is not None:
        return measure(model, *_find_anatomy(tool, model))
    return measure(model, coarse_lungs=chest.lungs if chest else None)


def _read_masks(folder: Path, model: Volume) -> tuple[dict[str, Volume], dict[str, str]]:
    """Return the masks of a folder, and by structure why one cannot be used; without any, InputError."""
    masks: dict[str, Volume] = {}
    failures: dict[str, str] = {}
    for name in GIVEN_STRUCTURES:
        file = folder / f"{name}.nii.gz"
        try:
            if not file.exists():
                raise InputError(f"{file}: no such mask; run `medsyn segment` into that folder, or leave --masks away")
            mask = reorient_to(read_volume(file), model, str(file))
            masks[name] = mask.with_array(as_labels(mask.array, name, str(file)))
        except InputError as error:
            failures[name] = str(error)
    if not masks:
        raise InputError(next(iter(failures.values())))
    for reason in failures.values():
        log.warning("measure: %s", reason)
    return masks, failures


def _find_anatomy(tool: Segmenter, model: Volume) -> tuple[dict[str, Volume], dict[str, str]]:
    """Return what the tool finds, and by structure why it failed.

    A tool that fails is run again for each structure alone, so that the others are not lost.
    """
    try:
        return _masks_of(tool, model, ANATOMY), {}
    except SUBJECT_FAULTS as error:
        if is_machine_fault(error):
            raise
    masks: dict[str, Volume] = {}
    failures: dict[str, str] = {}
    for name in ANATOMY:
        try:
            masks |= _masks_of(tool, model, (name,))
        except NothingFoundError:
            masks[name] = model.with_array(np.zeros(model.array.shape, np.uint8))
        except SUBJECT_FAULTS as error:
            if is_machine_fault(error):
                raise
            failures[name] = " ".join(str(error).split())
    return masks, failures


def _masks_of(tool: Segmenter, model: Volume, structures: Sequence[str]) -> dict[str, Volume]:
    """Return the masks of `structures`; one that the tool does not give is an InputError."""
    found = tool.segment(model, structures)
    missing = [name for name in structures if name not in found]
    if missing:
        raise InputError(f"the tool gave no mask for {missing[0]}, expected {', '.join(structures)}; repair the tool")
    return {name: model.with_array(found[name]) for name in structures}


def measure_json(
    path: str | Path, masks: str | Path | None, out: str | Path, config: MeasureStage, hints: HeaderHints | None = None
) -> None:
    """Write one CT's measures: a number or null each, whether lung, airway and heart were found (null: their
    segmentation failed), the verdict `chest`, `reasons` for what is absent or failed, `warnings` whose cause may change
    a measure, provenance.
    """
    scan = read_hu_scan(path, hints)
    volume = scan.volume
    faults, chest, warnings = judge(volume)
    result = measure_volume(volume, masks, open_anatomy_tool(config) if masks is None else None, chest)
    reasons = result.reasons | ({"chest": "; ".join(faults)} if faults else {})
    seen = _noted_warnings(Path(path))
    repeated = of_measures([*scan.warnings, *warnings] if seen is None else seen)
    facts = {"image": Path(path).name, "masks": "given" if masks is not None else config.anatomy_tool}
    entries = {"found": result.found, "chest": not faults, "reasons": reasons, "warnings": repeated}
    write_json(out, result.values | entries | {"provenance": provenance(None, input=facts)})


def measure_shard(
    volumes: Path,
    masks: Path | None,
    out: Path,
    config: MeasureStage,
    cohort: str | Path | None = None,
    split: str | None = None,
    state: Path | None = None,
) -> None:
    """Write one row (MEASURE_COLUMNS) per accepted subject; with `cohort` and `split`, of that split only.

    Volumes are taken as HU, as `preprocess` and `generate` write them, and none is left out for what it shows: absent
    anatomy is 0 or empty (`medsyn.evaluate.measures`), `*_found` and `chest`, the verdict of `medsyn inspect`, are 1 or
    0. A measure that failed is empty, with `*_found` empty and its reason; so is a whole row that cannot be read.
    state: where finished rows lie until the end (`open_shard`).
    """
    tool = open_anatomy_tool(config) if masks is None else None
    names = accepted_ids(volumes)
    kept = keep_split(names, cohort, split)

    def work(name: str, _: Path) -> dict[str, Any]:
        return _measure_row(volumes / name / VOLUME, masks / name if masks is not None else None, tool)

    def identify(name: str) -> str | None:
        return identity_of(str(volumes), volumes / name / VOLUME, *([masks / name] if masks is not None else []))

    facts = [tool.version, tool.weights_hash] if tool else None
    with open_shard(out, state, provenance(config, stage="measure", tool=facts, masks=str(masks))) as shard:
        outcomes = run_shard(shard, [name for name in names if name in kept], work, identify, "measure")
        rows = ({"subject_id": item.name} | (item.result or {"reason": item.reason}) for item in outcomes)
        write_csv(out, rows, MEASURE_COLUMNS)


def _measure_row(path: Path, masks: Path | None, tool: Segmenter | None) -> dict[str, Any]:
    volume = read_ct(path)
    faults, chest, warnings = judge(volume)
    result = measure_volume(volume, masks, tool, chest)
    seen = _noted_warnings(path)
    row: dict[str, Any] = {
        key: None if value is None else round(float(value), 4) for key, value in result.values.items()
    }
    row |= {f"{name}_found": None if found is None else int(found) for name, found in result.found.items()}
    reasons = result.reasons | ({"chest": ", ".join(faults)} if faults else {})
    return row | {
        "chest": int(not faults),
        "reason": "; ".join(f"{key}: {reason}" for key, reason in sorted(reasons.items())),
        "warnings": join_warnings(of_measures(warnings if seen is None else seen)),
    }


def _noted_warnings(path: Path) -> list[str] | None:
    """Return the warnings that preprocessing noted of the scan behind a volume; None: not a preprocessed volume."""
    qc = path.parent / "qc.json"
    return list(read_json(qc).get("warnings", [])) if path.name == VOLUME and qc.exists() else None


def mask_quality(folders: Sequence[Path], subjects: list[Subject], out: Path) -> None:
    """Write the Dice of every structure against the true masks beside each truth.json, with a row of means."""
    truths = {s.subject_id: Path(s.truth).parent for s in subjects if s.truth}
    rows: list[dict[str, Any]] = []
    for folder in folders:
        for name in accepted_masks(folder):
            if name in truths:
                rows.append({"subject_id": name} | _scores(folder / name, truths[name]))
    if rows:
        means: dict[str, Any] = {"subject_id": "mean"}
        for column in QC_COLUMNS[1:]:
            values = [row[column] for row in rows if row[column] is not None]
            means[column] = float(np.mean(values)) if values else None
        rows.append(means)
    write_csv(
        out,
        [{k: v if isinstance(v, str) or v is None else round(v, 4) for k, v in r.items()} for r in rows],
        QC_COLUMNS,
    )


def accepted_masks(folder: Path) -> list[str]:
    """Return the subjects with masks in a folder of a stage."""
    names = accepted_ids(folder)
    return names or sorted(path.parent.name for path in folder.glob("*/lobes.nii.gz"))


def _scores(masks: Path, truth: Path) -> dict[str, float | None]:
    """Return the Dice of one subject, the truth brought to the masks' grid by nearest neighbour."""
    record = masks / "segment.json"
    facts = read_json(record) if record.exists() else {}
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(facts.get("model_to_scanner_matrix", np.eye(3).ravel().tolist()))
    transform.SetTranslation(facts.get("model_to_scanner_translation_mm", [0.0, 0.0, 0.0]))
    found, true = {}, {}
    for name in STRUCTURES:
        mask = read_volume(masks / f"{name}.nii.gz")
        found[name] = mask.array
        true[name] = _on_grid(read_volume(truth / f"{name}.nii.gz"), mask, transform)
    scores = {"lung": dice(found["lobes"] > 0, true["lobes"] > 0)}
    for label, lobe in enumerate(LOBE_NAMES, 1):
        scores[lobe] = dice(found["lobes"] == label, true["lobes"] == label)
    each = [score for lobe in LOBE_NAMES if (score := scores[lobe]) is not None]
    scores["lobes_mean"] = float(np.mean(each)) if each else None
    for name in ("airway", "vessels"):
        scores[name] = dice(found[name] > 0, true[name] > 0)
    return scores


def _on_grid(truth: Volume, mask: Volume, transform: sitk.Transform) -> np.ndarray:
    image = sitk.Resample(to_sitk(truth), to_sitk(mask), transform, sitk.sitkNearestNeighbor, 0.0)
    return np.asarray(sitk.GetArrayFromImage(image))
