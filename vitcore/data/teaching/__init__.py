"""A teacher's outputs, written once beside the shards and replayed by every student of the same stream."""
