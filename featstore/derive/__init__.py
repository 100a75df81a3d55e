"""New stores from old ones: merge, subset, split, append, convert, requantise, export."""
