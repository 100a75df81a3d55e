"""Threads that work off jobs. A job may bring forth others, which go first, so that few wait at any time."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

Job: TypeAlias = "Callable[[], Iterable[Job]]"
"""Does something, and returns what it takes to complete it."""

LEAVE_S = 5.0
"""How long threads that were told to stop are waited for; one that waits for a server may take longer, alone."""


def work_off(jobs: Iterable[Job], *, threads: int, stop: Callable[[], None]) -> None:
    """Do all jobs, and those that come of them.

    Args:
        jobs: drawn one by one, when there is nothing else to do.
        threads: how many jobs are at work at once.
        stop: makes jobs that are at work end soon; called when one has failed, or this thread is interrupted.

    Raises:
        Exception: the first error of a job; no further job is begun then.
    """
    crew = _Crew(jobs)
    team = [
        threading.Thread(target=crew.work, name=f"featstore-transfer-{i}", daemon=True)
        for i in range(threads)
    ]
    for thread in team:
        thread.start()
    try:
        crew.wait()
    except BaseException as error:
        crew.give_up(error)
    if crew.error is not None:
        stop()
        deadline = time.monotonic() + LEAVE_S
        for thread in team:
            thread.join(max(0.0, deadline - time.monotonic()))
        raise crew.error


class Countdown:
    """Calls something when the last of several jobs is done; at once if there is none."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._left, self._then = count, then
        self._lock = threading.Lock()
        if not count:
            then()

    def one_less(self) -> None:
        """One job is done."""
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._then()


class _Crew:
    def __init__(self, jobs: Iterable[Job]) -> None:
        self.error: BaseException | None = None
        self._jobs = iter(jobs)
        self._first: deque[Job] = deque()
        self._busy = 0
        self._exhausted = False
        self._changed = threading.Condition()

    @property
    def _over(self) -> bool:
        return self.error is not None or (self._exhausted and not self._first and not self._busy)

    def wait(self) -> None:
        """Until everything is done, or something has failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._over)

    def give_up(self, error: BaseException) -> None:
        """Let no further job begin."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def work(self) -> None:
        """What each thread does."""
        try:
            while (job := self._next()) is not None:
                more = list(job())
                with self._changed:
                    self._first.extendleft(reversed(more))
                    self._busy -= 1
                    self._changed.notify_all()
        except BaseException as error:  # handed to the thread that waits
            self.give_up(error)

    def _next(self) -> "Job | None":
        with self._changed:
            while True:
                if self._over:
                    return None
                if not self._first and not self._exhausted:
                    for job in self._jobs:
                        self._first.append(job)
                        break
                    else:
                        self._exhausted = True
                        self._changed.notify_all()
                        continue
                if self._first:
                    self._busy += 1
                    return self._first.popleft()
                self._changed.wait()
