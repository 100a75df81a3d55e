"""Stores at other places: send, fetch, and read in place."""
