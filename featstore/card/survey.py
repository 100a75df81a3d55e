"""Counts of a store in bounded time.

Of a store with more than ``MOST_SHARDS`` shards, that many are read, evenly spaced; the counts are then estimates, and
``Survey.whole`` is False.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from featstore.files.array_types import Bytes, Rows
from featstore.format.fields import field_columns
from featstore.format.ledger import InvalidRow, ShardRecord, read_complete
from featstore.format.manifest import Manifest
from featstore.planning.costs import stored_bytes
from featstore.reading.store import FeatureStore
from featstore.reading.stored_rows import RowReader

MOST_SHARDS = 1000  # shards whose ledger entry and labels are read
SAMPLED_SHARDS = 256  # shards of the sampled rows
SAMPLED_IDS = 2_000_000  # ids read for the sampled rows; the ids of a shard are one compressed text
MOST_INVALID = 10_000  # skipped rows kept with their reasons
OTHERS = "ids, hashes, labels"  # name of the bytes that belong to no field


@dataclass(frozen=True)
class Survey:
    """Counts of a store."""

    manifest: Manifest
    whole: bool  # every shard was read; otherwise counts by class and field are estimates
    entries: list[ShardRecord]
    valid_rows: int
    bytes: int
    field_bytes: dict[str, int]  # bytes by field and of the rest, largest first
    class_counts: dict[int, int]  # rows by class index, most frequent first, including skipped rows
    labelled_rows: int
    invalid: list[InvalidRow]  # skipped rows, at most ``MOST_INVALID`` of them

    @property
    def invalid_rows(self) -> int:
        """Rows without features."""
        return self.manifest.num_rows - self.valid_rows

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by part of the shards that were read."""
        total = Counter[str]()
        for entry in self.entries:
            total.update(entry.seconds)
        return dict(total)


@dataclass(frozen=True)
class Sample:
    """Some valid rows, ascending."""

    rows: Rows  # (n,) numbers
    ids: list[str]
    labels: Rows  # (n,) class indices, -1 where unknown
    hashes: Bytes  # (n, 32) uint8, of each image's bytes
    whole: bool  # these are all valid rows of the store


def survey(store: FeatureStore) -> Survey:
    """Count what a complete store holds. Raises ShardCorrupt: a shard that is read is damaged."""
    manifest = store.manifest
    shards = _spread(manifest.num_shards, MOST_SHARDS)
    entries = [store.entry(shard) for shard in shards]
    whole = len(shards) == manifest.num_shards
    # What every shard says, as if the ones that were not read were like the others.
    share = manifest.num_rows / sum(entry.rows[1] - entry.rows[0] for entry in entries)
    mark = read_complete(store.path, manifest.num_shards)
    read_bytes = sum(item.bytes for entry in entries for item in entry.objects.values())
    skipped = sum(len(entry.invalid) for entry in entries)
    invalid_rows = mark.invalid_rows if mark else round(skipped * share)
    counts = _class_counts(store, shards)
    return Survey(
        manifest=manifest,
        whole=whole,
        entries=entries,
        valid_rows=manifest.num_rows - min(invalid_rows, manifest.num_rows),
        bytes=mark.bytes if mark else round(read_bytes * share),
        field_bytes=_field_bytes(manifest, entries, share),
        class_counts={label: round(count * share) for label, count in counts.items()},
        labelled_rows=round(sum(counts.values()) * share),
        invalid=[item for entry in entries for item in entry.invalid][:MOST_INVALID],
    )


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of the first ``count`` integers, evenly spaced."""
    return (
        list(range(count))
        if count <= most
        else np.linspace(0, count - 1, most, dtype=np.int64).tolist()
    )


def _class_counts(store: FeatureStore, shards: list[int]) -> dict[int, int]:
    if not store.manifest.source.has_labels:
        return {}
    counts = Counter[int]()
    for shard in shards:
        labels = store.read_shard(shard, "label")
        found, numbers = np.unique(labels[labels >= 0], return_counts=True)
        counts.update(dict(zip(found.tolist(), numbers.tolist(), strict=True)))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _field_bytes(manifest: Manifest, entries: list[ShardRecord], share: float) -> dict[str, int]:
    """Bytes by field; in tars, which mix fields, computed from shapes, without texts and ragged items."""
    total = Counter[str]()
    if manifest.container == "zarr":
        for entry in entries:
            for name, item in entry.objects.items():
                parts = name.split("/")
                total[parts[1] if parts[0] == "fields" else OTHERS] += item.bytes
        found = {name: round(size * share) for name, size in total.items()}
    else:
        views = len(manifest.views)
        found = {name: 0 for name in manifest.fields}
        for name, spec in manifest.fields.items():
            if all(column.capacity == 1 for column in field_columns(name, spec, views)):
                found[name] = stored_bytes(name, spec, views) * manifest.num_rows
        size = sum(item.bytes for entry in entries for item in entry.objects.values())
        found[OTHERS] = max(0, round(size * share) - sum(found.values()))
    return dict(sorted(found.items(), key=lambda item: (item[0] == OTHERS, -item[1], item[0])))


def draw_rows(store: FeatureStore, most: int, *, seed: int = 0) -> Sample:
    """Draw valid rows at random from evenly spaced shards; all rows if there are no more than ``most``."""
    manifest = store.manifest
    whole = manifest.num_rows <= most
    rows = (
        np.arange(manifest.num_rows, dtype=np.int64) if whole else _draw_rows(manifest, most, seed)
    )
    reader = RowReader(store.storage)
    rows = rows[reader.numbers("valid", rows)]
    labels = np.full(len(rows), -1, dtype=np.int64)
    if manifest.source.has_labels:
        labels = reader.numbers("label", rows)
    ids = [str(name) for name in reader.texts("sample_id", rows)]
    return Sample(rows, ids, labels, reader.numbers("content_sha256", rows), whole)


def _draw_rows(manifest: Manifest, most: int, seed: int) -> Rows:
    num_shards = min(SAMPLED_SHARDS, max(1, SAMPLED_IDS // manifest.work.shard_rows))
    ranges = [manifest.shard_range(shard) for shard in _spread(manifest.num_shards, num_shards)]
    starts = np.array([rows.start for rows in ranges], dtype=np.int64)
    ends = np.cumsum([len(rows) for rows in ranges])
    generator = np.random.default_rng(seed)
    places = np.sort(generator.choice(int(ends[-1]), min(most, int(ends[-1])), replace=False))
    at = np.searchsorted(ends, places, side="right")
    found: Rows = starts[at] + places - np.concatenate([[0], ends[:-1]])[at]
    return found


def class_name(manifest: Manifest, label: int) -> str:
    """Name of a class; its number if the manifest has no name for it, "" for an unknown label."""
    names = manifest.source.class_names
    if label < 0:
        return ""
    return names[label] if label < len(names) else f"class {label}"
