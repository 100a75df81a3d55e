"""Rows per second out of a feature store, side by side with every other format that could hold features.

    python benchmarks/reading.py                              both kinds of data, all formats, about five minutes
    python benchmarks/reading.py --rows-a 500000 --rows-b 4000 --turns 7
    python benchmarks/reading.py --only A --patterns random

Data: A, vectors of 1024 float16 (2 KB a row), and B, 257 tokens of 1024 float16 (526 KB a row). Every format holds the
same rows, written and read by its own package; one that is not installed is shown as such. Patterns:

- random: batches of a fully shuffled epoch;
- seq: batches in order;
- block: blocks of rows are shuffled, eight of them fill a pool, and batches are drawn from the pool. Formats in which
  any row costs the same read the rows of a batch directly, the others read whole blocks into a pool.

Everything is in the page cache and local. Formats are read in turn in one run; a figure is rows per second over those
of numpy.take out of a numpy.memmap in the same turn: median (smallest - largest turn). Rows that a format hands out as
views of its file are copied into the batch, as numpy and the store do. Slow formats read fewer batches.
"""

import argparse
import importlib.util
import math
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks._measure import (
    Case,
    Spread,
    batch_memory,
    fitted,
    print_table,
    seconds_in_turn,
    speed_ratio,
)

Array = np.ndarray[Any, Any]

BASE = "numpy.memmap, take"
OURS = "featstore"
ZARR = "zarr-python, sharded, raw"
POOL_BLOCKS = 8
SLICES = 12
SECONDS = 0.2  # of every format in every turn, unless one batch takes longer


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is stored."""

    title: str
    shape: tuple[int, ...]  # of a row
    rows: int
    batch: int  # rows of a batch
    block: int  # rows of a block of the pattern block
    shard: int  # rows of a shard, where a format has shards
    chunk: int  # rows of a chunk inside of a shard

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * 2

    def part(self, start: int) -> Array:
        """(rows, *shape) float16: the rows of the shard that begins at ``start``, the same ones each time."""
        generator = np.random.default_rng(start)
        rows = min(self.shard, self.rows - start)
        values = generator.standard_normal((rows, *self.shape), dtype=np.float32)
        return values.astype(np.float16)

    def parts(self) -> Iterator[Array]:
        """All rows, shard by shard."""
        return (self.part(start) for start in range(0, self.rows, self.shard))


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One opened format. Functions return ``out`` or another array of the same shape that nobody else holds."""

    # of row numbers and an array to write into; None where rows cannot be chosen
    rows: Callable[[Array, Array], Array] | None = None
    # of the first row and an array to write into: that row and the following ones
    span: Callable[[int, Array], Array] | None = None
    # the next rows in order, where a format has a better way for that than ``span``
    stream: Callable[[Array], Array] | None = None
    # the next rows in an order of its own, where blocks cannot be chosen
    shuffled: Callable[[Array], Array] | None = None
    direct: bool = False  # any row costs the same, so that block-shuffled batches need no pool


@dataclass(frozen=True)
class Peer:
    """A format, or a way to read one."""

    name: str
    package: str  # name under which its package is imported
    # name of the folder it is written to. Slow peers that read the same files share it; a quick one would find what
    # another one has just read in the processor's cache.
    files: str
    write: Callable[[Path, Data], None]  # writes all rows into a folder
    open: Callable[[Path, Data], Reader]  # opens the folder


# The store, and numpy's memory map -----------------------------------------------------------------------------------


