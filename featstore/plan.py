"""Before the first shard: how many bytes, files and hours, and which resource is the wall."""

import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from featstore.backends.base import columns_of
from featstore.errors import StoreWriteError
from featstore.manifest import FieldRecord, Manifest

DISK_PROBE_BYTES = 64 * 2**20


def shard_rows(
    fields: Mapping[str, FieldRecord],
    *,
    num_views: int,
    most_rows: int,
    most_mb: int,
) -> int:
    """Rows per shard: the largest power of two within both limits, so that inner chunks divide it.

    Whole batches fit in whenever the batch size is a power of two too; any other leaves one short batch per shard.
    """
    widest = max(field.row_bytes(num_views) for field in fields.values())
    rows = max(1, min(most_rows, most_mb * 10**6 // widest))
    return 1 << (rows.bit_length() - 1)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a short measurement found, for one process with a teacher.

    Attributes:
        teacher: images per second through the teacher, all views.
        decode: images per second through reading and decoding, all loader processes together.
        disk: bytes per second written and synced.
    """

    teacher: float
    decode: float
    disk: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will cost. All numbers are for the shards that are still to do.

    Attributes:
        rows: images of the whole store.
        rows_left: images still to do.
        files: objects of the whole store.
        field_bytes: bytes of the whole store by field.
        bytes_left: bytes still to write.
        free_bytes: free space where the store goes.
        rates: measured, or None if nothing was measured.
        processes: processes with a teacher.
    """

    rows: int
    rows_left: int
    files: int
    field_bytes: dict[str, int]
    bytes_left: int
    free_bytes: int
    rates: Rates | None
    processes: int

    @property
    def images_per_second(self) -> dict[str, float]:
        """Rate of each resource for the whole run; all of them work at the same time."""
        if self.rates is None:
            return {}
        row_bytes = max(1, self.bytes_left // max(1, self.rows_left))
        return {
            "teacher": self.rates.teacher * self.processes,
            "decoding": self.rates.decode * self.processes,
            "disk": self.rates.disk / row_bytes,
        }

    @property
    def wall(self) -> str:
        """The slowest resource."""
        rates = self.images_per_second
        return min(rates, key=lambda name: rates[name])

    @property
    def seconds(self) -> float:
        """Expected time for what is left."""
        return self.rows_left / self.images_per_second[self.wall]

    def lines(self) -> list[str]:
        """The plan for people."""
        total = sum(self.field_bytes.values())
        parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.field_bytes.items())
        lines = [
            f"rows      {self.rows:,} images, {self.rows_left:,} still to do",
            f"bytes     {format_bytes(total)} ({parts}); {format_bytes(self.free_bytes)} free",
            f"files     {self.files:,}",
        ]
        if self.rates is not None and self.rows_left:
            rates = self.images_per_second
            shown = ", ".join(f"{name} {format_rate(rate)}" for name, rate in rates.items())
            lines.append(f"speed     {shown} images/s")
            lines.append(f"time      {format_seconds(self.seconds)}; the wall is the {self.wall}")
        return lines


def make_plan(
    manifest: Manifest, *, store: Path, pending: int, rates: Rates | None, processes: int
) -> Plan:
    """Reckon a plan.

    Args:
        manifest: of the store, made or not.
        store: its folder.
        pending: shards still to do.
        rates: measured beforehand, or None.
        processes: processes with a teacher.

    Raises:
        StoreWriteError: what is left to write is more than the free space.
    """
    num_views = len(manifest.views)
    rows_left = min(manifest.num_rows, pending * manifest.work.shard_rows)
    sizes = {name: field.row_bytes(num_views) for name, field in manifest.fields.items()}
    columns = len(columns_of(manifest))
    plan = Plan(
        rows=manifest.num_rows,
        rows_left=rows_left,
        files=manifest.num_shards * (columns + 1) + columns + 3,
        field_bytes={name: size * manifest.num_rows for name, size in sizes.items()},
        bytes_left=sum(sizes.values()) * rows_left,
        free_bytes=free_bytes(store),
        rates=rates,
        processes=processes,
    )
    if plan.bytes_left > plan.free_bytes:
        raise StoreWriteError(
            f"{store}: {format_bytes(plan.bytes_left)} are still to be written, {format_bytes(plan.free_bytes)} are "
            "free. Free some space, choose another --store.path, or store fewer fields or views (--store.fields, "
            "--views.seeded)."
        )
    return plan


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
    """Write and sync a temporary file next to where the store goes; returns bytes per second.

    Raises:
        StoreWriteError: nothing can be written there.
    """
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


def format_bytes(size: float) -> str:
    """``1.5 GB``: three digits, powers of ten."""
    power = min(4, int(math.log10(size) // 3)) if size >= 1 else 0
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def format_rate(rate: float) -> str:
    """``1,230`` or ``2.9``."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def format_seconds(seconds: float) -> str:
    """``12 s``, ``3.4 min`` or ``7.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
