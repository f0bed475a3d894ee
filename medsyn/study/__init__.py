"""The reader study: a blind folder of volumes, the server that asks readers, and the analysis of their answers."""
