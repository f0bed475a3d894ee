"""Small line charts as inline SVG for the HTML report: crisp at any zoom, no fonts or scripts from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

COLOURS = ("#2a6f97", "#c8553d", "#5b8e7d", "#8d6a9f")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 190, 46, 10, 12, 34
Series = tuple[str, Sequence[float], Sequence[float]]


def chart(series: Sequence[Series], x_label: str, y_label: str, log_y: bool = False) -> str:
    """An SVG of (label, x, y) lines; points that are not finite (or not positive with `log_y`) are left out."""
    lines = [(label, _points(x, y, log_y)) for label, x, y in series]
    points = [point for _, line in lines for point in line]
    if not points:
        return ""
    x_low, x_high = _range([x for x, _ in points])
    y_low, y_high = _range([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="chart" role="img" aria-label="{escape(y_label)}">']
    for k in range(5):
        value = y_low + (y_high - y_low) * k / 4
        _, y = place(x_low, value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="gridline"/>')
        shown = 10**value if log_y else value
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3:.1f}" class="tick end">{shown:.3g}</text>')
        x, _ = place(x_low + (x_high - x_low) * k / 4, y_low)
        tick = x_low + (x_high - x_low) * k / 4
        anchor = "end" if k == 4 else "mid"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 13}" class="tick {anchor}">{tick:.4g}</text>')
    for k, (label, line) in enumerate(lines):
        colour = COLOURS[k % len(COLOURS)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(*point) for point in line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(
            f'<text x="{WIDTH - RIGHT - 2}" y="{TOP + 8 + 12 * k}" class="tick end" fill="{colour}"'
            f' style="fill:{colour}">{escape(label)}</text>'
        )
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" class="tick mid">{escape(x_label)}</text>')
    return "".join(parts) + f"</svg><div class='chart-title'>{escape(y_label)}</div>"


def _points(x: Sequence[float], y: Sequence[float], log_y: bool) -> list[tuple[float, float]]:
    kept = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b) and (b > 0 or not log_y)]
    return [(a, math.log10(b) if log_y else b) for a, b in kept]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        return low - 0.5, high + 0.5
    return low, high
