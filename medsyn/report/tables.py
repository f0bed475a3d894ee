"""Tidy table rows turned into what a reader sees: "mean ± sd" with the interval below, units in the header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from medsyn.exhibits.numbers import number, p_value, with_prefix

Cell = dict[str, str]
WORDS_OF_TESTS = (
    *(("p_value", "p"), ("p_paired", "p, paired"), ("p_wilcoxon", "p, Wilcoxon")),
    *(("effect_size", "d_z"), ("n_pairs", "pairs"), ("units_needed", "units needed")),
)
HEADERS = {
    "method": "Method",
    "takes_text": "Takes text",
    "prompt_type": "Prompt",
    "language_model": "Language model",
    "text": "Report as prompt",
    "finding": "Finding",
    "fid": "FID",
    "mmd": "MMD",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
    "fid_half": "FID, half",
    "mmd_half": "MMD, half",
    "precision_half": "Precision, half",
    "recall_half": "Recall, half",
    "density_half": "Density, half",
    "coverage_half": "Coverage, half",
    "n_fid": "n (FID)",
    "n_half": "n (half)",
    "n_airway": "n (airway)",
    "n_real": "real volumes",
    "n_synthetic": "generated volumes (most in a fold)",
    "n_synthetic_min": "generated volumes (fewest)",
    "num_missing": "missing",
    "p_value": "p",
    "p_paired": "p, paired",
    "p_wilcoxon": "p, Wilcoxon",
    "effect_size": "d_z",
    "units_needed": "units needed",
    "n_pairs": "pairs",
    "num_found": "found",
    "airway_found": "airway found",
    "not_chest_fraction": "not a chest",
    "num_parameters": "Parameters",
    "training_eflop": "Training, operations",
    "training_hours": "Training, hours of the device",
    "seconds_per_volume": "Sampling, s per volume",
    "peak_memory_gib": "Sampling, peak GiB",
    "device": "Sampling, device",
    **{
        f"{stem}_{part}": f"{word} ({name})"
        for stem, name in (("airway_dice", "airway"), ("lobe_dice", "lobes"), ("accuracy", "accuracy"), ("f1", "F1"))
        for part, word in WORDS_OF_TESTS
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
BELOW_TABLE = ("feature_extractor", "p_value_versus", "note", "prompt")
HIDDEN = (*BELOW_TABLE, "label", "num_volumes", "num_failed")
HIDDEN_ENDINGS = ("n_units", "num_unpaired", "_dice_n")
FOUND = ("num_found", "airway_found")
"""Shown as "x of n", n being num_volumes."""
OUTCOMES = {
    "registered": "registered",
    "fell_back": "fell back",
    "not_registered": "accepted",
    "rejected": "rejected",
    "unknown": "without a record",
    "masks_rejected": "masks rejected",
}
"""Counts of qc/alignment.csv in words."""
WORSE_BY = Fraction(5, 100)
"""Share by which a finding may fare worse than CTs without a finding before the report says so."""
NOTE_TITLES = {
    "feature_extractor": "Feature extractor",
    "p_value_versus": "Compared with",
    "note": "Note",
    "prompt": "Prompt",
}


def display_table(
    rows: Sequence[Mapping[str, str]], headers: Mapping[str, str] | None = None
) -> tuple[list[str], list[list[Cell]], list[str]]:
    """Return header, cells ({main, below}) and notes of a tidy table read from CSV; headers: beside HEADERS."""
    if not rows:
        return [], [], []
    stems = [name.removesuffix("_mean") for name in rows[0] if name.endswith("_mean")]
    columns: list[str] = []
    for name in rows[0]:
        stem = next((stem for stem in stems if name in _parts(stem)), None)
        if stem is None and (name.endswith(("_ci_low", "_ci_high")) or _belongs_to_answer(name, rows[0])):
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
    titles = HEADERS | dict(headers or {})
    return [titles.get(name, name.replace("_", " ")) for name in columns], cells, notes


def alignment_table(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return what the report shows of qc/alignment.csv: alignment asked for, header, cells, and findings that fare
    worse than CTs without a finding (None where every CT has one).
    """
    asked = rows[0]["alignment_asked"]
    idle = ("not_registered",) if asked == "atlas" else () if "atlas" in asked else ("registered", "fell_back")
    names = [name for name in OUTCOMES if name not in idle]
    shown = [row for row in rows if row["n"] != "0"]
    cells = [
        [{"main": row["finding"].replace("_", " "), "below": ""}, {"main": number(row["n"]), "below": ""}]
        for row in shown
    ]
    for row, line in zip(shown, cells, strict=True):
        line += [_outcome(row, name) for name in names]
        reason = f"{row['commonest_reason']} ({row['commonest_reason_count']})" if row["commonest_reason"] else ""
        line += [{"main": number(row.get("atlas_dice_mean", "")), "below": ""}, {"main": reason, "below": ""}]
    header = ["finding", "CTs", *(OUTCOMES[name] for name in names), "Dice with the atlas", "commonest reason (CTs)"]
    healthy = next((row for row in shown if row["finding"] == "no finding"), None)
    worse = None if healthy is None else [line for row in shown for line in _worse(row, healthy)]
    return {"asked": asked.replace("_", " ") or "not known", "header": header, "rows": cells, "worse": worse}


