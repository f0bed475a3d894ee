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
    "n_synthetic": "generated volumes (most in a fold)",
    "n_synthetic_min": "generated volumes (fewest)",
    "num_missing": "missing",
    "p_value": "p",
    "p_paired": "p, paired",
    "effect_size": "d_z",
    "n_pairs": "pairs",
    "num_found": "found",
    "airway_found": "airway found",
    "not_chest_fraction": "not a chest",
    **{
        f"{stem}_{part}": f"{word} ({name})"
        for stem, name in (("airway_dice", "airway"), ("lobe_dice", "lobes"), ("accuracy", "accuracy"), ("f1", "F1"))
        for part, word in (("p_value", "p"), ("p_paired", "p, paired"), ("effect_size", "d_z"), ("n_pairs", "pairs"))
    },
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
HIDDEN = (*BELOW_TABLE, "label", "p_value_versus", "num_volumes", "num_failed")
HIDDEN_ENDINGS = ("n_units", "num_unpaired", "_dice_n")
FOUND = ("num_found", "airway_found")
"""Shown as "x of n", n being num_volumes."""
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
        if target not in columns and target not in HIDDEN and not target.endswith(HIDDEN_ENDINGS):
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
    elif name.endswith(("p_value", "p_paired")):
        main = p_value(row[name])
    elif name in FOUND and row[name]:
        main = f"{number(row[name])} of {number(row['num_volumes'])}"
    elif name == "not_chest_fraction" and row[name]:
        main = f"{100 * float(row[name]):.0f} %"
    elif name == "method" and row.get("label"):
        main = row["label"]
    elif name == "prompt_type":
        main = row[name].replace("_", " ").replace("/", ": ")
    else:
        main = number(row[name])
    low, high = row.get(f"{name}_ci_low", ""), row.get(f"{name}_ci_high", "")
    return {"main": main, "below": f"[{number(low)}, {number(high)}]" if low and high else ""}
