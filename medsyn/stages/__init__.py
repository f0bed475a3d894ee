"""Do the work of a verb on a shard of subjects: skip finished ones, list rejected ones, resume."""
