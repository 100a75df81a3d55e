"""The store as a reader sees it: rows, shuffling, data sets for PyTorch."""
