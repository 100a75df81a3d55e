"""Commit shards and share the missing ones among processes."""
