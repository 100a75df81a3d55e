"""Free space and speed of a disk, and the rate of a step of work. Nothing heavy is imported."""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from featstore.errors import StoreWriteError

DISK_PROBE_BYTES = 64 * 2**20


def existing_parent(path: Path) -> Path:
    """The nearest folder that exists at or above a path."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Free space of the file system that a path is, or will be, on."""
    return shutil.disk_usage(existing_parent(path)).free


def measure_disk(path: Path, *, size: int = DISK_PROBE_BYTES) -> float:
    """Write and sync a temporary file next to where the store goes; returns bytes per second."""
    folder = existing_parent(path)
    block = os.urandom(2**20)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            start = time.perf_counter()
            for _ in range(max(1, size // len(block))):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return max(size, len(block)) / (time.perf_counter() - start)
    except OSError as error:
        raise StoreWriteError(
            f"{folder}: cannot write there ({error}). Choose another --store.path."
        ) from error


def measure_rate(step: Callable[[], int], *, seconds: float = 1.5, most: int = 20) -> float:
    """Median images per second of ``step``, which returns how many it did; its first call does not count."""
    step()
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while not rates or (time.perf_counter() < end and len(rates) < most):
        start = time.perf_counter()
        done = step()
        rates.append(done / (time.perf_counter() - start))
    return statistics.median(rates)
