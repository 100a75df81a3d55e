"""Golden stores of what the first ones lack, as formulas: several inner chunks in a shard, shards that mirror tars, pax
headers, versions, int32 indices, mirrored views, no labels, scalars and grids of eight bits.

    python -m tests.featstore.golden_more FOLDER

The ones under tests/golden are never made again.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from featstore.containers import make_backend
from featstore.format.artefacts import artefact_record, pack
from featstore.format.fields import empty_columns, numpy_dtype, put, put_ragged
from featstore.format.ids import ids_sha256
from featstore.format.int8 import Channels
from featstore.format.ledger import mark_complete, read_entry
from featstore.format.manifest import FORMAT_VERSION, Manifest
from featstore.format.manifest_records import (
    Container,
    FieldRecord,
    Int8Encoding,
    RaggedEncoding,
    SourceRecord,
    TeacherRecord,
    TopKEncoding,
    VersionRecord,
    WorkRecord,
)
from featstore.format.views import ViewSet, make_views
from featstore.writing.commit import commit, open_or_create
from featstore.writing.shard import Shard
from tests.featstore.golden import FOLDER
from tests.featstore.stores import RULE, TEACHER, Array

NAMES: dict[str, Container] = {
    "store_v1_zarr_chunks": "zarr",
    "store_v1_webdataset_mirrored": "webdataset",
}
"""Folder and container of each store."""

VIEWS = 4
INVALID = (5, 21)
MOST_ITEMS = 6
CLASSES = 70_000

TARS = {"part-0": 9, "übung/part-1": 12, "part-2": 3}
"""Names and samples of the image tars that the second store mirrors; the second one's headers are pax headers."""

CHANNELS = Channels(
    np.array([0.25, 1, 3], dtype=np.float32), np.array([0.1, -1, 8], dtype=np.float32)
)

_INT8: dict[str, Any] = {
    "sample_rows": 7,
    "relative_l2": 0.5,
    "cosine_mean": 1.0,
    "cosine_worst": 0.25,
}

TEACHERS = {
    "teacher": TEACHER,
    "other-1.0": TeacherRecord(
        library="open_clip",
        name="ViT-ä",
        tag="größe",
        model_args={"depth": 2, "ratio": 1.5, "names": ["a", None, True]},
        weights_sha256="cd" * 32,
        licence="MIT",
        mode="batch",
        batch_seed=3,
        precision="bf16",
        preprocessing=RULE.model_copy(
            update={"size": (8, 16), "crop_pct": 1.0, "crop_mode": "squash"}
        ),
    ),
    "inputless": TeacherRecord(
        library="external", name="table", weights_sha256="0" * 64, precision="fp32"
    ),
}


def _field(shape: tuple[int, ...], dtype: str, **options: Any) -> FieldRecord:
    dims = tuple("abcd"[: len(shape)])
    given = {"shape": shape, "dtype": dtype, "dims": dims, "meaning": "formula, große Zahlen"}
    return FieldRecord.model_validate({**given, **options})


FIELDS = {
    "cls": _field((6,), "float16", teacher="teacher"),
    "packed": _field((5,), "float32", teacher="other-1.0", codec="zstd"),
    "shuffled": _field((3,), "bfloat16", codec="bitshuffle"),
    "score": _field((), "float32", teacher="inputless"),
    "flag": _field((), "bool", per_view=False),
    "small": _field((3,), "int8", per_view=False),
    "counts": _field((2,), "uint16", codec="zstd"),
    "steps": _field((2,), "int16"),
    "wide": _field((2,), "int32", codec="bitshuffle"),
    "codes": _field((2, 3), "float16", encoding=Int8Encoding(scheme="row", **_INT8), codec="zstd"),
    "codes_channel": _field(
        (2, 3), "float32", encoding=Int8Encoding(scheme="channel", channels="scales", **_INT8)
    ),
    "codes_both": _field(
        (3,), "bfloat16", encoding=Int8Encoding(scheme="channel_row", channels="scales", **_INT8)
    ),
    "logits": _field((4,), "bfloat16", encoding=TopKEncoding(num_classes=CLASSES)),
    "points": _field((3,), "float16", encoding=RaggedEncoding(most_items=MOST_ITEMS)),
    "marks": _field(
        (), "int64", encoding=RaggedEncoding(most_items=5), per_view=False, codec="zstd"
    ),
    "caption": _field((), "text"),
}


def fields_of(container: Container) -> dict[str, FieldRecord]:
    """Fields of one store. In tars: no codecs, and no text, so that fields of fixed size are strided arrays."""
    return {
        name: record
        for name, record in FIELDS.items()
        if container == "zarr" or (record.codec == "raw" and record.dtype != "text")
    }


def ids_of(container: Container) -> list[str]:
    """Sample ids."""
    if container == "zarr":
        return [f"{'ü' * (row % 3)}a b/{row}.jpg" for row in range(22)]
    return [
        f"{tar}/{'très-' * (tar != 'part-0') * 22}{row:03d}"
        for tar, count in TARS.items()
        for row in range(count)
    ]


