"""Is a dataset fit, and what to do when it is not: check, repair, collect garbage, check a layout."""
