"""Import features of other programs as a store: npy, Parquet, Hugging Face data sets, clip-retrieval's folders."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from featstore.errors import MissingSamples, shorten
from featstore.format.ids import content_sha256
from featstore.format.manifest import Manifest
from featstore.importing.create import create
from featstore.importing.given_values import ContentHash, Field
from featstore.importing.tables import Kind, open_table
from featstore.sources import open_source
from featstore.sources.config import SourceConfig

BATCH_ROWS = 4096


def import_(
    source: str | Path,
    out: str | Path,
    *,
    teacher: str,
    kind: Kind | None = None,
    fields: Mapping[str, str] | None = None,
    ids: str | None = None,
    labels: str | None = None,
    dtype: str | None = None,
    images: str | Path | SourceConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> Manifest:
    """Write features that another program computed as a store, or resume; returns its manifest.

    Arguments and errors as for ``featstore.import_``. ``images`` may also be the settings of a source, and ``progress``
    is called with the numbers of rows done and to do.
    """
    table = open_table(source, kind=kind, fields=fields, ids=ids, labels=labels)
    specs: dict[str, Field] = {
        name: (shape, dtype if dtype and "float" in stored else stored)
        for name, (shape, stored) in table.fields.items()
    }
    if images is not None:
        config = (
            images
            if isinstance(images, SourceConfig)
            else SourceConfig(kind="folder", path=str(images), labels_from="none")
        )
        options["content_sha256"] = hashes_of(config, table.ids)
    with create(
        out,
        fields=specs,
        ids=table.ids,
        teacher=teacher,
        labels=table.labels,
        class_names=table.class_names,
        source=(table.kind, str(source)),
        **options,
    ) as store:
        start = store.rows_done
        progress(start, store.num_rows)
        for batch in table.batches(start, BATCH_ROWS):
            store.add(batch, start=start)
            start += len(next(iter(batch.values())))
            progress(start, store.num_rows)
    return store.manifest


def hashes_of(config: SourceConfig, ids: Any) -> ContentHash:
    """A function that reads and hashes the image of a sample id."""
    source = open_source(config)
    row_of = {sample_id: row for row, sample_id in enumerate(source.sample_ids)}
    missing = [sample_id for sample_id in ids if sample_id not in row_of]
    if missing:
        raise MissingSamples(
            f"{source.uri}: {len(missing)} of {len(ids)} ids are no images there: {shorten(missing)}. Its images are "
            f"called {shorten(source.sample_ids[:2])}."
        )
    return lambda sample_id: content_sha256(source.read(row_of[sample_id]))
