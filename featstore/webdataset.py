"""Stored features in a webdataset pipeline: a stage that joins samples with the rows of a store by key.

    dataset = webdataset.WebDataset("photos-{000000..000099}.tar")
    dataset = dataset.compose(featstore.webdataset.join("stores/photos")).decode("torchrgb", partial=True)

Before ``decode``, the bytes of the images are compared with those that were extracted; ``partial=True`` then leaves the
features as they are. After ``decode`` there are no bytes to compare.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from featstore.errors import ConfigError, MissingSamples, shorten
from featstore.reading.joining import ContentCheck, StoredFeatures, Views
from featstore.reading.store import FeatureStore
from featstore.sources.base import image_suffixes

__all__ = ["Join", "join"]

GROUP_SAMPLES = 64  # samples whose features are read together


def join(
    store: FeatureStore | str | Path,
    fields: str | Sequence[str] | None = None,
    *,
    views: Views = None,
    ids: Callable[[dict[str, Any]], str] | None = None,
    missing: Literal["error", "skip"] = "error",
    check_content: bool = True,
) -> "Join":
    """A stage of a pipeline that adds the stored features to each sample: tensors (lists of texts) under ``FIELD.npy``.

    Args:
        store: An open store, or its path or URL.
        fields: Names of the fields; all if not given.
        views: Column of the view axis to read, which is dropped then; several columns; all if not given.
        ids: Gives the sample id of a sample. If not given, the id is what a store has for this key: ``KEY``, the key
            behind the path of its tar, or the key with the ending of its image.
        missing: What to do with samples that the store does not have, or whose row is invalid.
        check_content: Compare the bytes of images with those that were extracted, each once in each process.

    Raises:
        ConfigError: No such field.
        ViewMismatch: The store has no such view.
        MissingSamples: While samples are read: one is not in the store, is invalid, or is another image.
    """
    return Join(StoredFeatures(store, fields, views), ids, missing, check_content)


class Join:
    """See ``join``. May be sent to worker processes.

    Attributes:
        store: The open store.
        skipped: Samples that were left out by this process, with ``missing="skip"``.
    """

    def __init__(
        self,
        features: StoredFeatures,
        ids: Callable[[dict[str, Any]], str] | None,
        missing: str,
        check_content: bool,
    ) -> None:
        if missing not in ("error", "skip"):
            raise ConfigError(f"missing is {missing!r}; expected error or skip.")
        self.store, self.skipped = features.store, 0
        self._features, self._ids, self._missing = features, ids, missing
        self._check = ContentCheck(self.store) if check_content else None

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the samples of a pipeline with their features."""
        source = iter(samples)
        while group := list(islice(source, GROUP_SAMPLES)):
            found = [(sample, row) for sample in group if (row := self._row(sample)) is not None]
            features = self._features.named([row for _, row in found])
            for (sample, _), item in zip(found, features, strict=True):
                named = {f"{name}.npy": value for name, value in item.items()}
                both = sorted(sample.keys() & named.keys())
                if both:
                    raise ConfigError(f"{self.store.address}: samples have keys {both} already.")
                yield {**sample, **named}

    def _row(self, sample: dict[str, Any]) -> int | None:
        """The row of a sample; None where it is left out."""
        names = [self._ids(sample)] if self._ids else list(_candidates(sample))
        row = next((row for name in names if (row := self.store.row_of(name)) is not None), None)
        if row is None or not self.store.valid[row]:
            if self._missing == "skip":
                self.skipped += 1
                return None
            if row is not None:
                self.store.refuse_invalid([row])
            raise MissingSamples(
                f"{self.store.address}: sample {sample.get('__key__')!r} of {sample.get('__url__')} is not in the "
                f"store; looked for the ids {shorten(names)}. It holds samples such as {self.store.sample_ids[0]}. "
                'Give ids=, or missing="skip".'
            )
        if self._check is not None and self._check.needed(row):
            image = next((sample[name] for name in _images(sample)), None)
            if isinstance(image, bytes):  # not decoded yet
                self._check(row, image)
        return row


def _candidates(sample: dict[str, Any]) -> Iterator[str]:
    """Ids that a sample may have in a store, the most specific first."""
    key = sample["__key__"]
    tar = str(sample.get("__url__", "")).partition("?")[0]
    name = Path(tar.removesuffix(".gz").removesuffix(".tar")).parts
    for start in range(len(name)):
        yield "/".join([*name[start:], key])
    yield from (f"{key}.{ending}" for ending in _images(sample))
    yield key


def _images(sample: dict[str, Any]) -> list[str]:
    """Names of the items of a sample that are images."""
    return [name for name in sample if f".{name.rpartition('.')[2].lower()}" in image_suffixes()]
