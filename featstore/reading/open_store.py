"""Open a store, check it, and read rows: what ``FeatureStore`` and the loaders are made of."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

import featstore.files.machine as memory
from featstore.errors import ConfigError, MissingSamples, ViewMismatch, shorten
from featstore.files.array_types import Array, Bytes, Mask, Rows
from featstore.format.fields import Codes, Ragged, TopK, field_columns
from featstore.format.int8 import Channels, dequantise
from featstore.format.ledger import InvalidRow, ShardRecord
from featstore.format.manifest_records import (
    FieldRecord,
    Int8Encoding,
    RaggedEncoding,
    TopKEncoding,
)
from featstore.format.views import describe_views
from featstore.places.open_place import is_url
from featstore.reading.shards import LocalShards, Shards
from featstore.reading.stored_rows import StoredRows

if TYPE_CHECKING:
    from featstore.reading.cached.cache import CacheConfig

_UNSIGNED = np.dtype(np.uint64)


class OpenStore:
    """An open store. Read-only; safe to use in several threads, after a fork, and to send to another process.

    If the store is repaired, replaced or deleted while it is open, rows that were read before stay as they were, and
    what was not read before gives an error; rows of two stores are never mixed.

    Attributes:
        path: Folder of the store; of a store at a URL, the part of it that is in the cache.
        address: Folder or URL, for messages.
        manifest: The parsed ``manifest.json``.
        shards: Numbers of the shards that can be read.
        storage: Where the shards are read from.
    """

    def __init__(self, storage: Shards) -> None:
        self.storage = storage
        self.path, self.address = storage.path, storage.address
        self.manifest, self.shards = storage.manifest, storage.numbers
        manifest = self.manifest
        self._columns = storage.backend.columns
        self._stored = StoredRows(storage)
        self._present = self.shards if isinstance(self.shards, range) else frozenset(self.shards)
        # Filled as shards are touched; untouched pages of these take no memory.
        self._unusable = memory.zeros((manifest.num_rows,), np.bool_, where=self.address)
        self._touched = memory.zeros((manifest.num_shards,), np.bool_, where=self.address)
        self._all_usable = True
        """As far as rows were touched."""
        # Looked up once: whatever gather does besides copying is done with cold caches.
        self._num_rows = manifest.num_rows
        self._plain = {
            name: f"fields/{name}"
            for name, spec in manifest.fields.items()
            if spec.encoding.kind == "plain" and spec.dtype != "text"
        }

    @classmethod
    def open(
        cls, path: str | Path, *, allow_incomplete: bool = False, cache: "CacheConfig | None" = None
    ) -> Self:
        """Open a store and check what can be checked without reading its rows.

        Of a store at a URL, what is needed is fetched when it is needed first, and kept in a cache that all processes
        share; see docs/sharing.md, "Read in place".

        Args:
            path: Folder of the store, or the URL of one.
            allow_incomplete: Also open a store whose extraction is not finished; rows that are not there yet count
                as invalid.
            cache: Where and how much to keep of a store at a URL; from the environment if not given.

        Raises:
            StoreNotFound: Nothing is there, or not a store.
            ManifestMismatch: Another version of the format.
            StoreIncomplete: Shards are missing.
            RemoteError: The server of a URL does not answer.
        """
        if is_url(str(path)):
            from featstore.reading.cached.open_url import open_mirror
            from featstore.reading.cached.shards import CachedShards

            mirror = open_mirror(str(path), cache, allow_incomplete=allow_incomplete)
            return cls(CachedShards(mirror))
        return cls(LocalShards.open(Path(path), allow_incomplete=allow_incomplete))

    def __reduce__(self) -> tuple[Any, ...]:
        """Open again in another process."""
        return type(self), (self.storage,)

    @property
    def num_rows(self) -> int:
        """Rows of the store, valid or not."""
        return self.manifest.num_rows

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def remote(self) -> bool:
        """Whether it is read from a URL."""
        return self.storage.evicts

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
    def valid(self) -> Mask:
        """(N,) bool; False where the image or its features were unusable."""
        return self._column("valid", np.dtype(np.bool_), False)

    @cached_property
    def labels(self) -> Rows:
        """(N,) int64 class indices; -1 where unknown."""
        if not self.manifest.source.has_labels:
            return np.full(self.num_rows, -1, dtype=np.int64)
        return self._column("label", np.dtype(np.int64), -1)

    @cached_property
    def content_sha256(self) -> Bytes:
        """(N, 32) uint8: SHA-256 of each image file's bytes."""
        return self._column("content_sha256", np.dtype(np.uint8), 0)

    def _column(self, name: str, dtype: np.dtype[Any], missing: object) -> Array:
        shape = self._columns[name].shape
        values = memory.empty((self.num_rows, *shape), dtype, where=self.address)
        if len(self.shards) < self.manifest.num_shards:
            values[...] = missing
        for shards in self.storage.groups(name, self.shards):
            for shard in shards:
                rows = self.manifest.shard_range(shard)
                values[rows.start : rows.stop] = self.read_shard(shard, name)
        return values

    def read_shard(self, shard: int, column: str) -> Array:
        """One column of one shard, e.g. ``fields/cls`` or ``sample_id``; valid or not.

        Returns:
            (rows of the shard, *shape), read-only; memory-mapped where the store is local and the container allows.

        Raises:
            ShardCorrupt: Bytes are not those that were written.
        """
        return self.storage.read_shard(shard, column)

    def entries(self, shards: Sequence[int] | None = None) -> list[ShardRecord]:
        """The ledger's records of some shards; of all that can be read, if none are named. See ``entry``."""
        return self.storage.entries(self.shards if shards is None else shards)

    def entry(self, shard: int) -> ShardRecord:
        """The ledger's record of a shard.

        Raises:
            ShardCorrupt: It is missing, does not follow the format, or is of other rows.
        """
        return self.storage.entry(shard)

    def fetch_ahead(self, fields: Iterable[str], rows: npt.ArrayLike) -> None:
        """Begin to fetch what some rows will need, in another thread. Does nothing where the store is local.

        Args:
            rows: (B,) row numbers, e.g. of the next batches.
        """
        views = len(self.manifest.views)
        columns = [
            column.name
            for name in fields
            for column in field_columns(name, self._field(name), views)
        ]
        shards = np.unique(self.manifest.shards_of(self._row_numbers(rows)))
        self.storage.ahead(columns, shards)

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

    def row_of(self, sample_id: str) -> int | None:
        """The row of a sample; None where the store does not have it."""
        return self._row_of.get(sample_id)

    def refuse_invalid(self, rows: npt.ArrayLike) -> None:
        """Check that rows have usable features.

        Raises:
            MissingSamples: Names the ids of those that have none, and the reasons.
        """
        self._check_usable(self._row_numbers(rows))

    def artefact(self, name: str) -> dict[str, Array]:
        """Arrays of a small file of the store, its hash compared.

        Raises:
            ConfigError: the store has no such artefact.
            ShardCorrupt: it is not the file that was written.
        """
        return self.storage.artefact(name)

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
        self._check_usable(wanted)
        texts = self._stored.texts(f"fields/{field}", wanted)
        if views is None:
            return texts
        picked = self._view_numbers(field, views, len(wanted))
        return texts[np.arange(len(wanted))[:, None], picked]

    def gather_topk(
        self, field: str, rows: npt.ArrayLike, *, views: npt.ArrayLike | None = None
    ) -> TopK:
        """Read rows of a top-k field; arguments and errors as for ``gather``."""
        _, wanted, picked = self._asked(field, "topk", rows, views)
        values = self._gather_column(f"fields/{field}/values", wanted, views=picked)
        return TopK(values, self._gather_column(f"fields/{field}/indices", wanted, views=picked))

    def gather_ragged(
        self, field: str, rows: npt.ArrayLike, *, views: npt.ArrayLike | None = None
    ) -> Ragged:
        """Read rows of a ragged field; arguments and errors as for ``gather``."""
        _, wanted, picked = self._asked(field, "ragged", rows, views)
        self._check_usable(wanted)
        return self._stored.ragged(field, wanted, picked)

    def gather_codes(
        self, field: str, rows: npt.ArrayLike, *, views: npt.ArrayLike | None = None
    ) -> Codes:
        """Read rows of an int8 field as they are stored, to make numbers of them on a GPU; as for ``gather``."""
        encoding, wanted, picked = self._asked(field, "int8", rows, views)
        codes = self._gather_column(f"fields/{field}/codes", wanted, views=picked)
        scale = None
        if encoding.scheme != "channel":
            scale = self._gather_column(f"fields/{field}/scale", wanted, views=picked)
        return Codes(codes, scale, self._channels.get(field))

    def _asked(
        self, field: str, kind: str, rows: npt.ArrayLike, views: npt.ArrayLike | None
    ) -> tuple[Any, Rows, Rows | None]:
        """Encoding of a field of some kind, and the rows and columns of the view axis that were asked for."""
        encoding = self._field(field).encoding
        if encoding.kind != kind:
            raise ConfigError(
                f"{self.address}: field {field!r} is not {kind}; read it with gather."
            )
        wanted = self._row_numbers(rows)
        picked = None if views is None else self._view_numbers(field, views, len(wanted))
        return encoding, wanted, picked

    @cached_property
    def _channels(self) -> dict[str, Channels]:
        return self.storage.channels()

    def _gather_column(
        self, name: str, rows: Rows, out: Array | None = None, views: Rows | None = None
    ) -> Array:
        column = self._columns[name]
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
                memory.check_memory(shape, column.dtype, where=self.address)
        else:
            self._check_out(name, out, shape, column.dtype)
        if not self._all_usable:
            self._refuse_unusable(rows)
        self._stored.copy(name, rows, out, views, self._check_usable)
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
        present = [shard for shard in untouched if shard in self._present]
        if present:
            self.storage.run(lambda: self.storage.bring("valid", np.array(present)))
        for shard in untouched:
            span = self.manifest.shard_range(shard)
            valid = self.read_shard(shard, "valid") if shard in self._present else np.False_
            # Untouched pages take no memory. In this order, because other threads look meanwhile.
            if not np.all(valid):
                self._all_usable = False
                self._unusable[span.start : span.stop] = ~valid
            self._touched[shard] = True
        self._refuse_unusable(rows)

    def _refuse_unusable(self, rows: Rows) -> None:
        if not self._unusable[rows].any():
            return
        bad = rows[self._unusable[rows]]
        reasons: dict[int, str] = {}
        for shard in np.unique(self.manifest.shards_of(bad)).tolist():
            if shard in self._present:
                invalid = self.entry(shard).invalid
                reasons |= {item.row: f"{item.sample_id} ({item.reason})" for item in invalid}
        named = [reasons.get(row, f"row {row} (not extracted yet)") for row in bad.tolist()]
        raise MissingSamples(
            f"{self.address}: {len(named)} of the rows asked for have no usable feature: {shorten(named)}. "
            "Leave out the rows where `valid` is False."
        )

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
        columns = self.view_numbers(views, num_rows)
        return np.broadcast_to(columns, (num_rows, columns.shape[-1]))

    def view_numbers(self, views: npt.ArrayLike, num_rows: int = -1) -> Rows:
        """Check columns of the view axis; (k,) or (``num_rows``, k) int64.

        Raises:
            ConfigError: They are not integers of one of these shapes.
            ViewMismatch: One is outside the view axis.
        """
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
                f"{describe_views(stored.views)}."
            )
        return given.astype(np.int64, copy=False)


def _as_row_numbers(rows: npt.ArrayLike) -> Rows:
    given = np.asarray(rows).reshape(-1)
    if given.size and given.dtype.kind not in "iu":
        # A mask or fractions would become other rows than those that were meant.
        raise ConfigError(
            f"rows must be integers, found {given.dtype}; of a mask, take np.flatnonzero(mask)."
        )
    return given.astype(np.int64, copy=False)
