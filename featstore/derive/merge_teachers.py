"""Merge teachers: fields of several stores of the same images, matched by content in any order."""

# N rows of all stores, n rows of the new one

from collections.abc import Sequence
from typing import Literal

import numpy as np

from featstore.derive.compatibility import common_classes, common_origin, renumbered
from featstore.derive.composition import (
    NO_ROW,
    Composition,
    RowAxis,
    artefact_bytes,
    cut_like,
    derived,
    ids_of,
)
from featstore.derive.matching import RowKeys, samples_of, views_depend_on_ids
from featstore.errors import ConfigError, ManifestMismatch, shorten
from featstore.files.array_types import Rows
from featstore.format.ids import check_name, ids_sha256
from featstore.format.manifest import Manifest, differences
from featstore.format.manifest_records import (
    ArtefactRecord,
    FieldRecord,
    Int8Encoding,
    SourceRecord,
    TeacherRecord,
    WorkRecord,
)
from featstore.reading.store import FeatureStore

Missing = Literal["refuse", "drop", "invalid"]


def plan_teachers(
    stores: Sequence[FeatureStore], *, missing: Missing = "refuse", names: Sequence[str] = ()
) -> tuple[Composition, list[str]]:
    """Plan what a store with the fields of several will be: ids and order are the first store's.

    A row is valid if it is in every store. Labels are those of the first store that knows one.

    Args:
        missing: What becomes of an image that is not in every store: refuse the merge, drop the image, or keep it as
            an invalid row whose reason names the stores without it.
        names: Of the stores; given, they are put before all names of fields, teachers and artefacts, ``<name>_cls``.

    Returns:
        The plan, and notes for the user.

    Raises:
        ManifestMismatch: The stores have different views, or no image in common.
        ConfigError: Images are missing, names clash, labels contradict each other.
    """
    first = stores[0].manifest
    for other in stores[1:]:
        _check_same_views(stores[0], other)
    parts = [_Renamed(store, names[i] if names else "") for i, store in enumerate(stores)]
    _check_names(parts)
    samples = samples_of(stores)
    table = match(samples, by_name=views_depend_on_ids(first.views))
    rows, notes = _settle_missing(samples, table, missing)
    axis = RowAxis(tuple(stores), _origin(rows))
    axes = [
        RowAxis(
            (store,),
            _local(rows[i], samples, i),
            missing=f"not in {names[i] if names else store.path.name}",
        )
        for i, store in enumerate(stores)
    ]
    classes, labels = _labels(stores, rows, samples)
    artefacts = {new: record for part in parts for new, record in part.artefacts.items()}
    manifest = derived(
        first,
        common_origin(stores, "merged"),
        teachers={new: record for part in reversed(parts) for new, record in part.teachers.items()},
        fields={new: record for part in parts for new, record in part.fields.items()},
        artefacts=artefacts,
        source=_source(stores, axis, classes, has_labels=labels is not None),
        work=_cut(stores, axis),
    )
    files = {new: data for part in parts for new, data in part.files().items()}
    fields = {
        part.new(old): (own, old)
        for part, own in zip(parts, axes, strict=True)
        for old in part.store.manifest.fields
    }
    return Composition(manifest, files, axis, fields, labels), notes


def _check_same_views(first: FeatureStore, other: FeatureStore) -> None:
    differing = differences(
        first.manifest.views.model_dump(mode="json"), other.manifest.views.model_dump(mode="json")
    )
    if differing:
        lines = "\n".join(f"  views.{key}: {was!r} and {now!r}" for key, was, now in differing)
        raise ManifestMismatch(
            f"{first.path} and {other.path}: their teachers saw different views, so their rows do not belong "
            f"together:\n{lines}\nExtract one of them again with the views of the other."
        )


class _Renamed:
    """The fields, teachers and artefacts of a store under the names that they get.

    Args:
        name: Put before all names; "" leaves them as they are.
    """

    def __init__(self, store: FeatureStore, name: str) -> None:
        self.store, self.name = store, check_name(name) if name else ""
        old = store.manifest
        alone = len(old.teachers) == 1
        teachers = {
            key: self.name if self.name and alone else self.new(key) for key in old.teachers
        }
        teachers[""] = ""
        self.teachers: dict[str, TeacherRecord] = {
            teachers[key]: record for key, record in old.teachers.items()
        }
        self.fields: dict[str, FieldRecord] = {}
        for key, record in old.fields.items():
            changes: dict[str, object] = {"teacher": teachers[record.teacher]}
            if isinstance(record.encoding, Int8Encoding) and record.encoding.channels:
                channels = self.new(record.encoding.channels)
                changes["encoding"] = record.encoding.model_copy(update={"channels": channels})
            self.fields[self.new(key)] = record.model_copy(update=changes)
        self.artefacts: dict[str, ArtefactRecord] = {
            self.new(key): record.model_copy(update={"teacher": teachers[record.teacher]})
            for key, record in old.artefacts.items()
        }

    def new(self, name: str) -> str:
        return f"{self.name}_{name}" if self.name else name

    def files(self) -> dict[str, bytes]:
        """Bytes of the artefacts, by new name."""
        old = list(self.store.manifest.artefacts)
        return {self.new(key): data for key, data in artefact_bytes(self.store, old).items()}


