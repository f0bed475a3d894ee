"""Verbs of the phantom group."""

from medsyn.cli import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this group."""
