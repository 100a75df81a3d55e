"""Limits of this process: processor cores, threads, shared memory, open files. Standard library only."""

import os
import resource
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")

CGROUP = Path("/sys/fs/cgroup")

PROC = Path("/proc")


def cores() -> int:
    """Processor cores that this process may use: affinity and the limits of a container (cgroup 1 and 2) counted."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    for read in (_quota_2, _quota_1):
        with suppress(OSError, ValueError):
            quota, period = read()
            if quota > 0:
                count = min(count, max(1, quota // period))
    return count


def _quota_2() -> tuple[int, int]:
    quota, period = (CGROUP / "cpu.max").read_text().split()
    return int(quota), int(period)  # "max" is no number


def _quota_1() -> tuple[int, int]:
    folder = CGROUP / "cpu"
    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    return int(quota), int(period)


def free_memory() -> int:
    """Free memory in bytes, the limits of a container counted; more than there can be where the system does not say.

    The page cache counts as free: the system gives it back when memory is needed.
    """
    free = 2**62
    with suppress(OSError, ValueError, StopIteration):
        lines = (PROC / "meminfo").read_text().splitlines()
        free = (
            next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) << 10
        )
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # "max" is no number
            left = int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text())
            free = min(free, left)
    return max(0, free)


def free_shared_memory() -> int:
    """Free shared memory in bytes; more than there can be where the system does not say."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 2**62
    return found.f_bavail * found.f_frsize


def free_files(wanted: int = 0) -> int:
    """Files that this process can still open, after raising its own limit as far as the system lets it.

    Args:
        wanted: raise the limit only if fewer than these are left.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    except OSError:
        used = 64
    if soft - used < wanted and (hard == resource.RLIM_INFINITY or soft < hard):
        most = 65_536 if hard == resource.RLIM_INFINITY else hard
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(most, used + wanted)), hard))
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft - used


def asked_threads() -> int | None:
    """Threads that the user asked for with OMP_NUM_THREADS or the launcher's option; None if nobody asked.

    ``accelerate launch`` and ``torchrun`` set OMP_NUM_THREADS to 1 when nothing is said. A user's 1 is told from it by
    the launcher's own environment and command line.
    """
    text = os.environ.get("OMP_NUM_THREADS", "")
    if not text.isdecimal() or int(text) < 1:
        return None
    launched = "LOCAL_RANK" in os.environ or any(
        name.startswith("ACCELERATE_") for name in os.environ
    )
    if int(text) > 1 or not launched:
        return int(text)
    parent = Path("/proc") / str(os.getppid())
    try:
        environment = (parent / "environ").read_bytes().split(b"\0")
        command = (parent / "cmdline").read_bytes().replace(b"-", b"_")
    except OSError:
        return None
    asked = any(item.startswith(b"OMP_NUM_THREADS=") for item in environment)
    return 1 if asked or b"num_cpu_threads_per_process" in command else None


def share_of_cores(workers: int) -> int:
    """Threads for the arithmetic of one process: its share of the cores, less some for loading processes where many.

    Args:
        workers: loading processes of this process. They wait most of the time, so a core is kept back for them only
            where the share is 8 or more.
    """
    share = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return share - min(workers, share // 8)
