"""Where the checksums of feature rows should stand: three layouts of a Zarr v3 shard, and ways to gather from each.

    python benchmarks/checksum_layouts.py            400 MB of vectors (A), 540 MB of tokens (B), about four minutes
    python benchmarks/checksum_layouts.py --turns 5 --only A

Measured side by side:

- **in the chunk**: crc32c is the last codec of every inner chunk. Any Zarr reader checks it. Its 4 bytes stand between
  the chunks, so that rows are not one array: one fancy index, byte offsets, or a loop over rows gather them.
- **in the chunk, spaced**: the same codec, but chunks are placed one row further apart than they need (the shard's
  index says where each one is). All rows, and one unused row after every chunk, are then one array for numpy.take.
- **in the ledger**: chunks without a codec, side by side; the checksums of the same blocks are kept elsewhere.

Every gather checks a block when it is touched first and remembers that. All layouts are mapped in the same way, all
rows are in the page cache, and everything is a ratio to numpy.take out of a numpy.memmap, measured in turn: median
(smallest - largest turn). Above 1 is faster.
"""

import argparse
import importlib.util
import math
import os
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Benchmarks run from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from benchmarks._measure import (
    Case,
    Spread,
    batch_memory,
    print_table,
    seconds_in_turn,
    speed_ratio,
)
from featstore.containers.address_range import PAGE_BYTES, SideBySide

Array = np.ndarray[Any, Any]
Gather = Callable[[Array, Array], object]

