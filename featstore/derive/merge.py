"""Several stores in one: either more rows made alike, or fields of more teachers of the same images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from featstore.derive.compatibility import row_differences
from featstore.derive.composition import compose
from featstore.derive.merge_rows import Duplicates, plan_rows
from featstore.derive.merge_teachers import Missing, plan_teachers
from featstore.errors import ConfigError, ManifestMismatch
from featstore.format.manifest import Manifest
from featstore.reading.store import FeatureStore
from featstore.writing.fill import Progress, check_apart, no_progress

Kind = Literal["rows", "teachers"]


@dataclass(frozen=True)
class Merged:
    """What became of several stores.

    Attributes:
        manifest: of the new store.
        kind: rows: its rows are those of all stores. teachers: its fields are.
        notes: what a user should hear, e.g. how many rows were left out.
    """

    manifest: Manifest
    kind: Kind
    notes: list[str] = field(default_factory=list)


def merge(
    sources: Sequence[Path],
    out: Path,
    *,
    kind: Kind | None = None,
    duplicates: Duplicates = "refuse",
    missing: Missing = "refuse",
    names: Sequence[str] = (),
    lease_s: float = 60,
    progress: Progress = no_progress,
) -> Merged:
    """Write several stores as one, or go on with one that was begun.

    Args:
        sources: folders of complete stores, two or more; the first one gives container, order and cutting.
        out: folder of the new store.
        kind: rows: one store's rows behind another's. teachers: fields side by side, images matched by content. If not
            given, rows where the stores were made alike (same teachers, views and fields), else teachers.
        duplicates: rows only, see ``featstore.derive.merge_rows.Duplicates``.
        missing: teachers only, see ``featstore.derive.merge_teachers.plan_teachers``.
        names: one for each store; put before sample ids (rows), or before names of fields (teachers).
        lease_s: seconds without a sign of life after which another process counts as gone.
        progress: see ``featstore.writing.fill.Progress``.

    Raises:
        ConfigError, ManifestMismatch: they do not fit together; the message says what to do.
        StoreIncomplete, ShardCorrupt: a store is not whole.
        StoreNotFound, StoreBusy, StoreWriteError: see ``featstore.writing.fill``.
    """
    if len(sources) < 2:
        raise ConfigError("merge needs two stores or more.")
    if names and (len(names) != len(sources) or len(set(names)) < len(names)):
        raise ConfigError(
            f"--names {','.join(names)}: expected {len(sources)} different names, one for each store."
        )
    check_apart(out, *sources)
    stores = [FeatureStore.open(source) for source in sources]
    found = kind or kind_of(stores)
    if found == "rows":
        plan, notes = plan_rows(stores, duplicates=duplicates, names=names)
    else:
        try:
            plan, notes = plan_teachers(stores, missing=missing, names=names)
        except ManifestMismatch as error:
            if kind is not None:
                raise
            raise ManifestMismatch(f"{error}\n{_why_not_rows(stores)}") from None
    return Merged(compose(plan, out, lease_s=lease_s, progress=progress), found, notes)


def kind_of(stores: Sequence[FeatureStore]) -> Kind:
    """What merging some stores means: more rows where all were made alike, else more fields."""
    first = stores[0].manifest
    alike = not any(row_differences(first, other.manifest) for other in stores[1:])
    return "rows" if alike else "teachers"


def _why_not_rows(stores: Sequence[FeatureStore]) -> str:
    first = stores[0].manifest
    keys = {key: None for other in stores[1:] for key, *_ in row_differences(first, other.manifest)}
    return (
        f"Nor can their rows stand behind each other: they differ in {', '.join(list(keys)[:5])}."
    )
