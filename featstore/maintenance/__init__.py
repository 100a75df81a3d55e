"""Verify, repair, sign, list and delete stores."""
