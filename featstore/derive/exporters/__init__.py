"""Formats of other tools: rows of a store as arrays, tables or data sets."""
