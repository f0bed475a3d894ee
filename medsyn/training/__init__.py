"""Train every network by one loop, with checkpoints and exact resuming."""