def write_store(folder: Path, data: Data) -> None:
    """Make a feature store through featstore's own writer; the only place that knows its manifest."""
    from featstore.containers import make_backend
    from featstore.format.ids import ids_sha256
    from featstore.format.ledger import mark_complete, read_entry
    from featstore.format.manifest import new_manifest
    from featstore.format.manifest_records import (
        FieldRecord,
        SourceRecord,
        TeacherRecord,
        WorkRecord,
    )
    from featstore.format.views import ViewSet
    from featstore.writing.commit import commit, open_or_create
    from featstore.writing.shard import Shard, text_column

    names = [str(row) for row in range(data.rows)]
    dims = ("token", "channel")[-len(data.shape) :]
    teacher = TeacherRecord(library="none", name="none", weights_sha256="0" * 64, precision="fp32")
    field = FieldRecord(
        shape=data.shape, dtype="float16", dims=dims, meaning="made up", teacher="teacher"
    )
    source = SourceRecord(
        kind="none", uri="", num_samples=data.rows, ids_sha256=ids_sha256(names), has_labels=False
    )
    manifest = new_manifest(
        teachers={"teacher": teacher},
        views=ViewSet(),
        fields={"x": field},
        source=source,
        work=WorkRecord(shard_rows=data.shard, batch_size=data.shard),
        created_by={},
    )
    manifest = open_or_create(folder, manifest)
    backend = make_backend(folder, manifest)
    for number, values in enumerate(data.parts()):
        span = manifest.shard_range(number)
        columns = {
            "sample_id": text_column(names[span.start : span.stop]),
            "content_sha256": np.zeros((len(span), 32), np.uint8),
            "valid": np.ones(len(span), np.bool_),
            "fields/x": values[:, None],
        }
        commit(backend, Shard(number, columns, [None] * len(span), {}))
    mark_complete(folder, [read_entry(folder, number) for number in range(manifest.num_shards)])


def open_store(folder: Path, data: Data) -> Reader:
    """Gather into the caller's array; checksums are on, as always."""
    from featstore import FeatureStore

    store = FeatureStore.open(folder)

    def rows(rows: Array, out: Array) -> Array:
        store.gather("x", rows, out=out[:, None])
        return out

    return Reader(
        rows=rows,
        span=lambda first, out: rows(np.arange(first, first + len(out)), out),
        direct=True,
    )


def write_npy(folder: Path, data: Data) -> None:
    """Write one .npy file."""
    folder.mkdir()
    with (folder / "x.npy").open("wb", buffering=0) as file:
        head = {"descr": "<f2", "fortran_order": False, "shape": (data.rows, *data.shape)}
        np.lib.format.write_array_header_1_0(file, head)
        for values in data.parts():
            rest = values.reshape(-1).view(np.uint8).data
            while rest:
                rest = rest[file.write(rest) :]


def open_npy(folder: Path, data: Data) -> Reader:
    """numpy.take; "clip" because it writes straight into the given array."""
    whole = np.load(folder / "x.npy", mmap_mode="r")

    def rows(rows: Array, out: Array) -> Array:
        return np.take(whole, rows, axis=0, out=out, mode="clip")

    return Reader(
        rows=rows,
        span=lambda first, out: rows(np.arange(first, first + len(out)), out),
        direct=True,
    )


def open_npy_slices(folder: Path, data: Data) -> Reader:
    """Slices are the fastest way to read in order."""
    whole = np.load(folder / "x.npy", mmap_mode="r")

    def span(first: int, out: Array) -> Array:
        out[...] = whole[first : first + len(out)]
        return out

    return Reader(span=span, direct=True)


# Zarr ----------------------------------------------------------------------------------------------------------------


def write_zarr(folder: Path, data: Data) -> None:
    """Shards of uncompressed chunks."""
    import zarr

    array: Any = zarr.create_array(
        folder,
        shape=(data.rows, *data.shape),
        dtype="float16",
        chunks=(data.chunk, *data.shape),
        shards=(data.shard, *data.shape),
        compressors=None,
        filters=None,
    )
    _fill(array, data)


def write_zarr_default(folder: Path, data: Data) -> None:
    """Chunks and codec as zarr-python chooses them (zstd)."""
    import zarr

    array: Any = zarr.create_array(folder, shape=(data.rows, *data.shape), dtype="float16")
    step = array.chunks[0] * math.ceil(data.shard / array.chunks[0])
    whole = np.concatenate(list(data.parts()))
    for start in range(0, data.rows, step):
        array[start : start + step] = whole[start : start + step]


def _fill(array: Any, data: Data) -> None:
    for number, values in enumerate(data.parts()):
        array[number * data.shard : number * data.shard + len(values)] = values


def open_zarr(folder: Path, data: Data) -> Reader:
    """zarr-python with its own codecs."""
    import zarr

    array: Any = zarr.open_array(folder, mode="r")
    return Reader(
        rows=lambda rows, out: array.oindex[rows],
        span=lambda first, out: array[first : first + len(out)],
    )


def open_zarrs(folder: Path, data: Data) -> Reader:
    """zarr-python with the codecs of zarrs."""
    import zarr

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return open_zarr(folder, data)


