"""Claim the missing shards of a store one by one, wherever it is written to."""

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from featstore.containers.base import Backend
from featstore.writing.shard import Shard


class LeaseHolder(Protocol):
    """The leases of this process; see ``featstore.writing.leases.Leases``."""

    def claim(self, shard: int) -> bool:
        """Take the lease of a shard if there is none, or a stale one."""

    def release(self, shard: int) -> None:
        """Delete a lease of this process, unless another process has taken it over."""

    def forget(self, shard: int) -> None:
        """Drop what was observed of the lease of a committed shard."""

    def holder(self, shard: int) -> str:
        """Name of the process that holds a lease; "" if there is none."""


class Destination(Protocol):
    """Where shards are committed: a folder, or a bucket."""

    @property
    def backend(self) -> Backend:
        """The container, for encoding."""

    def open(self, lease_s: float) -> AbstractContextManager[LeaseHolder]:
        """Join the processes that write there, with leases that are stale after ``lease_s`` seconds."""

    def pending(self) -> list[int]:
        """Numbers of the shards without an entry, ascending."""

    def is_committed(self, shard: int) -> bool:
        """Whether a shard has its entry now."""

    def was_committed(self, shard: int) -> bool:
        """Whether a shard had its entry when the ledger was listed last; cheaper than ``is_committed``."""

    def commit(self, shard: Shard) -> bool:
        """Write a shard; False if another process committed it first."""

    def finish(self) -> None:
        """Mark the store as complete; called when every shard has an entry."""


class Claims:
    """Iterate over the missing shards of a store and claim one at a time.

    Every process goes over all missing shards, each from another start. So fast processes make more shards, shards of a
    dead process are made by others, and processes may join at any time.

    Args:
        start: Where to start, as a share of the missing shards, 0 <= start < 1.
    """

    def __init__(self, into: Destination, leases: LeaseHolder, *, start: float) -> None:
        pending = into.pending()
        at = int(start * len(pending))
        self._into = into
        self._leases = leases
        self._todo = deque(pending[at:] + pending[:at])

    def __len__(self) -> int:
        """Shards that this process has not claimed, and has not seen committed."""
        return len(self._todo)

    def claim_next(self) -> int | None:
        """Claim the next missing shard without a lease; None if there is none at the moment."""
        for _ in range(len(self._todo)):
            shard = self._todo.popleft()
            if self._into.was_committed(shard):
                self._leases.forget(shard)
                continue
            if not self._leases.claim(shard):
                self._todo.append(shard)
            elif self.is_committed(shard):  # committed between the two checks
                self._leases.release(shard)
            else:
                return shard
        return None

    def give_back(self, shard: int) -> None:
        """Release the lease of a claimed shard: it is committed, or left to other processes."""
        self._leases.release(shard)

    def is_committed(self, shard: int) -> bool:
        """Whether a shard has its entry."""
        return self._into.is_committed(shard)

    def holders(self) -> Sequence[str]:
        """Names of the processes that work on the remaining shards."""
        names = (self._leases.holder(shard) for shard in self._todo)
        return list(dict.fromkeys(name for name in names if name))
