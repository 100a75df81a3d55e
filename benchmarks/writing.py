"""What a committed shard costs: a store written with fsync and checksums against np.save and fsync of the same bytes.

    python benchmarks/writing.py                        about two minutes, 2 GB of disk
    python benchmarks/writing.py --container webdataset

Both write the same shards into a new folder, in turn. np.save gets one file per shard, flushed and synced; the store
gets ids, hashes, validity and features, each object checksummed, synced, renamed, its folder synced, and an entry in
the ledger. Peak memory is what the process holds beyond its start while shards are made and written, in shards.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt

from benchmarks._measure import Spread, print_table, speed_ratio
from featstore.containers import make_backend
from featstore.format.fields import empty_columns
from featstore.format.manifest import Manifest, new_manifest
from featstore.format.manifest_records import Container, FieldRecord, SourceRecord, WorkRecord
from featstore.format.views import ViewSet
from featstore.writing.claims import Claims
from featstore.writing.commit import open_or_create
from featstore.writing.fill import FolderStore, fill
from featstore.writing.shard import Shard

CASES = {"A, rows of 1,024": (1024,), "B, rows of 257 x 1,024": (257, 1024)}


def make_manifest(
    shape: tuple[int, ...], rows: int, shards: int, container: Container = "zarr"
) -> Manifest:
    """A store of one field of random float16."""
    dims = ("token", "channel")[-len(shape) :]
    return new_manifest(
        teachers={},
        views=ViewSet(),
        fields={"x": FieldRecord(shape=shape, dtype="float16", dims=dims, meaning="noise")},
        source=SourceRecord(
            kind="synthetic",
            uri="",
            num_samples=rows * shards,
            ids_sha256="0" * 64,
            has_labels=False,
        ),
        work=WorkRecord(shard_rows=rows, batch_size=rows),
        created_by={},
        container=container,
    )


def write_store(folder: Path, manifest: Manifest, values: npt.NDArray[np.float16]) -> None:
    """Write every shard through the store's own writer; each is made anew, as a teacher would."""

    def shards(claims: Claims, first: int) -> Iterator[Shard]:
        number: int | None = first
        while number is not None:
            columns = empty_columns(manifest, number)
            columns["sample_id"][:] = [f"{row:012d}.jpg" for row in manifest.shard_range(number)]
            columns["valid"][:] = True
            columns["fields/x"][:] = values
            yield Shard(number, columns, [None] * len(values), {})
            del columns
            number = claims.claim_next()

    open_or_create(folder / "store", manifest)
    fill(FolderStore(make_backend(folder / "store", manifest)), shards, lease_s=60)


def save_arrays(folder: Path, manifest: Manifest, values: npt.NDArray[np.float16]) -> None:
    """np.save and fsync, one file per shard; the array is made anew too."""
    for number in range(manifest.num_shards):
        made = np.zeros_like(values)
        made[:] = values
        with (folder / f"{number}.npy").open("wb") as file:
            np.save(file, made)
            file.flush()
            os.fsync(file.fileno())


class Peak:
    """Largest private memory of this process, sampled while a block runs; bytes beyond the beginning."""

    def __enter__(self) -> "Peak":
        self.bytes = 0
        self._base = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, self._now() - self._base)

    @staticmethod
    def _now() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=134, help="megabytes of a shard")
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--container", choices=get_args(Container), default="zarr")
    parser.add_argument("--folder", type=Path, help="where to write; removed at the end")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="writing-", dir=arguments.folder))
    table = []
    try:
        for name, shape in CASES.items():
            table.append((name, *_measure(root, shape, arguments)))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print_table(
        f"writing {arguments.shards} shards of about {arguments.mb} MB with fsync, bytes/s",
        ("data", "ratio to np.save + fsync", "goal >= 0.9", "peak memory, shards", "goal <= 2"),
        table,
    )


def _measure(
    root: Path, shape: tuple[int, ...], arguments: argparse.Namespace
) -> tuple[Spread, str, Spread, str]:
    row = 2 * int(np.prod(shape))
    rows = 1 << (max(1, arguments.mb * 10**6 // row).bit_length() - 1)
    manifest = make_manifest(shape, rows, arguments.shards, arguments.container)
    generator = np.random.default_rng(0)
    values = generator.integers(0, 2**14, (rows, 1, *shape), dtype=np.uint16).view(np.float16)
    ways = {"store": write_store, "np.save": save_arrays}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks: list[float] = []
    for turn in range(arguments.turns):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            folder = root / name
            folder.mkdir()
            os.sync()
            work = partial(ways[name], folder, manifest, values)
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
            shutil.rmtree(folder)
        # Memory in a run of its own: the thread that samples it takes time.
        (root / "peak").mkdir()
        with Peak() as peak:
            write_store(root / "peak", manifest, values)
        peaks.append(peak.bytes / values.nbytes)
        shutil.rmtree(root / "peak")
    ratio, memory = speed_ratio(seconds["store"], seconds["np.save"]), Spread.of(peaks)
    return (
        ratio,
        "met" if ratio.median >= 0.9 else "NOT met",
        memory,
        "met" if round(memory.median, 1) <= 2 else "NOT met",
    )


if __name__ == "__main__":
    main()