def _outcome(row: Mapping[str, str], name: str) -> Cell:
    """Return a count with its percentage, and the bounds of the percentage below."""
    low, high = row.get(f"{name}_ci_low", ""), row.get(f"{name}_ci_high", "")
    bounds = f"[{100 * float(low):.1f}, {100 * float(high):.1f}] %" if low and high else ""
    return {"main": f"{number(row[name])} ({_percent(row, name)})", "below": bounds}


def _share(row: Mapping[str, str], name: str) -> Fraction:
    return Fraction(int(row[name]), int(row["n"]))


def _percent(row: Mapping[str, str], name: str) -> str:
    return f"{100 * float(_share(row, name)):.1f} %"


def _worse(row: Mapping[str, str], healthy: Mapping[str, str]) -> list[str]:
    """Return a sentence per outcome that is more frequent in `row` than in `healthy` by more than WORSE_BY."""
    if row["finding"] == "all":
        return []
    lines = []
    for name in ("fell_back", "rejected", "unknown", "masks_rejected"):
        if _share(row, name) - _share(healthy, name) > WORSE_BY:
            ill, usual = (f"{group[name]} of {group['n']} ({_percent(group, name)})" for group in (row, healthy))
            lines.append(f"{row['finding'].replace('_', ' ')}: {ill} {OUTCOMES[name]}, {usual} without a finding")
    return lines


def _parts(stem: str) -> tuple[str, ...]:
    return tuple(f"{stem}_{part}" for part in ("mean", "std", "ci_low", "ci_high"))


def _belongs_to_answer(name: str, row: Mapping[str, str]) -> bool:
    """Return whether a column is the chance level or the n of another one, shown below its value."""
    stem, _, part = name.rpartition("_")
    return part in ("chance", "n") and f"{stem}_chance" in row


def _cell(row: Mapping[str, Any], name: str, is_summary: bool) -> Cell:
    if is_summary:
        mean, std = row[f"{name}_mean"], row.get(f"{name}_std", "")
        main = number(mean) + (f" ± {number(std)}" if std else "")
    elif name.endswith(("p_value", "p_paired", "p_wilcoxon")):
        main = p_value(row[name])
    elif name in FOUND and row[name]:
        main = f"{number(row[name])} of {number(row['num_volumes'])}"
    elif name == "not_chest_fraction" and row[name]:
        main = f"{100 * float(row[name]):.0f} %"
    elif name == "num_parameters":
        main = with_prefix(row[name])
    elif name == "training_eflop":
        main = with_prefix(row[name], 1e18, "FLOP")
    elif name == "device":
        main = row[name] or "–"
    elif name == "method" and row.get("label"):
        main = row["label"]
    elif name == "prompt_type":
        main = row[name].replace("_", " ").replace("/", ": ")
    else:
        main = number(row[name])
    low, high = row.get(f"{name}_ci_low", ""), row.get(f"{name}_ci_high", "")
    below = [f"[{number(low)}, {number(high)}]"] if low and high else []
    if chance := row.get(f"{name}_chance", ""):
        below += [f"chance {number(chance)}", f"n {row[f'{name}_n']}"]
    return {"main": main, "below": ", ".join(below)}