def _check_names(parts: Sequence[_Renamed]) -> None:
    """Refuse two things of one name; the same teacher in two stores is one thing."""
    seen: dict[str, tuple[_Renamed, object]] = {}
    for part in parts:
        things: list[tuple[str, object]] = [
            *((f"field {name}", object()) for name in part.fields),
            *(
                (f"teacher {name}", t.model_copy(update={"licence": ""}))
                for name, t in part.teachers.items()
            ),
            *((f"artefact {name}", record.sha256) for name, record in part.artefacts.items()),
        ]
        clashing = [name for name, thing in things if name in seen and seen[name][1] != thing]
        if clashing:
            other = seen[clashing[0]][0].store.path
            example = ",".join(dict.fromkeys(p.store.path.name.replace(",", "") for p in parts))
            raise ConfigError(
                f"{other} and {part.store.path}: both have {shorten(clashing)}. Give each store a name that is put "
                f"before those of its fields, e.g. --names {example}; or leave fields out first (featstore subset "
                "--fields)."
            )
        seen |= {name: (part, thing) for name, thing in things}


def match(samples: RowKeys, *, by_name: bool) -> Rows:
    """Find every image in every store.

    An image is found by its content: under its own id if there is such a row, else under any. One whose content could
    not be read is found by its id.

    Args:
        by_name: The same content under another id is another image.

    Returns:
        (stores, images) rows counted through all stores, ``NO_ROW`` where one is missing. First the images of the
        first store in its order, then those that are in later ones alone.
    """
    count = len(samples.axis.stores)
    members = [np.flatnonzero(samples.store == i) for i in range(count)]
    table = np.full((count, 0), NO_ROW, dtype=np.int64)
    known = np.empty(0, dtype=np.int64)  # one row of each image so far
    for i, rows in enumerate(members):
        found = _find(samples, known, rows, by_name=by_name)
        table[i] = found
        more = rows[_find(samples, rows, known, by_name=by_name) == NO_ROW]
        added = np.full((count, len(more)), NO_ROW, dtype=np.int64)
        added[i] = more
        table, known = np.concatenate([table, added], axis=1), np.concatenate([known, more])
    return table


def _find(samples: RowKeys, known: Rows, rows: Rows, *, by_name: bool) -> Rows:
    """For each image that is known, its row among those of one store, or ``NO_ROW``."""
    pairs = _pairs(samples)
    found = _look_up(pairs[known], pairs[rows], rows)
    content = samples.content
    if not by_name:
        missing = (found == NO_ROW) & (content[known] >= 0)
        found[missing] = _look_up(content[known[missing]], content[rows], rows)
    missing = found == NO_ROW
    by_id = _look_up(samples.name[known[missing]], samples.name[rows], rows)
    unread = (content[known[missing]] < 0) | (content[by_id] < 0)
    found[missing] = np.where((by_id != NO_ROW) & unread, by_id, NO_ROW)
    return found


def _pairs(samples: RowKeys) -> Rows:
    """(N,) equal numbers for rows of equal content and id."""
    return (samples.content + 1) * (int(samples.name.max()) + 1) + samples.name


