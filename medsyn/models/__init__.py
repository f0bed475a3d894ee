"""Define the networks, and read and write their weights."""
