"""Open a store, check it, and read rows by sample id."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.backends import ZarrBackend
from featstore.backends.base import Array
from featstore.errors import ConfigError, MissingSamples, ShardCorrupt, StoreIncomplete, shorten
from featstore.ledger import (
    InvalidRow,
    ShardRecord,
    committed_shards,
    entry_path,
    read_entry,
)
from featstore.manifest import Manifest, read_manifest

Rows = npt.NDArray[np.int64]


class FeatureStore:
    """A store that was opened and checked. Read-only; safe to use after fork, and to send to another process.

    Attributes:
        path: folder of the store.
        manifest: what the store says of itself.
        shards: numbers of the shards that can be read.
    """

    def __init__(self, path: Path, manifest: Manifest, shards: list[int]) -> None:
        self.path = path
        self.manifest = manifest
        self.shards = shards
        self._backend = ZarrBackend(path, manifest)
        self._entries: dict[int, ShardRecord] = {}
        self._readers: dict[str, _FieldReader] = {}
        self._present = frozenset(shards)
        # Filled as shards are touched; untouched pages of it take no memory.
        self._unusable = np.zeros(manifest.num_rows, dtype=np.bool_)

    @classmethod
    def open(cls, path: str | Path, *, allow_incomplete: bool = False) -> "FeatureStore":
        """Open a store and check what can be checked without reading its payload.

        Args:
            path: folder of the store.
            allow_incomplete: also open a store whose extraction is not finished; rows that are not there yet count
                as invalid.

        Raises:
            StoreNotFound: nothing there, or not a store.
            ManifestMismatch: another version of the format.
            StoreIncomplete: shards are missing.
        """
        path = Path(path)
        manifest = read_manifest(path)
        shards = committed_shards(path, manifest.num_shards)
        missing = manifest.num_shards - len(shards)
        if missing and not allow_incomplete:
            raise StoreIncomplete(
                f"{path}: {missing} of {manifest.num_shards} shards are not there yet. Run extract.py again with the "
                "settings this store was made with; it goes on where it stopped."
            )
        return cls(path, manifest, shards)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory maps behind; each process opens its own."""
        return {"path": self.path, "manifest": self.manifest, "shards": self.shards}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open again in another process."""
        self.__init__(state["path"], state["manifest"], state["shards"])  # type: ignore[misc]

    @property
    def num_rows(self) -> int:
        """Rows of the store, valid or not."""
        return self.manifest.num_rows

    @property
    def fingerprint(self) -> str:
        """See ``Manifest.fingerprint``."""
        return self.manifest.fingerprint

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
        values = np.full((self.num_rows, *shape), missing, dtype=dtype)
        for shard in self.shards:
            rows = self.manifest.shard_range(shard)
            values[rows.start : rows.stop] = self._backend.read_shard(
                shard, name, self.entry(shard).objects
            )
        return values

    def entry(self, shard: int) -> ShardRecord:
        """The ledger's record of a shard.

        Raises:
            ShardCorrupt: it is missing, does not follow the format, or speaks of other rows.
        """
        if shard not in self._entries:
            entry = read_entry(self.path, shard)
            rows = self.manifest.shard_range(shard)
            if entry.rows != (rows.start, rows.stop):
                raise ShardCorrupt(
                    f"{entry_path(self.path, shard)}: rows {entry.rows[0]} to {entry.rows[1] - 1}, expected "
                    f"{rows.start} to {rows.stop - 1}. Delete the file and run extract.py with the same settings."
                )
            self._entries[shard] = entry
        return self._entries[shard]

    def invalid_rows(self) -> list[InvalidRow]:
        """Every row without a usable feature, with the reason, in row order."""
        return [item for shard in self.shards for item in self.entry(shard).invalid]

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
                f"{self.path}: {len(missing)} of {len(wanted)} samples are not in the store: {shorten(missing)}. "
                f"It holds {self.num_rows} samples such as {shorten(self.sample_ids[:2])}."
            )
        return rows

    def gather(self, field: str, rows: npt.ArrayLike, *, out: Array | None = None) -> Array:
        """Read rows of one field.

        A shard is checked against the ledger when it is touched first; after that, its rows cost a copy.

        Args:
            field: name of the field.
            rows: (B,) row numbers, in any order, repeats allowed.
            out: (B, V, *shape) array of the stored dtype to write into, e.g. over pinned memory; made if not given.

        Returns:
            (B, V, *shape) in the stored dtype, a copy: ``out`` if it was given.

        Raises:
            ConfigError: the store has no such field, ``rows`` are not integers (a mask, for one), or ``out`` does not
                fit.
            MissingSamples: a row is outside the store or invalid; the message names ids and reasons.
            ShardCorrupt: a shard's bytes are not those that were written.
        """
        reader = self._reader(field)
        wanted = _row_numbers(rows)
        shape = (len(wanted), *reader.column.shape)
        if out is None:
            out = np.empty(shape, dtype=reader.column.dtype)
        elif out.shape != shape or out.dtype != reader.column.dtype or not out.flags.c_contiguous:
            raise ConfigError(
                f"{self.path}: out is {out.dtype} {out.shape}; field {field!r} needs a contiguous "
                f"{reader.column.dtype} array of shape {shape}."
            )
        if len(wanted) == 0:
            return out
        if wanted.min() < 0 or wanted.max() >= self.num_rows:
            raise MissingSamples(
                f"{self.path}: rows {wanted.min()} to {wanted.max()} were asked for; it has rows 0 to "
                f"{self.num_rows - 1}."
            )
        shards = wanted // self.manifest.work.shard_rows
        new = ~reader.ready[shards]
        if new.any():
            for shard in np.unique(shards[new]):
                self._touch(reader, int(shard))
        if self._unusable[wanted].any():
            raise self._unusable_error(wanted)
        reader.take(wanted, shards, out)
        return out

    def _reader(self, field: str) -> "_FieldReader":
        if field not in self.manifest.fields:
            raise ConfigError(
                f"{self.path}: no field {field!r}; it has: {shorten(sorted(self.manifest.fields))}."
            )
        if field not in self._readers:
            self._readers[field] = _FieldReader(self._backend, f"fields/{field}")
        return self._readers[field]

    def _touch(self, reader: "_FieldReader", shard: int) -> None:
        """Check a shard, make its rows reachable, and note which of them are unusable."""
        span = self.manifest.shard_range(shard)
        if shard in self._present:
            entry = self.entry(shard)
            reader.attach(shard, entry)
            valid = self._backend.read_shard(shard, "valid", entry.objects)
            self._unusable[span.start : span.stop] = ~valid
        else:
            self._unusable[span.start : span.stop] = True
        reader.ready[shard] = True

    def _unusable_error(self, rows: Rows) -> MissingSamples:
        reasons = {item.row: f"{item.sample_id} ({item.reason})" for item in self.invalid_rows()}
        bad = [
            reasons.get(int(row), f"row {row} (not extracted yet)")
            for row in rows[self._unusable[rows]]
        ]
        return MissingSamples(
            f"{self.path}: {len(bad)} of the rows asked for have no usable feature: {shorten(bad)}. "
            "Leave out the rows where `valid` is False."
        )


class _FieldReader:
    """Where the rows of one field are: one mapped array, or one array per shard.

    Attributes:
        column: the field's column.
        ready: (shards,) bool; whether a shard was checked and can be read.
    """

    def __init__(self, backend: ZarrBackend, name: str) -> None:
        self.column = backend.columns[name]
        self.ready = np.zeros(backend.manifest.num_shards, dtype=np.bool_)
        self._backend = backend
        self._mapped = backend.map_column(name)
        self._arrays: dict[int, Array] = {}

    def attach(self, shard: int, entry: ShardRecord) -> None:
        """Check one shard and make it readable."""
        if self._mapped is not None:
            self._mapped.attach(shard, entry.objects)
        else:
            self._arrays[shard] = self._backend.read_shard(shard, self.column.name, entry.objects)

    def take(self, rows: Rows, shards: Rows, out: Array) -> None:
        """Copy rows of attached shards into ``out``."""
        if self._mapped is not None:
            # "clip" writes straight into out; the range was checked, so nothing is clipped.
            np.take(self._mapped.rows, rows, axis=0, out=out, mode="clip")
            return
        local = rows - shards * self._backend.manifest.work.shard_rows
        for shard in np.unique(shards):
            chosen = np.flatnonzero(shards == shard)
            out[chosen] = self._arrays[int(shard)][local[chosen]]


def _row_numbers(rows: npt.ArrayLike) -> Rows:
    given = np.asarray(rows).reshape(-1)
    if given.size and given.dtype.kind not in "iu":
        # A mask or fractions would become other rows than those that were meant.
        raise ConfigError(
            f"rows must be integers, found {given.dtype}; of a mask, take np.flatnonzero(mask)."
        )
    return given.astype(np.int64)
