"""Worker processes that stay for the whole command and take one item after another.

Each has its share of the cores and one of the GPUs. If a worker dies, only its own item fails; if the parent process
dies, all workers end at once. Why neither concurrent.futures nor loky: docs/decisions/0013.
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
"""Seconds that a process has to stop before it is killed; checkpoints are written atomically."""
LOOK_S = 1.0  # seconds between two checks whether all workers are alive
PROGRESS_S = 0.5  # least seconds between two progress messages of one item
OnProgress = Callable[[float], None]  # called with the progress of an item, in units of the caller
Work = Callable[[Any, OnProgress], Any]
"""Processes one item and returns its result; an exception is the failure of that item."""


class PoolError(FeatstoreError):
    """No worker process could start."""


@dataclass(frozen=True)
class Slot:
    """Cores and GPU of one worker."""

    number: int  # from 0
    threads: int  # of the processor
    device: str = ""  # value of CUDA_VISIBLE_DEVICES; "" leaves it as it is


@dataclass(frozen=True)
class Failure:
    """Why an item has no result."""

    kind: str  # class of the exception, or "WorkerDied"
    message: str  # for people


@dataclass(frozen=True)
class Event:
    """A change of an item's state."""

    item: int  # its number in the sequence
    kind: Literal["started", "progress", "done", "failed"]  # what
    # progress: how far; done: the result; failed: a ``Failure``; started: number of the slot
    value: Any


OnEvent = Callable[[Event], None]


def work_here(work: Work, items: Sequence[Any], on_event: OnEvent) -> None:
    """Process all items in this process, one after another."""
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
    """The kind and message of an exception."""
    text = str(error).strip()
    return Failure(type(error).__name__, text or type(error).__name__)


class Pool:
    """Worker processes. Use as a context manager; leaving it stops them all.

    Args:
        make_work: called once in every worker with its slot, after its share is set; can be pickled.
        slots: one worker each.
    """

    def __init__(self, make_work: Callable[[Slot], Work], slots: Sequence[Slot]) -> None:
        self._make_work = make_work
        self._slots = list(slots)
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
        """Process all items and report events as they happen.

        Raises:
            PoolError: a worker ends before it could take an item.
        """
        waiting = deque(range(len(items)))
        self._fill_slots(len(waiting))
        while waiting or any(worker.item is not None for worker in self._workers):
            for worker in self._workers:
                if worker.hand_over(waiting, items):
                    assert worker.item is not None
                    on_event(Event(worker.item, "started", worker.slot.number))
            # The time limit is for a worker whose own children outlive it: they keep its end of the pipe open.
            wait([worker.connection for worker in self._workers], timeout=LOOK_S)
            for worker in list(self._workers):
                for event in worker.events():
                    on_event(event)
                if worker.dead:
                    self._workers.remove(worker)
                    self._report_death(worker, on_event)
                    self._fill_slots(len(waiting))

    def _fill_slots(self, wanted: int) -> None:
        """Start workers for this many items, as far as there are slots."""
        free = sum(worker.item is None for worker in self._workers)
        taken = {worker.slot for worker in self._workers}
        for slot in [slot for slot in self._slots if slot not in taken][: max(0, wanted - free)]:
            self._workers.append(_Worker(self._make_work, slot))

    def _report_death(self, worker: "_Worker", on_event: OnEvent) -> None:
        cause = worker.cause_of_death()
        worker.join(0.0)
        if not worker.ready:
            raise PoolError(
                f"a worker process did not start: {cause.message}. Its own message stands above; --jobs 1 makes the "
                "runs without further processes."
            )
        if worker.item is not None:
            on_event(Event(worker.item, "failed", cause))


class _Worker:
    """The parent's end of one process."""

    def __init__(self, make_work: Callable[[Slot], Work], slot: Slot) -> None:
        context = multiprocessing.get_context("spawn")
        self.slot = slot
        self.item: int | None = None
        self.ready = False
        self.dead = False
        """Whether the process has ended and all its messages were read."""
        self.connection, other = context.Pipe()
        # Not daemonic: a daemonic process may have no children, and loading pictures takes some.
        self._process: SpawnProcess = context.Process(
            target=_serve, args=(make_work, slot, other), name=f"worker-{slot.number}"
        )
        with _inherited(slot):
            self._process.start()
        other.close()

    def hand_over(self, waiting: deque[int], items: Sequence[Any]) -> bool:
        """Give it the next item, if it is free. Returns whether it got one."""
        if self.item is not None or not self.ready or not waiting:
            return False
        self.item = waiting.popleft()
        with suppress(OSError):  # it has died, which the next check finds
            self.connection.send(items[self.item])
        return True

    def events(self) -> Iterator[Event]:
        """Read the messages since the last call."""
        alive = self._process.is_alive()  # before reading, so that its last messages are read
        with suppress(EOFError, OSError):
            while self.connection.poll():
                kind, value = self.connection.recv()
                if kind == "ready":
                    self.ready = True
                    continue
                assert self.item is not None
                event = Event(self.item, kind, value)
                if kind in ("done", "failed"):
                    self.item = None
                yield event
        self.dead = not alive

    def cause_of_death(self) -> Failure:
        """The exit status in words."""
        code = self._process.exitcode or 0
        how = f"with exit status {code}"
        if code < 0:
            how = f"by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += ", as the system does when memory runs out; fewer --jobs need less"
        return Failure("WorkerDied", f"its process was ended {how}")

    def stop(self) -> None:
        """Send it SIGTERM."""
        if self._process.is_alive():
            self._process.terminate()

    def join(self, timeout_s: float) -> None:
        """Wait for it to end; kill it after the timeout."""
        self._process.join(timeout_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.connection.close()


@contextmanager
def _inherited(slot: Slot) -> Iterator[None]:
    """Start a process with its number of threads and GPU in the environment, ignoring Ctrl-C.

    It is the parent who stops it. Libraries read their number of threads when they are imported, which may be before
    any of our code runs in the new process; a number that the user has set stays.
    """
    wanted = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(slot.threads))}
    if slot.device:
        wanted["CUDA_VISIBLE_DEVICES"] = slot.device
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
    make_work: Callable[[Slot], Work], slot: Slot, connection: "Connection[Any, Any]"
) -> None:
    """Main function of a worker process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, _leave)
    work = make_work(slot)
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
    """End this process when the parent process ends for any reason."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _leave(number: int, frame: object) -> NoReturn:
    """On SIGTERM: raise SystemExit, so that all finally clauses run."""
    sys.exit(128 + number)
