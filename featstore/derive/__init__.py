"""Make stores from stores: merge, subset, split, append, convert, requantise, export."""