def open_tensorstore(folder: Path, data: Data) -> Reader:
    """Tensorstore."""
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    array = tensorstore.open(spec, read=True).result()
    return Reader(
        rows=lambda rows, out: array[rows].read().result(),
        span=lambda first, out: array[first : first + len(out)].read().result(),
    )


# Other array and table formats ---------------------------------------------------------------------------------------


def write_hdf5(folder: Path, data: Data) -> None:
    """One contiguous data set."""
    import h5py

    folder.mkdir()
    with h5py.File(folder / "x.h5", "w") as file:
        _fill(file.create_dataset("x", (data.rows, *data.shape), "float16"), data)


def open_hdf5(folder: Path, data: Data) -> Reader:
    """Row by row: h5py's lists of rows must be sorted, and are slower."""
    import h5py

    array = h5py.File(folder / "x.h5", "r")["x"]

    def rows(rows: Array, out: Array) -> Array:
        for place, row in enumerate(rows.tolist()):
            array.read_direct(out, np.s_[row], np.s_[place])
        return out

    def span(first: int, out: Array) -> Array:
        array.read_direct(out, np.s_[first : first + len(out)])
        return out

    return Reader(rows=rows, span=span)


def write_safetensors(folder: Path, data: Data) -> None:
    """One tensor."""
    import safetensors.numpy

    folder.mkdir()
    safetensors.numpy.save_file({"x": np.concatenate(list(data.parts()))}, folder / "x.safetensors")


def open_safetensors(folder: Path, data: Data) -> Reader:
    """Slices; rows one by one."""
    import safetensors

    part = safetensors.safe_open(folder / "x.safetensors", framework="np").get_slice("x")

    def rows(rows: Array, out: Array) -> Array:
        for place, row in enumerate(rows.tolist()):
            out[place] = part[row : row + 1][0]
        return out

    return Reader(rows=rows, span=lambda first, out: part[first : first + len(out)])


def _arrow_batches(data: Data, rows: int) -> Iterator[Any]:
    import pyarrow

    for values in data.parts():
        for start in range(0, len(values), rows):
            some = values[start : start + rows]
            numbers = pyarrow.array(some.reshape(-1))
            column = pyarrow.FixedSizeListArray.from_arrays(numbers, math.prod(data.shape))
            yield pyarrow.record_batch({"x": column})


def _arrow_rows(table: Any, out: Array) -> Array:
    """Copy the rows of a table."""
    place = 0
    for chunk in table.column("x").chunks:
        numbers = chunk.flatten().to_numpy(zero_copy_only=True)
        out[place : place + len(chunk)] = numbers.reshape(len(chunk), *out.shape[1:])
        place += len(chunk)
    return out


def write_arrow(folder: Path, data: Data) -> None:
    """One Arrow file, as Hugging Face datasets writes them: batches of 1000 rows."""
    import pyarrow

    folder.mkdir()
    batches = _arrow_batches(data, 1000)
    first = next(batches)
    with pyarrow.ipc.new_stream(folder / "x.arrow", first.schema) as file:
        file.write_batch(first)
        for batch in batches:
            file.write_batch(batch)


def open_datasets(folder: Path, data: Data) -> Reader:
    """Hugging Face datasets over a mapped Arrow file, read as Arrow tables: its quickest format."""
    import datasets

    table = datasets.Dataset.from_file(str(folder / "x.arrow")).with_format("arrow")
    return Reader(
        rows=lambda rows, out: _arrow_rows(table[rows], out),
        span=lambda first, out: _arrow_rows(table[first : first + len(out)], out),
    )


def write_lance(folder: Path, data: Data) -> None:
    """A Lance data set of fixed-size lists."""
    import lance
    import pyarrow

    batches = _arrow_batches(data, data.shard)
    first = next(batches)
    schema = first.schema

    def everything() -> Iterator[Any]:
        yield first
        yield from batches

    reader = pyarrow.RecordBatchReader.from_batches(schema, everything())
    lance.write_dataset(reader, str(folder), max_bytes_per_file=2**40)


def open_lance(folder: Path, data: Data) -> Reader:
    """take for rows, a scan for everything in order."""
    import lance

    table = lance.dataset(str(folder))

    def scan() -> Iterator[Array]:
        for batch in table.to_batches(columns=["x"], batch_size=data.batch):
            numbers = batch.column("x").flatten().to_numpy(zero_copy_only=True)
            yield numbers.reshape(-1, *data.shape)

    return Reader(
        rows=lambda rows, out: _arrow_rows(table.take(rows.tolist(), columns=["x"]), out),
        span=lambda first, out: _arrow_rows(
            table.take(list(range(first, first + len(out))), columns=["x"]), out
        ),
        stream=_endless(scan),
    )


