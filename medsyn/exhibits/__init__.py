"""Make every table and figure: what it needs, how it is computed, its caption, the paper's values."""
