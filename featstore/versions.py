"""A store that got another version while it was open: what is not as it was then is not damaged."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featstore.errors import ShardCorrupt, StoreError
from featstore.format.manifest import Manifest, read_manifest


@contextmanager
def as_opened(path: Path, manifest: Manifest) -> Iterator[None]:
    """Say so where a shard is not the one that was expected because the folder holds another version by now.

    Args:
        path: folder of the store.
        manifest: that it was opened with.

    Raises:
        StoreError: rows were appended, or the store was made anew.
        ShardCorrupt: neither; the shard is damaged.
    """
    try:
        yield
    except ShardCorrupt as error:
        found = read_manifest(path)
        if found == manifest:
            raise
        raise StoreError(
            f"{path}: is version {found.version} with {found.num_rows:,} rows by now; it was opened as version "
            f"{manifest.version} with {manifest.num_rows:,}. Open it again."
        ) from error
