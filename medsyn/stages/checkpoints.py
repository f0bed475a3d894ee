"""Turn public checkpoints of the networks around the denoisers into safetensors: behind `medsyn import-checkpoint`.

The results stand in for the originals where pickled files are not wanted: NaviAirway's in the weights folder,
Med3D's as `evaluation.features.weights`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from torch import nn

from medsyn.errors import InputError
from medsyn.evaluate.features import read_med3d
from medsyn.files import sha256
from medsyn.masks.naviairway import load_network
from medsyn.progress import log
from medsyn.provenance import provenance
from medsyn.tensors import save_tensors


def import_network(source: Path, kind: Literal["naviairway", "med3d"], out: Path) -> None:
    """Write the network of the file `source` to `out` (.safetensors); a file that does not fit is an InputError."""
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: the file must end in .safetensors")
    network: nn.Module = load_network(source) if kind == "naviairway" else read_med3d(source)
    facts = {"kind": kind, "file": source.name, "sha256": sha256(source)}
    save_tensors(out, network.state_dict(), {"provenance": json.dumps(provenance(source=facts), sort_keys=True)})
    log.info("%s: %s, %d parameters", out, kind, sum(value.numel() for value in network.parameters()))
