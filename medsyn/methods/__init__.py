"""Methods of the benchmark: our model, systems of other groups, and whatever a plugin registers.

`base` says what a method is and holds the registry; each kind of method is one module.
"""
