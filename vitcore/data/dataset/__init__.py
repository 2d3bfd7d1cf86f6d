"""A published dataset: versions, indexes, and how a version follows from another."""
