"""How many runs this machine does at a time, and what each may use."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from distill.experiments.pool import Seat
from featstore.files.limits import CGROUP, cores

RUN_BYTES = 1536 * 2**20
"""Memory of one run as long as none has been measured: libraries, a small student, its pictures."""


def free_bytes() -> int:
    """Memory that can be had without pushing anybody out, also inside a container."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        # Counts what the page cache would give back; the pages above do not.
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) << 10
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # "max": no limit
            left = int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text())
            free = min(free, left)
    return max(0, free)


def devices() -> list[str]:
    """Values of CUDA_VISIBLE_DEVICES that show one GPU each; empty without a GPU of that kind."""
    import torch

    count = torch.cuda.device_count()
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in shown.split(",") if name.strip()]
    return names[:count] if names else [str(number) for number in range(count)]


def seats(asked: int, runs: int, *, run_bytes: int = 0, gpus: Sequence[str] = ()) -> list[Seat]:
    """One seat for each run that goes on at the same time.

    Args:
        asked: runs at a time; 0 chooses: one for every GPU, or, without any, one for every core.
        runs: that are to be made; never more seats than these.
        run_bytes: largest memory of a run so far; 0 if none has been measured.
        gpus: see ``devices``; seats take them in turn.
    """
    by_memory = max(1, free_bytes() // (run_bytes or RUN_BYTES))
    count = asked or (len(gpus) if gpus else min(cores(), by_memory))
    count = max(1, min(count, runs))
    threads = max(1, cores() // count)
    return [
        Seat(number, threads, gpus[number % len(gpus)] if gpus else "") for number in range(count)
    ]
