"""How many runs this machine can do at a time, and which cores and GPU each gets."""

import os
from collections.abc import Sequence

from distill.experiments.pool import Slot
from featstore.files.limits import cores as cores
from featstore.files.limits import free_memory as free_memory

RUN_BYTES = 1536 * 2**20
"""Memory of one run as long as none has been measured: libraries, a small student, its pictures."""


def devices() -> list[str]:
    """Values of CUDA_VISIBLE_DEVICES that show one GPU each; empty without a GPU of that kind."""
    import torch

    count = torch.cuda.device_count()
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in shown.split(",") if name.strip()]
    return names[:count] if names else [str(number) for number in range(count)]


def slots(asked: int, runs: int, *, run_bytes: int = 0, gpus: Sequence[str] = ()) -> list[Slot]:
    """One slot for each run at a time.

    Args:
        asked: runs at a time; 0 chooses: one for every GPU, or, without any, one for every core.
        runs: that are to be made; never more slots than these.
        run_bytes: largest memory of a run so far; 0 if none has been measured.
        gpus: see ``devices``; slots take them in turn.
    """
    by_memory = max(1, free_memory() // (run_bytes or RUN_BYTES))
    count = asked or (len(gpus) if gpus else min(cores(), by_memory))
    count = max(1, min(count, runs))
    threads = max(1, cores() // count)
    return [
        Slot(number, threads, gpus[number % len(gpus)] if gpus else "") for number in range(count)
    ]
