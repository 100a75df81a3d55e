"""For the tests of worker processes: their work, in a module that imports nothing heavy, and a look at processes."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from distill.experiments.pool import Event, OnProgress, Pool, Slot


def make_work(slot: Slot) -> Callable[[Any, OnProgress], Any]:
    """Does as each item says."""
    done = 0

    def work(item: tuple[str, Any], tell: OnProgress) -> Any:
        nonlocal done
        what, value = item
        done += 1
        if what == "fail":
            raise ValueError(value)
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "linger":
            Path(value).write_text(str(os.getpid()))
            time.sleep(60)
        tell(1.0)
        return {
            "value": value,
            "pid": os.getpid(),
            "done": done,
            "threads": os.environ["OMP_NUM_THREADS"],
            "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }

    return work


def make_nothing(slot: Slot) -> Callable[[Any, OnProgress], Any]:
    """A worker that ends before it has begun."""
    raise SystemExit(3)


def main(folder: Path) -> None:
    """Two workers that would run for a minute; each writes its number into the folder."""
    with Pool(make_work, [Slot(0, 1), Slot(1, 1)]) as pool:
        pool.run([("linger", str(folder / name)) for name in "ab"], print_event)


def print_event(event: Event) -> None:
    """Say what happened."""
    print(event.kind, flush=True)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether it came true in time."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if condition():
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return _stat(pid)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if int(_stat(int(path.name))[1]) == pid:
                found.append(int(path.name))
    return found


def _stat(pid: int) -> list[str]:
    """State, parent and so on, after the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


if __name__ == "__main__":
    # A shell starts background jobs, and so a test run among them, with this signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main(Path(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(130)
