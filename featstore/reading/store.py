"""``FeatureStore``: an open store as users see it."""

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from featstore.display.text import format_bytes
from featstore.errors import printable
from featstore.files.array_types import Rows
from featstore.reading.field_array import FieldArray
from featstore.reading.open_store import OpenStore

if TYPE_CHECKING:
    from featstore.reading.torch_data import FeatureDataset, FeatureLoader


class FeatureStore(OpenStore):
    """An open store; see ``OpenStore`` for what it keeps and promises.

    Examples:
        >>> store = featstore.open("stores/photos")
        >>> len(store), list(store)
        (10, ['cls', 'grid2'])
        >>> store["cls"]
        <field 'cls': (10, 3, 4) float16>
        >>> store["cls"][[3, 1], 0].shape
        (2, 4)
    """

    def __len__(self) -> int:
        """Rows of the store, valid or not."""
        return self.num_rows

    def __iter__(self) -> Iterator[str]:
        """Names of the fields."""
        return iter(sorted(self.manifest.fields))

    def __contains__(self, name: object) -> bool:
        """Whether the store has a field of this name."""
        return name in self.manifest.fields

    def __getitem__(self, name: str) -> FieldArray:
        """One field as an array whose rows are read when they are asked for.

        Raises:
            ConfigError: The store has no such field, or it is top-k or ragged.
        """
        return FieldArray(self, name)

    @property
    def nbytes(self) -> int:
        """Bytes of all shards; of a store that is not complete, of the fields of all its rows before compression."""
        if self.storage.mark is not None:
            return self.storage.mark.bytes
        views = len(self.manifest.views)
        return self.num_rows * sum(spec.row_bytes(views) for spec in self.manifest.fields.values())

    def _facts(self) -> dict[str, str]:
        """What ``repr`` shows, by name; single lines without control characters."""
        manifest = self.manifest
        teachers = (f"{record.name} ({record.library})" for record in manifest.teachers.values())
        missing = manifest.num_shards - len(self.shards)
        rows = f"{self.num_rows:,}" + (f" ({missing} shards missing)" if missing else "")
        facts = {
            "rows": rows,
            "views": str(len(manifest.views)),
            "teacher": ", ".join(teachers) or "none",
            "size": f"{format_bytes(self.nbytes)} ({manifest.container})",
        }
        return {name: printable(text) for name, text in facts.items()}

    def _fields(self) -> list[tuple[str, str, str]]:
        """Name, shape of a row and type of each field."""
        views = (len(self.manifest.views),)
        found = []
        for name in self:
            spec = self.manifest.fields[name]
            shape = (*(views if spec.per_view else ()), *spec.shape)
            kind = spec.encoding.kind
            dtype = spec.dtype if kind == "plain" else f"{spec.dtype} {kind}"
            found.append((name, str(shape), f"{dtype} {spec.codec}"))
        return found

    def __repr__(self) -> str:
        facts = "".join(f"\n  {name:8}{text}" for name, text in self._facts().items())
        fields = "".join(f"\n  {name:12}{shape} {dtype}" for name, shape, dtype in self._fields())
        return f"<FeatureStore {printable(self.address)}{facts}\n fields{fields}>"

    def _repr_html_(self) -> str:
        """The same for notebooks; whatever comes from the store is escaped."""

        def table(rows: Sequence[Sequence[str]]) -> str:
            cells = (
                "".join(f"<td>{html.escape(printable(text))}</td>" for text in row) for row in rows
            )
            return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"

        return (
            f"<div><b>FeatureStore</b> <code>{html.escape(printable(self.address))}</code>"
            f"{table(list(self._facts().items()))}{table(self._fields())}</div>"
        )

    def dataset(
        self,
        fields: Sequence[str],
        *,
        rows: Rows | None = None,
        views: Sequence[int] | None = None,
        labels: bool = False,
    ) -> "FeatureDataset":
        """Rows of some fields as a PyTorch data set; see ``FeatureDataset``.

        Args:
            fields: Names of fields.
            rows: (n,) rows of the store; all valid ones if not given.
            views: Columns of the view axis to read; all if not given.
            labels: Also give ``label``, (B,) int64, -1 unknown.

        Examples:
            >>> store = featstore.open("stores/photos")
            >>> data = store.dataset(["cls"], views=[0])
            >>> data[3]["cls"].shape
            torch.Size([1, 1, 4])
        """
        from featstore.reading.torch_data import FeatureDataset

        return FeatureDataset(self, fields, rows=rows, views=views, labels=labels)

    def loader(
        self,
        fields: Sequence[str],
        *,
        batch_size: int,
        rows: Rows | None = None,
        views: Sequence[int] | None = None,
        labels: bool = False,
        **options: Any,
    ) -> "FeatureLoader":
        """Batches of some fields for PyTorch, shuffled and resumable; see ``FeatureLoader``.

        Args:
            fields: As for ``dataset``, and so are ``rows``, ``views`` and ``labels``.
            batch_size: Rows per batch.
            options: See ``FeatureLoader``: ``shuffle``, ``workers``, ``rank``, ``world_size``, ``drop_last``, ``seed``.

        Examples:
            >>> store = featstore.open("stores/photos")
            >>> for batch in store.loader(["cls"], batch_size=4, seed=1):
            ...     batch["cls"].shape
            torch.Size([4, 3, 4])
            torch.Size([4, 3, 4])
            torch.Size([4, 3, 4])
        """
        from featstore.reading.torch_data import FeatureLoader

        dataset = self.dataset(fields, rows=rows, views=views, labels=labels)
        return FeatureLoader(dataset, batch_size=batch_size, **options)
