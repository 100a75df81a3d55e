"""Estimates of cost before a run, and checks of this machine."""