ITEM_BYTES = 2
CRC_BYTES = 4
HUGE_PAGE_BYTES = 2**21
SMALL_BYTES = 256 * 1024
LARGE_ROW_BYTES = 32 * 1024
WAYS = {
    "in the ledger": ("take", "loop"),
    "in the chunk": ("fancy", "offsets", "loop"),
    "in the chunk, spaced": ("take",),
}
"""Ways to gather that are tried for each place of the checksums."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is stored: rows of float16, how they are cut into shards, and how many make a batch."""

    title: str
    shape: tuple[int, ...]
    rows: int
    shard_rows: int
    batch: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * ITEM_BYTES

    @property
    def num_shards(self) -> int:
        """Shards, all of them full."""
        return self.rows // self.shard_rows

    def shard(self, number: int) -> Array:
        """(shard_rows, *shape) float16: the rows of one shard, the same ones each time."""
        generator = np.random.default_rng(number)
        bits = generator.integers(0, 2**15, (self.shard_rows, *self.shape), dtype=np.uint16)
        return bits.view(np.float16)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where chunks and checksums stand in a shard object."""

    data: Data
    place: str  # of the checksums, a key of ``WAYS``
    chunk_rows: int  # rows of an inner chunk, which is also what one checksum covers

    @property
    def title(self) -> str:
        """In words."""
        size = self.chunk_rows * self.data.row_bytes / 1024
        return (
            f"{self.place}, {size / 1024:.3g} MiB"
            if size >= 1024
            else f"{self.place}, {size:.3g} KiB"
        )

    @property
    def stored(self) -> bool:
        """Whether the checksum is part of the object."""
        return self.place != "in the ledger"

    @property
    def chunk_bytes(self) -> int:
        """Numbers of one chunk."""
        return self.chunk_rows * self.data.row_bytes

    @property
    def slot_bytes(self) -> int:
        """From the begin of one chunk to that of the next."""
        extra = {"in the ledger": 0, "in the chunk": CRC_BYTES}
        return self.chunk_bytes + extra.get(self.place, self.data.row_bytes)

    @property
    def shard_bytes(self) -> int:
        """Addresses kept for the chunks of one shard.

        Whole huge pages, so that files are mapped as such; but rows that shall be one array need whole rows, and
        those without gaps just what they take.
        """
        units = {"in the ledger": PAGE_BYTES, "in the chunk": HUGE_PAGE_BYTES}
        unit = units.get(self.place, math.lcm(HUGE_PAGE_BYTES, self.data.row_bytes))
        return -(-self.num_chunks * self.slot_bytes // unit) * unit

    @property
    def num_chunks(self) -> int:
        """Chunks of one shard."""
        return self.data.shard_rows // self.chunk_rows

    def encode(self, values: Array) -> tuple[list[bytes | Array], Array]:
        """A shard as the parts of its object and the checksum of every chunk."""
        numbers = values.reshape(self.num_chunks, -1).view(np.uint8)
        sums = np.array([google_crc32c.value(chunk) for chunk in numbers], "<u4")
        if self.stored:
            slots = np.zeros((self.num_chunks, self.slot_bytes), np.uint8)
            slots[:, : self.chunk_bytes] = numbers
            slots[:, self.chunk_bytes : self.chunk_bytes + CRC_BYTES] = sums[:, None].view(np.uint8)
            numbers = slots
        index = np.empty((self.num_chunks, 2), "<u8")
        index[:, 0] = np.arange(self.num_chunks) * self.slot_bytes
        index[:, 1] = self.chunk_bytes + (CRC_BYTES if self.stored else 0)
        body = index.tobytes()
        end = (
            bytes(-numbers.nbytes % PAGE_BYTES)
            + body
            + struct.pack("<I", google_crc32c.value(body))
        )
        return [numbers.reshape(-1), end], sums

    def write(self, folder: Path) -> Array:
        """Write a Zarr array; returns the checksums, (all chunks,) uint32."""
        zarr.create_array(
            folder,
            shape=(self.data.rows, *self.data.shape),
            dtype="float16",
            chunks=(self.chunk_rows, *self.data.shape),
            shards=(self.data.shard_rows, *self.data.shape),
            compressors=[Crc32cCodec()] if self.stored else None,
            filters=None,
            fill_value=0,
        )
        sums = []
        for shard in range(self.data.num_shards):
            parts, some = self.encode(self.data.shard(shard))
            write_file(self.object_path(folder, shard), parts)
            sums.append(some)
        return np.concatenate(sums)

    def object_path(self, folder: Path, shard: int) -> Path:
        """Where Zarr looks for a shard."""
        return folder.joinpath("c", str(shard), *("0" for _ in self.data.shape))


class Mapped:
    """A written layout, mapped into one range of addresses, with the state of its checks."""

    def __init__(self, layout: Layout, folder: Path, sums: Array) -> None:
        data = layout.data
        self.layout = layout
        self._range = SideBySide(data.num_shards, layout.shard_bytes)
        used = layout.num_chunks * layout.slot_bytes
        for shard in range(data.num_shards):
            with layout.object_path(folder, shard).open("rb") as file:
                self._range.attach(shard, file.fileno(), used)
        self._bytes = self._range.bytes()
        # In the chunk, the checksum is read there; the list is what a ledger would hold.
        self._sums = None if layout.stored else sums
        self._checked = np.zeros(len(sums), np.bool_)
        self._missing = len(sums)

    def reset(self) -> None:
        """Forget what was checked."""
        self._checked[:] = False
        self._missing = len(self._checked)

    def check(self, rows: Array) -> None:
        """Check the blocks of some rows that were not checked before."""
        if not self._missing:
            return
        blocks = rows // self.layout.chunk_rows
        known = self._checked[blocks]
        if known.all():
            return
        for block in np.unique(blocks[~known]).tolist():
            self._check_block(block)

    def _check_block(self, block: int) -> None:
        shard, chunk = divmod(block, self.layout.num_chunks)
        start = shard * self.layout.shard_bytes + chunk * self.layout.slot_bytes
        end = start + self.layout.chunk_bytes
        found = google_crc32c.value(self._bytes[start:end])
        if self._sums is None:
            (expected,) = struct.unpack_from("<I", self._bytes.data, end)
        else:
            expected = self._sums[block]
        if found != expected:
            raise ValueError(f"block {block}: crc32c {found:08x}, expected {expected:08x}")
        self._checked[block] = True
        self._missing -= 1

    def gather(self, way: str) -> Gather:
        """A function of rows and an array to write into; it checks what it reads."""
        read: Gather = getattr(self, f"_{way}")()

        def checked(rows: Array, out: Array) -> None:
            self.check(rows)
            read(rows, out)

        return checked

    def _take(self) -> Gather:
        data, layout = self.layout.data, self.layout
        end = len(self._bytes) // data.row_bytes * data.row_bytes
        values = self._bytes[:end].view(np.float16).reshape(-1, *data.shape)
        if layout.stored:
            step = layout.chunk_rows
            shards, chunks = np.divmod(np.arange(len(self._checked)), layout.num_chunks)
            starts = shards * layout.shard_bytes + chunks * layout.slot_bytes
            shift = starts // data.row_bytes - np.arange(len(starts)) * step
            return lambda rows, out: np.take(values, rows + shift[rows // step], 0, out, "clip")
        return lambda rows, out: np.take(values, rows, 0, out, "clip")

    def _view(self) -> Array:
        """(shards, chunks, rows of a chunk, *shape): every row where it stands."""
        data, layout = self.layout.data, self.layout
        inner = np.empty((1, *data.shape), np.float16).strides[1:]
        return np.ndarray(
            (data.num_shards, layout.num_chunks, layout.chunk_rows, *data.shape),
            np.float16,
            self._bytes,
            0,
            (layout.shard_bytes, layout.slot_bytes, data.row_bytes, *inner),
        )

    def _fancy(self) -> Gather:
        view, chunks, step = self._view(), self.layout.num_chunks, self.layout.chunk_rows

        def read(rows: Array, out: Array) -> None:
            blocks, places = np.divmod(rows, step)
            shards, blocks = np.divmod(blocks, chunks)
            out[...] = view[shards, blocks, places]

        return read

    def _offsets(self) -> Gather:
        """Rows as opaque items that may begin at every fourth byte."""
        data, layout = self.layout.data, self.layout
        count = (len(self._bytes) - data.row_bytes) // CRC_BYTES + 1
        item = np.dtype((np.void, data.row_bytes))
        view = np.ndarray((count,), item, self._bytes, 0, (CRC_BYTES,))
        row, step = data.row_bytes // CRC_BYTES, layout.chunk_rows
        tail = (layout.shard_bytes - layout.num_chunks * layout.slot_bytes) // CRC_BYTES

        def read(rows: Array, out: Array) -> None:
            at = rows * row + rows // step + rows // data.shard_rows * tail
            out.reshape(len(out), -1).view(item)[:, 0] = view[at]

        return read

    def _loop(self) -> Gather:
        view, chunks, step = self._view(), self.layout.num_chunks, self.layout.chunk_rows

        def read(rows: Array, out: Array) -> None:
            blocks, places = np.divmod(rows, step)
            shards, blocks = np.divmod(blocks, chunks)
            for row, shard, block, place in zip(
                out, shards.tolist(), blocks.tolist(), places.tolist(), strict=True
            ):
                row[...] = view[shard, block, place]

        return read


def write_file(path: Path, parts: list[bytes | Array]) -> None:
    """Write a file by few large writes and sync it.

    Linux keeps a file in pieces of memory as large as the writes were. Only large ones are mapped as huge pages, in
    which random rows are found up to a third faster; all layouts shall have them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=0) as file:
        for part in parts:
            rest = memoryview(part)  # type: ignore[arg-type]  # arrays are buffers
            while rest:
                rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def orders(data: Data) -> dict[str, list[Array]]:
    """Batches of one epoch in each order: random, sequential, and shuffled blocks that are mixed in a pool."""
    generator = np.random.default_rng(1)
    block = data.shard_rows // 16
    blocks = generator.permutation(data.rows // block)[:, None] * block + np.arange(block)
    pools = [
        generator.permutation(pool.reshape(-1)) for pool in np.array_split(blocks, len(blocks) // 8)
    ]
    rows = {
        "random": generator.permutation(data.rows),
        "seq": np.arange(data.rows),
        "block": np.concatenate(pools),
    }
    end = data.rows - data.rows % data.batch
    return {name: list(some[:end].reshape(-1, data.batch)) for name, some in rows.items()}


def ways(layout: Layout) -> tuple[str, ...]:
    """Ways to gather that are tried: all with small blocks, with larger ones the one that suits the size of a row."""
    if layout.place != "in the chunk" or layout.chunk_rows == small_chunk(layout.data):
        return WAYS[layout.place]
    return ("loop",) if layout.data.row_bytes > LARGE_ROW_BYTES else ("offsets",)


def small_chunk(data: Data) -> int:
    """Rows of a block of 256 KiB, or one."""
    return max(1, SMALL_BYTES // data.row_bytes)


def layouts(data: Data) -> Iterator[Layout]:
    """What is compared: blocks of 256 KiB (or one row), and larger ones."""
    small = small_chunk(data)
    for place in WAYS:
        if place.endswith("spaced") and small == 1:
            continue  # one unused row for every row
        yield Layout(data=data, place=place, chunk_rows=small)
    for mebibytes in (1, 4, 16):
        rows = 1 << (mebibytes * 2**20 // data.row_bytes).bit_length() - 1
        for place in list(WAYS)[1:]:
            if rows > small and not (place.endswith("spaced") and rows < 8):
                yield Layout(data=data, place=place, chunk_rows=rows)


def save_plain(data: Data, path: Path) -> Array:
    """Write all rows as one .npy file, by large writes like the layouts; returns its memory map."""
    with path.open("wb", buffering=0) as file:
        head = {"descr": "<f2", "fortran_order": False, "shape": (data.rows, *data.shape)}
        np.lib.format.write_array_header_1_0(file, head)
        for shard in range(data.num_shards):
            file.write(data.shard(shard).reshape(-1).view(np.uint8).data)
    return np.load(path, mmap_mode="r")


def compare(data: Data, folder: Path, turns: int) -> None:
    """Write all layouts, check that every gather gives the same rows, and print the tables."""
    whole = save_plain(data, folder / "x.npy")
    second = save_plain(data, folder / "y.npy")
    gathers: dict[str, Gather] = {
        "numpy.memmap, take": lambda rows, out: np.take(whole, rows, 0, out, "clip"),
        # The same again, out of its own copy, shows what differences mean nothing.
        "numpy.memmap, take (a copy)": lambda rows, out: np.take(second, rows, 0, out, "clip"),
    }
    mapped: dict[str, Mapped] = {}
    sizes: dict[str, str] = {}
    for number, layout in enumerate(layouts(data)):
        store = Mapped(layout, folder / str(number), layout.write(folder / str(number)))
        used = sum(path.stat().st_size for path in (folder / str(number)).rglob("*"))
        for way in ways(layout):
            name = f"{layout.title}: {way}"
            gathers[name], mapped[name] = store.gather(way), store
            sizes[name] = f"{100 * (used / whole.nbytes - 1):.3f} %"
    batches = orders(data)
    out = batch_memory((data.batch, *data.shape), np.float16)
    for name, gather in gathers.items():
        gather(batches["random"][0], out)
        expected = whole[batches["random"][0]]
        assert np.array_equal(out.view(np.uint16), expected.view(np.uint16)), name

    def measure(order: str, steps: int, slices: int, *, cold: bool) -> dict[str, Spread]:
        """Read some batches per slice; cold: before each slice, forget what was checked."""
        cases = {}
        for name, gather in gathers.items():

            def step(n: int, read: Gather = gather) -> object:
                return read(batches[order][n % len(batches[order])], out)

            def warm(read: Gather = gather) -> object:
                return [read(rows, out) for rows in batches["seq"]]

            cases[name] = Case(
                step=step,
                steps=steps,
                warm=warm,
                before=mapped[name].reset if cold and name in mapped else None,
            )
        return as_ratios(seconds_in_turn(cases, turns=turns, slices=slices))

    some = max(1, 2**23 // out.nbytes)
    columns = {order: measure(order, some, 15, cold=False) for order in batches}
    epoch = len(batches["random"])
    columns["first random epoch"] = measure("random", epoch, 2, cold=True)
    columns["first batch"] = measure("random", 1, 15, cold=True)
    print_table(
        f"{data.title}: rows per second over those of numpy.memmap; batches of {data.batch} rows",
        ["checksums, block: gather", *columns, "bytes"],
        [
            [name, *(column[name] for column in columns.values()), sizes.get(name, "")]
            for name in gathers
        ],
    )


def as_ratios(seconds: dict[str, list[float]]) -> dict[str, Spread]:
    """Ratios to the first case."""
    base = next(iter(seconds.values()))
    return {name: speed_ratio(values, base) for name, values in seconds.items()}


def compare_writing(data: Data, folder: Path, turns: int) -> None:
    """Encode and write one shard, synced, against numpy.save of the same rows, synced."""
    values = data.shard(0)

    def save(_: int) -> None:
        with (folder / "w.npy").open("wb") as file:
            np.save(file, values)
            file.flush()
            os.fsync(file.fileno())

    def write(layout: Layout, _: int) -> None:
        write_file(folder / "w", layout.encode(values)[0])

    cases = {"numpy.save": Case(step=save)}
    for layout in layouts(data):
        cases[layout.title] = Case(step=partial(write, layout))
    ratios = as_ratios(seconds_in_turn(cases, turns=turns, slices=3))
    print_table(
        f"{data.title}: writing a shard of {values.nbytes / 2**20:.0f} MiB with its checksums and fsync",
        ["checksums, block", "x numpy.save + fsync"],
        list(ratios.items()),
    )


def stock_readers(path: Path) -> dict[str, Callable[[Array], Array]]:
    """Functions that read rows of a Zarr array with libraries that know nothing of us."""
    array: Any = zarr.open_array(path, mode="r")
    found: dict[str, Callable[[Array], Array]] = {"zarr-python": lambda rows: array.oindex[rows]}
    if importlib.util.find_spec("tensorstore"):
        import tensorstore

        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
        opened = tensorstore.open(spec, read=True).result()
        found["tensorstore"] = lambda rows: opened[rows].read().result()
    if importlib.util.find_spec("zarrs"):
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            quick: Any = zarr.open_array(path, mode="r")
        found["zarrs"] = lambda rows: quick.oindex[rows]
    return found


def compare_stock(data: Data, folder: Path, turns: int) -> None:
    """What stock readers do with a flipped byte of payload, and how fast they read each layout."""
    cases: dict[str, Case] = {}
    seen: dict[str, str] = {}
    batches = orders(data)["random"]
    for number, layout in enumerate(layouts(data)):
        path = folder / f"stock{number}"
        layout.write(path)
        expected = np.concatenate([data.shard(shard) for shard in range(data.num_shards)])
        for name, read in stock_readers(path).items():
            title = f"{layout.title}: {name}"
            same = np.array_equal(
                read(batches[0]).view(np.uint16), expected[batches[0]].view(np.uint16)
            )
            assert same, title

            def step(n: int, read: Any = read) -> object:
                return read(batches[n % len(batches)])

            cases[title] = Case(step=step, steps=2)
            seen[title] = _flipped(layout, path, name)
    ratios = as_ratios(seconds_in_turn(cases, turns=turns, slices=1))
    print_table(
        f"{data.title}, {data.rows:,} rows: stock Zarr readers",
        ["checksums, block: reader", "a flipped byte of payload", "random rows, x the first line"],
        [[name, seen[name], ratios[name]] for name in cases],
    )


def _flipped(layout: Layout, path: Path, reader: str) -> str:
    """Flip one byte of row 0, read the row with a reader that is opened anew, and put the byte back."""
    shard = layout.object_path(path, 0)
    good = shard.read_bytes()
    shard.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    try:
        stock_readers(path)[reader](np.arange(1))
    except Exception as error:  # each library has its own
        return f"error: {str(error).splitlines()[0][:50]}"
    else:
        return "silent"
    finally:
        shard.write_bytes(good)


def main() -> None:
    """Run the comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shards-a", type=int, default=12, help="shards of 16,384 x 1024 numbers (default: 12)"
    )
    parser.add_argument(
        "--shards-b", type=int, default=16, help="shards of 64 x 257 x 1024 numbers (default: 16)"
    )
    parser.add_argument(
        "--turns", type=int, default=7, help="how often everything is measured (default: 7)"
    )
    parser.add_argument(
        "--only", choices=("A", "B"), help="one of the two kinds of data (default: both)"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the files go (default: a temporary folder)"
    )
    options = parser.parse_args()
    a = Data(
        title="A, vectors",
        shape=(1024,),
        rows=options.shards_a * 16384,
        shard_rows=16384,
        batch=256,
    )
    b = Data(
        title="B, tokens", shape=(257, 1024), rows=options.shards_b * 64, shard_rows=64, batch=16
    )
    for name, data in (("A", a), ("B", b)):
        if options.only in (None, name):
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                compare(data, Path(folder), options.turns)
                compare_writing(data, Path(folder), options.turns)
                few = Data(**{**data.__dict__, "rows": 2 * data.shard_rows})
                compare_stock(few, Path(folder), min(3, options.turns))


if __name__ == "__main__":
    main()