# Records: one key, file or message per row ---------------------------------------------------------------------------


def _rows_one_by_one(read: Callable[[int], Array]) -> Callable[[Array, Array], Array]:
    def rows(rows: Array, out: Array) -> Array:
        for place, row in enumerate(rows.tolist()):
            out[place] = read(row)
        return out

    return rows


def _endless(batches: Callable[[], Iterator[Array]]) -> Callable[[Array], Array]:
    """Collect rows of an iterator, begun again whenever it ends, into arrays of any length."""
    state: dict[str, Any] = {"batches": iter(()), "rest": None}

    def read(out: Array) -> Array:
        place = 0
        while place < len(out):
            rest = state["rest"]
            if rest is None or not len(rest):
                rest = next(state["batches"], None)
                if rest is None:
                    state["batches"] = batches()
                    rest = next(state["batches"])
            some = rest[: len(out) - place]
            out[place : place + len(some)] = some
            state["rest"] = rest[len(some) :]
            place += len(some)
        return out

    return read


def write_lmdb(folder: Path, data: Data) -> None:
    """The row's number, eight bytes big-endian, is the key."""
    import lmdb

    folder.mkdir()
    row = 0
    with lmdb.open(str(folder), map_size=4 * data.rows * data.row_bytes + 2**24) as environment:
        for values in data.parts():
            with environment.begin(write=True) as transaction:
                for value in values:
                    transaction.put(row.to_bytes(8, "big"), value.tobytes(), append=True)
                    row += 1


def open_lmdb(folder: Path, data: Data) -> Reader:
    """Values as views of the map, copied."""
    import lmdb

    environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False)
    transaction = environment.begin(buffers=True)

    def read(row: int) -> Array:
        value = transaction.get(row.to_bytes(8, "big"))
        return np.frombuffer(value, np.float16).reshape(data.shape)

    def span(first: int, out: Array) -> Array:
        cursor = transaction.cursor()
        cursor.set_key(first.to_bytes(8, "big"))
        for place, value in zip(range(len(out)), cursor.iternext(keys=False), strict=False):
            out[place] = np.frombuffer(value, np.float16).reshape(data.shape)
        return out

    return Reader(rows=_rows_one_by_one(read), span=span)


def write_array_record(folder: Path, data: Data) -> None:
    """One record per group: for random access."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir()
    writer = ArrayRecordWriter(str(folder / "x.arrayrecord"), "group_size:1,uncompressed")
    for values in data.parts():
        for value in values:
            writer.write(value.tobytes())
    writer.close()


def open_array_record(folder: Path, data: Data) -> Reader:
    """Batches of records by number."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(folder / "x.arrayrecord"), options="readahead_buffer_size:0")

    def copy(records: list[bytes], out: Array) -> Array:
        for place, record in enumerate(records):
            out[place] = np.frombuffer(record, np.float16).reshape(data.shape)
        return out

    return Reader(
        rows=lambda rows, out: copy(reader.read(rows.tolist()), out),
        span=lambda first, out: copy(reader.read(first, first + len(out)), out),
    )


def write_litdata(folder: Path, data: Data) -> None:
    """Chunks of 64 MB."""
    from litdata.streaming.cache import Cache

    folder.mkdir()
    cache = Cache(str(folder), chunk_bytes="64MB")
    row = 0
    for values in data.parts():
        for value in values:
            cache[row] = {"x": value}
            row += 1
    cache.done()
    cache.merge()


def open_litdata(folder: Path, data: Data) -> Reader:
    """Its streaming data set: by number, and in order."""
    import litdata

    table = litdata.StreamingDataset(str(folder), shuffle=False)
    read = _rows_one_by_one(lambda row: table[row]["x"])
    return Reader(
        rows=read,
        span=lambda first, out: read(np.arange(first, first + len(out)), out),
        stream=_endless(lambda: (item["x"][None] for item in table)),
    )


