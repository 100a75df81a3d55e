"""What the golden stores hold, as formulas, and how they are made.

    python -m tests.featstore.golden FOLDER

writes a store of every container that has one. The ones under tests/golden are never made again: they are what
releases of that format version wrote, and every later release must read them.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.containers import make_backend
from featstore.format.artefacts import artefact_record, pack, pack_texts
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
    TopKEncoding,
    WorkRecord,
)
from featstore.format.views import ViewSet, make_views
from featstore.writing.commit import commit, open_or_create
from featstore.writing.shard import Shard
from tests.featstore.stores import TEACHER

Array = npt.NDArray[Any]

FOLDER = Path(__file__).parents[1] / "golden"
ROWS = 13
VIEWS = 2
SHARD_ROWS = 8
INVALID = 5
IDS = [f"folder/{'ä' * (row % 2)}{row:02d}.png" for row in range(ROWS)]
PROMPTS = ["a photo of a cat", "ein Foto eines Hundes"]
CHANNELS = Channels(
    np.array([0.5, 1, 2, 4], dtype=np.float32), np.array([0, 1, -1, 8], dtype=np.float32)
)

_INT8: dict[str, Any] = {
    "sample_rows": ROWS,
    "relative_l2": 0.0,
    "cosine_mean": 1.0,
    "cosine_worst": 1.0,
}


def _field(shape: tuple[int, ...], dtype: str, **options: Any) -> FieldRecord:
    values = {
        "shape": shape,
        "dtype": dtype,
        "dims": tuple("yxc"[-len(shape) :]) if shape else (),
        "meaning": "formula",
        "teacher": "teacher",
        **options,
    }
    return FieldRecord.model_validate(values)


FIELDS = {
    "cls": _field((6,), "float16"),
    "grid2": _field((2, 2, 3), "float32"),
    "bits": _field((4,), "bfloat16"),
    "mask": _field((3, 3), "bool"),
    "ids": _field((2,), "int64", per_view=False, teacher=""),
    "packed": _field((6,), "float16", codec="zstd"),
    "shuffled": _field((6,), "float32", codec="bitshuffle"),
    "codes_row": _field((4,), "float32", encoding=Int8Encoding(scheme="row", **_INT8)),
    "codes_channel": _field(
        (4,), "float32", encoding=Int8Encoding(scheme="channel", channels="channels", **_INT8)
    ),
    "codes_both": _field(
        (4,), "float32", encoding=Int8Encoding(scheme="channel_row", channels="channels", **_INT8)
    ),
    "logits": _field((3,), "float16", encoding=TopKEncoding(num_classes=10)),
    "points": _field((3,), "float16", encoding=RaggedEncoding(most_items=40)),
    "caption": _field((2,), "text", per_view=False, teacher=""),
}


def fields_of(container: Container) -> dict[str, FieldRecord]:
    """Fields of a container's golden store; tars have no codecs."""
    return {
        name: field for name, field in FIELDS.items() if container == "zarr" or field.codec == "raw"
    }


def formula(name: str, row: int) -> Any:
    """What a reader gives for one row of a field: numbers that every float type holds exactly."""
    field = FIELDS[name]
    if field.dtype == "text":
        return np.array([f"Bild {row}", f"图 {row}"], dtype=object)
    shape = (VIEWS, *field.shape) if field.per_view else field.shape
    if name == "points":
        return [_ramp((row + view) % 5, 3).astype(np.float16) + row for view in range(VIEWS)]
    if name == "logits":
        shape = (VIEWS, 10)
    values = (_ramp(*shape) + 7 * row) % 61
    if name.startswith("codes"):
        # One number of each row is the largest code, so that scales are powers of two and nothing is rounded.
        values = np.where(np.arange(4) == 0, 127, values)
        if name == "codes_row":
            return (values / 4).astype(np.float32)
        return (values * CHANNELS.scale + CHANNELS.offset).astype(np.float32)
    if field.dtype == "bool":
        return values % 3 == 0
    dtype = numpy_dtype(field.dtype)
    return (values / (1 if field.dtype == "int64" else 8)).astype(dtype)


def _ramp(*shape: int) -> Array:
    return np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape)


def make_manifest(container: Container) -> Manifest:
    """The manifest, the same in every run."""
    files = artefacts()
    return Manifest(
        format_version=FORMAT_VERSION,
        container=container,
        uuid="00000000-0000-4000-8000-000000000000",
        created="2026-11-21T00:00:00+00:00",
        created_by={"featstore": "golden"},
        teachers={"teacher": TEACHER},
        views=ViewSet(seed=3, views=make_views(canonical=True, seeded=1, mirrored=False)),
        fields=fields_of(container),
        artefacts={name: artefact_record(data, meaning="formula") for name, data in files.items()},
        source=SourceRecord(
            kind="folder",
            uri="images",
            num_samples=ROWS,
            ids_sha256=ids_sha256(IDS),
            has_labels=True,
            class_names=("cat", "dog"),
        ),
        work=WorkRecord(shard_rows=SHARD_ROWS, batch_size=4),
    )


def artefacts() -> dict[str, bytes]:
    """Files that belong to the store."""
    table = {**pack_texts(PROMPTS), "embedding": _ramp(2, 4).astype(np.float32)}
    channels = {"scale": CHANNELS.scale, "offset": CHANNELS.offset}
    return {"prompts": pack(table), "channels": pack(channels)}


def columns_of_shard(manifest: Manifest, number: int) -> dict[str, Array]:
    """The columns of one shard."""
    rows = manifest.shard_range(number)
    columns = empty_columns(manifest, number)
    columns["sample_id"][:] = IDS[rows.start : rows.stop]
    columns["content_sha256"][:] = np.array(rows)[:, None]
    columns["valid"][:] = np.array(rows) != INVALID
    columns["label"][:] = np.array(rows) % 3 - 1
    for name, field in manifest.fields.items():
        values: list[Any] = [formula(name, row) for row in rows]
        if name == "points":
            empty = [np.empty((0, 3), np.float16)] * VIEWS
            chosen = [empty if row == INVALID else values[i] for i, row in enumerate(rows)]
            put_ragged(manifest, columns, name, number, chosen)
            continue
        channels = CHANNELS if name in ("codes_channel", "codes_both") else None
        put(manifest, columns, name, slice(None), np.stack(values), channels=channels)
        if INVALID in rows:
            for column in columns:
                if column == f"fields/{name}" or column.startswith(f"fields/{name}/"):
                    columns[column][INVALID - rows.start] = "" if field.dtype == "text" else 0
    return columns


def write(path: Path, container: Container) -> Path:
    """Write the whole store."""
    manifest = open_or_create(path, make_manifest(container), artefacts())
    backend = make_backend(path, manifest)
    for number in range(manifest.num_shards):
        rows = manifest.shard_range(number)
        reasons = ["empty file (0 bytes)" if row == INVALID else None for row in rows]
        commit(backend, Shard(number, columns_of_shard(manifest, number), reasons, {"load": 0.5}))
    mark_complete(path, [read_entry(path, number) for number in range(manifest.num_shards)])
    return path


if __name__ == "__main__":
    for name in ("zarr", "webdataset"):
        write(Path(sys.argv[1]) / f"store_v{FORMAT_VERSION}_{name}", name)  # type: ignore[arg-type]
