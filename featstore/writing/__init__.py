"""Create stores, commit shards, and share the missing shards among processes."""
