"""Models of other libraries as ours, and ours as theirs, with nothing lost: one file a library."""
