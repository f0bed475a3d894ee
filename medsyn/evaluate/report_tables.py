"""Tidy table rows turned into what a reader sees: "mean ± sd" with the interval below, units in the header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Cell = dict[str, str]
HEADERS = {
    "method": "Method",
    "prompt_type": "Prompt",
    "language_model": "Language model",
    "text": "Report as prompt",
    "finding": "Finding",
    "fid": "FID",
    "mmd": "MMD",
    "fid_half": "FID, half",
    "mmd_half": "MMD, half",
    "n_fid": "n (FID)",
    "n_half": "n (half)",
    "n_airway": "n (airway)",
    "n_real": "real volumes",
    "n_synthetic": "generated volumes",
    "num_missing": "missing",
    "p_value": "p",
    "airway_dice_p_value": "p (airway)",
    "lobe_dice_p_value": "p (lobes)",
    "airway_volume_mm3": "Airway volume (mm³)",
    "effusion_volume_ml": "Effusion (ml)",
    "laa950_percent": "%LAA-950",
    "cardiothoracic_ratio": "CTR",
    "airway_dice": "Airway Dice",
    "lobe_dice": "Lobe Dice",
    "accuracy": "Accuracy",
    "f1": "F1",
}
BELOW_TABLE = ("feature_extractor", "note", "prompt")
HIDDEN = (*BELOW_TABLE, "label", "p_value_versus")
NOTE_TITLES = {"feature_extractor": "Feature extractor", "note": "Note", "prompt": "Prompt"}


def display_table(rows: Sequence[Mapping[str, str]]) -> tuple[list[str], list[list[Cell]], list[str]]:
    """Header, cells ({main, below}) and notes of a tidy table read from CSV."""
    if not rows:
        return [], [], []
    stems = [name.removesuffix("_mean") for name in rows[0] if name.endswith("_mean")]
    columns: list[str] = []
    for name in rows[0]:
        stem = next((stem for stem in stems if name in _parts(stem)), None)
        if stem is None and name.endswith(("_ci_low", "_ci_high")):
            continue
        target = stem or name
        if target not in columns and target not in HIDDEN:
            columns.append(target)
    cells = [[_cell(row, name, name in stems) for name in columns] for row in rows]
    notes = [
        f"{NOTE_TITLES[name]}: {text}."
        for name in BELOW_TABLE
        for text in dict.fromkeys(row[name].rstrip(".") for row in rows if row.get(name))
    ]
    return [HEADERS.get(name, name.replace("_", " ")) for name in columns], cells, notes


def number(text: str) -> str:
    """A number for readers: thousands separated, about three significant digits, a dash where there is none."""
    try:
        value = float(text)
    except ValueError:
        return text.replace("_", " ") if text else "–"
    if text.lstrip("-").isdigit():
        return f"{int(text):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def p_value(text: str) -> str:
    """A p-value: three decimals, or below 0.001 said so."""
    if not text:
        return "–"
    return "< 0.001" if float(text) < 0.001 else f"{float(text):.3f}"


def _parts(stem: str) -> tuple[str, ...]:
    return tuple(f"{stem}_{part}" for part in ("mean", "std", "ci_low", "ci_high"))


def _cell(row: Mapping[str, Any], name: str, is_summary: bool) -> Cell:
    if is_summary:
        mean, std = row[f"{name}_mean"], row.get(f"{name}_std", "")
        main = number(mean) + (f" ± {number(std)}" if std else "")
    elif name == "p_value" or name.endswith("_p_value"):
        main = p_value(row[name])
    elif name == "method" and row.get("label"):
        main = row["label"]
    elif name == "prompt_type":
        main = row[name].replace("_", " ").replace("/", ": ")
    else:
        main = number(row[name])
    low, high = row.get(f"{name}_ci_low", ""), row.get(f"{name}_ci_high", "")
    return {"main": main, "below": f"[{number(low)}, {number(high)}]" if low and high else ""}
