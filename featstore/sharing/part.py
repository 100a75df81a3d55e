"""A part of a store (some fields, some rows) that is pushed or pulled; it is a store of its own.

A pull fetches the ids of the rows first where patterns choose among them, then the shards that hold such rows, of the
zarr container only the objects of the fields that are wanted; a tar holds all fields of its rows. The part is then
written from these, as ``featstore subset`` writes it.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from featstore.derive.composition import compose
from featstore.derive.subset import choose_rows, plan_subset
from featstore.errors import ConfigError, StoreError, shorten
from featstore.files.array_types import Rows
from featstore.format.manifest import Manifest, read_manifest
from featstore.reading.cached.published_store import Contents
from featstore.reading.store import FeatureStore

NOTE = "part"  # key of ``created_by`` under which the manifest of a part describes the part


@dataclass(frozen=True)
class Part:
    """Which fields and rows of a store are wanted."""

    fields: tuple[str, ...] = ()  # names; all if empty
    # shell patterns over sample ids, any of which is enough; all rows if empty
    where: tuple[str, ...] = ()
    rows: slice = field(default_factory=lambda: slice(None))  # row numbers

    @property
    def whole(self) -> bool:
        """Whether it is the whole store."""
        return not self.fields and not self.where and self.rows == slice(None)

    def without(self, fields: Sequence[str], store: Path) -> "Part":
        """The part without some fields of a store.

        Raises:
            ConfigError: the part or the store has no such field, or no other one.
        """
        if not fields:
            return self
        there = self.fields or tuple(sorted(read_manifest(store).fields))
        kept = tuple(name for name in there if name not in fields)
        unknown = sorted(set(fields) - set(there))
        if unknown or not kept:
            raise ConfigError(
                f"{store}: fields to leave out: {shorten(list(fields))}; it has {shorten(list(there))}. Name some of "
                "these, not all."
            )
        return replace(self, fields=kept)

    def note(self, of: Contents) -> dict[str, str]:
        """Describe the part for its manifest: the same text for the same part of the same store, and for no other."""
        words = [f"fields {' '.join(self.fields)}"] if self.fields else []
        words += [f"where {pattern!r}" for pattern in self.where]
        if self.rows != slice(None):
            first, last = ("" if at is None else at for at in (self.rows.start, self.rows.stop))
            words.append(f"rows {first}:{last}")
        digest = hashlib.sha256(of.manifest_bytes).hexdigest()
        return {NOTE: f"{'; '.join(words)} of {of.manifest.uuid}, manifest {digest}"}

    def is_in(self, manifest: Manifest, of: Contents) -> bool:
        """Whether a store is this part."""
        return manifest.created_by.get(NOTE) == self.note(of)[NOTE]

    def check(self, of: Contents, url: str) -> None:
        """Refuse fields and rows that the store does not have.

        Raises:
            ConfigError: a field or all of the rows are not there.
        """
        fields = of.manifest.fields
        unknown = sorted(set(self.fields) - fields.keys())
        if unknown:
            raise ConfigError(
                f"{url}: no field {shorten(unknown)}; it has: {shorten(sorted(fields))}."
            )
        if not len(self.span(of.manifest)):
            raise ConfigError(
                f"{url}: none of its {of.manifest.num_rows:,} rows is in {self.rows.start}:{self.rows.stop}."
            )

    def span(self, manifest: Manifest) -> range:
        """Row numbers, before patterns."""
        return range(manifest.num_rows)[self.rows]

    def shards(self, manifest: Manifest, rows: Rows | range) -> list[int]:
        """Shards that hold some rows, ascending."""
        found = manifest.shards_of(np.asarray(rows, dtype=np.int64))
        return [int(shard) for shard in np.unique(found)]

    def wants(self, name: str) -> bool:
        """Whether an object is needed."""
        first, *rest = name.split("/")
        return first != "fields" or not self.fields or rest[0] in self.fields

    def choose(self, store: FeatureStore) -> Rows | range:
        return choose_rows(store, where=self.where, rows=self.rows)


def write_part(
    store: FeatureStore, part: Part, rows: Rows | range, of: Contents, out: Path
) -> Manifest:
    """Write a part as a store; another part in the folder is deleted.

    Args:
        of: manifest and mark of the whole store.
    """
    plan = plan_subset(
        store,
        rows=None if isinstance(rows, range) and rows == range(store.num_rows) else rows,
        fields=part.fields or None,
        note=part.note(of),
    )
    if out.exists() and not is_part(out, part, of):
        shutil.rmtree(out)
    return compose(plan, out)


def is_part(store: Path, part: Part, of: Contents) -> bool:
    """Whether a folder is this part of a store, or an unfinished copy of it."""
    try:
        return part.is_in(read_manifest(store), of)
    except StoreError:
        return False


def names_rows(name: str) -> bool:
    """Whether an object holds sample ids."""
    return name.split("/")[0] in ("sample_id", "shards")
