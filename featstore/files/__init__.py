"""Plain files and this machine: atomic writes, locks, untrusted files, memory and disk."""
