"""Volumes in a browser: the viewer that the report, `medsyn view` and the reader study show."""
