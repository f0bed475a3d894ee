"""Read reports: sections, language models, embeddings, labels and prompts."""

SPLITS = ("train", "validation", "text_only")
"""Splits of reports; a text_only report has no image."""
