"""Processes that live as long as the command and take one item after another; nothing here knows what an item is.

Each has its share of the cores and one of the GPUs. A process that dies takes only its own item along; one whose parent
dies ends at once, whatever it is doing.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Literal, NoReturn

from featstore.errors import FeatstoreError

STOP_S = 10.0
"""How long a process may take to stop before it is killed; checkpoints are whole at any moment."""
LOOK_S = 1.0
"""Longest time between two looks at whether all workers are alive."""
PROGRESS_S = 0.5
"""Least time between two messages on how far an item is."""

Tell = Callable[[float], None]
"""Says how far an item is, in units of the caller."""
Work = Callable[[Any, Tell], Any]
"""Does one item and returns its result; an exception counts as the item's failure."""


class PoolError(FeatstoreError):
    """No worker process could start."""


@dataclass(frozen=True)
class Seat:
    """What one worker may use.

    Attributes:
        number: from 0.
        threads: of the processor.
        device: value of CUDA_VISIBLE_DEVICES; "" leaves it as it is.
    """

    number: int
    threads: int
    device: str = ""


@dataclass(frozen=True)
class Failure:
    """Why an item has no result.

    Attributes:
        kind: class of the exception, or "WorkerDied".
        message: for people.
    """

    kind: str
    message: str


@dataclass(frozen=True)
class Event:
    """Something happened to an item.

    Attributes:
        item: its number in the sequence.
        kind: what.
        value: progress: how far; done: the result; failed: a ``Failure``; started: number of the seat.
    """

    item: int
    kind: Literal["started", "progress", "done", "failed"]
    value: Any


OnEvent = Callable[[Event], None]


def work_here(work: Work, items: Sequence[Any], on_event: OnEvent) -> None:
    """Do all items in this process, one after another."""
    for number, item in enumerate(items):
        on_event(Event(number, "started", 0))
        try:
            result = work(item, partial(_tell_here, number, on_event))
        except Exception as error:
            on_event(Event(number, "failed", failure_of(error)))
        else:
            on_event(Event(number, "done", result))


def _tell_here(number: int, on_event: OnEvent, value: float) -> None:
    on_event(Event(number, "progress", value))


def failure_of(error: Exception) -> Failure:
    """What is kept of an exception."""
    text = str(error).strip()
    return Failure(type(error).__name__, text or type(error).__name__)


class Pool:
    """Worker processes. Use as a context manager; leaving it stops them all.

    Args:
        make_work: called once in every worker with its seat, after its share is set; can be pickled.
        seats: one worker each.
    """

    def __init__(self, make_work: Callable[[Seat], Work], seats: Sequence[Seat]) -> None:
        self._make_work = make_work
        self._seats = list(seats)
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for worker in self._workers:
            worker.stop()
        ends = time.monotonic() + STOP_S
        for worker in self._workers:
            worker.join(max(0.0, ends - time.monotonic()))
        self._workers = []

    def run(self, items: Sequence[Any], on_event: OnEvent) -> None:
        """Do all items; what happens is told as it happens.

        Raises:
            PoolError: a worker ends before it could take an item.
        """
        waiting = deque(range(len(items)))
        self._fill_seats(len(waiting))
        while waiting or any(worker.item is not None for worker in self._workers):
            for worker in self._workers:
                if worker.hand_over(waiting, items):
                    assert worker.item is not None
                    on_event(Event(worker.item, "started", worker.seat.number))
            # The time limit is for a worker whose own children outlive it: they keep its end of the pipe open.
            wait([worker.connection for worker in self._workers], timeout=LOOK_S)
            for worker in list(self._workers):
                for event in worker.events():
                    on_event(event)
                if worker.dead:
                    self._workers.remove(worker)
                    self._bury(worker, on_event)
                    self._fill_seats(len(waiting))

    def _fill_seats(self, wanted: int) -> None:
        """Start workers for this many items, as far as there are seats."""
        free = sum(worker.item is None for worker in self._workers)
        taken = {worker.seat for worker in self._workers}
        for seat in [seat for seat in self._seats if seat not in taken][: max(0, wanted - free)]:
            self._workers.append(_Worker(self._make_work, seat))

    def _bury(self, worker: "_Worker", on_event: OnEvent) -> None:
        cause = worker.cause_of_death()
        worker.join(0.0)
        if not worker.seated:
            raise PoolError(
                f"a worker process did not start: {cause.message}. Its own message stands above; --jobs 1 makes the "
                "runs without further processes."
            )
        if worker.item is not None:
            on_event(Event(worker.item, "failed", cause))


