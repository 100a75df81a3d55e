"""Push stores to a destination and pull them from one."""
