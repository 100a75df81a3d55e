"""Images that a store provides, so that phase two needs no original file: copies, or a record to draw them from."""

from featstore.errors import ConfigError, shorten
from featstore.format.manifest import Manifest
from featstore.format.pictures import PICTURES
from featstore.format.pseudo_samples import NAME, PseudoSamples
from featstore.reading.store import FeatureStore
from featstore.sources.base import NO_LABEL, Source
from featstore.sources.synthetic import SyntheticSource


class StoredPictures(Source):
    """The stored copies of a store's images, in the order of its rows."""

    def __init__(self, store: FeatureStore) -> None:
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


def provides_images(manifest: Manifest) -> bool:
    """Whether phase two can take the images from the store; the digits are there without one."""
    copies = PICTURES in manifest.fields and manifest.source.kind != "digits"
    return copies or bool(_records(manifest))


def images_of(store: FeatureStore) -> Source:
    """The images that a store provides."""
    if PICTURES in store:
        return StoredPictures(store)
    for name in _records(store.manifest):
        record = PseudoSamples.from_tensors(store.artefact(name))
        return SyntheticSource(record, store.sample_ids, store.address)
    raise ConfigError(
        f"{store.address}: holds no copies of its images; its fields: {shorten(list(store))}. Name the images "
        "(--source.path), or extract the store with --store.pictures 224."
    )


def _records(manifest: Manifest) -> list[str]:
    """Names of the records of pseudo-samples; merging puts a prefix before them."""
    return [name for name in manifest.artefacts if name == NAME or name.endswith(f"_{NAME}")]
