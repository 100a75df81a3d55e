"""Which rows of a store are exported."""

from collections.abc import Sequence

import numpy as np

from featstore.derive.exporters.base import SAMPLE_ID, VALID
from featstore.errors import ConfigError, shorten
from featstore.files.array_types import Rows
from featstore.reading.store import FeatureStore
from featstore.sources.base import matches


class RowSelection:
    """Which rows of a store are taken, shard by shard; ids are not held.

    Args:
        where: Shell patterns over sample ids, of which one must match; all ids if empty.
        keep_invalid: Also take rows that are not valid.

    Attributes:
        parts: Shards that have any such rows, and how many.
        count: Such rows.
        invalid: Rows left out because they are not valid.
        unmatched: Rows left out because no pattern matches.

    Raises:
        ConfigError: There are none.
    """

    def __init__(self, store: FeatureStore, where: Sequence[str], keep_invalid: bool) -> None:
        self.store, self.where, self.keep_invalid = store, list(where), keep_invalid
        self.invalid = self.unmatched = self.count = 0
        self.parts: list[tuple[int, int]] = []
        for shard in range(store.manifest.num_shards):
            rows = len(store.manifest.shard_range(shard))
            matching = self._matching(shard)
            taken = len(self._usable(shard, matching))
            self.unmatched += rows - len(matching)
            self.invalid += len(matching) - taken
            self.count += taken
            if taken:
                self.parts.append((shard, taken))
        if not self.count:
            ids = store.read_shard(0, SAMPLE_ID)[:1].tolist()
            raise ConfigError(
                f"{store.address}: no row to export: {self.unmatched:,} ids do not match, {self.invalid:,} rows are "
                f"not valid. Ids look like {shorten(ids)}."
            )

    def rows(self, shard: int) -> Rows:
        """Those of one shard, ascending."""
        start: int = self.store.manifest.shard_range(shard).start
        return start + self._usable(shard, self._matching(shard))

    def _matching(self, shard: int) -> Rows:
        """Places in a shard whose id matches."""
        rows = np.arange(len(self.store.manifest.shard_range(shard)))
        if not self.where:
            return rows
        ids = self.store.read_shard(shard, SAMPLE_ID).tolist()
        return rows[[matches(sample_id, self.where) for sample_id in ids]]

    def _usable(self, shard: int, places: Rows) -> Rows:
        return places if self.keep_invalid else places[self.store.read_shard(shard, VALID)[places]]
