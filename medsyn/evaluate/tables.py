"""Tables I to VII as tidy rows: one row per method or prompt type, every number computed from the files given.

Functions take what `medsyn.evaluate.inputs` reads and return (columns, rows). Every generated volume is counted:
`num_volumes` of them, in `num_found` (Table I: `airway_found`) of which the anatomy that the measure is of was found.
Absent anatomy is 0 where the measure is an amount. A volume without value (a ratio of absent anatomy, or a measurement
that failed: `num_failed`) is left out of mean and test and counted in `num_missing`; `n` counts the values that were
used. `not_chest_fraction` is the share of volumes that `medsyn inspect` would reject. Means come with the sample
standard deviation and percentile bootstrap bounds (95 %); `p_value` is of the one-tailed Welch t-test, the columns
after it of the paired one (`medsyn.evaluate.pairing`).
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
from medsyn.evaluate.inputs import FeatureSet, parse_number, read_prompts, split_prompt_type, text_fields
from medsyn.evaluate.measures import NEEDS
from medsyn.evaluate.pairing import PairedTest, pair_by_seed, paired_columns, paired_test
from medsyn.evaluate.statistics import known_values, one_tailed_p_value, summarise
from medsyn.files import read_csv, sha256, write_csv, write_json
from medsyn.provenance import provenance

Rows = list[dict[str, Any]]
Table = tuple[list[str], Rows]
MeasureRows = Mapping[str, Mapping[str, float | None]]
REAL = "real"
FINDING_OF_TABLE = {2: "pleural_effusion", 3: "emphysema", 4: "cardiomegaly"}
AUGMENTED_WITH = "augmented with "
"""What `classify` writes before the name of the model whose volumes were added."""
MEASURE_OF_FINDING = {
    "pleural_effusion": "effusion_volume_ml",
    "emphysema": "laa950_percent",
    "cardiomegaly": "cardiothoracic_ratio",
}


def table1(
    features: Mapping[str, FeatureSet],
    measures: Mapping[str, MeasureRows],
    config: EvaluationConfig,
    against: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Table:
    """Synthesis quality: FID and MMD to `real` and the airway's volume, one row a method, `real` last.

    FID and MMD use equally many real and synthetic volumes (`n_fid`, at most config.num_fid_samples). The row `real`
    holds the mean distance of random halves of the real volumes to each other; `fid_half` and `mmd_half` give every
    method at that same, smaller number, where it can be compared with it. `labels` holds full names. p_value:
    the airway is larger than in the method `against`; p_paired: the same over the prompts that both answered.
    """
    airway = "airway_volume_mm3"
    summary_columns = [f"{airway}_{part}" for part in ("mean", "std", "ci_low", "ci_high")]
    columns = ["method", "label", "n", "fid", "fid_ci_low", "fid_ci_high", "mmd", "mmd_ci_low", "mmd_ci_high", "n_fid"]
    columns += ["fid_half", "mmd_half", "n_half", *summary_columns, "n_airway", "num_missing"]
    columns += ["p_value", "p_value_versus", *paired_columns()]
    columns += ["airway_found", "num_volumes", "num_failed", "not_chest_fraction", "feature_extractor", "note"]
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
        if name in measures:
            row |= _summary(values, airway, config) | _validity(list(measures[name].values()), airway)
            row["airway_found"] = row.pop("num_found")
        row["n_airway"] = row.pop("n_used", 0)
        if against is not None and against in measures and name != against and name in measures:
            other = [entry[airway] for entry in measures[against].values()]
            row |= {"p_value": one_tailed_p_value(values, other), "p_value_versus": against}
            if name != REAL:
                row |= _paired_by_prompt(measures[name], measures[against], airway).columns()
        if REAL in features and name in features:
            row |= _distances(features[REAL].features, None if name == REAL else features[name].features, config)
            row["feature_extractor"] = features[name].extractor
        rows.append(row)
    return columns, rows


def _paired_by_prompt(method: MeasureRows, other: MeasureRows, name: str) -> PairedTest:
    """Compare two methods on the samples of equal id, which share prompt and seed."""
    ids = dict.fromkeys([*method, *other])
    return paired_test((i, method.get(i, {}).get(name), other.get(i, {}).get(name)) for i in ids)


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
    measures: Mapping[str, MeasureRows],
    config: EvaluationConfig,
    *,
    name_methods: bool = False,
) -> Table:
    """Tables II to IV and VII: a measure of volumes prompted without and with `finding`, two rows a method.

    With `name_methods` (Table VII) a column `language_model` names the method. p_value and p_paired stand in the row
    with the finding: its measure is larger than without it. A pair are the samples with and without of one seed.
    """
    pair = config.prompt_pairs.get(finding)  # type: ignore[call-overload]
    measure = pair.measure if pair is not None else MEASURE_OF_FINDING.get(finding)
    if measure is None:
        raise InputError(f"no measure is defined for '{finding}'; add it to evaluation.prompt_pairs")
    columns = ["prompt_type", "n", *(f"{measure}_{part}" for part in ("mean", "std", "ci_low", "ci_high"))]
    columns += ["p_value", *paired_columns(), "num_missing", "num_found", "num_volumes", "num_failed"]
    columns += ["not_chest_fraction", "prompt"]
    if name_methods:
        columns = ["language_model", *columns]
    elif len(measures) != 1:
        raise InputError(f"this table is of one model; --measures names {', '.join(measures)}")
    rows: Rows = []
    for method, table in measures.items():
        samples = _samples_of(finding, prompts, table, method)
        measured = {sign: [table.get(row["sample_id"], {}) for row in chosen] for sign, chosen in samples.items()}
        values = {sign: [entry.get(measure) for entry in entries] for sign, entries in measured.items()}
        for sign, word in ((False, "without"), (True, "with")):
            row = _summary(values[sign], measure, config) | _validity(measured[sign], measure)
            row |= {"language_model": method, "prompt_type": f"{finding}/{word}", "n": row.pop("n_used")}
            row["prompt"] = " | ".join(dict.fromkeys(entry["text"] for entry in samples[sign]))
            if sign:
                row["p_value"] = one_tailed_p_value(values[True], values[False])
                row |= _paired_by_seed(samples[True], samples[False], table, measure).columns()
            rows.append(row)
    return columns, rows


def _paired_by_seed(
    with_it: Sequence[Mapping[str, str]], without: Sequence[Mapping[str, str]], table: MeasureRows, name: str
) -> PairedTest:
    pairs = pair_by_seed(with_it, without)
    return paired_test(
        (seed, table.get(a or "", {}).get(name), table.get(b or "", {}).get(name)) for seed, a, b in pairs
    )


def _samples_of(
    finding: str, prompts: Sequence[str], table: MeasureRows, method: str
) -> dict[bool, list[dict[str, str]]]:
    """Return the prompt rows by sign; only of prompt files from which `table` holds at least one sample."""
    found: dict[bool, dict[str, dict[str, str]]] = {True: {}, False: {}}
    for path in prompts:
        rows = read_prompts([path])
        if not any(name in table for name in rows):
            continue
        for name, row in rows.items():
            kind = split_prompt_type(row["prompt_type"])
            if kind is not None and kind[0] == finding:
                found[kind[1]].setdefault(name, row)
    for sign in (True, False):
        if not found[sign]:
            word = "with" if sign else "without"
            raise InputError(f"{', '.join(prompts)}: no measured sample of '{method}' has prompt_type {finding}/{word}")
    return {sign: list(rows.values()) for sign, rows in found.items()}


def table5(scores: Sequence[str | Path], config: EvaluationConfig) -> Table:
    """Segmentation: Dice of airway and lobes, without and with the report as prompt, from `score-segmentation`.

    A pair are the samples of one subject and seed. `n` is the smaller of the structures' counts.
    """
    structures = ("airway_dice", "lobe_dice")
    entries = [row for part in _read_scores(scores, ("sample_id", "text"), structures) for row in part]
    columns = ["text", "n", *(f"{s}_{part}" for s in structures for part in ("mean", "std", "ci_low", "ci_high"))]
    columns += [*(f"{s}_p_value" for s in structures), "num_missing", "num_volumes", *(f"{s}_n" for s in structures)]
    columns += [name for s in structures for name in paired_columns(f"{s}_")]
    rows: Rows = []
    for text in ("without", "with"):
        row: dict[str, Any] = {"text": text}
        chosen = [entry for entry in entries if entry["text"] == text]
        for structure in structures:
            values = [entry[structure] for entry in chosen]
            row |= _summary(values, structure, config)
            row[f"{structure}_n"] = row.pop("n_used")
            row["n"] = min(row.get("n", len(values)), row[f"{structure}_n"])
            if text == "with":
                other = [entry[structure] for entry in entries if entry["text"] == "without"]
                row[f"{structure}_p_value"] = one_tailed_p_value(values, other)
                row |= _paired_by_subject(entries, structure).columns(f"{structure}_")
        row |= {"num_missing": len(chosen) - row["n"], "num_volumes": len(chosen)}
        rows.append(row)
    return columns, rows


def _paired_by_subject(entries: Sequence[Mapping[str, Any]], structure: str) -> PairedTest:
    """Compare the samples with text to those without of the same subject and seed."""
    pairs: dict[tuple[str, str], dict[str, float | None]] = {}
    for entry in entries:
        if entry.get("subject_id"):
            pairs.setdefault((entry["subject_id"], entry.get("seed", "")), {})[entry["text"]] = entry[structure]
    return paired_test((subject, pair.get("with"), pair.get("without")) for (subject, _), pair in pairs.items())


def table6(scores: Sequence[str | Path], labels: Mapping[str, str] | None = None) -> Table:
    """Data augmentation: accuracy and F1 over the folds, one row per method and finding, from `classify`.

    labels: full names of the generating models, by the name that `classify` was given.

    p_paired: over the folds, the method is better than the first one, the baseline. n_synthetic and n_synthetic_min:
    the most and the fewest generated volumes in the training set of a fold.
    """
    parts = _read_scores(scores, ("method", "finding", "fold"), ("accuracy", "f1", "n_test", "n_synthetic"))
    entries = [row for part in parts for row in part]
    findings = [part[0]["finding"] if part else Path(path).stem for path, part in zip(scores, parts, strict=True)]
    columns = ["method", "finding", "accuracy_mean", "accuracy_std", "f1_mean", "f1_std"]
    columns += ["folds", "n_real", "n_synthetic", "n_synthetic_min"]
    columns += [*paired_columns("accuracy_"), *paired_columns("f1_")]
    rows: Rows = []
    for name, label in (labels or {}).items():
        for entry in entries:
            if entry["method"] == f"{AUGMENTED_WITH}{name}":
                entry["method"] = f"{AUGMENTED_WITH}{label}"
    methods = list(dict.fromkeys(entry["method"] for entry in entries)) or ["baseline", "augmented"]
    for method in methods:
        for finding in dict.fromkeys(findings):
            chosen = [entry for entry in entries if (entry["method"], entry["finding"]) == (method, finding)]
            row: dict[str, Any] = {"method": method, "finding": finding, "folds": len(chosen)}
            for score in ("accuracy", "f1"):
                values = known_values([entry[score] for entry in chosen])
                row[f"{score}_mean"] = float(np.mean(values)) if len(values) else None
                row[f"{score}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
                if method != methods[0]:
                    first = [entry for entry in entries if (entry["method"], entry["finding"]) == (methods[0], finding)]
                    row |= _paired_by_fold(chosen, first, score).columns(f"{score}_")
            row["n_real"] = sum(int(entry["n_test"]) for entry in chosen)
            added = [int(entry["n_synthetic"]) for entry in chosen]
            row |= {"n_synthetic": max(added, default=0), "n_synthetic_min": min(added, default=0)}
            rows.append(row)
    return columns, rows


def _paired_by_fold(chosen: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], score: str) -> PairedTest:
    scores = [{entry["fold"]: entry[score] for entry in part} for part in (chosen, other)]
    return paired_test(
        (fold, scores[0].get(fold), scores[1].get(fold)) for fold in dict.fromkeys(scores[0] | scores[1])
    )


def _read_scores(paths: Sequence[str | Path], key: Sequence[str], numbers: Sequence[str]) -> list[Rows]:
    """Return the rows of each file, `numbers` parsed; a row whose columns `key` came before is an InputError."""
    seen: dict[tuple[str, ...], str | Path] = {}
    parts: list[Rows] = []
    for path in paths:
        parts.append([])
        for row in read_csv(path, [*key, *numbers]):
            name = tuple(row[column] for column in key)
            if name in seen:
                raise InputError(f"{path}: {' / '.join(name)} is already in {seen[name]}; give every score once")
            seen[name] = path
            parts[-1].append(row | {column: parse_number(row[column], column, path) for column in numbers})
    return parts


def _validity(entries: Sequence[Mapping[str, float | None]], measure: str) -> dict[str, Any]:
    """Count the volumes, those with the anatomy that `measure` is of, those that failed; the share that is not a chest.

    An entry that does not say whether the anatomy was found has it where it has a value, and failed where it has none.
    """
    key = f"{NEEDS[measure]}_found"
    absent = [entry.get(key) == 0 for entry in entries]
    failed = [entry.get(measure) is None and not gone for entry, gone in zip(entries, absent, strict=True)]
    verdicts = [entry["chest"] for entry in entries if entry.get("chest") is not None]
    return {
        "num_found": len(entries) - sum(absent) - sum(failed),
        "num_volumes": len(entries),
        "num_failed": sum(failed),
        "not_chest_fraction": 1.0 - float(np.mean(verdicts)) if verdicts else None,  # type: ignore[arg-type]
    }


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
