"""Write one HTML page that shows volumes with NiiVue and fetches nothing: scripts and volumes are inside it.

A policy in the page (Content-Security-Policy) forbids every request and every script other than the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from medsyn import nifti
from medsyn.errors import InputError
from medsyn.files import write_text
from medsyn.viewer.cases import Case
from medsyn.volume import Volume, nifti_bytes, read_volume

SCRIPTS = ("niivue/niivue.umd.js", "canvas.js", "page.js")
MAX_MB = 100.0
MAX_VOXELS = 1 << 26
"""Voxels of one volume (512 x 512 x 256) that a browser draws with 1 GB of memory."""
MIN_SIDE = 16
SAME_MM = 0.01
UNITS = {
    "lung_volume_ml": ("lungs", "ml"),
    "airway_volume_mm3": ("airway", "mm³"),
    "effusion_volume_ml": ("effusion", "ml"),
    "laa950_percent": ("below -950 HU", "% of the lungs"),
    "cardiothoracic_ratio": ("cardiothoracic ratio", ""),
}
"""Measure -> how it is named, and its unit."""


class _TooLargeError(Exception):
    """The page would be larger than its limit."""


def write_page(out: Path, cases: Sequence[Case], *, title: str, left_out: int = 0, max_mb: float = MAX_MB) -> list[str]:
    """Write the page and return what is to be said about it, one line per fault.

    left_out: cases that were not chosen. A page above `max_mb` shows every volume at half the resolution, or at a
    quarter. InputError where no case can be shown, or the page is larger still.
    """
    for factor in (1, 2, 4, 8):
        try:
            shown, notes = _encode_all(cases, factor, max_mb * 1e6 - len(_script(SCRIPTS[0])))
        except _TooLargeError:
            continue
        if not shown:
            raise InputError("; ".join(notes) or "no volume to show; name a folder with volumes")
        if factor > 1:
            notes.insert(0, f"1/{factor} of the resolution, for a page of at most {max_mb:g} MB; see fewer with --num")
        if left_out:
            notes.append(f"{left_out} more volumes are not shown; --num says how many are")
        write_text(out, render(shown, notes, title=title))
        return notes
    raise InputError(
        f"{out}: the page would be larger than {max_mb:g} MB even at 1/8 of the resolution; choose fewer volumes with"
        " --num, or raise --max-mb"
    )


def render(shown: Sequence[dict[str, Any]], notes: Sequence[str], *, title: str) -> str:
    """Return the HTML of encoded cases; all text is escaped."""
    scripts = [_script(name) for name in SCRIPTS]
    data = [{key: value for key, value in case.items() if key != "files"} for case in shown]
    facts = json.dumps(data).replace("<", "\\u003c")  # so that no text ends the element of the script
    files = [(f"{k}-{name}", text) for k, case in enumerate(shown) for name, text in case["files"].items()]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    source = resources.files("medsyn.viewer").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source).render(
        title=title, notes=notes, facts=facts, files=files, scripts=scripts, hashes=hashes
    )


def reduced(volume: Volume, factor: int, *, labels: bool = False) -> Volume:
    """Return a volume of every `factor`-th voxel (labels), or of the means of blocks; what does not fill one is cut."""
    if factor == 1:
        return volume
    size = [side // factor for side in volume.array.shape]
    array = volume.array[tuple(slice(side * factor) for side in size)]
    if labels:
        array = array[factor // 2 :: factor, factor // 2 :: factor, factor // 2 :: factor]
    else:
        blocks = array.reshape(size[0], factor, size[1], factor, size[2], factor)
        array = blocks.mean(axis=(1, 3, 5), dtype=np.float32)
    steps = np.array(volume.spacing_mm[::-1])
    shift = np.array(volume.direction).reshape(3, 3) @ (steps * (factor - 1) / 2)
    origin = tuple(float(value) for value in np.array(volume.origin_mm) + shift)
    z, y, x = (step * factor for step in volume.spacing_mm)
    return replace(volume, array=array, spacing_mm=(z, y, x), origin_mm=(origin[0], origin[1], origin[2]))


def _encode_all(cases: Sequence[Case], factor: int, room: float) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what the page says of every case that can be read, and a line per fault."""
    shown: list[dict[str, Any]] = []
    notes: list[str] = []
    for case in cases:
        try:
            entry, faults = _encode(case, factor)
        except InputError as error:
            notes.append(str(error))
            continue
        room -= sum(map(len, entry["files"].values()))
        if room < 0:
            raise _TooLargeError
        shown.append(entry)
        notes += faults
    return shown, notes


def _encode(case: Case, factor: int) -> tuple[dict[str, Any], list[str]]:
    volume = read_volume(case.path)
    faults = []
    own = factor
    while volume.array.size / own**3 > MAX_VOXELS:
        own *= 2
    size = " × ".join(map(str, reversed(volume.array.shape)))
    if own > factor:
        faults.append(f"{case.path}: {size} voxels, shown at 1/{own} of the resolution (at most {MAX_VOXELS:,} voxels)")
    if own > 1 and min(volume.array.shape) // own < MIN_SIDE:
        raise _TooLargeError
    oriented = not nifti.is_nifti(case.path) or nifti.read_header(case.path).affine is not None
    if not oriented:
        faults.append(f"{case.path}: its header has no orientation, so the sides have no letters and may be swapped")
    files = {"image": _text(_hounsfield(reduced(volume, own)))}
    for structure, path in case.masks.items():
        try:
            mask = read_volume(path)
            _check_grid(path, mask, volume)
        except InputError as error:
            faults.append(f"{error}; the mask is not shown")
            continue
        files[structure] = _text(reduced(mask.with_array(mask.array.astype(np.uint8)), own, labels=True))
    spacing = " × ".join(f"{step:.3g}" for step in reversed(volume.spacing_mm))
    measures = [
        [UNITS[name][0], f"{_rounded(value)} {UNITS[name][1]}".strip()] for name, value in case.measures.items()
    ]
    grid = f"{size} voxels of {spacing} mm"
    entry = {"name": case.name, "group": case.group, "text": case.text, "measures": measures, "grid": grid}
    return entry | {"oriented": oriented, "masks": [n for n in files if n != "image"], "files": files}, faults


def _hounsfield(volume: Volume) -> Volume:
    values = np.nan_to_num(np.asarray(volume.array, dtype=np.float32), nan=-1024.0)
    return volume.with_array(np.clip(np.rint(values), -32768, 32767).astype(np.int16))


def _check_grid(path: Path, mask: Volume, volume: Volume) -> None:
    """Raise InputError unless a mask lies on the grid of its volume."""
    if mask.array.shape != volume.array.shape:
        sizes = [" x ".join(map(str, reversed(v.array.shape))) for v in (mask, volume)]
        raise InputError(f"{path}: has {sizes[0]} voxels, expected {sizes[1]} as its volume")
    pairs = (
        (mask.spacing_mm, volume.spacing_mm),
        (mask.origin_mm, volume.origin_mm),
        (mask.direction, volume.direction),
    )
    if not all(np.allclose(a, b, atol=SAME_MM) for a, b in pairs):
        raise InputError(f"{path}: lies elsewhere than its volume (another origin, spacing or direction)")


def _text(volume: Volume) -> str:
    return base64.b64encode(nifti_bytes(volume)).decode("ascii")


def _rounded(value: str) -> str:
    try:
        return f"{float(value):.3g}" if abs(float(value)) < 100 else f"{float(value):,.0f}"
    except ValueError:
        return value


def _script(name: str) -> str:
    return resources.files("medsyn.viewer").joinpath(name).read_text(encoding="utf-8")
