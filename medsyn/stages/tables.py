"""Anatomical measures and mask quality of a shard: tables made from preprocessed volumes and their masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from medsyn.cohort import Subject
from medsyn.config import MasksConfig, MeasureStage
from medsyn.ct.inspect import read_hu
from medsyn.errors import InputError
from medsyn.evaluate.measures import MEASURES, Measured, measure
from medsyn.files import read_json, write_csv, write_json
from medsyn.masks.segment import Tool, open_tool
from medsyn.orientation import reorient
from medsyn.provenance import provenance
from medsyn.reading import Reading
from medsyn.stages.shards import VOLUME, accepted, identity_of, open_shard, run_shard
from medsyn.volume import LOBE_NAMES, STRUCTURES, Volume, read_volume, to_sitk
from medsyn.weight_files import ANATOMY

MEASURE_COLUMNS = ("subject_id", *MEASURES, "reason")
QC_COLUMNS = ("subject_id", "lung", *LOBE_NAMES, "lobes_mean", "airway", "vessels")


def open_anatomy_tool(config: MeasureStage) -> Tool | None:
    """The tool that finds the anatomy to be measured; None: the classical way of `measure`."""
    if config.anatomy_tool == "classical":
        return None
    return open_tool(config.anatomy_tool, MasksConfig(weights_dir=config.weights_dir), ANATOMY)


def measure_one(
    path: str | Path, masks: str | Path | None = None, tool: Tool | None = None, reading: Reading | None = None
) -> Measured:
    """Measures of one CT file; `masks`: folder with lobes.nii.gz and airway.nii.gz on its grid; without them, what
    `tool` finds, or the classical segmentation.
    """
    volume = read_hu(path, reading)
    given = None
    if masks is not None:
        files = {name: Path(masks) / f"{name}.nii.gz" for name in ("lobes", "airway")}
        missing = [file for file in files.values() if not file.exists()]
        if missing:
            raise InputError(
                f"{missing[0]}: no such mask; run `medsyn segment` into that folder, or leave --masks away"
            )
        given = {name: read_volume(file) for name, file in files.items()}
    elif tool is not None:
        model = reorient(volume)
        return measure(model, {name: model.with_array(mask) for name, mask in tool.segment(model, ANATOMY).items()})
    return measure(volume, given)


def measure_json(
    path: str | Path, masks: str | Path | None, out: str | Path, config: MeasureStage, reading: Reading | None = None
) -> None:
    """Write one CT's measures: a number or null each, `reasons` for the nulls, provenance."""
    result = measure_one(path, masks, open_anatomy_tool(config) if masks is None else None, reading)
    facts = {"image": Path(path).name, "masks": "given" if masks is not None else config.anatomy_tool}
    write_json(out, result.values | {"reasons": result.reasons, "provenance": provenance(None, input=facts)})


def measure_shard(
    volumes: Path, masks: Path | None, out: Path, config: MeasureStage, state: Path | None = None
) -> None:
    """One row per accepted subject; what cannot be measured stays empty with its reason.

    state: where finished rows lie until the end (`open_shard`).
    """
    tool = open_anatomy_tool(config) if masks is None else None

    def work(name: str, _: Path) -> dict[str, Any]:
        result = measure_one(volumes / name / VOLUME, masks / name if masks is not None else None, tool)
        row: dict[str, Any] = {
            key: None if value is None else round(float(value), 4) for key, value in result.values.items()
        }
        return row | {"reason": "; ".join(f"{key}: {reason}" for key, reason in sorted(result.reasons.items()))}

    def identify(name: str) -> str | None:
        return identity_of(str(volumes), volumes / name / VOLUME, *([masks / name] if masks is not None else []))

    facts = [tool.version, tool.weights_hash] if tool else None
    with open_shard(out, state, provenance(config, stage="measure", tool=facts, masks=str(masks))) as shard:
        outcomes = run_shard(shard, accepted(volumes), work, identify, "measure")
        rows = ({"subject_id": item.name} | (item.result or {"reason": item.reason}) for item in outcomes)
        write_csv(out, rows, MEASURE_COLUMNS)


def mask_quality(folders: Sequence[Path], subjects: list[Subject], out: Path) -> None:
    """Dice of every structure against the true masks beside each subject's truth.json, with a row of means."""
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
    """Subjects with masks in a stage folder."""
    names = accepted(folder)
    return names or sorted(path.parent.name for path in folder.glob("*/lobes.nii.gz"))


def dice(a: np.ndarray, b: np.ndarray) -> float | None:
    """2 |A and B| / (|A| + |B|); None when both are empty."""
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return None if total == 0 else 2.0 * int(np.count_nonzero(a & b)) / total


def _scores(masks: Path, truth: Path) -> dict[str, float | None]:
    """Dice values of one subject, the truth brought to the masks' grid by nearest neighbour."""
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
    each = [scores[lobe] for lobe in LOBE_NAMES]
    scores["lobes_mean"] = float(np.mean([value for value in each if value is not None])) if any(each) else None
    for name in ("airway", "vessels"):
        scores[name] = dice(found[name] > 0, true[name] > 0)
    return scores


def _on_grid(truth: Volume, mask: Volume, transform: sitk.Transform) -> np.ndarray:
    image = sitk.Resample(to_sitk(truth), to_sitk(mask), transform, sitk.sitkNearestNeighbor, 0.0)
    return np.asarray(sitk.GetArrayFromImage(image))
