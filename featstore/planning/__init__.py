"""Cost before a run: bytes, files, hours; what this machine can do."""
