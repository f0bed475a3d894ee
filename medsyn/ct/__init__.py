"""Read, inspect, register and preprocess chest CTs, and keep them in the training store."""
