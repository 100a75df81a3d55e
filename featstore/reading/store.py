"""Open a store, check it, and read rows by sample id."""

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import featstore.files.machine as memory
from featstore.containers import make_backend
from featstore.containers.base import Array, ColumnReader
from featstore.errors import (
    ConfigError,
    MissingSamples,
    ShardCorrupt,
    StoreError,
    StoreIncomplete,
    ViewMismatch,
    command,
    shorten,
)
from featstore.files.thread_lock import ThreadLock
from featstore.format.artefacts import read_artefact, read_channels
from featstore.format.fields import Codes, Ragged, TopK, field_columns
from featstore.format.int8 import Channels, dequantise
from featstore.format.ledger import (
    InvalidRow,
    ShardRecord,
    committed_shards,
    entry_path,
    read_entry,
)
from featstore.format.manifest import (
    FieldRecord,
    Int8Encoding,
    Manifest,
    RaggedEncoding,
    TopKEncoding,
    read_manifest,
)
from featstore.format.views import describe
from featstore.places.open_place import is_url

if TYPE_CHECKING:
    from featstore.reading.cached.cache import CacheConfig
    from featstore.reading.cached.mirror import Mirror

Rows = npt.NDArray[np.int64]

_UNSIGNED = np.dtype(np.uint64)

HELD_BYTES = 256 * 2**20
"""Of ragged items and texts, at most so much is held decoded; the latest shard always."""

TEXT_BYTES = 100
"""What a short text takes in memory."""


