"""Find rows of a store whose image could not be read then and can be read now, and remove their shards."""

from collections.abc import Iterator
from pathlib import Path

from featstore.errors import DecodeError, shorten
from featstore.files.locks import exclusive
from featstore.format.ledger import InvalidRow, remove_entries
from featstore.reading.store import FeatureStore
from featstore.sources import Source
from featstore.sources.load import decode, read_image, was_unreadable


def remove_shards_readable_now(path: Path, source: Source) -> tuple[list[int], str]:
    """Remove every shard that has a row whose image can be used now; the next run makes those shards again.

    Args:
        source: the images, in the order of the store's rows.

    Returns:
        Numbers of the shards, and the ids of the images that can be used now, for a message.

    Raises:
        StoreBusy: another process writes to the store.
        SourceError: the disk, the network or the memory fails still.
    """
    with exclusive(path):
        store = FeatureStore.open(path, allow_incomplete=True)
        if len(source) != store.num_rows:
            return [], ""  # not the images of this store; the comparison of the manifests says so
        found = {shard: list(_readable(store, shard, source)) for shard in store.shards}
        shards = [shard for shard, rows in found.items() if rows]
        if shards:
            remove_entries(path, shards)
    return shards, shorten([row.sample_id for shard in shards for row in found[shard]])


def _readable(store: FeatureStore, shard: int, source: Source) -> Iterator[InvalidRow]:
    for row in store.entry(shard).invalid:
        if was_unreadable(row.reason) and source.sample_ids[row.row] == row.sample_id:
            try:
                decode(source, row.row, read_image(source, row.row))
            except (OSError, DecodeError):
                continue
            yield row
