"""From a place in an index to bytes and pixels: files, stores, one bounded cache, decoders."""