class FeatureStore:
    """A store that was opened and checked. Read-only; safe to use after fork, and to send to another process.

    Attributes:
        path: folder of the store; of a store at a URL, the part of it that is in the cache.
        address: the folder or URL, for messages.
        manifest: what the store says of itself.
        shards: numbers of the shards that can be read.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        shards: Sequence[int],
        *,
        mirror: "Mirror | None" = None,
    ) -> None:
        self.path = path
        self.address = str(path) if mirror is None else mirror.url
        self.manifest = manifest
        self.shards = shards
        self._mirror = mirror
        self._backend = make_backend(path, manifest)
        self._entries: dict[int, ShardRecord] = {}
        self._columns: dict[str, ColumnReader] = {}
        self._held: OrderedDict[tuple[str, int], Array] = OrderedDict()
        self._holding = ThreadLock(self._drop_held)
        self._present = shards if isinstance(shards, range) else frozenset(shards)
        # Filled as shards are touched; untouched pages of these take no memory.
        self._unusable = memory.zeros((manifest.num_rows,), np.bool_, where=path)
        self._touched = memory.zeros((manifest.num_shards,), np.bool_, where=path)
        self._all_usable = True
        """As far as rows were touched."""
        # Looked up once: whatever gather does besides copying is done with cold caches.
        self._num_rows = manifest.num_rows
        self._plain = {
            name: f"fields/{name}"
            for name, spec in manifest.fields.items()
            if spec.encoding.kind == "plain" and spec.dtype != "text"
        }
        self._steady = None
        if mirror is not None:
            from featstore.reading.cached.columns import Steady

            self._steady = Steady(mirror, self._backend, self.entries, self._forget)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        allow_incomplete: bool = False,
        cache: "CacheConfig | None" = None,
    ) -> "FeatureStore":
        """Open a store and check what can be checked without reading its payload.

        Of a store at a URL, what is needed is fetched when it is needed first, and kept in a cache that all processes
        share; see docs/sharing.md, "Read in place".

        Args:
            path: folder of the store, or the URL of one.
            allow_incomplete: also open a store whose extraction is not finished; rows that are not there yet count
                as invalid.
            cache: where and how much to keep of a store at a URL; from the environment if not given.

        Raises:
            StoreNotFound: nothing there, or not a store.
            ManifestMismatch: another version of the format.
            StoreIncomplete: shards are missing.
            RemoteError: the place of a URL does not answer.
        """
        if is_url(str(path)):
            from featstore.reading.cached.open_url import open_mirror

            mirror = open_mirror(str(path), cache, allow_incomplete=allow_incomplete)
            return cls(mirror.folder, mirror.manifest, mirror.shards, mirror=mirror)
        path = Path(path)
        manifest = read_manifest(path)
        shards = committed_shards(path, manifest.num_shards)
        missing = manifest.num_shards - len(shards)
        if missing and not allow_incomplete:
            raise StoreIncomplete(
                f"{path}: {missing} of {manifest.num_shards} shards are missing. Run {command('extract')} again "
                "with the settings this store was made with to resume."
            )
        return cls(path, manifest, shards)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory maps behind; each process opens its own."""
        names = ("path", "manifest", "shards", "_mirror")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open again in another process."""
        path, manifest, shards, mirror = state.values()
        self.__init__(path, manifest, shards, mirror=mirror)  # type: ignore[misc]

    @property
    def num_rows(self) -> int:
        """Rows of the store, valid or not."""
        return self.manifest.num_rows

    @property
    def fingerprint(self) -> str:
        """See ``Manifest.fingerprint``."""
        return self.manifest.fingerprint

    @property
    def remote(self) -> bool:
        """Whether it is read from a URL."""
        return self._mirror is not None

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return len(self.shards) == self.manifest.num_shards

    @cached_property
    def sample_ids(self) -> list[str]:
        """Id of every row; "" where the shard is not there yet."""
        ids = self._column("sample_id", np.dtype(object), "")
        return [str(sample_id) for sample_id in ids]

    @cached_property
    def valid(self) -> npt.NDArray[np.bool_]:
        """(N,) bool; False where the image or its features were unusable."""
        return self._column("valid", np.dtype(np.bool_), False)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) int64 class indices; -1 where unknown."""
        if not self.manifest.source.has_labels:
            return np.full(self.num_rows, -1, dtype=np.int64)
        return self._column("label", np.dtype(np.int64), -1)

    @cached_property
    def content_sha256(self) -> npt.NDArray[np.uint8]:
        """(N, 32) uint8: SHA-256 of each image file's bytes."""
        return self._column("content_sha256", np.dtype(np.uint8), 0)

    def _column(self, name: str, dtype: np.dtype[Any], missing: object) -> Array:
        shape = self._backend.columns[name].shape
        values = memory.empty((self.num_rows, *shape), dtype, where=self.address)
        if len(self.shards) < self.manifest.num_shards:
            values[...] = missing
        groups: Iterable[Sequence[int]] = [self.shards]
        if self._steady is not None:
            groups = self._steady.groups(name, self.shards)
        for shards in groups:
            for shard in shards:
                rows = self.manifest.shard_range(shard)
                values[rows.start : rows.stop] = self.read_shard(shard, name)
        return values

    def read_shard(self, shard: int, column: str) -> Array:
        """One column of one shard, e.g. ``fields/cls`` or ``sample_id``; valid or not.

        Returns:
            (rows of the shard, *shape), read-only; memory-mapped where the store is local and the container allows.

        Raises:
            ShardCorrupt: bytes are not those that were written.
        """
        if self._steady is None:
            with as_opened(self.path, self.manifest):
                return self._backend.read_shard(shard, column, self.entry(shard).objects)
        return self._steady.read_shard(shard, column)

    def entries(self, shards: Sequence[int] | None = None) -> list[ShardRecord]:
        """The ledger's records of some shards; of all that can be read, if none are named. See ``entry``."""
        wanted = self.shards if shards is None else shards
        if self._mirror is not None:
            self._mirror.bring_entries([item for item in wanted if item not in self._entries])
        return [self.entry(shard) for shard in wanted]

    def entry(self, shard: int) -> ShardRecord:
        """The ledger's record of a shard.

        Raises:
            ShardCorrupt: it is missing, does not follow the format, or speaks of other rows.
        """
        if shard not in self._entries:
            with as_opened(self.path, self.manifest):
                self._entries[shard] = self._read_entry(shard)
        return self._entries[shard]

    def _read_entry(self, shard: int) -> ShardRecord:
        mirror = self._mirror
        entry = read_entry(self.path, shard) if mirror is None else mirror.entry(shard)
        rows = self.manifest.shard_range(shard)
        if entry.rows != (rows.start, rows.stop):
            raise ShardCorrupt(
                f"{entry_path(self.path, shard)}: rows {entry.rows[0]} to {entry.rows[1] - 1}, expected "
                f"{rows.start} to {rows.stop - 1}. Delete the file and run {command('extract')} with "
                "the same settings."
            )
        return entry

    def fetch_ahead(self, fields: Iterable[str], rows: npt.ArrayLike) -> None:
        """Begin to fetch what some rows will need, in another thread. Does nothing where the store is local.

        Args:
            fields: names of fields.
            rows: (B,) row numbers, e.g. of the next batches.
        """
        if self._steady is not None:
            views = len(self.manifest.views)
            columns = [
                column.name
                for name in fields
                for column in field_columns(name, self._field(name), views)
            ]
            shards = np.unique(self.manifest.shards_of(self._row_numbers(rows)))
            self._steady.ahead(columns, shards)

    def _forget(self, shard: int) -> None:
        self._backend.forget(shard)
        for reader in self._columns.values():
            reader.forget(shard)

    def invalid_rows(self) -> list[InvalidRow]:
        """Every row without a usable feature, with the reason, in row order."""
        return [item for entry in self.entries() for item in entry.invalid]

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {sample_id: row for row, sample_id in enumerate(self.sample_ids) if sample_id}

    def rows_of(self, sample_ids: Iterable[str]) -> Rows:
        """Find rows by sample id.

        Returns:
            (n,) int64.

        Raises:
            MissingSamples: names the ids that the store does not hold.
        """
        wanted = list(sample_ids)
        rows = np.fromiter((self._row_of.get(name, -1) for name in wanted), np.int64, len(wanted))
        if (rows < 0).any():
            missing = [wanted[i] for i in np.flatnonzero(rows < 0)]
            raise MissingSamples(
                f"{self.address}: {len(missing)} of {len(wanted)} samples are not in the store: {shorten(missing)}. "
                f"It holds {self.num_rows} samples such as {shorten(self.sample_ids[:2])}."
            )
        return rows

    def artefact(self, name: str) -> dict[str, Array]:
        """Arrays of a small file of the store, its hash compared.

        Raises:
            ConfigError: the store has no such artefact.
            ShardCorrupt: it is not the file that was written.
        """
        if self._mirror is not None:
            return self._mirror.artefact(name)
        return read_artefact(self.path, self.manifest, name)

    def gather(
        self,
        field: str,
        rows: npt.ArrayLike,
        *,
        views: npt.ArrayLike | None = None,
        out: Array | None = None,
    ) -> Array:
        """Read rows of one field.

        A block of rows is checked against the ledger when it is touched first; after that, its rows cost a copy.

        Args:
            field: name of the field; not a top-k or ragged one.
            rows: (B,) row numbers, in any order, repeats allowed.
            views: (k,) columns of the view axis to take of every row, or (B, k) of each row its own; then V is k below.
                Where rows are memory-mapped (raw zarr), the other views are not touched.
            out: (B, V, *shape) array to write into, e.g. over pinned memory; made if not given.

        Returns:
            (B, V, *shape), without V where the field is not per view: a copy, ``out`` if it was given. Quantised fields
            come back as float32, text as objects, bfloat16 as ``ml_dtypes.bfloat16``.

        Raises:
            ConfigError: the store has no such field or the field no views, ``rows`` or ``views`` are not integers (a
                mask, for one), or ``out`` does not fit.
            ViewMismatch: a view is outside the view axis.
            MissingSamples: a row is outside the store or invalid; the message names ids and reasons.
            ShardCorrupt: a block's bytes are not those that were written.
        """
        if field in self._plain:
            wanted = self._row_numbers(rows)
            picked = None if views is None else self._view_numbers(field, views, len(wanted))
            return self._gather_column(self._plain[field], wanted, out, picked)
        spec = self._field(field)
        encoding = spec.encoding
        if isinstance(encoding, TopKEncoding | RaggedEncoding):
            raise ConfigError(
                f"{self.address}: field {field!r} is {encoding.kind}; read it with gather_{encoding.kind}."
            )
        wanted = self._row_numbers(rows)
        if isinstance(encoding, Int8Encoding):
            found = self.gather_codes(field, wanted, views=views)
            if out is not None:
                self._check_out(f"fields/{field}/codes", out, found.codes.shape, np.float32)
            return dequantise(*found, out=out)
        texts = self._gather_text(field, wanted)
        if views is None:
            return texts
        picked = self._view_numbers(field, views, len(wanted))
        return texts[np.arange(len(wanted))[:, None], picked]

    def gather_topk(self, field: str, rows: npt.ArrayLike) -> TopK:
        """Read rows of a top-k field.

        Args:
            field: name of the field.
            rows: (B,) row numbers, in any order, repeats allowed.

        Raises:
            ConfigError, MissingSamples, ShardCorrupt: as ``gather``.
        """
        if not isinstance(self._field(field).encoding, TopKEncoding):
            raise ConfigError(f"{self.address}: field {field!r} is not top-k; read it with gather.")
        wanted = self._row_numbers(rows)
        values = self._gather_column(f"fields/{field}/values", wanted)
        return TopK(values, self._gather_column(f"fields/{field}/indices", wanted))

    def gather_ragged(self, field: str, rows: npt.ArrayLike) -> Ragged:
        """Read rows of a ragged field.

        Args:
            field: name of the field.
            rows: (B,) row numbers, in any order, repeats allowed.

        Raises:
            ConfigError, MissingSamples, ShardCorrupt: as ``gather``.
        """
        if not isinstance(self._field(field).encoding, RaggedEncoding):
            raise ConfigError(
                f"{self.address}: field {field!r} is not ragged; read it with gather."
            )
        wanted = self._row_numbers(rows)
        column = self._backend.columns[f"fields/{field}/values"]
        found = self._gather_column(f"fields/{field}/ranges", wanted)
        ranges = found.reshape(len(wanted), math.prod(found.shape[1:-1]), 2)  # views, or one
        parts = []
        shards = self.manifest.shards_of(wanted)
        for row, shard, spans in zip(
            wanted.tolist(), shards.tolist(), ranges.tolist(), strict=True
        ):
            items = self._shard_column(f"fields/{field}/values", shard)
            origin = shard * self.manifest.work.shard_rows * column.capacity
            for start, stop in spans:
                if not 0 <= start - origin <= stop - origin <= len(items):
                    raise ShardCorrupt(
                        f'{self.address}: row {row}, field "{field}": items {start} to {stop} of a shard that has '
                        f"{len(items)} from {origin} on. The ledger's checksums agree: it was written so."
                    )
                parts.append(items[start - origin : stop - origin])
        lengths = [len(part) for part in parts]
        assert column.dtype is not None
        empty = np.empty((0, *column.shape), dtype=column.dtype)
        return Ragged(np.concatenate([empty, *parts]), np.cumsum([0, *lengths], dtype=np.int64))

    def _shard_column(self, name: str, shard: int) -> Array:
        """One column of one shard, kept for a while: ragged items and texts have no rows to gather one by one."""
        key = (name, shard)
        with self._holding:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            values = self.read_shard(shard, name)
            self._held[key] = values
            while len(self._held) > 1 and sum(map(_memory, self._held.values())) > HELD_BYTES:
                self._held.popitem(last=False)
            return values

    def _drop_held(self) -> None:
        self._held.clear()

    def _gather_text(self, field: str, rows: Rows) -> Array:
        name = f"fields/{field}"
        self._check_usable(rows)
        shape = self._backend.columns[name].shape
        out = memory.empty((len(rows), *shape), object, where=self.address)
        shards = self.manifest.shards_of(rows)
        for shard in np.unique(shards).tolist():
            chosen = np.flatnonzero(shards == shard)
            texts = self._shard_column(name, shard)
            out[chosen] = texts[rows[chosen] - self.manifest.shard_range(shard).start]
        return out

    def gather_codes(
        self, field: str, rows: npt.ArrayLike, *, views: npt.ArrayLike | None = None
    ) -> Codes:
        """Read rows of an int8 field without turning them into numbers, e.g. to do that on a GPU.

        Args:
            field: name of the field.
            rows: (B,) row numbers, in any order, repeats allowed.
            views: as for ``gather``.

        Raises:
            ConfigError, ViewMismatch, MissingSamples, ShardCorrupt: as ``gather``.
        """
        encoding = self._field(field).encoding
        if not isinstance(encoding, Int8Encoding):
            raise ConfigError(f"{self.address}: field {field!r} is not int8; read it with gather.")
        wanted = self._row_numbers(rows)
        picked = None if views is None else self._view_numbers(field, views, len(wanted))
        codes = self._gather_column(f"fields/{field}/codes", wanted, views=picked)
        scale = None
        if encoding.scheme != "channel":
            scale = self._gather_column(f"fields/{field}/scale", wanted, views=picked)
        return Codes(codes, scale, self._channels.get(field))

    @cached_property
    def _channels(self) -> dict[str, Channels]:
        for field in self.manifest.fields.values():
            if self._mirror is not None and isinstance(field.encoding, Int8Encoding):
                self._mirror.bring_artefact(field.encoding.channels)
        return read_channels(self.path, self.manifest)

    def _gather_column(
        self,
        name: str,
        rows: Rows,
        out: Array | None = None,
        views: Rows | None = None,
        *,
        steady: bool = False,
    ) -> Array:
        column = self._backend.columns[name]
        assert column.dtype is not None
        shape = (len(rows), *column.shape)
        if views is not None:
            shape = (*views.shape, *column.shape[1:])
        if out is None:
            try:
                out = np.empty(shape, dtype=column.dtype)
            except (MemoryError, ValueError):
                raise memory.too_little(self.address, shape, column.dtype) from None
            if out.nbytes > memory.LARGE_BYTES:  # looked at here: this is called with every batch
                memory.check(shape, column.dtype, where=self.address)
        else:
            self._check_out(name, out, shape, column.dtype)
        if len(rows) == 0:
            return out
        if self._steady is not None and not steady:
            work = partial(self._gather_column, name, rows, out, views, steady=True)
            self._steady.run(work)
            self._steady.note(name, rows)
            return out
        if name not in self._columns:
            self._columns[name] = self._backend.open_column(name)
        reader = self._columns[name]
        new = reader.unprepared(rows)
        if new.size:
            self._check_usable(new)
            shards = self.manifest.shards_of(new)
            if self._steady is not None:
                # All that the rows need, so that nothing of it is evicted for the rest.
                self._steady.bring(name, np.unique(self.manifest.shards_of(rows)))
            with as_opened(self.path, self.manifest):
                for shard in np.unique(shards).tolist():
                    reader.prepare(shard, self.entry(shard).objects, new[shards == shard])
        if not self._all_usable and self._unusable[rows].any():
            raise self._unusable_error(rows)
        if views is None:
            reader.take(rows, out)
        else:
            reader.take_views(rows, views, out)
        return out

    def _check_out(
        self, name: str, out: Array, shape: tuple[int, ...], dtype: npt.DTypeLike
    ) -> None:
        if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
            raise ConfigError(
                f'{self.address}: out is {out.dtype} {out.shape}; column "{name}" needs a contiguous '
                f"{np.dtype(dtype)} array of shape {shape}."
            )

    def _check_usable(self, rows: Rows) -> None:
        """Note which rows of untouched shards are unusable, and refuse the unusable ones among ``rows``."""
        shards = self.manifest.shards_of(rows)
        untouched = np.unique(shards[~self._touched[shards]]).tolist()
        if self._steady is not None:
            present = np.array([shard for shard in untouched if shard in self._present], np.int64)
            self._steady.run(partial(self._steady.bring, "valid", present))
        for shard in untouched:
            span = self.manifest.shard_range(shard)
            if shard not in self._present:
                self._unusable[span.start : span.stop] = True
                self._all_usable = False
            else:
                valid = self.read_shard(shard, "valid")
                # Pages that nobody has written to take no memory.
                if not valid.all():
                    self._unusable[span.start : span.stop] = ~valid
                    self._all_usable = False
            self._touched[shard] = True
        if self._unusable[rows].any():
            raise self._unusable_error(rows)

    def _field(self, name: str) -> FieldRecord:
        if name not in self.manifest.fields:
            raise ConfigError(
                f"{self.address}: no field {name!r}; it has: {shorten(sorted(self.manifest.fields))}."
            )
        return self.manifest.fields[name]

    def _row_numbers(self, rows: npt.ArrayLike) -> Rows:
        if isinstance(rows, np.ndarray) and rows.dtype == np.int64 and rows.ndim == 1:
            wanted = rows
        else:
            wanted = _as_row_numbers(rows)
        # One look for both ends: unsigned, negative numbers are the largest. argmax, because max takes seven times as
        # long for so few.
        unsigned = wanted.view(_UNSIGNED)
        if wanted.size and unsigned[unsigned.argmax()] >= self._num_rows:
            raise MissingSamples(
                f"{self.address}: rows {wanted.min()} to {wanted.max()} were asked for; it has rows 0 to "
                f"{self.num_rows - 1}."
            )
        return wanted

    def _view_numbers(self, field: str, views: npt.ArrayLike, num_rows: int) -> Rows:
        """(num_rows, k) columns of the view axis, all of them inside it."""
        if not self.manifest.fields[field].per_view:
            raise ConfigError(
                f"{self.address}: field {field!r} has one value per row, whatever the view; leave out views."
            )
        given = np.asarray(views)
        fits = given.ndim == 1 or (given.ndim == 2 and len(given) == num_rows)
        if not fits or (given.size and given.dtype.kind not in "iu"):
            raise ConfigError(
                f"{self.address}: views are {given.dtype} of shape {given.shape}; expected integers, (k,) for all rows "
                f"alike or ({num_rows}, k) for each its own."
            )
        stored = self.manifest.views
        if given.size and (given.min() < 0 or given.max() >= len(stored)):
            raise ViewMismatch(
                f"{self.address}: views {given.min()} to {given.max()} were asked for; it has 0 to {len(stored) - 1}: "
                f"{describe(stored.views)}."
            )
        columns = given.astype(np.int64, copy=False)
        return np.broadcast_to(columns, (num_rows, columns.shape[-1]))

    def _unusable_error(self, rows: Rows) -> MissingSamples:
        bad = rows[self._unusable[rows]]
        reasons: dict[int, str] = {}
        for shard in np.unique(self.manifest.shards_of(bad)).tolist():
            if shard in self._present:
                invalid = self.entry(shard).invalid
                reasons |= {item.row: f"{item.sample_id} ({item.reason})" for item in invalid}
        named = [reasons.get(row, f"row {row} (not extracted yet)") for row in bad.tolist()]
        return MissingSamples(
            f"{self.address}: {len(named)} of the rows asked for have no usable feature: {shorten(named)}. "
            "Leave out the rows where `valid` is False."
        )


