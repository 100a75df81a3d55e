"""What narrower types and codecs cost: int8 rows read as float32, and compressed rows in a block-shuffled epoch.

    python benchmarks/encodings.py                      about two minutes, 300 MB of disk

Rows are correlated and heavy-tailed with outlier channels, as ViT features are. Everything is warm, taken in turn in
one run. int8 rows are compared to the float16 rows of the same store; compressed rows to zarr-python reading the same
objects in the same order, with the best that it has: whole blocks as slices, shuffled in memory.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import torch
import zarr

from benchmarks._measure import Case, print_table, seconds_in_turn, speed_ratio
from featstore import FeatureStore
from featstore.containers import make_backend
from featstore.containers.zarr_chunks import encoded_bytes
from featstore.format.artefacts import artefact_record, pack
from featstore.format.fields import empty_columns, put
from featstore.format.int8 import Calibration, calibrate
from featstore.format.manifest import new_manifest
from featstore.format.manifest_records import (
    Codec,
    FieldRecord,
    Int8Encoding,
    SourceRecord,
    WorkRecord,
)
from featstore.format.views import ViewSet
from featstore.reading.shuffling import Order
from featstore.reading.torch_data import numbers_of
from featstore.writing.commit import commit, open_or_create
from featstore.writing.shard import Shard

WIDTH = 1024
BATCH = 256
SHARD_ROWS = 16_384
CODECS: tuple[Codec, ...] = ("zstd", "bitshuffle")


def rows_like_features(count: int, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """(count, WIDTH): a low-rank part, heavy tails, a few channels fifty times larger."""
    generator = np.random.default_rng(seed)
    basis = generator.standard_normal((64, WIDTH), dtype=np.float32)
    rows = generator.standard_normal((count, 64), dtype=np.float32) @ basis / 8
    rows += generator.standard_t(4, (count, WIDTH)).astype(np.float32) / 2
    rows[:, generator.integers(0, WIDTH, 4)] *= 50
    return rows.astype(np.float32, copy=False)


def encoding_of(result: Calibration) -> Int8Encoding:
    """The manifest's record of a calibration."""
    return Int8Encoding(
        scheme="channel_row",
        channels="half.channels",
        sample_rows=result.sample_rows,
        relative_l2=result.relative_l2,
        cosine_mean=result.cosine_mean,
        cosine_worst=result.cosine_worst,
    )


def make_store(path: Path, rows: npt.NDArray[np.float32], result: Calibration) -> FeatureStore:
    """A store with the same rows as float16, int8, and float16 through each codec."""
    assert result.channels is not None
    files = {
        "half.channels": pack({"scale": result.channels.scale, "offset": result.channels.offset})
    }
    plain: dict[str, Any] = {"shape": (WIDTH,), "dims": ("channel",), "meaning": "synthetic"}
    fields: dict[str, FieldRecord] = {
        "float16": FieldRecord(dtype="float16", **plain),
        "int8": FieldRecord(dtype="float32", encoding=encoding_of(result), **plain),
        **{codec: FieldRecord(dtype="float16", codec=codec, **plain) for codec in CODECS},
    }
    manifest = new_manifest(
        teachers={},
        views=ViewSet(),
        fields=fields,
        artefacts={name: artefact_record(data, meaning="scales") for name, data in files.items()},
        source=SourceRecord(
            kind="synthetic", uri="", num_samples=len(rows), ids_sha256="0" * 64, has_labels=False
        ),
        work=WorkRecord(shard_rows=SHARD_ROWS, batch_size=BATCH),
        created_by={},
    )
    open_or_create(path, manifest, files)
    backend = make_backend(path, manifest)
    for shard in range(manifest.num_shards):
        span = manifest.shard_range(shard)
        columns = empty_columns(manifest, shard)
        columns["valid"][:] = True
        part = rows[span.start : span.stop, None]
        for name in fields:
            channels = result.channels if name == "int8" else None
            put(manifest, columns, name, slice(None), part, channels=channels)
        commit(backend, Shard(shard, columns, [None] * len(span), {}))
    return FeatureStore.open(path, allow_incomplete=True)


