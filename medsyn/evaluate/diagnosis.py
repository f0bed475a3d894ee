"""Summarise what `medsyn diagnose` found, and how well the measures of samples tell the findings of their prompts.

`medsyn diagnose` writes one row (COLUMNS) per validation volume, source and quantity:

- part `denoising`: the squared error of channel `quantity` of the clean volume that `source` predicts from the volume
  noised to time t, a mean over all voxels in units of the channel ([-1, 1]);
- part `super_resolution`: measure, presence (`*_found`, 1 or 0) or Dice `quantity` of the volume that `source` makes of
  the true low-resolution volume; an empty value means that there is none.

Here these become rows of the table of diagnostics: means with 95 % bounds over the volumes, and comparisons of paired
values. Nothing in this module knows networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.evaluate.inputs import parse_number
from medsyn.evaluate.measure_names import ANATOMIES, MEASURES
from medsyn.evaluate.statistics import (
    area_under_roc,
    area_under_roc_interval,
    known_values,
    ratio_of_means,
    summarise,
)
from medsyn.files import read_csv

COLUMNS = ("part", "network", "subject_id", "source", "t", "quantity", "value")
DENOISING, SUPER_RESOLUTION, PROMPTS = "denoising", "super_resolution", "prompts"
NETWORK, OTHER_TEXT, NO_TEXT = "network", "other_text", "no_text"
MEAN_VOLUME, LINEAR_ESTIMATE, NOISY_INPUT, ENLARGED = "mean_volume", "linear_estimate", "noisy_input", "enlarged"
REAL = "real"
WITHOUT_NETWORK = (MEAN_VOLUME, LINEAR_ESTIMATE, NOISY_INPUT, ENLARGED)
"""Predictors without a network."""
AIRWAY = "airway_volume_mm3"

Row = dict[str, Any]
Key = tuple[str, str, str, str]
"""part, network, quantity, t."""
Values = dict[str, dict[str, float | None]]
"""Source -> subject -> value."""
MeasureRows = Mapping[str, Mapping[str, float | None]]


def read_diagnosis(path: str | Path) -> dict[Key, Values]:
    """Return the values of a table of `medsyn diagnose`; one that lacks a network or its rival is an InputError."""
    found: dict[Key, Values] = {}
    for row in read_csv(path, COLUMNS):
        key = (row["part"], row["network"], row["quantity"], row["t"])
        value = parse_number(row["value"], row["quantity"], path)
        found.setdefault(key, {}).setdefault(row["source"], {})[row["subject_id"]] = value
    for (part, network, quantity, _), values in found.items():
        missing = {NETWORK, MEAN_VOLUME if part == DENOISING else ENLARGED} - values.keys()
        if missing:
            raise InputError(
                f"{path}: {network} {quantity} has no row of source '{min(missing)}', expected one per volume; write"
                " it again with `medsyn diagnose`"
            )
        if part == DENOISING and _mean(values[MEAN_VOLUME]) is None:
            raise InputError(
                f"{path}: {network} {quantity} has no value of source '{MEAN_VOLUME}', expected one per volume; write"
                " it again with `medsyn diagnose`"
            )
    return found


def denoising_rows(found: Mapping[Key, Values], config: EvaluationConfig) -> list[Row]:
    """Return one row per network, channel and time: the errors of the network and of predictors without one.

    ratio: the network's error over that of the best predictor without a network. text_share: the share of the error
    without text that the volume's own text removes.
    """
    rows = []
    for (part, network, quantity, t), values in found.items():
        if part != DENOISING:
            continue
        row: Row = {"part": part, "network": network, "quantity": quantity, "t": t}
        row |= _summary(values[NETWORK], "value", config)
        others = [source for source in (*WITHOUT_NETWORK, OTHER_TEXT, NO_TEXT) if source in values]
        means = {source: mean for source in others if (mean := _mean(values[source])) is not None}
        best = min((source for source in WITHOUT_NETWORK if source in means), key=means.__getitem__)
        row |= means | _ratio(values[NETWORK], values[best], "ratio", config)
        if NO_TEXT in values:
            row |= _removed(_ratio(values[NETWORK], values[NO_TEXT], "text_share", config))
        rows.append(row)
    return rows


def super_resolution_rows(found: Mapping[Key, Values], sampled: MeasureRows, config: EvaluationConfig) -> list[Row]:
    """Return one row per measure and Dice: super-resolved, enlarged and real volumes, and the samples of the reports.

    The volume of the airway is in ml. sampled: measures of the volumes that both networks sampled from text.
    """
    rows = []
    for (part, network, quantity, _), values in found.items():
        if part != SUPER_RESOLUTION:
            continue
        row: Row = {"part": part, "network": network, "quantity": quantity}
        row |= _summary(values[NETWORK], "value", config)
        if REAL in values:
            row |= _bounded(values[REAL], "real", config)
        row[ENLARGED] = _mean(values[ENLARGED])
        if quantity in MEASURES or quantity.removesuffix("_found") in ANATOMIES:
            row |= _bounded({name: entry.get(quantity) for name, entry in sampled.items()}, "sampled", config)
        rows.append(_in_ml(row) if quantity == AIRWAY else row)
    return rows


def prompt_rows(
    prompted: Mapping[str, Mapping[str, int]],
    sampled: MeasureRows,
    reported: Mapping[str, Mapping[str, int]],
    real: MeasureRows,
    config: EvaluationConfig,
) -> list[Row]:
    """Return one row per finding with a measure: the area under the ROC curve of the measure against the label.

    prompted: labels of each sample's prompt; reported: of each real volume's report. The same area of the real volumes
    says what a perfect model could reach. An area with one class only is missing, and the note says so.
    """
    rows = []
    for finding, pair in config.prompt_pairs.items():
        row: Row = {"part": PROMPTS, "quantity": finding}
        notes = []
        for name, labels, measures, labelled in (
            ("value", prompted, sampled, "prompts"),
            ("real", reported, real, "reports of real volumes"),
        ):
            known = [i for i in labels if measures.get(i, {}).get(pair.measure) is not None]
            scores = [measures[i][pair.measure] for i in known]
            truth = [labels[i][finding] for i in known]
            positive, negative = sum(truth), len(truth) - sum(truth)
            area = area_under_roc(scores, truth)  # type: ignore[arg-type]
            low, high = area_under_roc_interval(area, positive, negative) if area is not None else (None, None)
            suffix = "_real" if name == "real" else ""
            row |= {name: area, f"{name}_ci_low": low, f"{name}_ci_high": high}
            row |= {f"n_positive{suffix}": positive, f"n_negative{suffix}": negative}
            if name == "value":
                row |= {"n": len(known), "num_missing": len(labels) - len(known)}
            if area is None:
                notes.append(
                    f"no area for {labelled}: {positive} positive and {negative} negative, expected some of both"
                )
        rows.append(row | {"note": f"{finding}: {'; '.join(notes)}" if notes else ""})
    return rows


def _summary(values: Mapping[str, float | None], name: str, config: EvaluationConfig) -> Row:
    """Return mean and bounds, and how many values there are and are missing."""
    summary = summarise(list(values.values()), num_bootstrap=config.num_bootstrap, seed=config.seed)
    row: Row = {name: summary.mean, f"{name}_ci_low": summary.ci_low, f"{name}_ci_high": summary.ci_high}
    return row | {"n": summary.n, "num_missing": summary.num_missing}


def _bounded(values: Mapping[str, float | None], name: str, config: EvaluationConfig) -> Row:
    return {key: value for key, value in _summary(values, name, config).items() if key.startswith(name)}


def _mean(values: Mapping[str, float | None]) -> float | None:
    known = known_values(list(values.values()))
    return float(known.mean()) if len(known) else None


def _ratio(
    over: Mapping[str, float | None], under: Mapping[str, float | None], name: str, config: EvaluationConfig
) -> Row:
    """Return the ratio of two means over the same volumes, with bounds."""
    both = [(a, b) for subject, a in over.items() if a is not None and (b := under.get(subject)) is not None]
    ratio, low, high = ratio_of_means(both, num_bootstrap=config.num_bootstrap, seed=config.seed)
    return {name: ratio, f"{name}_ci_low": low, f"{name}_ci_high": high}


def _removed(ratio: Row) -> Row:
    """Return 1 - ratio, with bounds, under the same names."""
    name, low, high = ratio
    less = {key: None if value is None else 1 - value for key, value in ratio.items()}
    return {name: less[name], low: less[high], high: less[low]}


def _in_ml(row: Row) -> Row:
    """Convert the volumes of a row from mm3 to ml."""
    scaled = {key: value / 1000 if isinstance(value, float) else value for key, value in row.items()}
    return scaled | {"quantity": row["quantity"].replace("mm3", "ml")}
