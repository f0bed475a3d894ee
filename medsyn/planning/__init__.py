"""Memory planning: count what a GPU must hold, without a GPU and without data, and choose settings that fit."""
