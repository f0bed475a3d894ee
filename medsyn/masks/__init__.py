"""Segment lobes, airway, vessels and the anatomy that is measured, by one module per tool."""
