"""Which image meets which stored row and view; pictures and batches."""
