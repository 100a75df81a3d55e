"""The field ``pictures`` of a store as a source of images, so that phase two needs no original file."""

from featstore.errors import ConfigError, shorten
from featstore.format.pictures import PICTURES
from featstore.reading.store import FeatureStore
from featstore.sources.base import NO_LABEL, Source


class StoredPictures(Source):
    """The stored copies of a store's images, in the order of its rows.

    Args:
        store: opened.

    Raises:
        ConfigError: the store holds no copies.
    """

    def __init__(self, store: FeatureStore) -> None:
        if PICTURES not in store:
            raise ConfigError(
                f"{store.address}: holds no copies of its images; its fields: {shorten(list(store))}. Name the images "
                "(--source.path), or extract the store with --store.pictures 224."
            )
        self.kind = "store"
        self.uri = store.address
        self.sample_ids = store.sample_ids
        self.content_sha256 = store.content_sha256
        self.class_names = store.manifest.source.class_names
        if (store.labels != NO_LABEL).any():
            self.labels = store.labels
        self._store = store

    def read(self, row: int) -> bytes:
        """Return the file of one copy."""
        return self._store.gather_ragged(PICTURES, [row]).values.tobytes()
