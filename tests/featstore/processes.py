"""Children that are forked, so that a test may kill or limit them; a fork spares the new start of torch."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

FAILED = 91  # exit status of a child whose work raised an error


def fork(work: Callable[[], object]) -> int:
    """Start ``work`` in a forked child; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = FAILED
    try:
        if "torch" in sys.modules:
            # The threads of the parent's pool are not there any more; start_accelerator shall not ask for them.
            os.environ["OMP_NUM_THREADS"] = "1"
            sys.modules["torch"].set_num_threads(1)
        # tqdm's own lock is shared between processes: a child that is killed while it holds it would stop all others.
        tqdm.set_lock(threading.RLock())
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """Exit status of a child; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(module: Any, name: str, call: int) -> None:
    """Make this process, a child, kill itself at the n-th call of a function, before the call does anything."""
    original = getattr(module, name)
    left = [call]

    def deadly(*arguments: Any, **options: Any) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return original(*arguments, **options)

    setattr(module, name, deadly)
