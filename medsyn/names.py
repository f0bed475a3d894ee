"""Names: suffixes of image files, ids that can name a folder, the K/N of a shard, the place of a finding."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medsyn.errors import InputError

NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz")
CT_SUFFIXES = (*NIFTI_SUFFIXES, ".mha", ".mhd", ".nrrd", ".npz")
"""Files that `medsyn.ct.reading.read_ct` reads."""
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".mha", ".nrrd")
"""Files that `medsyn.volume.write_volume` writes."""
BOTH = "both"
"""Place of a finding on both sides, in the prompts of Table VIII."""
MAX_ID = 100
"""Characters of an id: file systems take 255 bytes of a name, and stages add prefixes and suffixes."""
_SUBJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RESERVED = {
    *("index.csv", "cohort.csv", "rejects.csv", "reports.csv", "contact_sheet.png", "preview.png"),
    *("provenance.json", "store.json", "qc.json", "segment.json", "cost.json", "lock", "medsyn-unfinished.txt"),
}


def split_suffix(name: str, suffixes: Sequence[str]) -> tuple[str, str]:
    """Split the name of a file into stem and the longest of `suffixes`, whatever its case; ("", "") without any."""
    found = max((end for end in suffixes if name.lower().endswith(end)), key=len, default="")
    return (name[: -len(found)], name[-len(found) :]) if found else ("", "")


def parse_shard(text: str) -> tuple[int, int]:
    """Return K and N of "K/N", the K-th of N shards from 0; other text is an InputError."""
    index, _, number = text.partition("/")
    if not (index.isdecimal() and number.isdecimal() and int(index) < int(number)):
        raise InputError(f"--shard {text}: expected K/N with 0 <= K < N, such as 0/2")
    return int(index), int(number)


def subject_fault(name: str) -> str | None:
    """Return why `name` cannot be a subject_id, or None."""
    if not _SUBJECT.fullmatch(name):
        return (
            f"subject_id '{_shown(name)}' is empty or has characters other than letters, digits, dot, dash, underscore"
        )
    return _fault("subject_id", name)


def sample_fault(name: str) -> str | None:
    """Return why `name` cannot be a sample_id, or None; it may be any text that is the plain name of a folder."""
    if not name.strip() or name.startswith(".") or not name.isprintable() or not {"/", "\\"}.isdisjoint(name):
        return f"sample_id '{_shown(name)}' cannot be a folder name; use letters, digits, dash, underscore"
    return _fault("sample_id", name)


def report_sample_id(number: int) -> str:
    """Return the sample_id of a row of the prompts `reports`."""
    return f"report_{number:05d}"


def is_report_sample_id(name: str) -> bool:
    """Return whether a name is the sample_id of a row of the prompts `reports`."""
    return name.startswith("report_") and name[7:].isdecimal() and name == report_sample_id(int(name[7:]))


def _fault(column: str, name: str) -> str | None:
    if len(name) > MAX_ID or len(name.encode(errors="replace")) > 2 * MAX_ID:
        return f"{column} '{_shown(name)}' has {len(name)} characters, expected at most {MAX_ID}; shorten it"
    if name.lower() in _RESERVED:
        return f"{column} '{name}' is the name of a file that a stage writes; choose another"
    return None


def _shown(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:40]}..."
