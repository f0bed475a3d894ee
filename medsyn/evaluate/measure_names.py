"""Name the anatomical measures and the anatomy that each is of (medsyn.evaluate.measures computes them)."""

MEASURES = ("lung_volume_ml", "airway_volume_mm3", "effusion_volume_ml", "laa950_percent", "cardiothoracic_ratio")
NEEDS = {
    "lung_volume_ml": "lung",
    "airway_volume_mm3": "airway",
    "effusion_volume_ml": "lung",
    "laa950_percent": "lung",
    "cardiothoracic_ratio": "heart",
}
"""Measure -> the anatomy that it is of."""
ANATOMIES = tuple(dict.fromkeys(NEEDS.values()))
