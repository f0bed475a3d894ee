"""Render the embedded cohort: procedural chest phantoms with findings, masks, truth and reports."""
