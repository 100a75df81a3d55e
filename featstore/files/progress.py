"""How long work reports its progress."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do: shards, blocks, rows or bytes. The latter may be an estimate."""


def no_progress(done: int, total: int) -> None:
    """Report no progress."""
