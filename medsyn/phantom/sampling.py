"""Which findings a phantom has: prevalences and severities of the embedded cohort.

About 27 % of subjects are normal; of all, each of pleural effusion, emphysema and cardiomegaly is present in about 35
%, consolidation and ground glass in 12 % each and nodules in 15 %, in any combination. A subject sampled as ill with no
finding is sampled again. Severities are Beta(2, 1.3) distributed: most cases are plain to see.
"""

from __future__ import annotations

import numpy as np

from medsyn.phantom.findings import FindingSpec, Kind
from medsyn.volume import LOBE_NAMES

NORMAL_SHARE = 0.27
PREVALENCE: dict[Kind, float] = {
    "pleural_effusion": 0.43,
    "emphysema": 0.43,
    "cardiomegaly": 0.43,
    "consolidation": 0.15,
    "ground_glass_opacity": 0.15,
    "nodule": 0.18,
}
"""Probability of each finding in a subject that is not normal, before redrawing the empty ones."""
AMOUNT: dict[Kind, tuple[float, float]] = {
    "pleural_effusion": (60.0, 1500.0),
    "emphysema": (8.0, 55.0),
    "cardiomegaly": (0.52, 0.68),
    "consolidation": (30.0, 450.0),
    "ground_glass_opacity": (60.0, 700.0),
    "nodule": (6.0, 30.0),
}
"""Amount at severity 0 and 1, in the unit of the finding; linear between."""


def amount_of(kind: Kind, severity: float) -> float:
    """Return the amount of a severity in (0, 1]."""
    low, high = AMOUNT[kind]
    return round(low + (high - low) * severity, 3 if kind == "cardiomegaly" else 1)


def sample_findings(rng: np.random.Generator) -> tuple[FindingSpec, ...]:
    """Draw the findings of one subject; an empty tuple is a normal subject."""
    if rng.random() < NORMAL_SHARE:
        return ()
    while True:
        present = [kind for kind, share in PREVALENCE.items() if rng.random() < share]
        if present:
            break
    specs: list[FindingSpec] = []
    for kind in present:
        specs.extend(_draw(rng, kind))
    return tuple(specs)


def _draw(rng: np.random.Generator, kind: Kind) -> list[FindingSpec]:
    severity = _severity(rng)
    if kind == "pleural_effusion":
        if rng.random() < 0.3:  # both sides, the second of its own size
            other = _severity(rng)
            return [
                FindingSpec(kind, severity, amount_of(kind, severity), "right"),
                FindingSpec(kind, other, amount_of(kind, other), "left"),
            ]
        return [FindingSpec(kind, severity, amount_of(kind, severity), "right" if rng.random() < 0.55 else "left")]
    if kind in ("emphysema", "cardiomegaly"):
        return [FindingSpec(kind, severity, amount_of(kind, severity))]
    lobe = LOBE_NAMES[int(rng.integers(len(LOBE_NAMES)))]
    if lobe == "right_middle" and kind != "nodule":  # the smallest lobe: keep within it
        severity = round(severity * 0.4, 4)
    return [FindingSpec(kind, severity, amount_of(kind, severity), "left" if "left" in lobe else "right", lobe)]


def _severity(rng: np.random.Generator) -> float:
    return round(float(np.clip(rng.beta(2.0, 1.3), 0.02, 1.0)), 4)
