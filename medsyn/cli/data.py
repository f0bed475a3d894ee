"""Verbs of the data group."""

from medsyn.cli import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this group."""
