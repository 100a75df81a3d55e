"""Thread pool whose jobs may schedule follow-up jobs, which go first, so that few wait at any time.

Not a ThreadPoolExecutor: the interpreter waits for its threads, so that Ctrl-C while a server is silent would take the
time-out of a request (docs/decisions/0032).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import TypeAlias

Job: TypeAlias = "Callable[[], Iterable[Job]]"
"""Does something, and returns the jobs that are needed to complete it."""

LEAVE_S = 1.0
"""How long threads are waited for after an error; one that waits for a server ends later, or with the process."""


def run_jobs(jobs: Iterable[Job], *, threads: int, stop: Callable[[], None]) -> None:
    """Run all jobs, and those that they schedule.

    Args:
        jobs: Taken one by one, when no follow-up job waits.
        stop: Makes running jobs end soon; called when one has failed, or this thread is interrupted.

    Raises:
        Exception: the first error of a job; no further job is started then.
    """
    todo: SimpleQueue[Job | None] = SimpleQueue()
    done: SimpleQueue[list[Job] | BaseException] = SimpleQueue()

    def work() -> None:
        while (job := todo.get()) is not None:
            try:
                done.put(list(job()))
            except BaseException as error:  # raised in the thread that waits
                done.put(error)

    team = [
        threading.Thread(target=work, name=f"featstore-transfer-{i}", daemon=True)
        for i in range(threads)
    ]
    for thread in team:
        thread.start()
    source, follow_ups, running = iter(jobs), deque[Job](), 0
    try:
        while True:
            while running < threads:
                job = follow_ups.popleft() if follow_ups else next(source, None)
                if job is None:
                    break
                todo.put(job)
                running += 1
            if not running:
                return
            result = done.get()
            running -= 1
            if isinstance(result, BaseException):
                raise result
            follow_ups.extendleft(reversed(result))
    except BaseException:
        stop()
        raise
    finally:
        for _ in team:
            todo.put(None)
        deadline = time.monotonic() + LEAVE_S
        for thread in team:
            thread.join(max(0.0, deadline - time.monotonic()))


class Countdown:
    """Calls a function when the last of several jobs is done; at once if there is none."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._left, self._then = count, then
        self._lock = threading.Lock()
        if not count:
            then()

    def count_down(self) -> None:
        """One job is done."""
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._then()
