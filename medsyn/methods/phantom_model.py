"""The model that the package brings: trained on phantoms, used by `medsyn generate` where no weights are named.

`medsyn package-model` makes the folder (`medsyn.methods.packaging`). Every file is compared with its SHA-256 before it
is used. This module imports nothing heavy, so that a missing model is said at once.
"""

from __future__ import annotations

from pathlib import Path

from medsyn.errors import InputError
from medsyn.files import sha256

FOLDER = Path(__file__).parents[1] / "phantom_model"
SUMS = "SHA256SUMS"
"""File of the folder that lists all others as `sha256sum` does."""


def phantom_model() -> Path:
    """Return the folder of the package's model; InputError if there is none or a file is not as it was packaged."""
    if not FOLDER.is_dir():
        raise InputError(
            f"{FOLDER}: no such folder, this copy of medsyn brings no model; name a trained one (--weights RUN.JSON),"
            " or train the phantom model with `make phantom-model` in a clone of the repository"
        )
    remedy = "install medsyn again, or name another model (--weights RUN.JSON)"
    sums = FOLDER / SUMS
    if not sums.is_file():
        raise InputError(f"{sums}: no such file, it lists the files of the phantom model; {remedy}")
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        path = FOLDER / name
        if not path.is_file():
            raise InputError(f"{path}: no such file, {SUMS} of the phantom model lists it; {remedy}")
        if (found := sha256(path)) != expected:
            raise InputError(f"{path}: is damaged: its SHA-256 is {found[:16]}, expected {expected[:16]}; {remedy}")
    return FOLDER
