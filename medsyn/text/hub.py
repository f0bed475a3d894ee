"""Where a language model is loaded from: a local folder, the cache of the hub's library, or the hub itself."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from medsyn.errors import InputError

_TIMEOUT_S = 10
_NEEDED = (("config.json",), ("vocab.txt", "tokenizer.json"), ("model.safetensors", "pytorch_model.bin"))
"""Files of a BERT checkpoint, one of each group; a download that was stopped has left only some of them."""


@cache
def is_local(source: str) -> bool:
    """Return whether `source` needs no network; a hub name that cannot be reached within seconds is an InputError.

    The library itself tries for more than a minute, once for every file.
    """
    if Path(source).is_dir():
        return True
    try:
        if all(any(isinstance(try_to_load_from_cache(source, name), str) for name in group) for group in _NEEDED):
            return True
    except HFValidationError:
        raise InputError(
            f"{source}: no such folder, and not the name of a checkpoint on the hub; give one of the two"
        ) from None
    try:
        HfApi().model_info(source, timeout=_TIMEOUT_S)
    except Exception as error:  # whatever the library's HTTP client raises
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"{source}: no such folder, and the hub has no such checkpoint or cannot be reached ({reason[:160]}); copy"
            " the checkpoint's folder here and name it, or download it on a machine with a network"
        ) from None
    return False
