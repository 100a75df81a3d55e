"""Random batches of rows: a feature store against numpy.memmap and stock Zarr readers on the same files.

    python benchmarks/read_rows.py                     1 GB of vectors (A) and 2 GB of tokens (B), about five minutes
    python benchmarks/read_rows.py --rows-a 50000 --rows-b 400

The formats are read in turn, several times, in one run; each figure is rows per second over those of
numpy.memmap in the same turn: median, smallest and largest. Everything is warm (in the page cache); absolute
times of a shared machine mean little. Tensorstore is read too if it is installed.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import zarr

from featstore import FeatureStore
from featstore.backends import ZarrBackend
from featstore.ids import ids_sha256
from featstore.manifest import (
    FieldRecord,
    Manifest,
    PreprocessingRecord,
    SourceRecord,
    TeacherRecord,
    WorkRecord,
    new_manifest,
)
from featstore.views import ViewSet
from featstore.writer import Shard, commit, open_or_create, text_column

BATCH = 256

Reader = Callable[[np.ndarray[Any, Any]], Any]


def describe(rows: int, shape: tuple[int, ...], shard_rows: int) -> Manifest:
    """The manifest of a store of made-up features."""
    dims = ("token", "channel")[-len(shape) :]
    return new_manifest(
        teacher=TeacherRecord(
            library="timm", name="random", weights_sha256="0" * 64, precision="fp32"
        ),
        preprocessing=PreprocessingRecord(
            size=(224, 224),
            crop_pct=1.0,
            crop_mode="center",
            interpolation="bicubic",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            decode="none",
        ),
        views=ViewSet(),
        fields={
            "x": FieldRecord(shape=shape, dtype="float16", dims=dims, meaning="random numbers")
        },
        source=SourceRecord(
            kind="made up", uri="", num_samples=rows, ids_sha256=ids_sha256([]), has_labels=False
        ),
        work=WorkRecord(shard_rows=shard_rows, batch_size=shard_rows),
        created_by={},
    )


def write(folder: Path, rows: int, shape: tuple[int, ...], shard_rows: int) -> tuple[Path, Path]:
    """Write the same rows as a store and as one .npy file; returns both paths."""
    manifest = open_or_create(folder / "store", describe(rows, shape, shard_rows))
    backend = ZarrBackend(folder / "store", manifest)
    plain = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float16, (rows, 1, *shape))
    generator = np.random.default_rng(0)
    for number in range(manifest.num_shards):
        span = manifest.shard_range(number)
        values = generator.standard_normal((len(span), 1, *shape), dtype=np.float32).astype(
            np.float16
        )
        columns = {
            "sample_id": text_column([str(row) for row in span]),
            "content_sha256": np.zeros((len(span), 32), np.uint8),
            "valid": np.ones(len(span), np.bool_),
            "fields/x": values,
        }
        commit(backend, Shard(number, columns, [None] * len(span), {}))
        plain[span.start : span.stop] = values
    plain.flush()
    return folder / "store", folder / "x.npy"


def readers(store: Path, plain: Path) -> Iterator[tuple[str, Reader, int]]:
    """Name, function of row numbers, and batches per turn (slow ones get fewer)."""
    whole = np.load(plain, mmap_mode="r")
    opened = FeatureStore.open(store)
    out = np.empty((BATCH, *whole.shape[1:]), np.float16)
    yield (
        "numpy.memmap, take into a buffer",
        lambda r: np.take(whole, r, axis=0, out=out, mode="clip"),
        200,
    )
    yield "numpy.memmap, fancy index", lambda r: whole[r], 200
    yield "featstore, gather into a buffer", lambda r: opened.gather("x", r, out=out), 200
    yield "featstore, gather", lambda r: opened.gather("x", r), 200
    stock: Any = zarr.open_array(store / "fields" / "x", mode="r")
    yield "zarr-python, same files", lambda r: stock.oindex[r], 3
    if importlib.util.find_spec("tensorstore"):
        import tensorstore

        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(store / "fields" / "x")},
        }
        array = tensorstore.open(spec, read=True).result()
        yield "tensorstore, same files", lambda r: array[r].read().result(), 10


def rate(read: Reader, batches: list[np.ndarray[Any, Any]]) -> float:
    """Rows per second over the given batches."""
    start = time.perf_counter()
    for rows in batches:
        read(rows)
    return len(batches) * BATCH / (time.perf_counter() - start)


def compare(
    title: str, folder: Path, rows: int, shape: tuple[int, ...], shard_rows: int, turns: int
) -> None:
    """Write, check that all readers agree, read in turns, print one table."""
    store, plain = write(folder, rows, shape, shard_rows)
    generator = np.random.default_rng(1)
    all_readers = list(readers(store, plain))
    rows_0 = generator.integers(0, rows, BATCH)
    expected = np.array(all_readers[0][1](rows_0))
    for name, read, _ in all_readers:
        assert np.array_equal(np.asarray(read(rows_0)), expected), name
    ratios: dict[str, list[float]] = {name: [] for name, _, _ in all_readers}
    base: list[float] = []
    for _ in range(turns):
        turn = {
            name: rate(read, [generator.integers(0, rows, BATCH) for _ in range(count)])
            for name, read, count in all_readers
        }
        base.append(turn[all_readers[0][0]])
        for name, value in turn.items():
            ratios[name].append(value / base[-1])
    print(
        f"\n{title}: batches of {BATCH} random rows; numpy.memmap {statistics.median(base):,.0f} rows/s"
    )
    print(f"{'':36} x numpy.memmap (smallest - largest of {turns} turns)")
    for name, values in ratios.items():
        print(f"{name:36} {statistics.median(values):.4g}  ({min(values):.4g} - {max(values):.4g})")


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows-a", type=int, default=500_000, help="rows of 1024 numbers (default: 500,000)"
    )
    parser.add_argument(
        "--rows-b", type=int, default=4_000, help="rows of 257 x 1024 numbers (default: 4,000)"
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--dir", type=Path, default=None, help="where the files go (default: a temporary folder)"
    )
    options = parser.parse_args()
    for title, rows, shape, shard_rows in (
        ("A, vectors", options.rows_a, (1024,), 4096),
        ("B, tokens", options.rows_b, (257, 1024), 256),
    ):
        with tempfile.TemporaryDirectory(dir=options.dir) as folder:
            compare(title, Path(folder), rows, shape, shard_rows, options.turns)


if __name__ == "__main__":
    main()
