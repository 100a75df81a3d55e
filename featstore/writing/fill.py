"""Fill a store: any number of processes and jobs make its missing shards, one at a time each."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from featstore.containers import make_backend
from featstore.containers.base import Backend
from featstore.errors import ConfigError
from featstore.files.atomic import Disk
from featstore.files.locks import shared
from featstore.files.progress import Progress
from featstore.format.ledger import entry_path, pending_shards, read_complete
from featstore.format.manifest import Manifest
from featstore.writing.claims import Claims, Destination
from featstore.writing.commit import ShardWriter, commit, finish, open_or_create, tidy
from featstore.writing.leases import Leases
from featstore.writing.shard import Shard

SHORTEST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 1.0
"""Pause between two checks of shards that other processes work on; it doubles up to the longest."""

LEASE_S = 60
"""Seconds without a change after which the lease of another process is stale."""

MakeShards = Callable[[Claims, int], Iterator[Shard]]
"""Function that makes shards: given the claims of this process and a claimed shard, it yields that shard, and may claim
and yield more. It may give back a shard that another process has committed meanwhile."""


class FolderStore:
    """A local folder, or one of a shared file system, as destination of shards."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._store, self._num_shards = backend.store, backend.manifest.num_shards
        self._disk = Disk(backend.store)

    @contextmanager
    def open(self, lease_s: float) -> Iterator[Leases]:
        with shared(self._store), self._disk, Leases(self._store, lease_s=lease_s) as leases:
            yield leases

    def pending(self) -> list[int]:
        return pending_shards(self._store, self._num_shards)

    def is_committed(self, shard: int) -> bool:
        return entry_path(self._store, shard).exists()

    was_committed = is_committed

    def commit(self, shard: Shard) -> bool:
        return commit(self.backend, shard, self._disk)

    def finish(self) -> None:
        finish(self._store, self._num_shards)


@dataclass
class Filled:
    """Result of ``fill`` in one process.

    Attributes:
        flush_s: Seconds spent waiting for its last shard to be written.
    """

    rows: int = 0
    flush_s: float = 0.0


def fill(
    into: Destination,
    make_shards: MakeShards,
    *,
    lease_s: float = LEASE_S,
    start: float = 0.0,
    while_waiting: Callable[[Claims], None] = lambda _: None,
) -> Filled:
    """Make the missing shards of a store, sharing them with other processes, until it is complete.

    A shard is committed in a thread while the next one is made; memory holds two at most. The function returns when
    every shard is committed, by any process; it waits for processes that are alive but hang.

    Args:
        lease_s: Seconds without a change after which another process's lease is stale.
        start: Where to start, as a share of the missing shards; different starts avoid collisions.
        while_waiting: Called repeatedly while other processes work on all remaining shards.
    """
    manifest = into.backend.manifest
    filled = Filled()
    with into.open(lease_s) as leases:
        claims = Claims(into, leases, start=start)

        def done(shard: int, ours: bool) -> None:
            claims.give_back(shard)
            filled.rows += len(manifest.shard_range(shard)) if ours else 0

        pause_s = SHORTEST_PAUSE_S
        with ShardWriter(into.commit, done) as writer:
            while True:
                first = claims.claim_next()
                if first is not None:
                    writer.flush()  # make_shards may fork, which is safest while our threads are idle
                    for shard in make_shards(claims, first):
                        writer.submit(shard)
                        del shard  # the writer frees its memory while the next one grows
                    pause_s = SHORTEST_PAUSE_S
                elif len(claims):
                    writer.check()
                    while_waiting(claims)
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S, lease_s / 5)
                else:
                    break
            begin = time.perf_counter()
        filled.flush_s = time.perf_counter() - begin
        into.finish()
    return filled


def make_store(
    out: Path,
    manifest: Manifest,
    artefacts: Mapping[str, bytes],
    make_shard: Callable[[int], Shard],
    *,
    progress: Progress,
) -> Manifest:
    """Create and fill a store whose shards are independent of each other, or resume.

    Args:
        artefacts: Bytes of the files that the manifest lists, by name.

    Returns:
        The manifest on disk: the first run's, if the store was begun before.

    Raises:
        ManifestMismatch: ``out`` is a store with another contract.
        StoreNotFound: ``out`` holds something that is not a store.
    """
    found = open_or_create(out, manifest, artefacts)
    if read_complete(out, found.num_shards) is not None:
        return found
    done = total = 0

    def make_shards(claims: Claims, first: int) -> Iterator[Shard]:
        nonlocal done, total
        shard: int | None = first
        while shard is not None:
            total = max(total, 1 + len(claims))
            yield make_shard(shard)
            done += 1
            progress(done, max(total, done))
            shard = claims.claim_next()

    tidy(out)
    fill(FolderStore(make_backend(out, found)), make_shards)
    tidy(out)
    return found


def check_apart(out: Path, *sources: Path) -> None:
    """Refuse to write a store into one of its own sources."""
    for source in sources:
        if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
            raise ConfigError(
                f"{out}: a store cannot be written into itself. Choose another folder."
            )
