"""Merge stores: rows of other images, or fields of other teachers of the same images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from featstore.derive.compatibility import row_differences
from featstore.derive.composition import compose
from featstore.derive.merge_rows import Duplicates, plan_rows
from featstore.derive.merge_teachers import Missing, plan_teachers
from featstore.errors import ConfigError, ManifestMismatch
from featstore.files.progress import Progress, no_progress
from featstore.format.manifest import Manifest
from featstore.reading.store import FeatureStore
from featstore.writing.fill import check_apart

Kind = Literal["rows", "teachers"]


@dataclass(frozen=True)
class Merged:
    """Result of ``merge``."""

    manifest: Manifest
    kind: Kind  # rows: it has the rows of all stores. teachers: it has the fields of all stores
    # notes for the user, e.g. how many rows were left out
    notes: list[str] = field(default_factory=list)


def merge(
    sources: Sequence[Path],
    out: Path,
    *,
    kind: Kind | None = None,
    duplicates: Duplicates = "refuse",
    missing: Missing = "refuse",
    names: Sequence[str] = (),
    progress: Progress = no_progress,
) -> Merged:
    """Write several stores as one, or resume.

    Arguments and errors as for ``featstore.merge``.
    """
    if len(sources) < 2:
        raise ConfigError("merge needs two stores or more.")
    if names and (len(names) != len(sources) or len(set(names)) < len(names)):
        raise ConfigError(
            f"--names {','.join(names)}: expected {len(sources)} different names, one for each store."
        )
    check_apart(out, *sources)
    stores = [FeatureStore.open(source) for source in sources]
    first = stores[0].manifest
    alike = not any(row_differences(first, other.manifest) for other in stores[1:])
    found = kind or ("rows" if alike else "teachers")
    if found == "rows":
        plan, notes = plan_rows(stores, duplicates=duplicates, names=names)
    else:
        try:
            plan, notes = plan_teachers(stores, missing=missing, names=names)
        except ManifestMismatch as error:
            if kind is not None:
                raise
            raise ManifestMismatch(f"{error}\n{_why_not_rows(stores)}") from None
    return Merged(compose(plan, out, progress=progress), found, notes)


def _why_not_rows(stores: Sequence[FeatureStore]) -> str:
    first = stores[0].manifest
    keys = {key: None for other in stores[1:] for key, *_ in row_differences(first, other.manifest)}
    return f"Their rows cannot be appended to each other either: they differ in {', '.join(list(keys)[:5])}."
