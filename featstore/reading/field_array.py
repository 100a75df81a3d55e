"""One field of an open store as an array whose rows are read when they are asked for."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.errors import ConfigError
from featstore.files.array_types import Array, Rows
from featstore.format.fields import numpy_dtype
from featstore.format.manifest_records import Int8Encoding
from featstore.reading.open_store import OpenStore

BLOCK_ROWS = 1024  # rows that are read together when the array is iterated over


class FieldArray:
    """One field. Nothing is read before rows are asked for.

    Indexed as a numpy array is: the first axis by an integer, a slice, a list or array of integers, or a mask; the
    others by integers and slices. Of the view axis only what is asked for is read. The result is a copy. Rows without a
    usable feature raise ``MissingSamples``: leave them out with ``np.flatnonzero(store.valid)``.

    Attributes:
        shape: (N, V, *shape), without V where the field is not per view.
        dtype: Type of the values; float32 for int8 fields, object for texts.

    Raises:
        ConfigError: The store has no such field, or it is top-k or ragged.
    """

    def __init__(self, store: OpenStore, name: str) -> None:
        empty = store.gather(name, np.empty(0, dtype=np.int64))  # says what is wrong with the name
        spec = store.manifest.fields[name]
        self._store, self._name = store, name
        self._per_view = spec.per_view
        self.shape: tuple[int, ...] = (store.num_rows, *empty.shape[1:])
        quantised = isinstance(spec.encoding, Int8Encoding)
        found = np.dtype(np.float32) if quantised else numpy_dtype(spec.dtype)
        self.dtype: np.dtype[Any] = np.dtype(object) if found is None else found

    def __repr__(self) -> str:
        return f"<field {self._name!r}: {self.shape} {self.dtype}>"

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=object))

    def __len__(self) -> int:
        """Rows of the store, valid or not."""
        return self.shape[0]

    def __getitem__(self, key: Any) -> Array:
        """Read rows.

        Raises:
            IndexError: A row, or something behind it, is outside of the array.
            ConfigError: The first index is neither integers nor a mask of all rows.
            MissingSamples, ShardCorrupt: See ``FeatureStore.gather``.
        """
        first, *rest = self._expanded(key)
        rows = self._rows(first)
        views = None
        if rest and self._per_view and isinstance(rest[0], int | slice | np.integer):
            # Other views are not read.
            views = np.atleast_1d(np.arange(self.shape[1])[rest[0]])
            rest[0] = 0 if isinstance(rest[0], int | np.integer) else slice(None)
        found = self._store.gather(self._name, rows.reshape(-1), views=views)
        if rest:
            found = found[(slice(None), *rest)]
        return found[0] if rows.ndim == 0 else found.reshape(*rows.shape, *found.shape[1:])

    def _expanded(self, key: Any) -> list[Any]:
        """The indices of a key, the one on rows first."""
        keys = list(key) if isinstance(key, tuple) else [key]
        at = [i for i, item in enumerate(keys) if item is Ellipsis]
        if at:
            whole = [slice(None)] * (self.ndim - len(keys) + 1)
            keys[at[0] : at[0] + 1] = whole
        if not keys:
            keys = [slice(None)]
        if len(keys) > self.ndim or any(item is None or item is Ellipsis for item in keys):
            raise IndexError(f"{self!r}: {key!r} does not fit {self.ndim} axes")
        if any(np.ndim(item) > 0 for item in keys[1:]):
            raise IndexError(
                f"{self!r}: a list is accepted on the first axis only; index the rows that were read again"
            )
        return keys

    def _rows(self, first: Any) -> Rows:
        """Row numbers of the index on the first axis; without axes for a single row."""
        count = len(self)
        if isinstance(first, slice):
            return np.arange(*first.indices(count), dtype=np.int64)
        given = np.asarray(first)
        if given.dtype == np.bool_ and given.shape == (count,):
            return np.flatnonzero(given)
        if given.size == 0:
            return given.astype(np.int64)
        if given.dtype.kind not in "iu":
            raise ConfigError(
                f"{self!r}: rows are {given.dtype} of shape {given.shape}; expected integers, a slice or a mask of "
                f"{count} rows."
            )
        rows: Rows = given.astype(np.int64)
        if rows.min() < -count or rows.max() >= count:
            raise IndexError(
                f"{self!r}: row {rows.min()} or {rows.max()} is outside of {count} rows"
            )
        return np.where(rows < 0, rows + count, rows)

    def __iter__(self) -> Iterator[Array]:
        """Row after row, read in blocks."""
        for start in range(0, len(self), BLOCK_ROWS):
            yield from self[start : start + BLOCK_ROWS]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """All rows, read at once."""
        if copy is False:
            raise ValueError(f"{self!r} is read into new memory; copy=False is not possible")
        found = self[:]
        return found if dtype is None else found.astype(dtype, copy=False)
