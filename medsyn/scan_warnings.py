"""Warnings: what looks wrong in a scan but cannot be proven, or was corrected by a stated rule.

A warning is one line, "<topic>: <what was seen>". It never changes a verdict: a scan with warnings is used. The lines
stand in `medsyn inspect --json`, qc.json, index.csv of a shard, and beside the measures that they may change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

MIRRORED = "mirrored"
ORIENTATION = "orientation"
SPACING = "spacing"
GEOMETRY = "geometry"
SERIES = "series"
CUT = "cut"
EMPTY_SLICES = "empty slices"
RANGE = "range"
AIR = "air"
NOT_A_CHEST = "not a chest"
OF_NO_MEASURE = frozenset({SERIES, GEOMETRY})
"""Topics that change no measure: what was left out of a folder, a skew too small to matter."""
TOPICS = {
    MIRRORED: "heart, arch and liver lie on the wrong side: a mirrored header or situs inversus",
    ORIENTATION: "the file does not say where its axes run to, or says two things",
    SPACING: "the file carries no spacing of its own, two that differ, or an uneven one",
    GEOMETRY: "the axes were made orthogonal",
    SERIES: "files of the folder were left out",
    CUT: "the first or last slice cuts the lungs",
    EMPTY_SLICES: "slices between others hold no image",
    RANGE: "HU were clipped",
    AIR: "air does not lie at -1000 HU",
    NOT_A_CHEST: "a generated volume that `medsyn inspect` would reject",
}
_SEPARATOR = "; "


def warn(topic: str, text: str) -> str:
    """Return a warning as one line; `topic` is one of TOPICS."""
    if topic not in TOPICS:
        raise ValueError(f"'{topic}' is not a topic of warnings: expected one of {', '.join(TOPICS)}")
    return f"{topic}: {' '.join(text.split()).replace(';', ',')}"


def topic_of(warning: str) -> str:
    """Return the topic of a warning."""
    return warning.partition(":")[0]


def of_measures(warnings: Iterable[str]) -> list[str]:
    """Return the warnings whose cause may change a measure."""
    return [warning for warning in warnings if topic_of(warning) not in OF_NO_MEASURE]


def join_warnings(warnings: Iterable[str]) -> str:
    """Return warnings as one field of a table."""
    return _SEPARATOR.join(warnings)


def split_warnings(field: str) -> list[str]:
    """Return the warnings of a field that `join_warnings` made."""
    return field.split(_SEPARATOR) if field else []


def count_topics(scans: Iterable[Iterable[str]]) -> dict[str, int]:
    """Return the number of scans with at least one warning of each topic, the most frequent topic first."""
    counts = Counter(topic for warnings in scans for topic in {topic_of(warning) for warning in warnings})
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
