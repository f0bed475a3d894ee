"""Say what a command is given: options with words and files, which a rule declares as inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """One option of the command that makes an exhibit: words, then files or folders, which the rule takes as inputs.

    sampled: method and set of prompts of the volumes behind the files, if they were generated.
    """

    option: str
    words: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    sampled: tuple[str, str] | None = None


def inputs_of(needs: Sequence[Need]) -> dict[str, list[str]]:
    """Return the inputs of a rule: option -> files and folders, each path once."""
    inputs: dict[str, list[str]] = {}
    for need in needs:
        if need.paths:
            inputs.setdefault(need.option.replace("-", "_"), []).extend(need.paths)
    return {option: list(dict.fromkeys(paths)) for option, paths in inputs.items()}


def words_of(needs: Sequence[Need]) -> list[str]:
    """Return the words of a command."""
    return [word for need in needs for word in (f"--{need.option}", *need.words, *need.paths)]
