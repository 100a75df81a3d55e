"""Stored features as columns of a Hugging Face data set, read when its rows are.

images = datasets.load_from_disk("photos")
train = featstore.hf.with_features(images, "stores/photos", fields=["cls"])
train[3]["cls"]
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featstore.errors import ConfigError
from featstore.files.array_types import Rows
from featstore.reading.joining import ContentCheck, StoredFeatures, Views
from featstore.reading.store import FeatureStore

__all__ = ["with_features"]

POSITION = "featstore_position"
"""Column with the position of each row in the data set that was given; it is not handed out."""


def with_features(
    dataset: Any,
    store: FeatureStore | str | Path,
    ids: str | Sequence[str] | None = None,
    *,
    fields: str | Sequence[str] | None = None,
    views: Views = None,
    image_column: str = "image",
    check_content: bool = True,
) -> Any:
    """Add fields of a store as columns that are read on access; nothing is copied into the data set.

    Rows can be selected and shuffled afterwards. A transform that the data set has is applied first; call
    ``with_transform`` or ``with_format`` before this, not after it.

    Args:
        dataset: A ``datasets.Dataset``.
        store: An open store, or its path or URL.
        ids: Name of a column of sample ids, or one id for each row. If not given, they are those of a store that was
            extracted from this data set: ``00000012`` or ``SPLIT/00000012`` by position.
        fields: Fields to read; all if not given.
        views: Column of the view axis to read, which is dropped then; several columns; all if not given.
        image_column: Column of the images, for ``check_content``.
        check_content: Compare the bytes of images with those that were extracted, each once in each process.

    Returns:
        A ``datasets.Dataset`` whose rows also have the fields, as tensors.

    Raises:
        ConfigError: Another number of ids than rows, a format that cannot be combined, or no such field.
        MissingSamples: An id is not in the store, or its row is invalid; when a row is read: it is another image.
        ViewMismatch: The store has no such view.
    """
    features = StoredFeatures(store, fields, views)
    kind = dataset.format["type"]
    both = sorted(set(features.fields) & set(dataset.column_names))
    if kind not in (None, "custom", "python") or both:
        raise ConfigError(
            f"{features.store.address}: the data set has format {kind!r} and columns {dataset.column_names}; expected "
            f"a transform or no format, and no columns {features.fields}. Use with_format(None) or rename_column."
        )
    rows = features.usable_rows(_ids(dataset, features.store, ids), len(dataset))
    images = _undecoded(dataset, image_column) if check_content else None
    before = dataset.format["format_kwargs"].get("transform") if kind == "custom" else None
    numbered = dataset.with_format(None).add_column(POSITION, np.arange(len(dataset)))
    return numbered.with_transform(_Transform(features, rows, before, images, image_column))


@dataclass(eq=False)
class _Transform:
    """Adds the features to a batch of rows, after the data set's own transform."""

    features: StoredFeatures
    rows: Rows
    before: Callable[[Any], Any] | None
    images: Any
    image_column: str

    def __post_init__(self) -> None:
        self._check = ContentCheck(self.features.store)

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        batch = dict(batch)
        positions = batch.pop(POSITION)
        rows = self.rows[positions]
        if self.images is not None:
            for position, row in zip(positions, rows.tolist(), strict=True):
                if self._check.needed(row):
                    self._check(row, _bytes(self.images[position][self.image_column]))
        out = dict(self.before(batch) if self.before else batch)
        named = self.features.named(rows)
        return out | {name: [item[name] for item in named] for name in (named[0] if named else ())}


def _ids(dataset: Any, store: FeatureStore, ids: str | Sequence[str] | None) -> Sequence[str]:
    if isinstance(ids, str):
        if ids not in dataset.column_names:
            raise ConfigError(f"no column {ids!r} of ids; the columns are {dataset.column_names}.")
        return [str(name) for name in dataset.with_format(None)[ids]]
    if ids is not None:
        return list(ids)
    names = [f"{position:08d}" for position in range(len(dataset))]
    if names and store.row_of(names[0]) is None and dataset.split is not None:
        names = [f"{dataset.split}/{name}" for name in names]
    return names


def _undecoded(dataset: Any, column: str) -> Any:
    """The same rows with the files of their images; None where there are none."""
    import datasets

    if not isinstance(dataset.features.get(column), datasets.Image):
        return None
    return dataset.with_format(None).cast_column(column, datasets.Image(decode=False))


def _bytes(image: dict[str, Any]) -> bytes:
    data: bytes | None = image["bytes"]
    return Path(image["path"]).read_bytes() if data is None else data
