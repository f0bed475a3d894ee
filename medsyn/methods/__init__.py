"""Sample volumes by any method that is compared: our model, other systems, and kinds that plugins register.

`base` says what a method is and holds the registry; each kind of method is one module.
"""
