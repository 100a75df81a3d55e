"""Checks over all shards of a store: sums, and sample ids that are unique and those of the source."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from featstore.containers.base import Backend
from featstore.files.untrusted import read_plain
from featstore.format.ledger import (
    COMPLETE_NAME,
    LEDGER_FOLDER,
    CompleteRecord,
    entry_path,
    read_entry,
)
from featstore.format.manifest import MANIFEST_NAME
from featstore.maintenance.verify_shard import Damage, ShardFindings

MOST_SUSPECTS = 1000  # rows whose ids are read again, because their hashes are alike


class Totals:
    """Sums over shards, added in order. Of the ids it keeps 8 bytes a row."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._ids = hashlib.sha256()
        self._entries = hashlib.sha256()
        self._hashes: list[npt.NDArray[np.uint64]] = []
        self._rows: list[range] = []
        self._invalid = self._bytes = 0

    def add(self, found: ShardFindings) -> None:
        if found.entry is not None:
            store = self._backend.store
            path = entry_path(store, found.shard).relative_to(store).as_posix()
            self._entries.update(read_plain(store, path))
            self._invalid += len(found.entry.invalid)
            self._bytes += sum(item.bytes for item in found.entry.objects.values())
        if found.ids is not None:
            names = [sample_id.encode() for sample_id in found.ids]
            self._ids.update(b"".join(name + b"\0" for name in names))
            hashes = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in names)
            self._hashes.append(np.frombuffer(hashes, dtype=np.uint64))
            self._rows.append(self._backend.manifest.shard_range(found.shard))

    def differences(self, mark: CompleteRecord | None) -> Iterator[Damage]:
        """List where the sums differ from the manifest and from the mark of a complete store."""
        if self._ids.hexdigest() != self._backend.manifest.source.ids_sha256:
            problem = "the sample ids, in order, are not those that source.ids_sha256 was made of"
            yield Damage(kind="ledger", problem=problem, object=MANIFEST_NAME)
        if mark is None:
            return
        where = f"{LEDGER_FOLDER}/{COMPLETE_NAME}"
        if (self._invalid, self._bytes) != (mark.invalid_rows, mark.bytes):
            problem = (
                f"{mark.invalid_rows:,} invalid rows and {mark.bytes:,} bytes; the entries have "
                f"{self._invalid:,} and {self._bytes:,}"
            )
            yield Damage(kind="ledger", problem=problem, object=where)
        elif mark.entries_sha256 not in ("", self._entries.hexdigest()):
            problem = "the entries of the ledger are not those that the store was completed with"
            yield Damage(kind="ledger", problem=problem, object=where)

    def repeated_ids(self) -> Iterator[Damage]:
        """List rows that have the id of an earlier row."""
        if not self._hashes:
            return
        hashes = np.concatenate(self._hashes)
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        if not same.size:
            return
        rows = np.concatenate([np.arange(span.start, span.stop) for span in self._rows])
        suspects = np.unique(rows[order[np.concatenate([same, same + 1])]])[:MOST_SUSPECTS]
        first: dict[str, int] = {}
        for row, sample_id in self._ids_of(suspects.tolist()):
            if first.setdefault(sample_id, row) != row:
                yield Damage(
                    kind="ledger",
                    problem=f"row {row}: sample id {sample_id!r} is that of row {first[sample_id]} too",
                    column="sample_id",
                    rows=range(row, row + 1),
                )

    def _ids_of(self, rows: Sequence[int]) -> Iterator[tuple[int, str]]:
        backend = self._backend
        shards = backend.manifest.shards_of(np.asarray(rows, dtype=np.int64))
        for shard in np.unique(shards).tolist():
            ids = backend.read_shard(shard, "sample_id", read_entry(backend.store, shard).objects)
            start = backend.manifest.shard_range(shard).start
            for row in np.asarray(rows)[shards == shard].tolist():
                yield row, str(ids[row - start])
