"""Print the numbers of tables for readers."""

from __future__ import annotations

import math


def number(text: str) -> str:
    """Return a number with separated thousands and about three significant digits, a dash where there is none."""
    try:
        value = float(text)
    except ValueError:
        return text.replace("_", " ") if text else "–"
    if text.lstrip("-").isdigit():
        return f"{int(text):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def with_prefix(text: str, scale: float = 1.0, unit: str = "") -> str:
    """Return `scale` times a number with three digits, a prefix (k to Z) and the unit; a dash where there is none."""
    if not text:
        return "–"
    value = float(f"{scale * float(text):.3g}")
    power = min(max(math.floor(math.log10(value)) // 3, 0), 7) if value > 0 else 0
    prefix = ("", "k", "M", "G", "T", "P", "E", "Z")[power]
    return f"{value / 1000**power:.3g} {prefix}{unit}".strip()


def p_value(text: str) -> str:
    """Return a p-value with three decimals, or that it is below 0.001."""
    if not text:
        return "–"
    return "< 0.001" if float(text) < 0.001 else f"{float(text):.3f}"


def equation(text: str) -> str:
    """Return a p-value as it follows the letter p: "= 0.012" or "< 0.001"."""
    shown = p_value(text)
    return shown if shown.startswith("<") else f"= {shown}"
