"""Find the volumes in a folder of any system, without reading them and without heavy imports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from medsyn.errors import InputError
from medsyn.names import CT_SUFFIXES, VOLUME_SUFFIXES, split_suffix

STRUCTURES = ("lobes", "airway", "vessels")
FOUND_SUFFIXES = tuple(end for end in CT_SUFFIXES if not end.startswith(".img"))
"""A pair is named by its .hdr."""


def volumes_in(folder: Path) -> dict[str, Path]:
    """Return volume files by id: `<folder>/<id>/volume.nii.gz`, or `<folder>/<id>.nii.gz` (.nii, .mha, .nrrd).

    Hidden files are left out, and masks that are named as `medsyn generate` names them. A folder that does not exist
    is an InputError; an empty one gives nothing.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of volumes")
    paths = (child / "volume.nii.gz" for child in folder.iterdir())
    found = [(path.parent.name, path) for path in paths if os.path.lexists(path)]  # a broken link is named later
    if not found:
        names = [(split_suffix(path.name, VOLUME_SUFFIXES), path) for path in folder.iterdir()]
        files = [(stem, path) for (stem, suffix), path in names if suffix and not path.name.startswith(".")]
        masks = {f"{stem}_{structure}" for stem, _ in files for structure in STRUCTURES}
        found = [(stem, path) for stem, path in files if stem not in masks]
    return _by_id(found)


def find_volumes(folder: str | Path) -> dict[str, Path]:
    """Return volume files by id: as `volumes_in` finds them, else every file of a known format at any depth.

    The id of a file further down is its path without the suffix. No volume at all is an InputError, and so are volumes
    both where `volumes_in` finds them and elsewhere.
    """
    folder = Path(folder)
    found = volumes_in(folder)
    below = list(_volumes_below(folder))
    if not found:
        found = _by_id([(identity, path) for path, identity in below])
    else:
        places = {path.parent for path in found.values()}
        for path, _ in below:
            if path.parent != folder if folder in places else places.isdisjoint(path.parents):
                first = next(iter(found.values()))
                raise InputError(
                    f"{folder}: has volumes in two places, {first} and {path}; name the folder of one of them"
                )
    if not found:
        raise InputError(
            f"{folder}: no volume in it; give {', '.join(FOUND_SUFFIXES)} files, at any depth, or <id>/volume.nii.gz"
        )
    return found


def _volumes_below(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield files of a known format at any depth, without hidden ones, and their paths without the suffix."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            stem, suffix = split_suffix(name, FOUND_SUFFIXES)
            if suffix and not name.startswith("."):
                path = Path(parent) / name
                yield path, str(path.with_name(stem).relative_to(folder))


def _by_id(entries: list[tuple[str, Path]]) -> dict[str, Path]:
    """Return the entries sorted by id; an id that occurs twice is an InputError."""
    found: dict[str, Path] = {}
    for identity, path in entries:
        if identity in found:
            raise InputError(f"{path}: '{identity}' is also {found[identity]}; give every id once")
        found[identity] = path
    return dict(sorted(found.items()))
