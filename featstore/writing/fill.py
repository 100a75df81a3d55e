"""Fill a store: any number of processes, of any number of jobs, take the shards that it lacks, one at a time."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from featstore.containers import make_backend
from featstore.containers.base import Backend
from featstore.errors import ConfigError
from featstore.files.locks import shared
from featstore.format.ledger import read_complete
from featstore.format.manifest import Manifest
from featstore.writing.commit import Shard, ShardWriter, finish, open_or_create, tidy
from featstore.writing.leases import Claims, Leases

SHORTEST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 1.0
"""Between two looks at the shards that others work on; it doubles from the one to the other."""

MakeShards = Callable[[Claims, int], Iterator[Shard]]
"""Given the claims of this process and the first shard that it has claimed, makes that one and, as it likes, further
ones that it claims itself. A shard that was committed by somebody else meanwhile may be given back instead."""

Progress = Callable[[int, int], None]
"""Called with the numbers of shards written here, and missing at the start."""


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass
class Filled:
    """What one process did.

    Attributes:
        rows: rows that it committed itself.
        flush_s: seconds that it waited for its last shard to be written.
    """

    rows: int = 0
    flush_s: float = 0.0


def fill(
    backend: Backend,
    make_shards: MakeShards,
    *,
    lease_s: float,
    start: float = 0.0,
    while_waiting: Callable[[Claims], None] = lambda _: None,
) -> Filled:
    """Make what the store lacks, together with whoever else is at it, until it is complete.

    Shards are committed in a thread while the next one is made; memory holds two of them at most. It returns when every
    shard of the store is there, whoever made it; whoever holds one and is alive but hangs is waited for.

    Args:
        backend: of the store.
        make_shards: makes shards.
        lease_s: seconds without a sign of life after which another process counts as gone.
        start: where to begin, as a share of the shards that are missing; processes that begin apart meet late.
        while_waiting: called again and again while all that is left is in the hands of others.

    Raises:
        StoreBusy: somebody holds the store alone.
        StoreWriteError: the disk refused.
    """
    store, manifest = backend.store, backend.manifest
    filled = Filled()
    with shared(store), Leases(store, lease_s=lease_s) as leases:
        claims = Claims(store, manifest.num_shards, leases, start=start)

        def done(shard: int, ours: bool) -> None:
            claims.give_back(shard)
            filled.rows += len(manifest.shard_range(shard)) if ours else 0

        pause_s = SHORTEST_PAUSE_S
        with ShardWriter(backend, done) as writer:
            while True:
                first = claims.claim_next()
                if first is not None:
                    writer.flush()  # whoever makes shards may fork, which is safest while our threads are idle
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
        finish(store, manifest.num_shards)
    return filled


def make_store(
    out: Path,
    manifest: Manifest,
    artefacts: Mapping[str, bytes],
    make_shard: Callable[[int], Shard],
    *,
    lease_s: float,
    progress: Progress,
) -> Manifest:
    """Make a store of which every shard can be made by itself; go on with one that was begun.

    Args:
        out: its folder.
        manifest: what it will say of itself.
        artefacts: bytes of the files that the manifest lists, by name.
        make_shard: makes the shard of a number.
        lease_s: seconds without a sign of life after which another process counts as gone.
        progress: see ``Progress``.

    Returns:
        The manifest on disk: the older one when the store was begun before.

    Raises:
        ManifestMismatch: ``out`` is a store of something else.
        StoreNotFound: ``out`` holds something that is not a store.
        StoreBusy, StoreWriteError: see ``fill``.
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
    fill(make_backend(out, found), make_shards, lease_s=lease_s)
    tidy(out)
    return found


def check_apart(out: Path, *sources: Path) -> None:
    """Refuse to write a store into one that it is made of.

    Raises:
        ConfigError: ``out`` is a source, or lies inside one.
    """
    for source in sources:
        if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
            raise ConfigError(
                f"{out}: a store cannot be written into itself. Choose another folder."
            )