class ZarrBlocks:
    """zarr-python in block-shuffled order: a buffer of blocks is read as slices, and batches are cut from it."""

    def __init__(self, array: Any, order: Order) -> None:
        self.array, self.order = array, order
        self.held = (-1, np.empty(0, np.int64), np.empty((0, 1, WIDTH), np.float16))

    def batch(self, step: int) -> npt.NDArray[np.float16]:
        """One batch, like ``gather`` of the same positions."""
        order = self.order
        size = order.block_rows * order.buffer_blocks
        first = step * BATCH % (order.num_rows // BATCH * BATCH)
        rows = order(np.arange(first, first + BATCH))
        parts = []
        for buffer in np.unique(np.arange(first, first + BATCH) // size).tolist():
            if self.held[0] != buffer:
                span = np.arange(buffer * size, min((buffer + 1) * size, order.num_rows))
                blocks = np.unique(order(span) // order.block_rows)
                starts = blocks * order.block_rows
                values = [self.array[start : start + order.block_rows] for start in starts.tolist()]
                self.held = (buffer, blocks, np.concatenate(values))
            _, blocks, values_held = self.held
            inside = np.isin(rows // order.block_rows, blocks)
            place = np.searchsorted(blocks, rows[inside] // order.block_rows)
            parts.append(values_held[place * order.block_rows + rows[inside] % order.block_rows])
        return np.concatenate(parts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the store goes; removed at the end")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="encodings-", dir=arguments.folder))
    try:
        _measure(folder, arguments.rows, arguments.turns)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(folder: Path, count: int, turns: int) -> None:
    rows = rows_like_features(count)
    result = calibrate(rows[:512], "channel_row")
    store = make_store(folder / "store", rows, result)
    half = np.ascontiguousarray(rows[:4096].astype(np.float16))
    print(
        f"int8: relative L2 error {result.relative_l2:.4f}, cosine {result.cosine_mean:.5f}, worst "
        f"{result.cosine_worst:.5f}"
    )
    for codec in CODECS:
        print(f"{codec}: {half.nbytes / encoded_bytes(half, codec):.3f} x smaller")
    _random(store, count, turns)
    _blocks(store, count, turns)


def _random(store: FeatureStore, count: int, turns: int) -> None:
    generator = np.random.default_rng(1)
    wanted = [generator.integers(0, count, BATCH) for _ in range(64)]
    half = np.empty((BATCH, 1, WIDTH), np.float16)
    full = np.empty((BATCH, 1, WIDTH), np.float32)
    tensor = torch.empty(BATCH, 1, WIDTH)
    torch.set_num_threads(1)
    steps: dict[str, Callable[[int], object]] = {
        "float16": lambda step: store.gather("float16", wanted[step % 64], out=half),
        "int8, numpy": lambda step: store.gather("int8", wanted[step % 64], out=full),
        "int8, torch": lambda step: numbers_of(
            store.gather_codes("int8", wanted[step % 64]), out=tensor
        ),
    }

    def warm() -> None:
        store.gather("float16", range(count))
        store.gather("int8", range(count))

    cases = {name: Case(step=step, steps=64, warm=warm) for name, step in steps.items()}
    seconds = seconds_in_turn(cases, turns=turns, slices=6)
    rows = []
    for name in ("int8, numpy", "int8, torch"):
        ratio = speed_ratio(seconds[name], seconds["float16"])
        rows.append((name, ratio, "met" if ratio.median >= 0.5 else "NOT met"))
    print_table(
        f"{BATCH} random rows of {WIDTH}, int8 read as float32 into a buffer on one processor, rows/s",
        ("case", "ratio to float16 into a buffer", "goal >= 0.5"),
        rows,
    )


def _blocks(store: FeatureStore, count: int, turns: int) -> None:
    group: Any = zarr.open_group(store.path, mode="r")
    order = Order(num_rows=count, seed=1, block_rows=1024, buffer_blocks=8)
    steps = count // BATCH
    table, cases = [], {}
    for codec in CODECS:
        peer = ZarrBlocks(group[f"fields/{codec}"], order)
        np.testing.assert_array_equal(peer.batch(3), store.gather(codec, _rows(order, 3)))
        cases[f"{codec}, ours"] = Case(
            step=lambda step, codec=codec: store.gather(codec, _rows(order, step)),  # type: ignore[misc]
            steps=steps,
        )
        cases[f"{codec}, zarr-python"] = Case(step=peer.batch, steps=steps)
    seconds = seconds_in_turn(cases, turns=turns, slices=1)
    for codec in CODECS:
        ratio = speed_ratio(seconds[f"{codec}, ours"], seconds[f"{codec}, zarr-python"])
        table.append((codec, ratio, "met" if ratio.median >= 2 else "NOT met"))
    print_table(
        "block-shuffled epoch of compressed rows, rows/s",
        ("codec", "ratio to zarr-python on the same objects", "goal >= 2"),
        table,
    )


def _rows(order: Order, step: int) -> npt.NDArray[np.int64]:
    first = step * BATCH % (order.num_rows // BATCH * BATCH)
    return order(np.arange(first, first + BATCH))


if __name__ == "__main__":
    main()