def write_mds(folder: Path, data: Data) -> None:
    """Shards of 64 MB."""
    import streaming

    kind = "ndarray:float16:" + ",".join(map(str, data.shape))
    with streaming.MDSWriter(out=str(folder), columns={"x": kind}, size_limit=2**26) as writer:
        for values in data.parts():
            for value in values:
                writer.write({"x": value})


def open_mds(folder: Path, data: Data) -> Reader:
    """Its local data set, by number."""
    import streaming

    table = streaming.LocalDataset(str(folder))
    read = _rows_one_by_one(lambda row: table[row]["x"])
    return Reader(rows=read, span=lambda first, out: read(np.arange(first, first + len(out)), out))


def write_webdataset(folder: Path, data: Data) -> None:
    """One tar per shard, one .npy member per row."""
    import webdataset

    folder.mkdir()
    row = 0
    for number, values in enumerate(data.parts()):
        with webdataset.TarWriter(str(folder / f"{number:06d}.tar")) as writer:
            for value in values:
                writer.write({"__key__": f"{row:09d}", "x.npy": value})
                row += 1


def open_webdataset(folder: Path, data: Data) -> Reader:
    """Streams only: in order, or with shuffled tars and its shuffle buffer."""
    import webdataset

    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    pool = data.block * POOL_BLOCKS

    def items(shuffled: bool) -> Iterator[Array]:
        stream = webdataset.WebDataset(tars, shardshuffle=len(tars) if shuffled else False)
        if shuffled:
            stream = stream.shuffle(pool)
        for (value,) in stream.decode().to_tuple("x.npy"):
            yield value[None]

    return Reader(stream=_endless(lambda: items(False)), shuffled=_endless(lambda: items(True)))


# fmt: off
PEERS = [
    Peer(BASE, "numpy", "npy", write_npy, open_npy),
    Peer("numpy.memmap, slices", "numpy", "npy-slices", write_npy, open_npy_slices),
    Peer(OURS, "featstore", "store", write_store, open_store),
    Peer(ZARR, "zarr", "zarr", write_zarr, open_zarr),
    Peer("zarr-python, default", "zarr", "default", write_zarr_default, open_zarr),
    Peer("zarrs, sharded, raw", "zarrs", "zarr", write_zarr, open_zarrs),
    Peer("tensorstore, sharded, raw", "tensorstore", "zarr", write_zarr, open_tensorstore),
    Peer("h5py, contiguous", "h5py", "hdf5", write_hdf5, open_hdf5),
    Peer("datasets (Arrow)", "datasets", "arrow", write_arrow, open_datasets),
    Peer("lmdb", "lmdb", "lmdb", write_lmdb, open_lmdb),
    Peer("safetensors, slices", "safetensors", "safetensors", write_safetensors, open_safetensors),
    Peer("lance", "lance", "lance", write_lance, open_lance),
    Peer("array_record", "array_record", "array_record", write_array_record, open_array_record),
    Peer("litdata", "litdata", "litdata", write_litdata, open_litdata),
    Peer("mosaicml-streaming", "streaming", "mds", write_mds, open_mds),
    Peer("webdataset", "webdataset", "webdataset", write_webdataset, open_webdataset),
]
# fmt: on


# Measuring -----------------------------------------------------------------------------------------------------------


