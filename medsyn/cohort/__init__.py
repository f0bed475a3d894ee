"""The cohort: the manifest that a user brings, checked, split by patient and cut into shards."""

from medsyn.cohort.manifest import Cohort, Subject, build_cohort, load_cohort, write_cohort

__all__ = ["Cohort", "Subject", "build_cohort", "load_cohort", "write_cohort"]
