"""The example that each verb's help shows: it parses, and the files that it names are those of the workflow."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest
from conftest import ROOT

from medsyn.cli import build_parser


def parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every verb by its name; "study make" is a verb, "study" alone is none."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, verb in action.choices.items():
                inner = {f"{name} {sub}": value for sub, value in parsers(verb).items()}
                found |= inner or {name: verb}
    return found


PARSERS = parsers(build_parser())
OF_THE_USER = {"config/cohort.csv", "config/ct_rate.csv"}
NOT_IN_EVERY_RUN = {"results/qc/labels.csv", "results/prompts/study.csv"}
"""Written where the cohort brings labels of its own, and for a reader study."""

STATE = "results/test/state/"
"""What an unfinished job keeps; at its end only the folder that this lay in is left."""


def words(verb: str) -> list[str]:
    """Return the words of a verb's example, `medsyn` first."""
    epilog = PARSERS[verb].epilog
    assert epilog.startswith("example:\n")
    return shlex.split(epilog.removeprefix("example:\n"))


@pytest.mark.parametrize("verb", PARSERS)
def test_the_example_parses(verb):
    program, *command = words(verb)
    assert program == "medsyn"
    assert build_parser().parse_args(command).verb == verb


@pytest.mark.parametrize("verb", PARSERS)
def test_the_example_names_files_that_a_run_has(verb, finished):
    named = {word for word in words(verb) if word.startswith(("results/", "config/"))}
    for word in named - OF_THE_USER - NOT_IN_EVERY_RUN:
        if word.startswith("config/"):
            assert (ROOT / word).exists(), word
        else:
            in_first_shard = re.sub(r"/\d+$", "/0", word.replace("results/", "results/test/", 1))
            exists = list(finished.glob(in_first_shard))
            assert exists or (in_first_shard.startswith(STATE) and (finished / in_first_shard).parent.is_dir()), word