class _Worker:
    """The parent's end of one process."""

    def __init__(self, make_work: Callable[[Seat], Work], seat: Seat) -> None:
        context = multiprocessing.get_context("spawn")
        self.seat = seat
        self.item: int | None = None
        self.seated = False
        self.dead = False
        """The process has ended, and everything that it said has been read."""
        self.connection, other = context.Pipe()
        # Not daemonic: a daemonic process may have no children, and loading pictures takes some.
        self._process: SpawnProcess = context.Process(
            target=_serve, args=(make_work, seat, other), name=f"worker-{seat.number}"
        )
        with _inherited(seat):
            self._process.start()
        other.close()

    def hand_over(self, waiting: deque[int], items: Sequence[Any]) -> bool:
        """Give it the next item, if it is free. Returns whether it got one."""
        if self.item is not None or not self.seated or not waiting:
            return False
        self.item = waiting.popleft()
        with suppress(OSError):  # it is dead, which the next look at it will show
            self.connection.send(items[self.item])
        return True

    def events(self) -> Iterator[Event]:
        """Read what it has said since the last time."""
        alive = self._process.is_alive()  # before the reading: what it says before its end is read
        with suppress(EOFError, OSError):
            while self.connection.poll():
                kind, value = self.connection.recv()
                if kind == "ready":
                    self.seated = True
                    continue
                assert self.item is not None
                event = Event(self.item, kind, value)
                if kind in ("done", "failed"):
                    self.item = None
                yield event
        self.dead = not alive

    def cause_of_death(self) -> Failure:
        """What the exit status says."""
        code = self._process.exitcode or 0
        how = f"with exit status {code}"
        if code < 0:
            how = f"by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += ", as the system does when memory runs out; fewer --jobs need less"
        return Failure("WorkerDied", f"its process was ended {how}")

    def stop(self) -> None:
        """Ask it to end."""
        if self._process.is_alive():
            self._process.terminate()

    def join(self, timeout_s: float) -> None:
        """Wait for its end, then make sure of it."""
        self._process.join(timeout_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.connection.close()


@contextmanager
def _inherited(seat: Seat) -> Iterator[None]:
    """A process that is started in here has its share of the machine from its first moment on, and ignores Ctrl-C.

    It is the parent who stops it. Libraries read their number of threads when they are imported, which may be before
    any of our code runs in the new process; a number that the user has set stays.
    """
    wanted = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(seat.threads))}
    if seat.device:
        wanted["CUDA_VISIBLE_DEVICES"] = seat.device
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    # Only the main thread may change a handler, and only it gets an interrupt.
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(
    make_work: Callable[[Seat], Work], seat: Seat, connection: "Connection[Any, Any]"
) -> None:
    """What a worker process runs."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, _leave)
    work = make_work(seat)
    connection.send(("ready", None))
    tell = _Throttled(connection)
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            answer = ("done", work(item, tell))
        except Exception as error:
            answer = ("failed", failure_of(error))
        connection.send(answer)


class _Throttled:
    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection
        self._last = 0.0

    def __call__(self, value: float) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_S:
            self._last = now
            self._connection.send(("progress", value))


def _end_with_parent() -> NoReturn:
    """Wait for the parent's end, however it comes, and follow: nobody would read a result any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _leave(number: int, frame: object) -> NoReturn:
    """On SIGTERM: leave through all finally clauses, so that nothing half-written stays."""
    sys.exit(128 + number)
