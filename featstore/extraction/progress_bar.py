"""Progress bar of an extraction."""

import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from featstore.errors import shorten
from featstore.format.manifest import Manifest
from featstore.writing.claims import Claims

PARTS = ("load", "teacher", "write")  # parts of the work that are timed


class ProgressBar:
    """Progress of all processes that write to the store, and the share of time this one spends per part.

    Args:
        committed: Returns the numbers of the shards that have an entry.
    """

    def __init__(
        self, committed: Callable[[], Sequence[int]], manifest: Manifest, *, show: bool
    ) -> None:
        self._committed = committed
        self._manifest = manifest
        self._show = show
        self._mine: dict[int, int] = {}
        self._next_look_s = 0.0
        self._bar = tqdm(
            total=manifest.num_rows,
            initial=self._committed_rows() if show else 0,
            unit=" images",
            disable=not show,
            smoothing=0.1,
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._show and error is None:
            self._move_to(self._committed_rows())
        self._bar.close()

    def add(self, shard: int, rows: int, seconds: dict[str, float]) -> None:
        """Count rows that this process extracted, with the seconds spent per part."""
        if not self._show:
            return
        whole = sum(seconds.values()) or 1.0
        shares = " ".join(f"{name} {seconds[name] / whole:.0%}" for name in PARTS)
        self._bar.set_postfix_str(shares, refresh=False)
        self._mine[shard] = self._mine.get(shard, 0) + rows
        if time.monotonic() < self._next_look_s:
            self._move_to(int(self._bar.n) + rows)
        else:
            self._move_to(self._committed_rows() + sum(self._mine.values()))

    def wait_for(self, claims: Claims) -> None:
        """Show that only shards of other processes are left."""
        if self._show and time.monotonic() >= self._next_look_s:
            by = shorten(claims.holders(), 3) or "others"
            text = f"waiting for {len(claims)} shards held by {by}"
            self._bar.set_postfix_str(text, refresh=False)
            self._move_to(self._committed_rows())
            self._bar.refresh()

    def _committed_rows(self) -> int:
        start = time.monotonic()
        done = self._committed()
        end = time.monotonic()
        # At most every 2 s, and rarely enough to take at most a twentieth of the time.
        self._next_look_s = end + max(2.0, 20 * (end - start))
        for shard in self._mine.keys() & set(done):
            del self._mine[shard]
        return sum(len(self._manifest.shard_range(shard)) for shard in done)

    def _move_to(self, rows: int) -> None:
        self._bar.update(max(0, min(rows, self._manifest.num_rows) - int(self._bar.n)))
