"""Open the images of phase two: a source of files, or those that a feature store provides."""

from featstore import FeatureStore
from featstore.cli.schema import given
from featstore.errors import ConfigError
from featstore.reading.stored_pictures import images_of, provides_images
from featstore.sources import open_source, select_samples
from featstore.sources.base import Source
from featstore.sources.config import SourceConfig


def open_images(config: SourceConfig, store: FeatureStore | None) -> Source:
    """Open a source; of kind ``store`` without a path, those that the store provides that is trained from.

    Raises:
        SourceError: see ``open_source``.
        ConfigError: no store, or one without images.
    """
    if config.kind != "store":
        return open_source(config)
    if config.path:
        store = FeatureStore.open(config.path)
    if store is None:
        raise ConfigError(
            "--source.kind store: which store? Name it with --source.path or --store."
        )
    return select_samples(images_of(store), config)


def default_source(config: SourceConfig, store: FeatureStore) -> SourceConfig:
    """Return the settings of the images: where none were named, those in the store if it provides them."""
    unnamed = config == SourceConfig() and "kind" not in given(config)
    if unnamed and provides_images(store.manifest):
        return SourceConfig(kind="store")
    return config
