"""Stored features in any PyTorch loop: a map-style data set whose samples also carry their row of a store.

Examples:
    >>> import featstore.torch
    >>> images = [(0.5, 1)] * 10
    >>> ids = featstore.open("stores/photos").sample_ids
    >>> data = featstore.torch.with_features(images, "stores/photos", ids, fields="cls", views=0)
    >>> image, label, feature = data[3]
    >>> feature.shape
    torch.Size([4])
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset

from featstore.errors import ConfigError
from featstore.reading.joining import ContentCheck, StoredFeatures, Views
from featstore.reading.store import FeatureStore

__all__ = ["WithFeatures", "with_features"]


def with_features(
    dataset: Any,
    store: FeatureStore | str | Path,
    ids: Sequence[str] | None = None,
    *,
    fields: str | Sequence[str] | None = None,
    views: Views = None,
    content: Callable[[int], bytes] | None = None,
    check_content: bool = True,
) -> "WithFeatures":
    """Let each sample of a data set carry its stored row.

    The teacher saw the stored view, and the student must see the same part of the image: random crops and mirroring of
    the data set do not fit.

    Args:
        dataset: Map-style data set: ``len``, and a sample for each index.
        store: An open store, or its path or URL.
        ids: Sample id of each sample, in the order of the data set. If not given, they are found in it:
            paths below the root of torchvision's ``ImageFolder``, or its ``sample_ids``; also of a ``Subset``.
        fields: Fields to read: one name gives a tensor, several a dictionary of tensors; all if not given.
        views: Column of the view axis to read, which is dropped then; several columns; all if not given.
        content: Gives the bytes of the image file of an index; known for ``ImageFolder``.
        check_content: Compare those bytes with the images that were extracted, each once in each process.

    Returns:
        A data set of the same length. A sample that is a mapping gets the features under the names of their fields, a
        tuple gets them as one item more, anything else becomes (sample, features).

    Raises:
        ConfigError: Another number of ids than samples, no ids to be found, or no such field.
        MissingSamples: An id is not in the store, or its row is invalid; when a sample is read: it is another image.
        ViewMismatch: The store has no such view.
    """
    features = StoredFeatures(store, fields, views)
    if ids is None:
        ids = _ids(dataset)
    if content is None:
        paths = _paths(dataset)
        content = None if paths is None else partial(_read, paths)
    return WithFeatures(dataset, features, ids, content if check_content else None)


class WithFeatures(Dataset[Any]):
    """See ``with_features``.

    Attributes:
        dataset: The data set that was given.
        store: The open store.
        rows: (N,) row of the store of each sample.
    """

    def __init__(
        self,
        dataset: Any,
        features: StoredFeatures,
        ids: Sequence[str],
        content: Callable[[int], bytes] | None,
    ) -> None:
        self.dataset, self.store = dataset, features.store
        self.rows = features.usable_rows(ids, len(dataset))
        self._features, self._content = features, content
        self._check = ContentCheck(self.store)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        """One sample with its features."""
        (sample,) = self.__getitems__([index])
        return sample

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Several samples; their features are read together. A ``DataLoader`` calls this for each batch."""
        several = getattr(self.dataset, "__getitems__", None)
        samples = several(indices) if several else [self.dataset[index] for index in indices]
        rows = self.rows[list(indices)]
        if self._content is not None:
            for index, row in zip(indices, rows.tolist(), strict=True):
                if self._check.needed(row):
                    self._check(row, self._content(index))
        found = self._features.gather(rows)
        return [self._joined(*pair) for pair in zip(samples, found, strict=True)]

    def _joined(self, sample: Any, features: Any) -> Any:
        if isinstance(sample, Mapping):
            if not isinstance(features, dict):
                features = {self._features.fields[0]: features}
            both = sorted(sample.keys() & features.keys())
            if both:
                raise ConfigError(f"{self.store.address}: samples have keys {both} already.")
            return {**sample, **features}
        return (*sample, features) if isinstance(sample, tuple | list) else (sample, features)


def _read(paths: Sequence[str], index: int) -> bytes:
    return Path(paths[index]).read_bytes()


def _ids(dataset: Any) -> Sequence[str]:
    if isinstance(dataset, Subset):
        whole = _ids(dataset.dataset)
        return [whole[index] for index in dataset.indices]
    if (found := getattr(dataset, "sample_ids", None)) is not None:
        return list(found)
    paths, root = _paths(dataset), getattr(dataset, "root", None)
    if paths is None or root is None:
        raise ConfigError(
            f"{type(dataset).__name__}: no ids of its samples are known. Give ids=: one sample id for each sample, in "
            "its order."
        )
    return [Path(path).relative_to(root).as_posix() for path in paths]


def _paths(dataset: Any) -> list[str] | None:
    """Path of the image of each sample of torchvision's ``ImageFolder``; None for other data sets."""
    if isinstance(dataset, Subset):
        whole = _paths(dataset.dataset)
        return None if whole is None else [whole[index] for index in dataset.indices]
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, list) or not all(
        isinstance(item, tuple) and isinstance(item[0], str | Path) for item in samples
    ):
        return None
    return [str(item[0]) for item in samples]
