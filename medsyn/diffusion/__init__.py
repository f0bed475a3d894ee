"""State the noise schedule, the training objective and the samplers, each with its equation."""
