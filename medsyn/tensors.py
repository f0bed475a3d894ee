"""Write safetensors whose bytes depend on their content alone, and read checkpoints of others safely.

The library keeps the metadata of a file in a hash map with a random order, so two identical runs differ in the header.
Here the header is rewritten with sorted keys and with the hash of the data, which `check_tensors` compares. Offsets and
data stay unchanged.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from medsyn.errors import InputError
from medsyn.files import atomic_path

_UNREADABLE = (
    *(RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ImportError),
    *(MemoryError, OverflowError, struct.error, zipfile.BadZipFile, pickle.UnpicklingError),
)
"""What a damaged or foreign file of `torch.save` raises."""
_DATA_HASH = "data_sha256"  # in the metadata of every file: hex SHA-256 of all tensors' bytes


def save_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write `tensors` (any shapes and dtypes) with string `metadata` to `path`, atomically and reproducibly."""
    contiguous: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        contiguous[name] = (
            value.clone() if value.data_ptr() in places else value
        )  # tied weights: one copy for each name
        places.add(value.data_ptr())
    with atomic_path(path) as temporary, told_as_os_error(path):
        save_file(contiguous, temporary, metadata={**metadata, _DATA_HASH: "0" * 64})
        _finish_header(temporary)


@contextmanager
def told_as_os_error(path: str | Path) -> Iterator[None]:
    """Raise what safetensors says of a full disk or another fault of the system as the OSError that it is."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def check_tensors(path: str | Path) -> None:
    """Raise InputError if the tensors of a safetensors file are not those that `save_tensors` wrote into it.

    A file without a hash, from another program or an earlier version, is not checked.
    """
    expected = _all_metadata(path).get(_DATA_HASH)
    if expected is None:
        return
    with Path(path).open("rb") as handle:
        handle.seek(8 + int.from_bytes(handle.read(8), "little"))
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != expected:
        raise InputError(
            f"{path}: is damaged: its tensors have the SHA-256 {found[:16]}, expected {expected[:16]}; copy it again,"
            " or remove it and run the step that makes it"
        )


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata that `save_tensors` was given for a file; a missing or broken file is an InputError."""
    return {key: value for key, value in _all_metadata(path).items() if key != _DATA_HASH}


def count_numbers(path: str | Path, prefix: str = "") -> int:
    """Return how many numbers the tensors of a safetensors file hold whose names begin with `prefix`."""
    with safe_open(path, framework="pt") as handle:
        names = [name for name in handle.keys() if name.startswith(prefix)]  # noqa: SIM118, a handle is no mapping
        return sum(math.prod(handle.get_slice(name).get_shape()) for name in names)


def _all_metadata(path: str | Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as handle:
            return dict(handle.metadata() or {})
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise InputError(
            f"{path}: not a safetensors file ({error}); write it again with the step that makes it"
        ) from None


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint on the CPU: tensors (.safetensors), else the dict that `torch.save` wrote.

    A missing file and one that cannot be read are InputErrors.
    """
    if Path(path).suffix != ".safetensors":
        return _load_pickled(path)
    check_tensors(path)
    try:
        return dict(load_file(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read as tensors ({error}); copy or download it again") from None


def _load_pickled(path: str | Path) -> dict[str, Any]:
    """Return the dict in a file of `torch.save`, on the CPU; only tensors are unpickled, never code.

    A missing file, one that holds anything else and one that cannot be read are InputErrors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol; what follows decides
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except _UNREADABLE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{path}: cannot be read as tensors ({reason[:160]}); if the file is whole, save its state dict alone"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a state dict; save its state dict alone")
    return content


def _finish_header(path: Path) -> None:
    """Rewrite the JSON header in place, sorted and with the hash of the data.

    A file is 8 bytes of length, JSON with trailing spaces, then the data.
    """
    with path.open("r+b") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
        header["__metadata__"][_DATA_HASH] = hashlib.file_digest(handle, "sha256").hexdigest()
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode()
        if len(ordered) > length:
            raise ValueError(f"{path}: sorted header is longer than the original")
        handle.seek(8)
        handle.write(ordered.ljust(length))