class Pattern:
    """One order of reading: a step of it for any reader, and how many rows that reads."""

    def __init__(self, name: str, data: Data, out: Array) -> None:
        self.name = name
        self._data, self._out = data, out
        self._pool = np.empty((data.block * POOL_BLOCKS, *data.shape), np.float16)
        generator = np.random.default_rng(1)
        self._batches = _batches(generator.permutation(data.rows), data.batch)
        self._firsts = generator.permutation(data.rows // data.block) * data.block
        places = generator.permutation(len(self._pool))
        self._places = _batches(places, min(data.batch, len(self._pool)))
        self.rows_per_step = len(self._pool) if name == "block" else data.batch

    def step(self, reader: Reader) -> Callable[[int], object] | None:
        """One unit of work, or None where the format cannot do it."""
        data, out = self._data, self._out
        rows, span, stream, shuffled = reader.rows, reader.span, reader.stream, reader.shuffled
        if self.name == "random":
            if rows is None:
                return None
            return lambda n: rows(self._batches[n % len(self._batches)], out)
        if self.name == "seq":
            if stream is not None:
                return lambda n: stream(out)
            assert span is not None
            count = data.rows // data.batch
            return lambda n: span(n % count * data.batch, out)
        if shuffled is not None:
            return lambda n: [shuffled(out[: len(part)]) for part in self._places]
        if reader.rows is None:
            return None
        if reader.direct:
            return lambda n: self._direct(reader, n)
        return lambda n: self._pooled(reader, n)

    def _blocks(self, number: int) -> Array:
        """First rows of the blocks of one pool."""
        pools = len(self._firsts) // POOL_BLOCKS
        start = number % pools * POOL_BLOCKS
        return self._firsts[start : start + POOL_BLOCKS]

    def _direct(self, reader: Reader, number: int) -> None:
        assert reader.rows is not None
        rows = (self._blocks(number)[:, None] + np.arange(self._data.block)).reshape(-1)
        for places in self._places:
            reader.rows(rows[places], self._out[: len(places)])

    def _pooled(self, reader: Reader, number: int) -> None:
        assert reader.span is not None
        for part, first in zip(
            self._pool.reshape(POOL_BLOCKS, self._data.block, *self._data.shape),
            self._blocks(number).tolist(),
            strict=True,
        ):
            values = reader.span(first, part)
            if values is not part:
                part[...] = values
        for places in self._places:
            np.take(self._pool, places, axis=0, out=self._out[: len(places)], mode="clip")


def _batches(rows: Array, size: int) -> list[Array]:
    return list(rows[: len(rows) // size * size].reshape(-1, size))


def opened(peers: list[Peer], folder: Path, data: Data) -> tuple[dict[str, Reader], dict[str, str]]:
    """Write and open every format; returns the readers, and why others are missing."""
    readers: dict[str, Reader] = {}
    missing: dict[str, str] = {}
    for peer in peers:
        if importlib.util.find_spec(peer.package) is None:
            missing[peer.name] = "not installed"
            continue
        print(f"{data.title}: {peer.name}" + " " * 30, end="\r", file=sys.stderr, flush=True)
        path = folder / peer.files
        try:
            if not path.exists():
                peer.write(path, data)
            reader = peer.open(path, data)
            check(reader, data)
        except Exception as error:  # of a foreign package: the others shall still be measured
            if peer.name in (BASE, OURS):
                raise
            shutil.rmtree(path, ignore_errors=True)
            text = str(error).splitlines()
            missing[peer.name] = f"failed: {type(error).__name__}: {text[0] if text else ''}"[:90]
            continue
        readers[peer.name] = reader
    return readers, missing


def check(reader: Reader, data: Data) -> None:
    """Compare some rows to those that were stored."""
    expected = data.part(0)
    out = np.empty((min(data.batch, len(expected)), *data.shape), np.float16)
    if reader.rows is not None:
        rows = np.random.default_rng(2).integers(0, len(expected), len(out))
        assert np.array_equal(reader.rows(rows, out), expected[rows]), "other rows than were stored"
    if reader.span is not None:
        assert np.array_equal(reader.span(0, out), expected[: len(out)]), "other rows in order"
    if reader.stream is not None:
        assert np.array_equal(reader.stream(out), expected[: len(out)]), "other rows in its stream"


def touch(folder: Path) -> None:
    """Read every file once, so that it is in the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(2**22):
                    pass


def compare(peers: list[Peer], data: Data, folder: Path, patterns: list[str], turns: int) -> None:
    """Write all formats, read them in turn in every pattern, and print the table and the goals."""
    readers, missing = opened(peers, folder, data)
    out = batch_memory((data.batch, *data.shape), np.float16)
    seconds: dict[str, dict[str, list[float]]] = {}
    rates: dict[str, float] = {}
    for name in patterns:
        pattern = Pattern(name, data, out)
        cases: dict[str, Case] = {}
        for peer in peers:
            step = pattern.step(readers[peer.name]) if peer.name in readers else None
            if step is not None:
                print(f"{data.title}: {name}: {peer.name}" + " " * 30, end="\r", file=sys.stderr)
                touch(folder / peer.files)
                warm = _mapped_again(readers[peer.name], data)
                cases[peer.name] = fitted(step, slices=SLICES, seconds=SECONDS, warm=warm)
        seconds[name] = seconds_in_turn(cases, turns=turns, slices=SLICES)
        base = Spread.of(seconds[name][BASE])
        rates[name] = pattern.rows_per_step / base.median
    speeds = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    table = []
    for peer in peers:
        cells: list[object] = []
        for name in patterns:
            if peer.name in missing:
                cells.append(missing[peer.name] if name == patterns[0] else "")
            elif peer.name in seconds[name]:
                cells.append(speed_ratio(seconds[name][peer.name], seconds[name][BASE]))
            else:
                cells.append("-" if peer.name.startswith("numpy") else "not possible")
        table.append([peer.name, *cells])
    print(" " * 100, end="\r", file=sys.stderr)
    print_table(
        f"{data.title}: {data.rows:,} rows, batches of {data.batch}; rows/s over numpy.memmap's, median "
        f"(smallest - largest of {turns} turns)\nnumpy.memmap, rows/s: {speeds}",
        ["", *patterns],
        table,
    )
    print_goals(data, seconds)


def _mapped_again(reader: Reader, data: Data) -> Callable[[], object] | None:
    """What brings pages of memory maps back to where they were before the system took them."""
    span = reader.span
    if not reader.direct or span is None:
        return None
    out = np.empty((data.block, *data.shape), np.float16)
    firsts = range(0, data.rows - data.block + 1, data.block)
    return lambda: [span(first, out) for first in firsts]


def print_goals(data: Data, seconds: dict[str, dict[str, list[float]]]) -> None:
    """Say which goals are met."""
    print()
    for pattern, times in seconds.items():
        if OURS not in times:
            continue
        goals = [("numpy.memmap, take", 0.95, times[BASE])]
        if pattern == "random" and len(data.shape) == 1:
            others = {
                name: values
                for name, values in times.items()
                if name != OURS and not name.startswith("numpy")
            }
            if others:
                best = min(others, key=lambda name: Spread.of(others[name]).median)
                goals.append((f"the best other format ({best})", 5, others[best]))
            if ZARR in times:
                goals.append((ZARR, 500, times[ZARR]))
        for what, least, other in goals:
            found = speed_ratio(times[OURS], other)
            verdict = "met" if found.median >= least else "NOT MET"
            print(f"{data.title}, {pattern}: store >= {least} x {what}: {found}: {verdict}")


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows-a",
        type=int,
        default=100_000,
        metavar="N",
        help="rows of A (default: 100,000 = 205 MB)",
    )
    parser.add_argument(
        "--rows-b", type=int, default=768, metavar="N", help="rows of B (default: 768 = 404 MB)"
    )
    parser.add_argument(
        "--turns",
        type=int,
        default=5,
        metavar="N",
        help="how often everything is measured (default: 5)",
    )
    parser.add_argument("--only", choices=("A", "B"), help="one kind of data (default: both)")
    parser.add_argument(
        "--patterns",
        default="seq,random,block",
        help="which of seq, random, block, separated by commas (default: all)",
    )
    parser.add_argument(
        "--formats",
        default="",
        metavar="TEXT,...",
        help="only formats whose name holds one of these texts; numpy and the store always run",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="PATH",
        help="where the files go, about 15 times the data (default: a temporary folder)",
    )
    chosen = parser.parse_args()
    chosen.patterns = chosen.patterns.split(",")
    if not set(chosen.patterns) <= {"seq", "random", "block"}:
        parser.error(f"--patterns {','.join(chosen.patterns)}: choose from seq, random, block")
    if chosen.rows_a < 8192 or chosen.rows_b < 256 or chosen.turns < 1:
        parser.error("at least 8,192 rows of A, 256 rows of B, and one turn")
    return chosen


def main() -> None:
    """Run the comparisons."""
    chosen = options()
    warnings.simplefilter("ignore")  # of foreign packages, about their futures
    wanted = [text for text in chosen.formats.split(",") if text]
    peers = [
        peer
        for peer in PEERS
        if not wanted
        or peer.package in ("numpy", "featstore")
        or any(text in peer.name for text in wanted)
    ]
    a = Data(
        title="A, vectors",
        shape=(1024,),
        rows=chosen.rows_a,
        batch=256,
        block=256,
        shard=16384,
        chunk=256,
    )
    b = Data(
        title="B, tokens",
        shape=(257, 1024),
        rows=chosen.rows_b,
        batch=64,
        block=32,
        shard=512,
        chunk=1,
    )
    for name, data in (("A", a), ("B", b)):
        if chosen.only in (None, name):
            with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
                compare(peers, data, Path(folder), chosen.patterns, chosen.turns)


if __name__ == "__main__":
    main()
