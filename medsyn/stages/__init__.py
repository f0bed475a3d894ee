"""Stage drivers: what a verb does to a shard of subjects. Above ct, masks and evaluate, below the command line."""
