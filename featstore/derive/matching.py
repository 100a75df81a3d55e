"""Match rows of several stores by the content of their files and by sample id.

Hashes are compared, 40 bytes a row, so that memory does not grow with the length of ids.
"""

# N rows of all stores, one store after another

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featstore.derive.composition import RowAxis, ids_of
from featstore.files.array_types import Bytes, Rows
from featstore.format.views import ViewSet
from featstore.reading.store import FeatureStore


@dataclass(frozen=True)
class RowKeys:
    """What identifies each row of several stores; equal numbers mean the same."""

    axis: RowAxis  # all rows, one store after another
    store: Rows  # (N,) place of the row's store among the stores
    content: Rows  # (N,) number of the row's content; -1 where it could not be read
    name: Rows  # (N,) number of the row's sample id, after prefixes

    def ids(self, rows: Rows) -> list[str]:
        """Sample ids of some rows, for messages."""
        part = RowAxis(self.axis.stores, rows, prefixes=self.axis.prefixes)
        return [str(sample_id) for sample_id in ids_of(part, len(rows))]


def samples_of(stores: Sequence[FeatureStore], prefixes: tuple[str, ...] = ()) -> RowKeys:
    """Number contents and ids of all rows.

    Args:
        prefixes: Put before the ids of each store; none if empty.
    """
    count = sum(store.num_rows for store in stores)
    axis = RowAxis(tuple(stores), range(count), prefixes=prefixes)
    store = np.repeat(np.arange(len(stores)), [item.num_rows for item in stores])
    hashes = np.concatenate([item.content_sha256 for item in stores])
    content = _numbered(hashes)
    content[~hashes.any(axis=1)] = -1
    digests = bytearray()
    for sample_id in ids_of(axis, count):
        digests += hashlib.blake2b(sample_id.encode(), digest_size=16).digest()
    name = _numbered(np.frombuffer(bytes(digests), dtype=np.uint8).reshape(count, 16))
    return RowKeys(axis, store, content, name)


def _numbered(keys: Bytes) -> Rows:
    """(N,) equal numbers for equal rows of (N, bytes)."""
    whole = np.ascontiguousarray(keys).view(f"V{keys.shape[1]}")[:, 0]
    numbers: Rows = np.unique(whole, return_inverse=True)[1].reshape(-1)
    return numbers.astype(np.int64)


def first_of(groups: Rows, values: Rows) -> Rows:
    """(N,) the smallest value among the rows of each row's group."""
    least = np.full(int(groups.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, groups, values)
    found: Rows = least[groups]
    return found


def views_depend_on_ids(views: ViewSet) -> bool:
    """Whether crops were cut by sample id, so that the same image under another id has other features."""
    return any(view.kind == "seeded" for view in views.views)
