"""Compute features, distances, anatomical measures and statistics: arrays in, numbers out."""