def _look_up(wanted: Rows, keys: Rows, rows: Rows) -> Rows:
    """For each wanted key the first row that has it, or ``NO_ROW``."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    at = np.minimum(np.searchsorted(ordered, wanted), max(0, len(keys) - 1))
    if not len(keys):
        return np.full(len(wanted), NO_ROW, dtype=np.int64)
    return np.where(ordered[at] == wanted, rows[order][at], NO_ROW)


def _settle_missing(samples: RowKeys, table: Rows, missing: Missing) -> tuple[Rows, list[str]]:
    stores = samples.axis.stores
    everywhere = (table != NO_ROW).all(axis=0)
    if not everywhere.any():
        raise ManifestMismatch(
            f"{shorten([store.path for store in stores])}: no image is in all of them, so there is nothing to put "
            "side by side. Images are matched by the SHA-256 of their files."
        )
    if everywhere.all():
        return table, []
    lacking = [np.flatnonzero(row == NO_ROW) for row in table]
    texts = [
        f"{len(which):,} images are not in {store.path}: "
        + shorten(samples.ids(table[:, which[:5]].max(axis=0)))
        + (f" and {len(which) - 5:,} more" if len(which) > 5 else "")
        for store, which in zip(stores, lacking, strict=True)
        if len(which)
    ]
    if missing == "refuse":
        seeded = views_depend_on_ids(stores[0].manifest.views)
        raise ConfigError(
            "; ".join(texts)
            + ". Keep those that are in all: --missing drop. Keep all, without features: --missing invalid."
            + " Crops depend on sample ids, so a renamed image counts as another one." * seeded
        )
    if missing == "drop":
        return table[:, everywhere], [f"{text}; dropped" for text in texts]
    origin = _origin(table)
    _, first, counts = np.unique(samples.name[origin], return_index=True, return_counts=True)
    if (counts > 1).any():
        raise ConfigError(
            f"{shorten([store.path for store in stores])}: {(counts > 1).sum():,} ids belong to different images: "
            f"{shorten(samples.ids(origin[first[counts > 1][:5]]))}. One store cannot hold both; leave them out: "
            "--missing drop."
        )
    return table, [f"{text}; kept as invalid rows" for text in texts]


def _origin(rows: Rows) -> Rows:
    """(n,) the row of each image in the first store that has it."""
    found: Rows = rows[(rows != NO_ROW).argmax(axis=0), np.arange(rows.shape[1])]
    return found


def _local(rows: Rows, samples: RowKeys, store: int) -> Rows:
    return np.where(rows == NO_ROW, NO_ROW, rows - samples.axis.starts[store])


def _labels(
    stores: Sequence[FeatureStore], rows: Rows, samples: RowKeys
) -> tuple[tuple[str, ...], Rows | None]:
    """Class names, and (n,) labels of the first store that knows one; None if none has labels.

    An image that a store has several times, under other names and in other classes, is no contradiction.
    """
    labelled = [i for i, store in enumerate(stores) if store.manifest.source.has_labels]
    if not labelled:
        return (), None
    classes, numbers = common_classes(stores)
    labels = np.full(rows.shape[1], -1, dtype=np.int64)
    for i in labelled:
        there = rows[i] != NO_ROW
        own = np.full(rows.shape[1], -1, dtype=np.int64)
        local = _local(rows[i], samples, i)[there]
        own[there] = renumbered(stores[i].labels, numbers[i])[local]
        times = np.bincount(
            samples.content[samples.store == i] + 1, minlength=len(samples.content) + 1
        )
        once = times[samples.content[rows[i]] + 1] == 1
        wrong = np.flatnonzero((labels >= 0) & (own >= 0) & (own != labels) & once)
        if wrong.size:
            raise ConfigError(
                f"{stores[i].path}: {len(wrong):,} images have another class than in a store before: "
                f"{shorten(samples.ids(rows[i, wrong[:5]]))}. Mend the labels, or leave them out of one extraction "
                "(--source.labels_from none)."
            )
        labels = np.where(labels >= 0, labels, own)
    return classes, labels


def _source(
    stores: Sequence[FeatureStore], axis: RowAxis, classes: tuple[str, ...], *, has_labels: bool
) -> SourceRecord:
    first = stores[0].manifest.source
    rows = np.asarray(axis.rows)
    own = bool((rows < stores[0].num_rows).all())
    uris = dict.fromkeys(store.manifest.source.uri for store in stores)
    return SourceRecord(
        kind=first.kind if own else "merged",
        uri=first.uri if own else ", ".join(uris),
        num_samples=len(rows),
        ids_sha256=ids_sha256(ids_of(axis, len(rows))),
        has_labels=has_labels,
        class_names=classes,
    )


def _cut(stores: Sequence[FeatureStore], axis: RowAxis) -> WorkRecord:
    """As the first store, with rows no more than the widest fields allow."""
    first: Manifest = stores[0].manifest
    rows = np.asarray(axis.rows)
    if first.work.shard_sizes and (rows < first.num_rows).all():
        return cut_like(first, rows)
    least = min(store.manifest.work.shard_rows for store in stores)
    if least < first.work.shard_rows:
        least = 1 << (least.bit_length() - 1)  # inner chunks divide it
    return WorkRecord(shard_rows=least, batch_size=first.work.batch_size)
