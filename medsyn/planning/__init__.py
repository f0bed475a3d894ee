"""Count the memory that a GPU needs, without a GPU and without data, and choose settings that fit."""