def _memory(values: Array) -> int:
    """Memory of a column of a shard; a view of a mapped file takes none."""
    if values.dtype == object:
        return TEXT_BYTES * values.size
    base: Any = values
    while base is not None and not isinstance(base, np.memmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return 0 if isinstance(base, np.memmap) else values.nbytes


def _as_row_numbers(rows: npt.ArrayLike) -> Rows:
    given = np.asarray(rows).reshape(-1)
    if given.size and given.dtype.kind not in "iu":
        # A mask or fractions would become other rows than those that were meant.
        raise ConfigError(
            f"rows must be integers, found {given.dtype}; of a mask, take np.flatnonzero(mask)."
        )
    return given.astype(np.int64, copy=False)


@contextmanager
def as_opened(path: Path, manifest: Manifest) -> Iterator[None]:
    """Say so where a shard is not the one that was expected because the folder holds another version by now.

    Args:
        path: folder of the store.
        manifest: that it was opened with.

    Raises:
        StoreError: rows were appended, or the store was made anew.
        ShardCorrupt: neither; the shard is damaged.
    """
    try:
        yield
    except ShardCorrupt as error:
        found = read_manifest(path)
        if found == manifest:
            raise
        raise StoreError(
            f"{path}: is version {found.version} with {found.num_rows:,} rows by now; it was opened as version "
            f"{manifest.version} with {manifest.num_rows:,}. Open it again."
        ) from error
