"""Leases as objects of a bucket: which process works on which shard.

A lease holds the name of its holder and a growing count. It is created if there is none, and replaced, by its holder or
by a process that takes it over, only in the version that was seen. It is stale when its entity tag has not changed for
``lease_s`` seconds of the observing process's monotonic clock, so wall clocks may differ between machines.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from featstore.errors import RemoteError, RemoteNotFound
from featstore.places.base import Place, Tag
from featstore.writing.leases import LEASE_FOLDER

MOST_BYTES = 4096

LEAVE_S = 1.0
"""How long a beat that waits for the server is waited for at the end; it replaces no lease that was deleted."""


@dataclass
class _Held:
    tag: Tag
    beat: int = 0


class BucketLeases:
    """The leases of this process, and what it has observed of other leases. Use as a context manager.

    Args:
        listed: Returns the entity tags of all leases by name, of a moment ago.
        lease_s: Seconds without a change after which another process's lease is stale.
    """

    def __init__(
        self, place: Place, listed: Callable[[], Mapping[str, str]], *, lease_s: float
    ) -> None:
        self._place = place
        self._listed = listed
        self._lease_s = lease_s
        self._owner = secrets.token_hex(8)
        self._held: dict[int, _Held] = {}
        self._seen: dict[int, tuple[str, float]] = {}
        self._names: dict[int, str] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="featstore-leases", daemon=True)

    def __enter__(self) -> "BucketLeases":
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stop.set()
        self._thread.join(LEAVE_S)
        # A server that is gone is not waited for once more for each lease.
        with suppress(RemoteError):
            for shard in list(self._held):
                self._delete(shard)

    def claim(self, shard: int) -> bool:
        """Take the lease of a shard if there is none, or a stale one."""
        listed = self._listed().get(_name(shard))
        if listed is None:
            self._seen.pop(shard, None)
            return self._put(shard, None)
        tag, since_s = self._seen.setdefault(shard, (listed, time.monotonic()))
        if tag != listed:
            self._seen[shard] = (listed, time.monotonic())
            return False
        if time.monotonic() - since_s < self._lease_s:
            return False
        found = self._place.tag(_name(shard))
        same = found is None or found[0].strip('"') == listed
        return same and self._put(shard, found)

    def release(self, shard: int) -> None:
        """Delete a lease of this process, unless another process has taken it over."""
        with suppress(RemoteError):  # it becomes stale
            self._delete(shard)

    def _delete(self, shard: int) -> None:
        with self._lock:
            self._held.pop(shard)
        if self._read(shard).get("owner") == self._owner:
            self._place.remove([_name(shard)])

    def forget(self, shard: int) -> None:
        """Drop what was observed of the lease of a committed shard."""
        self._seen.pop(shard, None)
        self._names.pop(shard, None)

    def holder(self, shard: int) -> str:
        """Name of the process that held a lease when it was read first; "" if there is none."""
        if shard not in self._names:
            found = self._read(shard)
            if not found:
                return ""
            self._names[shard] = f"process {found.get('pid', '?')} on {found.get('host', '?')}"
        return self._names[shard]

    def holds(self, shard: int) -> bool:
        """Whether this process holds the lease of a shard now."""
        return shard in self._held and self._read(shard).get("owner") == self._owner

    def _put(self, shard: int, tag: Tag | None, beat: int = 0) -> bool:
        """Create or replace a lease of this process; False if there is another version by now."""
        values = {
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "owner": self._owner,
            "beat": beat,
        }
        new = self._place.put_if(_name(shard), json.dumps(values).encode(), tag)
        if new is None and self._read(shard).get("owner") == self._owner:
            new = self._place.tag(_name(shard))  # the answer of an earlier attempt was lost
        if new is None:
            return False
        with self._lock:
            if beat == 0 or shard in self._held:
                self._held[shard] = _Held(new, beat)
        return True

    def _read(self, shard: int) -> dict[str, object]:
        with suppress(RemoteNotFound, ValueError):
            found = json.loads(self._place.read(_name(shard), most_bytes=MOST_BYTES))
            if isinstance(found, dict):
                return found
        return {}

    def _beat(self) -> None:
        while not self._stop.wait(self._lease_s / 5):
            with self._lock:
                held = dict(self._held)
            for shard, lease in held.items():
                with suppress(RemoteError):  # the next beat tries again
                    self._put(shard, lease.tag, lease.beat + 1)


def _name(shard: int) -> str:
    return f"{LEASE_FOLDER}/{shard:08d}.json"
