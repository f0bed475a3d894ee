"""Volumes of any generator: read whatever they show, and brought to the model's grid whatever they show.

A real file that is not a chest CT is rejected. A generated one is not, or a system would be scored on its better
volumes. Refused is only what is no volume in HU: a file that cannot be read, or that is on another scale.
"""

from __future__ import annotations

from pathlib import Path

from medsyn.config import PreprocessConfig
from medsyn.ct.inspect import scale_faults
from medsyn.ct.preprocess import preprocess
from medsyn.ct.reading import read_scan
from medsyn.ct.scan import Scan
from medsyn.errors import InputError
from medsyn.header_hints import HeaderHints
from medsyn.volume import Volume


def read_generated(path: Path, hints: HeaderHints) -> Scan:
    """Read a generated volume; one that is not on the scale of HU is an InputError."""
    scan = read_scan(path, hints)
    if faults := scale_faults(scan.volume.array):
        raise InputError(f"{path}: {'; '.join(faults)}; give volumes in HU")
    return scan


def generated_on_grid(volume: Volume, config: PreprocessConfig, name: str) -> Volume:
    """Bring a generated volume in HU to the model's grid (int16 HU): aligned as CTs are, or by its middle."""
    return preprocess(volume, config, name=name, require_chest=False).volume
