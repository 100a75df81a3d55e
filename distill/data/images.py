"""Open the images of phase two: a source of files, or the copies that a feature store holds of its images."""

from featstore import FeatureStore
from featstore.errors import ConfigError
from featstore.format.pictures import PICTURES
from featstore.reading.stored_pictures import StoredPictures
from featstore.sources import open_source, select_samples
from featstore.sources.base import Source
from featstore.sources.config import SourceConfig


def open_images(config: SourceConfig, store: FeatureStore | None) -> Source:
    """Open a source; of kind ``store`` without a path, the copies in the store that is trained from.

    Raises:
        SourceError: see ``open_source``.
        ConfigError: no store, or one without copies.
    """
    if config.kind != "store":
        return open_source(config)
    if config.path:
        store = FeatureStore.open(config.path)
    if store is None:
        raise ConfigError(
            "--source.kind store: which store? Name it with --source.path or --store."
        )
    return select_samples(StoredPictures(store), config)


def default_source(config: SourceConfig, store: FeatureStore) -> SourceConfig:
    """Return the settings of the images: where none were named, the copies in the store if it has some."""
    if config == SourceConfig() and PICTURES in store and store.manifest.source.kind != "digits":
        return SourceConfig(kind="store")
    return config
