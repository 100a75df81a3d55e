"""Rows of stores taken, put behind each other and compared: what a composed store must hold, by numpy alone."""

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from featstore import FeatureStore
from featstore.containers import make_backend
from featstore.format.fields import columns_of
from featstore.format.ids import ids_sha256
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import Container, RaggedEncoding
from featstore.maintenance.verify import verify
from featstore.writing.commit import finish
from tests.featstore.backend_tests import POINTS, Array, Rows, heavy_tailed, points, spec, values_of
from tests.featstore.stores import leftovers


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder in memory where there is such a place, where fsync takes no time."""
    shared = Path("/dev/shm")
    with TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


def made(rows: int, *, seed: int = 0, **options: Any) -> Rows:
    """A vector and a grid of the teacher, points, captions and coordinates; contents and ids belong to the seed."""
    captions = np.empty(rows, dtype=object)
    captions[:] = [f"caption {seed} {row} " + "ü" * (row % 3) for row in range(rows)]
    found = Rows(
        {
            "cls": spec("float16", (6,), teacher="teacher"),
            "grid": spec("bfloat16", (2, 2, 3), teacher="teacher"),
            "points": POINTS,
            "caption": spec("text", (), per_view=False),
            "boxes": spec("float32", (4,), per_view=False),
        },
        {
            "cls": values_of("float16", rows, 2, 6, seed=seed),
            "grid": values_of("bfloat16", rows, 2, 2, 2, 3, seed=seed + 1),
            "points": points(rows, 2, seed=seed),
            "caption": captions,
            "boxes": heavy_tailed(rows, 4, seed=seed),
        },
        **options,
    )
    generator = np.random.default_rng(seed)
    found.hashes = generator.integers(1, 256, (rows, 32), dtype=np.uint8)
    found.label = generator.integers(-1, 2, rows)
    found.ids = [f"{'ä' * (row % 3)}folder{seed}/{row}.png" for row in range(rows)]
    blank(found)
    return found


def blank(rows: Rows) -> None:
    """Put zeros where a row is invalid, as every writer does; texts stay."""
    for values in rows.values.values():
        for row in rows.invalid:
            if isinstance(values, list):
                values[row] = [view[:0] for view in values[row]]
            elif values.dtype != object:
                values[row] = 0


def taken(rows: Rows, order: Sequence[int]) -> Rows:
    """Some rows, in another order."""
    found = copy.copy(rows)
    at = list(order)
    found.values = {
        name: [values[row] for row in at] if isinstance(values, list) else values[at]
        for name, values in rows.values.items()
    }
    found.hashes, found.label = rows.hashes[at], rows.label[at]
    found.ids = [rows.ids[row] for row in at]
    found.invalid = {i: rows.invalid[row] for i, row in enumerate(at) if row in rows.invalid}
    found.num_rows = len(at)
    return found


def joined(*several: Rows) -> Rows:
    """Rows of several behind each other."""
    found = copy.copy(several[0])
    found.values = {
        name: [row for part in several for row in part.values[name]]
        if isinstance(values, list)
        else np.concatenate([part.values[name] for part in several])
        for name, values in several[0].values.items()
    }
    found.hashes = np.concatenate([part.hashes for part in several])
    found.label = np.concatenate([part.label for part in several])
    found.ids = [name for part in several for name in part.ids]
    starts = np.cumsum([0, *(part.num_rows for part in several)]).tolist()
    found.invalid = {
        start + row: reason
        for start, part in zip(starts, several, strict=False)
        for row, reason in part.invalid.items()
    }
    found.num_rows = starts[-1]
    return found


def write(rows: Rows, path: Path, container: Container = "webdataset", **changes: Any) -> Path:
    """Write a store whose manifest tells the truth of its ids."""
    source = rows.manifest(container).source.model_copy(
        update={"ids_sha256": ids_sha256(rows.ids), "uri": f"/images/{path.name}"}
    )
    rows.write(path, container, **{"source": source.model_dump(), **changes})
    store = FeatureStore.open(path)
    finish(path, store.manifest.num_shards)
    return path


def sound(path: Path) -> FeatureStore:
    """Verify a store, every byte and every rule, and open it."""
    report = verify(path)
    assert report.sound, [str(damage) for damage in report.damages]
    assert report.complete
    assert not leftovers(path)
    return FeatureStore.open(path)


def columns(path: Path) -> dict[str, Array]:
    """Every column of a store as it is stored; ragged items row by row, so that it does not matter how rows are cut."""
    store = FeatureStore.open(path)
    backend = make_backend(path, store.manifest)
    found: dict[str, Array] = {}
    for name in columns_of(store.manifest):
        parts = [
            np.asarray(backend.read_shard(shard, name, store.entry(shard).objects))
            for shard in range(store.manifest.num_shards)
        ]
        found[name] = np.concatenate(parts)
    for name, record in store.manifest.fields.items():
        if isinstance(record.encoding, RaggedEncoding):
            ranges = found.pop(f"fields/{name}/ranges")
            found[f"fields/{name}/counts"] = ranges[..., 1] - ranges[..., 0]
            used = int((ranges[..., 1] - ranges[..., 0]).sum())
            assert used <= len(found[f"fields/{name}/values"])
            items = [
                backend.read_shard(s, f"fields/{name}/values", store.entry(s).objects)[
                    : _used(store, name, s, ranges)
                ]
                for s in range(store.manifest.num_shards)
            ]
            found[f"fields/{name}/values"] = np.concatenate(items)
    return found


def _used(store: FeatureStore, name: str, shard: int, ranges: Array) -> int:
    span = store.manifest.shard_range(shard)
    part = ranges[span.start : span.stop]
    return int((part[..., 1] - part[..., 0]).sum())


def check(path: Path, rows: Rows) -> FeatureStore:
    """A store is sound and holds these rows, invalid ones and reasons included."""
    store = sound(path)
    assert store.sample_ids == rows.ids
    np.testing.assert_array_equal(store.content_sha256, rows.hashes, strict=True)
    np.testing.assert_array_equal(store.labels, rows.label if rows.labels else -1)
    assert {item.row: item.reason for item in store.invalid_rows()} == rows.invalid
    for item in store.invalid_rows():
        assert item.sample_id == rows.ids[item.row]
    valid = [row for row in range(rows.num_rows) if row not in rows.invalid]
    np.testing.assert_array_equal(np.flatnonzero(store.valid), valid)
    rows.check(store, valid)
    return store


def same_columns(one: Path, other: Path) -> None:
    """Two stores hold the same bits in every column, invalid rows included."""
    first, second = columns(one), columns(other)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], strict=True)


def manifest_of(path: Path) -> Manifest:
    """What a store says of itself."""
    return FeatureStore.open(path).manifest