def formula(name: str, row: int) -> Any:
    """What is written of one row of a field, (V, *shape), or lists of items of each view; rows 4 to 7 are zeros."""
    record = FIELDS[name]
    views = VIEWS if record.per_view else 1
    if record.dtype == "text":
        return np.array([f"Bild {row}, Ansicht {view} 图" for view in range(views)], dtype=object)
    if isinstance(record.encoding, RaggedEncoding):
        lengths = [(row + view) % 3 % 2 for view in range(views)]
        return [
            (_ramp(length, *record.shape) + row).astype(record.dtype)[:length] for length in lengths
        ]
    shape = (views, *record.shape) if record.per_view else record.shape
    if isinstance(record.encoding, TopKEncoding):
        values = np.full((*shape[:-1], CLASSES), -64.0)
        values[..., (row * 997) % 60_000 :: 4000] = _ramp(*shape[:-1], 1) + row % 11
        return values.astype(numpy_dtype(record.dtype))
    values = (_ramp(*shape) * 3 + 7 * row) % 61 - 20
    if 4 <= row < 8 and record.codec == "raw":  # a whole inner chunk of zeros
        values = values * 0
    if record.dtype == "bool":
        return values % 3 == 0
    return (values / (1 if "int" in record.dtype else 8)).astype(numpy_dtype(record.dtype))


def _ramp(*shape: int) -> Array:
    return np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape)


def artefacts() -> dict[str, bytes]:
    """Files that belong to the stores."""
    return {"scales": pack({"scale": CHANNELS.scale, "offset": CHANNELS.offset})}


def make_manifest(container: Container) -> Manifest:
    """The manifest, the same in every run."""
    ids = ids_of(container)
    sizes = tuple(TARS.values())
    work = WorkRecord(shard_rows=12, batch_size=4)
    if container == "webdataset":
        work = WorkRecord(
            shard_rows=max(sizes), batch_size=4, shard_sizes=sizes, shard_names=tuple(TARS)
        )
    versions = (9, 21) if container == "webdataset" else (4, 12)
    return Manifest(
        format_version=FORMAT_VERSION,
        container=container,
        uuid="00000000-0000-4000-8000-000000000001",
        created="2026-11-28T00:00:00+00:00",
        created_by={"featstore": "golden", "appended_by": "nobody"},
        teachers=TEACHERS,
        views=ViewSet(
            seed=7,
            scale=(0.5, 1),
            ratio=(1, 1.5),
            views=make_views(canonical=True, seeded=1, mirrored=True),
        ),
        fields=fields_of(container),
        artefacts={
            name: artefact_record(data, meaning="formula") for name, data in artefacts().items()
        },
        source=SourceRecord(
            kind="tars" if container == "webdataset" else "folder",
            uri="images",
            num_samples=len(ids),
            ids_sha256=ids_sha256(ids),
            has_labels=False,
        ),
        work=work,
        history=tuple(
            VersionRecord(
                version=1 + i,
                created=f"2026-11-2{i}T00:00:00+00:00",
                rows=rows,
                fingerprint=hashlib.sha256(str(rows).encode()).hexdigest(),
            )
            for i, rows in enumerate(versions)
        ),
    )


def columns_of_shard(manifest: Manifest, number: int) -> dict[str, Array]:
    """The columns of one shard; all numbers of an invalid row are zeros."""
    rows = manifest.shard_range(number)
    columns = empty_columns(manifest, number)
    columns["sample_id"][:] = ids_of(manifest.container)[rows.start : rows.stop]
    columns["content_sha256"][:] = (np.array(rows) + 1)[:, None]
    columns["valid"][:] = [row not in INVALID for row in rows]
    bad = [row - rows.start for row in rows if row in INVALID]
    for name, record in manifest.fields.items():
        values = [formula(name, row) for row in rows]
        if isinstance(record.encoding, RaggedEncoding):
            for i in bad:
                values[i] = [view[:0] for view in values[i]]
            parts = values if record.per_view else [views[0] for views in values]
            put_ragged(manifest, columns, name, number, parts)
            continue
        channels = CHANNELS if name in ("codes_channel", "codes_both") else None
        put(manifest, columns, name, slice(None), np.stack(values), channels=channels)
        for column in columns:
            if column == f"fields/{name}" or column.startswith(f"fields/{name}/"):
                columns[column][bad] = "" if record.dtype == "text" else 0
    return columns


def write(path: Path, container: Container) -> Path:
    """Write one store."""
    manifest = open_or_create(path, make_manifest(container), artefacts())
    backend = make_backend(path, manifest)
    for number in range(manifest.num_shards):
        rows = manifest.shard_range(number)
        reasons = ["cannot be read (EIO)" if row in INVALID else None for row in rows]
        commit(backend, Shard(number, columns_of_shard(manifest, number), reasons, {"load": 0.5}))
    mark_complete(path, [read_entry(path, number) for number in range(manifest.num_shards)])
    for name in (".publish", ".lock"):
        (path / name).unlink(missing_ok=True)
    return path


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for store, kind in NAMES.items():
        write(target / store, kind)
