"""Define the findings of a phantom and their amounts, independent of the grid on which the phantom is rendered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["pleural_effusion", "emphysema", "cardiomegaly", "consolidation", "ground_glass_opacity", "nodule"]
Side = Literal["left", "right", ""]
Unit = Literal["ml", "percent", "ratio", "mm"]
UNITS: dict[Kind, Unit] = {
    "pleural_effusion": "ml",
    "emphysema": "percent",
    "cardiomegaly": "ratio",
    "consolidation": "ml",
    "ground_glass_opacity": "ml",
    "nodule": "mm",
}
"""Unit of `amount`: effusion, consolidation and ground glass in millilitres, emphysema as percent of the lung's volume
below -950 HU, cardiomegaly as cardiothoracic ratio, nodule as diameter in millimetres."""


@dataclass(frozen=True)
class FindingSpec:
    """One finding of one subject.

    severity: continuous in (0, 1]; amount: the same in the unit `UNITS[kind]`; side: for effusions; lobe: a name of
    `medsyn.volume.LOBE_NAMES` for findings of the parenchyma, else empty.
    """

    kind: Kind
    severity: float
    amount: float
    side: Side = ""
    lobe: str = ""
