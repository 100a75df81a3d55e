"""Match the samples of any data set with rows of a store; shared by the adaptors for other libraries."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featstore.errors import ConfigError, MissingSamples
from featstore.files.array_types import Rows
from featstore.reading.store import FeatureStore

Views = int | Sequence[int] | None
"""One column of the view axis, which is dropped then; several; or all."""


class StoredFeatures:
    """Some fields of an open store, as the samples of a data set get them.

    Args:
        store: An open store, or its path or URL.
        fields: One name, several, or all fields if not given.

    Raises:
        ConfigError: The store has no such field.
        ViewMismatch: The store has no such view.
    """

    def __init__(
        self, store: FeatureStore | str | Path, fields: str | Sequence[str] | None, views: Views
    ) -> None:
        self.store = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
        self._single = fields if isinstance(fields, str) else None
        given = [fields] if isinstance(fields, str) else fields
        self.fields = list(self.store) if given is None else list(given)
        for name in self.fields:
            if name not in self.store:
                raise ConfigError(
                    f"{self.store.address}: no field {name!r}; it has: {', '.join(self.store)}."
                )
        self._one_view = isinstance(views, int | np.integer)
        self._views: Rows | None = None
        if views is not None:
            self._views = self.store.view_numbers(np.atleast_1d(views))

    def gather(self, rows: Sequence[int] | Rows) -> list[Any]:
        """The features of some rows, one by one: a dictionary of tensors; a tensor where one field was named."""
        from featstore.reading.torch_data import gather_tensors, split_batch

        wanted = np.asarray(rows, dtype=np.int64)
        batch = gather_tensors(self.store, self.fields, wanted, views=self._views)
        if self._one_view:
            for name, values in batch.items():
                field = name if name in self.store else name.rpartition(".")[0]
                spec = self.store.manifest.fields[field]
                if spec.per_view and spec.encoding.kind != "ragged":
                    batch[name] = (
                        [row[0] for row in values] if isinstance(values, list) else values[:, 0]
                    )
        samples = split_batch(batch, len(wanted))
        if self._single is None:
            return samples
        return [sample.get(self._single, sample) for sample in samples]

    def named(self, rows: Sequence[int] | Rows) -> list[dict[str, Any]]:
        """As ``gather``, always by name of the field."""
        found = self.gather(rows)
        return [item if isinstance(item, dict) else {self.fields[0]: item} for item in found]

    def usable_rows(self, ids: Sequence[str], count: int) -> Rows:
        """Rows of the samples of a data set.

        Raises:
            ConfigError: There are more or fewer ids than samples.
            MissingSamples: An id is not in the store, or its row has no usable feature; names ids and reasons.
        """
        if len(ids) != count:
            raise ConfigError(
                f"{self.store.address}: {len(ids)} ids for a data set of {count} samples; give one id for each sample, "
                "in its order."
            )
        rows = self.store.rows_of(ids)
        self.store.refuse_invalid(rows)
        return rows


class ContentCheck:
    """Compare the bytes of images with those that the features were made from, each row once in each process."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._done = np.zeros(store.num_rows, dtype=np.bool_)

    def needed(self, row: int) -> bool:
        """Whether a row was not compared yet."""
        return not self._done[row]

    def __call__(self, row: int, data: bytes) -> None:
        """Compare one image. Raises MissingSamples: the features of the row were made from another file."""
        expected = self._store.content_sha256[row].tobytes()
        found = hashlib.sha256(data).digest()
        # A store of features that were computed elsewhere may not know the hash of an image.
        if any(expected) and found != expected:
            raise MissingSamples(
                f"{self._store.address}: sample {self._store.sample_ids[row]!r} was extracted from another file "
                f"(sha256 {found.hex()[:16]}.., expected {expected.hex()[:16]}..). Extract again, or give the ids "
                "in the order of the data set."
            )
        self._done[row] = True
