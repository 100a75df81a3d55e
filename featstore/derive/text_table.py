"""Write a store with one more text table; all else stays the same."""

# n texts, D width of a field

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featstore.derive.append import link_shards
from featstore.derive.composition import Composition, ShardMaker, artefact_bytes, derived, whole
from featstore.errors import ConfigError, shorten
from featstore.files.array_types import Rows
from featstore.files.progress import Progress, no_progress
from featstore.format.artefacts import artefact_record
from featstore.format.ids import check_name
from featstore.format.manifest import Manifest
from featstore.format.text_table import TextTable, artefact_name, meaning_of
from featstore.format.version import __version__
from featstore.format.views import View
from featstore.reading.store import FeatureStore
from featstore.writing.commit import open_or_create
from featstore.writing.fill import check_apart, make_store

BLOCK_ROWS = 4096  # rows that are read at a time


def add_text_table(
    source: Path,
    out: Path,
    table: TextTable,
    *,
    name: str,
    field: str,
    origin: str,
    progress: Progress = no_progress,
) -> Manifest:
    """Write a store with one more text table, or resume. Full shards are hard links where the disk has them.

    Args:
        source: Folder of a complete store.
        name: Name of the table; ``texts.`` is put before it.
        field: Vector field in whose space the texts lie.
        origin: How the embeddings were made, for the manifest.

    Returns:
        The manifest of the new store.

    Raises:
        ConfigError: The field is not a vector of this width, or the store has such a table.
        StoreIncomplete, ShardCorrupt: The store is incomplete or damaged.
        ManifestMismatch, StoreNotFound, StoreBusy, StoreWriteError: See ``featstore.writing.fill``.
    """
    store = FeatureStore.open(source)
    plan = plan_text_table(store, table, name=name, field=field, origin=origin)
    check_apart(out, store.path)
    open_or_create(out, plan.manifest, plan.artefacts)
    link_shards(store, out, plan.manifest)
    return make_store(out, plan.manifest, plan.artefacts, ShardMaker(plan), progress=progress)


def plan_text_table(
    store: FeatureStore, table: TextTable, *, name: str, field: str, origin: str
) -> Composition:
    """Plan what the new store will be; arguments and errors as for ``add_text_table``."""
    old, artefact = store.manifest, check_name(artefact_name(name))
    width = vector_width(store, field)
    if table.width != width:
        raise ConfigError(
            f"{store.path}: the text table has embeddings of width {table.width}, field {field!r} has {width}. Both "
            "must come from one teacher."
        )
    if artefact in old.artefacts:
        raise ConfigError(f"{store.path}: has an artefact {artefact!r}; choose another name.")
    data = table.to_bytes()
    meaning = meaning_of(table.names, field, origin)
    record = artefact_record(data, meaning=meaning, teacher=old.fields[field].teacher)
    origins = {"text_table_by": f"featstore {__version__}", "text_table_from": old.fingerprint}
    manifest = derived(old, origins, artefacts={**old.artefacts, artefact: record})
    files = {**artefact_bytes(store, list(old.artefacts)), artefact: data}
    return Composition(manifest, files, whole(store))


def vector_width(store: FeatureStore, field: str) -> int:
    """Width of a vector field. Raises ConfigError: the store has no such field, or it is no vector."""
    record = store.manifest.fields.get(field)
    if record is None or len(record.shape) != 1 or record.encoding.kind not in ("plain", "int8"):
        raise ConfigError(
            f"{store.address}: no vector field {field!r}; it has: {shorten(sorted(store.manifest.fields))}."
        )
    return record.shape[0]


def class_means(store: FeatureStore, field: str, rows: Rows | None = None) -> TextTable:
    """Mean direction of every class in a field: in place of a text tower.

    Args:
        store: Complete, with labels.
        field: Name of a vector field; of several views, the canonical one (or the first) is read.
        rows: (n,) rows to average over; all if not given. Invalid rows and rows without a label are left out.
    """
    width, labels = vector_width(store, field), store.labels
    taken = np.arange(store.num_rows) if rows is None else np.asarray(rows)
    taken = taken[store.valid[taken] & (labels[taken] >= 0)]
    if not len(taken):
        raise ConfigError(f"{store.address}: none of the rows has a label to average over.")
    record, views = store.manifest.fields[field], store.manifest.views.views
    canonical = View(kind="canonical")
    column = views.index(canonical) if canonical in views else 0
    sums = np.zeros((int(labels[taken].max()) + 1, width))
    for start in range(0, len(taken), BLOCK_ROWS):
        block = taken[start : start + BLOCK_ROWS]
        values = store.gather(field, block, views=[column] if record.per_view else None)
        np.add.at(sums, labels[block], _unit(np.asarray(values, np.float64).reshape(-1, width)))
    classes = np.unique(labels[taken])
    names = store.manifest.source.class_names or tuple(str(number) for number in range(len(sums)))
    return TextTable.of([names[number] for number in classes], sums[classes])


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def prompts(lines: Sequence[str], templates: Sequence[str]) -> dict[str, list[str]]:
    """All prompts of every name, in order.

    Args:
        lines: ``name``, or ``name<TAB>text`` with a text to use in place of the name; several lines of one name add up.
        templates: Texts with ``{}`` for the name, in which ``_`` becomes a space; a text is put in as it is.
    """
    wrong = [template for template in templates if "{}" not in template]
    if wrong or not templates:
        raise ConfigError(f"templates {shorten(wrong) or 'are missing'}: expected {{}} in each.")
    found: dict[str, list[str]] = {}
    for line in lines:
        name, tab, text = line.partition("\t")
        filled = text if tab else name.replace("_", " ")
        found.setdefault(name, []).extend(item.replace("{}", filled) for item in templates)
    return found
