"""Check the manifest that a user brings, split it by patient and cut it into shards."""

from medsyn.cohort.manifest import Cohort, Subject, build_cohort, load_cohort, write_cohort

__all__ = ["Cohort", "Subject", "build_cohort", "load_cohort", "write_cohort"]
