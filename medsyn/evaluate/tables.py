"""Tables I to VII as tidy rows: one row a method or prompt type, every number computed from the files given.

Functions take what `medsyn.evaluate.inputs` reads and return (columns, rows). A volume whose measure has no value is
left out of mean and test and counted in `num_missing`; `n` counts the values that were used. Means come with the sample
standard deviation and percentile bootstrap bounds (95 %); p-values are of one-tailed Welch t-tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.evaluate.distances import (
    Distance,
    equal_numbers,
    frechet_distance,
    half_split,
    jackknife_interval,
    maximum_mean_discrepancy,
)
from medsyn.evaluate.inputs import FeatureSet, read_prompts, split_prompt_type, text_fields
from medsyn.evaluate.statistics import one_tailed_p_value, summarise
from medsyn.files import read_csv, sha256, write_csv, write_json
from medsyn.provenance import provenance

Rows = list[dict[str, Any]]
Table = tuple[list[str], Rows]
MeasureTable = Mapping[str, Mapping[str, float | None]]
REAL = "real"
FINDING_OF_TABLE = {2: "pleural_effusion", 3: "emphysema", 4: "cardiomegaly"}
MEASURE_OF_FINDING = {
    "pleural_effusion": "effusion_volume_ml",
    "emphysema": "laa950_percent",
    "cardiomegaly": "cardiothoracic_ratio",
}


def table1(
    features: Mapping[str, FeatureSet],
    measures: Mapping[str, MeasureTable],
    config: EvaluationConfig,
    against: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Table:
    """Synthesis quality: FID and MMD to `real` and the airway's volume, one row a method, `real` last.

    FID and MMD use equally many real and synthetic volumes (`n_fid`, at most config.num_fid_samples). The row `real`
    holds the mean distance of random halves of the real volumes to each other; `fid_half` and `mmd_half` give every
    method at that same, smaller number, where it can be compared with it. `labels` holds full names. p_value:
    the airway is larger than in the method `against`.
    """
    airway = "airway_volume_mm3"
    summary_columns = [f"{airway}_{part}" for part in ("mean", "std", "ci_low", "ci_high")]
    columns = ["method", "label", "n", "fid", "fid_ci_low", "fid_ci_high", "mmd", "mmd_ci_low", "mmd_ci_high", "n_fid"]
    columns += ["fid_half", "mmd_half", "n_half", *summary_columns, "n_airway", "num_missing"]
    columns += ["p_value", "p_value_versus", "feature_extractor", "note"]
    names = [*(name for name in dict.fromkeys([*features, *measures]) if name != REAL), REAL]
    if REAL not in features and REAL not in measures:
        raise InputError("table 1: no files labelled 'real'; pass --features real .. and --measures real ..")
    extractors = {part.extractor for part in features.values()}
    if len(extractors) > 1:
        raise InputError(f"table 1: features of different extractors cannot be compared: {'; '.join(extractors)}")
    rows: Rows = []
    for name in names:
        values = [row[airway] for row in measures.get(name, {}).values()]
        row = {
            "method": name,
            "label": (labels or {}).get(name, name),
            "n": len(features[name].ids) if name in features else len(values),
        }
        row |= _summary(values, airway, config) if name in measures else {}
        row["n_airway"] = row.pop("n_used", 0)
        if against is not None and against in measures and name != against and name in measures:
            other = [entry[airway] for entry in measures[against].values()]
            row |= {"p_value": one_tailed_p_value(values, other), "p_value_versus": against}
        if REAL in features and name in features:
            row |= _distances(features[REAL].features, None if name == REAL else features[name].features, config)
            row["feature_extractor"] = features[name].extractor
        rows.append(row)
    return columns, rows


def _distances(real: NDArray, synthetic: NDArray | None, config: EvaluationConfig) -> dict[str, Any]:
    half = len(real[: config.num_fid_samples]) // 2
    row: dict[str, Any] = {"n_half": half}
    metrics: tuple[tuple[str, Distance], ...] = (("fid", frechet_distance), ("mmd", maximum_mean_discrepancy))
    try:
        limited = real[np.sort(np.random.default_rng(config.seed).permutation(len(real))[: config.num_fid_samples])]
        for name, distance in metrics:
            row[f"{name}_half"] = half_split(distance, limited, synthetic, seed=config.seed)
            if synthetic is None:
                row |= {name: row[f"{name}_half"], "n_fid": half}
                continue
            a, b = equal_numbers(real, synthetic, config.num_fid_samples, config.seed)
            row |= {name: distance(a, b), "n_fid": len(a)}
            low, high = jackknife_interval(distance, a, b, seed=config.seed)
            row |= {f"{name}_ci_low": max(0.0, low) if name == "fid" else low, f"{name}_ci_high": high}
    except ValueError as error:
        return row | {"note": f"no distance: {error}"}
    if synthetic is None:
        row["note"] = (
            f"distance between random halves of the real volumes, {half} against {half}; compare with fid_half"
        )
    return row


def prompt_pair_table(
    finding: str,
    prompts: Sequence[str],
    measures: Mapping[str, MeasureTable],
    config: EvaluationConfig,
    *,
    name_methods: bool = False,
) -> Table:
    """Tables II to IV and VII: a measure of volumes prompted without and with `finding`, two rows a method.

    With `name_methods` (Table VII) a column `language_model` names the method. p_value stands in the row with the
    finding: its measure is larger than without it.
    """
    pair = config.prompt_pairs.get(finding)  # type: ignore[call-overload]
    measure = pair.measure if pair is not None else MEASURE_OF_FINDING.get(finding)
    if measure is None:
        raise InputError(f"no measure is defined for '{finding}'; add it to evaluation.prompt_pairs")
    columns = ["prompt_type", "n", *(f"{measure}_{part}" for part in ("mean", "std", "ci_low", "ci_high"))]
    columns += ["p_value", "num_missing", "prompt"]
    if name_methods:
        columns = ["language_model", *columns]
    elif len(measures) != 1:
        raise InputError(f"this table is of one model; --measures names {', '.join(measures)}")
    rows: Rows = []
    for method, table in measures.items():
        samples = _samples_of(finding, prompts, table, method)
        values = {sign: [table.get(name, {}).get(measure) for name in names] for sign, (names, _) in samples.items()}
        for sign, word in ((False, "without"), (True, "with")):
            row = _summary(values[sign], measure, config)
            row |= {"language_model": method, "prompt_type": f"{finding}/{word}", "n": row.pop("n_used")}
            row["prompt"] = samples[sign][1]
            row["p_value"] = one_tailed_p_value(values[True], values[False]) if sign else None
            rows.append(row)
    return columns, rows


def _samples_of(
    finding: str, prompts: Sequence[str], table: MeasureTable, method: str
) -> dict[bool, tuple[list[str], str]]:
    """Sample ids and prompt text by sign; only of prompt files from which `table` holds at least one sample."""
    names: dict[bool, list[str]] = {True: [], False: []}
    texts: dict[bool, list[str]] = {True: [], False: []}
    for path in prompts:
        rows = read_prompts([path])
        if not any(name in table for name in rows):
            continue
        for name, row in rows.items():
            kind = split_prompt_type(row["prompt_type"])
            if kind is not None and kind[0] == finding and name not in names[kind[1]]:
                names[kind[1]].append(name)
                texts[kind[1]].append(row["text"])
    for sign in (True, False):
        if not names[sign]:
            word = "with" if sign else "without"
            raise InputError(f"{', '.join(prompts)}: no measured sample of '{method}' has prompt_type {finding}/{word}")
    return {sign: (names[sign], " | ".join(dict.fromkeys(texts[sign]))) for sign in names}


def table5(scores: Sequence[str | Path], config: EvaluationConfig) -> Table:
    """Segmentation: Dice of airway and lobes, without and with the report as prompt, from `score-segmentation`."""
    entries = [row for path in scores for row in read_csv(path, ["sample_id", "text", "airway_dice", "lobe_dice"])]
    structures = ("airway_dice", "lobe_dice")
    columns = ["text", "n", *(f"{s}_{part}" for s in structures for part in ("mean", "std", "ci_low", "ci_high"))]
    columns += [*(f"{s}_p_value" for s in structures), "num_missing"]
    rows: Rows = []
    for text in ("without", "with"):
        row: dict[str, Any] = {"text": text}
        chosen = [entry for entry in entries if entry["text"] == text]
        for structure in structures:
            values = _column(chosen, structure)
            row |= _summary(values, structure, config)
            row["n"] = min(row.get("n", len(values)), row.pop("n_used"))
            if text == "with":
                other = _column([entry for entry in entries if entry["text"] == "without"], structure)
                row[f"{structure}_p_value"] = one_tailed_p_value(values, other)
        row["num_missing"] = len(chosen) - row["n"]
        rows.append(row)
    return columns, rows


def table6(scores: Sequence[str | Path]) -> Table:
    """Data augmentation: accuracy and F1 over the folds, one row a method and finding, from `classify`."""
    entries: list[dict[str, str]] = []
    findings: list[str] = []
    for path in scores:
        part = read_csv(path, ["method", "finding", "fold", "accuracy", "f1", "n_train_real", "n_test", "n_synthetic"])
        entries += part
        findings += [part[0]["finding"] if part else Path(path).stem]
    columns = ["method", "finding", "accuracy_mean", "accuracy_std", "f1_mean", "f1_std"]
    columns += ["folds", "n_real", "n_synthetic"]
    rows: Rows = []
    for method in dict.fromkeys(entry["method"] for entry in entries) or ("baseline", "augmented"):
        for finding in dict.fromkeys(findings):
            chosen = [entry for entry in entries if (entry["method"], entry["finding"]) == (method, finding)]
            row: dict[str, Any] = {"method": method, "finding": finding, "folds": len(chosen)}
            for score in ("accuracy", "f1"):
                values = [float(entry[score]) for entry in chosen]
                row[f"{score}_mean"] = float(np.mean(values)) if values else None
                row[f"{score}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
            row["n_real"] = sum(int(entry["n_test"]) for entry in chosen)
            row["n_synthetic"] = max((int(entry["n_synthetic"]) for entry in chosen), default=0)
            rows.append(row)
    return columns, rows


def write_table(
    out: str | Path, table: Table, number: int, config: EvaluationConfig, inputs: Sequence[str | Path], **facts: Any
) -> None:
    """Write the table as CSV and, beside it with the suffix .json, where it comes from."""
    columns, rows = table
    write_csv(out, (text_fields(row, columns) for row in rows), columns)
    hashes = {str(path): sha256(path) for path in inputs}
    write_json(Path(out).with_suffix(".json"), provenance(config, table=number, inputs=hashes, **facts))


def _summary(values: Sequence[float | None], name: str, config: EvaluationConfig) -> dict[str, Any]:
    result = summarise(values, num_bootstrap=config.num_bootstrap, seed=config.seed)
    parts = {"mean": result.mean, "std": result.std, "ci_low": result.ci_low, "ci_high": result.ci_high}
    return {f"{name}_{part}": value for part, value in parts.items()} | {
        "n_used": result.n,
        "num_missing": result.num_missing,
    }


def _column(rows: Sequence[Mapping[str, str]], name: str) -> list[float | None]:
    return [float(row[name]) if row[name] != "" else None for row in rows]
