"""Read YAML files of settings strictly: a key that stands twice in one mapping is an error, not the last value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from medsyn.errors import InputError

_MERGE = "tag:yaml.org,2002:merge"


class _DuplicateKeyError(yaml.YAMLError):
    """A key of a mapping stands twice: its name and both lines, from 1."""

    def __init__(self, key: str, first: int, second: int) -> None:
        super().__init__(f"key '{key}' stands twice, in lines {first} and {second}")


class _StrictLoader(yaml.SafeLoader):
    """The safe loader; YAML 1.2 (section 3.2.1.3) demands unique keys, which PyYAML does not check.

    Keys are compared as they are written, before `<<` merges another mapping, whose keys may be overridden.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose the node and refuse keys that stand twice."""
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            other = first.setdefault((key.tag, key.value), key)
            if other is not key:
                raise _DuplicateKeyError(key.value, other.start_mark.line + 1, key.start_mark.line + 1)
        return node


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file; a missing or broken one, or a key that stands twice, is an InputError that names the file."""
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _StrictLoader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except _DuplicateKeyError as error:
        raise InputError(f"{path}: {error}; only the last would count, keep one of them") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({error})") from None
