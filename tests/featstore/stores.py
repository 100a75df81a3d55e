"""Stores of random rows, a teacher that is a formula, and the comparison of two stores."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from featstore.containers import make_backend
from featstore.format.ids import ids_sha256
from featstore.format.ledger import mark_complete, pending_shards, read_entry
from featstore.format.manifest import Manifest, new_manifest
from featstore.format.manifest_records import (
    FieldRecord,
    PreprocessingRecord,
    SourceRecord,
    TeacherRecord,
    WorkRecord,
)
from featstore.format.views import ViewSet, make_views
from featstore.sources.decode import DECODE_RULE
from featstore.writing.commit import commit, open_or_create
from featstore.writing.shard import Shard, text_column

Array = npt.NDArray[Any]
Dtype = Literal["float16", "bfloat16", "float32"]

CLASSES = ("cat", "dog")

RULE = PreprocessingRecord(
    size=(8, 8),
    crop_pct=0.9,
    crop_mode="center",
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    decode=DECODE_RULE,
)


TEACHER = TeacherRecord(
    library="timm",
    name="formula",
    weights_sha256="ab" * 32,
    precision="fp32",
    preprocessing=RULE,
)


def field(*shape: int, dtype: Dtype = "float16", **options: Any) -> FieldRecord:
    """A field of any shape; its axes are called a, b, c."""
    return FieldRecord(
        shape=shape,
        dtype=dtype,
        dims=tuple("abcd"[: len(shape)]),
        meaning="test",
        teacher="teacher",
        **options,
    )


def names_of(count: int) -> list[str]:
    """Sample ids of all lengths, not only ASCII."""
    return [f"{'ä' * (row % 3)}folder/{row}.png" for row in range(count)]


def make_manifest(
    *,
    num_rows: int = 20,
    shard_rows: int = 8,
    views: int = 2,
    fields: Mapping[str, FieldRecord] | None = None,
    labels: bool = True,
) -> Manifest:
    """The manifest of a store of random rows: the canonical view and ``views - 1`` crops."""
    return new_manifest(
        teachers={"teacher": TEACHER},
        views=ViewSet(views=make_views(canonical=True, seeded=views - 1, mirrored=False)),
        fields=dict(fields or {"cls": field(6), "grid2": field(2, 2, 3, dtype="float32")}),
        source=SourceRecord(
            kind="folder",
            uri="somewhere",
            num_samples=num_rows,
            ids_sha256=ids_sha256(names_of(num_rows)),
            has_labels=labels,
            class_names=CLASSES if labels else (),
        ),
        work=WorkRecord(shard_rows=shard_rows, batch_size=4),
        created_by={"test": "1"},
    )


def make_columns(
    manifest: Manifest, *, seed: int = 0, invalid: Sequence[int] = ()
) -> dict[str, Array]:
    """Random values for every column and row; invalid rows hold zeros, as extract.py leaves them."""
    generator = np.random.default_rng(seed)
    count = manifest.num_rows
    columns: dict[str, Array] = {
        "sample_id": text_column(names_of(count)),
        "content_sha256": generator.integers(0, 256, (count, 32), dtype=np.uint8),
        "valid": ~np.isin(np.arange(count), invalid),
    }
    if manifest.source.has_labels:
        columns["label"] = generator.integers(-1, len(CLASSES), count)
    for name, spec in manifest.fields.items():
        values = generator.standard_normal((count, len(manifest.views), *spec.shape))
        values[list(invalid)] = 0
        # Whole chunks of zeros must be stored too.
        values[: count // 3] = 0
        columns[f"fields/{name}"] = values.astype(spec.dtype)
    return columns


def write_store(
    path: Path,
    manifest: Manifest,
    columns: Mapping[str, Array],
    *,
    reasons: Mapping[int, str] | None = None,
    shards: Sequence[int] | None = None,
) -> Path:
    """Write all shards, or some, through featstore's own writer."""
    manifest = open_or_create(path, manifest)
    backend = make_backend(path, manifest)
    for number in range(manifest.num_shards) if shards is None else shards:
        rows = manifest.shard_range(number)
        part = {name: values[rows.start : rows.stop] for name, values in columns.items()}
        why = [(reasons or {}).get(row) for row in rows]
        commit(backend, Shard(number, part, why, {"load": 0.5}))
    if not pending_shards(path, manifest.num_shards):
        mark_complete(path, [read_entry(path, number) for number in range(manifest.num_shards)])
    return path


def snapshot(store: Path) -> dict[str, Any]:
    """Every file of a store by path, without what may differ between two runs that made the same store."""
    files: dict[str, Any] = {}
    for path in sorted(store.rglob("*")):
        name = path.relative_to(store).as_posix()
        if path.is_dir() or name in (".lock", ".publish") or name.startswith("leases/"):
            continue
        if name == "manifest.json":
            files[name] = {
                key: value
                for key, value in json.loads(path.read_bytes()).items()
                if key not in ("uuid", "created", "file_crc32c")
            }
        elif name.startswith("ledger/"):
            files[name] = {
                key: value
                for key, value in json.loads(path.read_bytes()).items()
                if key not in ("seconds", "file_crc32c", "manifest_sha256", "entries_sha256")
            }
        else:
            files[name] = path.read_bytes()
    return files


def leftovers(store: Path) -> list[Path]:
    """Unfinished files and leases in a store, and unfinished stores beside it."""
    return [*store.parent.glob(".partial-*"), *store.rglob(".partial-*"), *store.glob("leases/*")]
