"""What a store says of itself: the pydantic models behind ``manifest.json``, and their comparison.

The *contract* is everything that two extractions must share for their rows to belong together: teacher,
preprocessing, views, fields, source and the way work is cut. Its hash is the store's fingerprint. What may differ
between two runs that fill one store (library versions, paths) is recorded beside it and not compared.
"""

import datetime
import hashlib
import json
import math
import uuid
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from featstore.atomic import write_bytes
from featstore.errors import ManifestMismatch, StoreNotFound
from featstore.ids import check_name
from featstore.views import CropMode, Interpolation, ViewSet

FORMAT_VERSION = 0
"""Version of the layout on disk (docs/format.md). 0: may still change; 1 will be kept readable."""

MANIFEST_NAME = "manifest.json"

ITEM_BYTES = {"float16": 2, "float32": 4}


class Record(BaseModel):
    """A part of the manifest: immutable, unknown keys are errors, JSON numbers must be finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TeacherRecord(Record):
    """Which frozen model was run."""

    library: Literal["timm", "open_clip"]
    name: str
    tag: str = ""
    model_args: dict[str, Any] = Field(default_factory=dict)
    weights_sha256: str
    """SHA-256 over the state dict as it was run: sorted keys, dtypes, shapes, bytes (docs/format.md)."""
    licence: str = ""
    mode: Literal["eval"] = "eval"
    """Normalisation layers used their stored statistics, so that a row does not depend on its neighbours."""
    precision: Literal["fp32", "bf16", "fp16"]


class PreprocessingRecord(Record):
    """From an upright RGB picture to the teacher's input."""

    size: tuple[PositiveInt, PositiveInt]
    """(height, width) of the input, pixels."""
    crop_pct: float = Field(gt=0, le=1)
    crop_mode: CropMode
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    decode: str
    """Name of the decoding rules, ``featstore.decode.DECODE_RULE``."""


class FieldRecord(Record):
    """One array of features: rows x views x ``shape``."""

    shape: tuple[PositiveInt, ...]
    """Shape of one view of one row, e.g. (1024,) or (7, 7, 1024)."""
    dtype: Literal["float16", "float32"]
    dims: tuple[str, ...]
    """Name of each axis of ``shape``, e.g. ("channel",)."""
    meaning: str
    """What the numbers are, in words."""

    @model_validator(mode="after")
    def _check(self) -> "FieldRecord":
        if len(self.dims) != len(self.shape):
            raise ValueError(f"{len(self.dims)} dims for a shape of {len(self.shape)} axes")
        return self

    def row_bytes(self, num_views: int) -> int:
        """Bytes of one row with all its views."""
        return num_views * math.prod(self.shape) * ITEM_BYTES[self.dtype]


class SourceRecord(Record):
    """Which images were read."""

    kind: str
    uri: str
    num_samples: int = Field(gt=0)
    ids_sha256: str
    """SHA-256 over the ids in row order, each followed by a zero byte."""
    has_labels: bool
    class_names: tuple[str, ...] = ()


class WorkRecord(Record):
    """How the work is cut; batches never cross a shard, so any number of processes gives the same bytes."""

    shard_rows: int = Field(gt=0)
    batch_size: int = Field(gt=0)


class Manifest(Record):
    """The whole of ``manifest.json``."""

    format_version: int
    uuid: str
    created: str
    created_by: dict[str, str]
    """Versions of this package and of the libraries that decide a feature's bits."""
    teacher: TeacherRecord
    preprocessing: PreprocessingRecord
    views: ViewSet
    fields: dict[str, FieldRecord] = Field(min_length=1)
    source: SourceRecord
    work: WorkRecord

    @field_validator("fields")
    @classmethod
    def _names(cls, fields: dict[str, FieldRecord]) -> dict[str, FieldRecord]:
        for name in fields:
            check_name(name)
        return fields

    @property
    def num_rows(self) -> int:
        """Rows of the store, valid or not."""
        return self.source.num_samples

    @property
    def num_shards(self) -> int:
        """Shards when the store is complete."""
        return math.ceil(self.num_rows / self.work.shard_rows)

    def shard_range(self, shard: int) -> range:
        """Rows of one shard."""
        start = shard * self.work.shard_rows
        return range(start, min(start + self.work.shard_rows, self.num_rows))

    def contract(self) -> dict[str, Any]:
        """The compared part, as plain JSON values. The path of the source may move and is left out."""
        parts = self.model_dump(
            mode="json",
            include={
                "format_version",
                "teacher",
                "preprocessing",
                "views",
                "fields",
                "source",
                "work",
            },
        )
        del parts["source"]["uri"], parts["teacher"]["licence"]
        return parts

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the contract: equal fingerprints mean interchangeable rows."""
        text = json.dumps(self.contract(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def new_manifest(
    *,
    teacher: TeacherRecord,
    preprocessing: PreprocessingRecord,
    views: ViewSet,
    fields: dict[str, FieldRecord],
    source: SourceRecord,
    work: WorkRecord,
    created_by: dict[str, str],
) -> Manifest:
    """Put the parts together with a new uuid and the time."""
    return Manifest(
        format_version=FORMAT_VERSION,
        uuid=str(uuid.uuid4()),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        created_by=created_by,
        teacher=teacher,
        preprocessing=preprocessing,
        views=views,
        fields=fields,
        source=source,
        work=work,
    )


def write_manifest(store: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    write_bytes(store / MANIFEST_NAME, text.encode())


def read_manifest(store: Path) -> Manifest:
    """Read and validate ``manifest.json``.

    Raises:
        StoreNotFound: no folder, no manifest, or one that does not follow the format.
        ManifestMismatch: written in another version of the format.
    """
    path = store / MANIFEST_NAME
    if not store.is_dir():
        raise StoreNotFound(
            f"{store}: no such folder. Extract a store first: accelerate launch pipelines/extract.py"
        )
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreNotFound(
            f"{store}: no {MANIFEST_NAME}, so this is not a feature store. Expected the folder that "
            "extract.py wrote (--store.path)."
        ) from None
    except OSError as error:
        raise StoreNotFound(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise StoreNotFound(
            f"{path}: not readable as JSON ({error}). Fetch the store again."
        ) from None
    version = values.get("format_version") if isinstance(values, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:  # False == 0
        raise ManifestMismatch(
            f"{path}: format version {version!r}; this featstore reads version {FORMAT_VERSION}. "
            "Read it with the release that wrote it, or extract again."
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors()[:5]
        )
        raise StoreNotFound(f"{path}: does not follow the format: {problems}") from None


def check_same_contract(store: Path, *, found: Manifest, expected: Manifest) -> None:
    """Compare what a store was made with to what is asked for now.

    Raises:
        ManifestMismatch: names every differing value on both sides and what to do.
    """
    differing = differences(found.contract(), expected.contract())
    if not differing:
        return
    lines = "\n".join(
        f"  {key}: the store has {was!r}, now asked for {now!r}" for key, was, now in differing
    )
    raise ManifestMismatch(
        f"{store / MANIFEST_NAME}: this store was made with other settings; rows of both cannot be mixed:\n{lines}\n"
        "Choose a new folder with --store.path, or run with the settings this store was made with."
    )


def differences(found: Any, expected: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Compare nested settings: (dotted key, value found, value expected) for each that differs."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return [
            item
            for name in sorted(found.keys() | expected.keys())
            for item in differences(
                found.get(name), expected.get(name), f"{key}.{name}" if key else name
            )
        ]
    return [] if found == expected else [(key, found, expected)]
