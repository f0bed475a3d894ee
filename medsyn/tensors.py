"""Files of tensors: safetensors written so that equal content gives equal bytes, and checkpoints of others read safely.

The library keeps the metadata of a file in a hash map with a random order, so two identical runs differ in the header.
Here the header is written again with sorted keys; offsets and data stay as they are.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medsyn.errors import InputError
from medsyn.files import atomic_path


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
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata=dict(metadata))
        _sort_header(temporary)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file; a missing or broken file is an InputError."""
    try:
        with safe_open(path, framework="pt") as handle:
            return dict(handle.metadata() or {})
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise InputError(
            f"{path}: not a safetensors file ({error}); write it again with the step that makes it"
        ) from None


def load_pickled(path: str | Path) -> dict[str, Any]:
    """The dict in a file of `torch.save`, on the CPU; only tensors are unpickled, never code.

    A missing file, one that holds anything else and one that cannot be read are InputErrors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol; what follows decides
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{path}: cannot be read as tensors ({reason[:160]}); if the file is whole, save its state dict alone"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a state dict; save its state dict alone")
    return content


def _sort_header(path: Path) -> None:
    """Rewrite the JSON header in place: 8 bytes of length, JSON with trailing spaces, then the data."""
    with path.open("r+b") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode()
        if len(ordered) > length:
            raise ValueError(f"{path}: sorted header is longer than the original")
        handle.seek(8)
        handle.write(ordered.ljust(length))
