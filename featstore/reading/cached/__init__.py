"""Stores at a URL, read through a local cache."""
