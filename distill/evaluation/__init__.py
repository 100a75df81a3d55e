"""Measure a student on images."""
