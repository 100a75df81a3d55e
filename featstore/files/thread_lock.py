"""A lock among threads that is free again in a forked child."""

import os
import threading
import weakref
from collections.abc import Callable


class ThreadLock:
    """A re-entrant lock. A child that was forked while another thread held it finds it free.

    Args:
        reset: Method that is called in such a child: what the lock protects may be half changed.
    """

    def __init__(self, reset: Callable[[], None] | None = None) -> None:
        self._lock = threading.RLock()
        self._reset = None if reset is None else weakref.WeakMethod(reset)
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def after_fork(self) -> None:
        """Free the lock in a forked child, where the thread that held it does not exist."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
            return
        self._lock = threading.RLock()
        reset = None if self._reset is None else self._reset()
        if reset is not None:
            reset()


_locks: "weakref.WeakSet[ThreadLock]" = weakref.WeakSet()


def _after_fork() -> None:
    for lock in list(_locks):
        lock.after_fork()


os.register_at_fork(after_in_child=_after_fork)
