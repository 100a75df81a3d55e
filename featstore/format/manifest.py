"""Pydantic models of ``manifest.json``, and their comparison.

The *contract* is everything that runs which fill one store must share: teachers, views, fields, source, container and
size of shards. Library versions and paths are recorded but not compared. The *fingerprint* is the hash of the part of
the contract that defines the rows, whatever container and codec they are in.
"""

import datetime
import hashlib
import json
import math
import uuid
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from featstore.errors import ManifestMismatch, StoreError, StoreNotFound, command
from featstore.files.array_types import Rows
from featstore.files.atomic import write_bytes
from featstore.files.untrusted import read_plain
from featstore.format.checksummed_json import SealError, seal, unseal
from featstore.format.ids import check_name, check_part
from featstore.format.views import CropMode, Interpolation, ViewSet

FORMAT_VERSION = 1
"""Version of the format on disk (docs/format.md). Stores of every released version remain readable."""

MANIFEST_NAME = "manifest.json"
CLASS_NAMES = "class_names"
"""Key of ``model_args`` of a teacher: names of the classes of its head, in the order of its logits."""

BATCH_ROWS = "batch_rows"
"""Key of ``model_args`` of a teacher with mode batch: rows of a batch, in the order of the store."""

Container = Literal["zarr", "webdataset"]
Codec = Literal["raw", "zstd", "bitshuffle"]
FloatType = Literal["float16", "bfloat16", "float32"]
NumberType = Literal[
    "float16", "bfloat16", "float32", "bool", "int8", "uint8", "int16", "uint16", "int32", "int64"
]

ITEM_BYTES = {
    name: 2 if name == "bfloat16" else np.dtype(name).itemsize for name in get_args(NumberType)
}

SHA256 = r"[0-9a-f]{64}"
MOST_BYTES = 2**50
"""Most bytes of a row or an object. Sizes in a manifest from elsewhere are checked before memory is allocated."""
MOST_ROWS = 2**36
MOST_SHARDS = 2**22
MOST_SHARD_ROWS = 2**24
MOST_AXES = 16
MOST_PARTS = 1000
"""Limits of a manifest, each far above real stores: tables of rows and shards are allocated from these numbers before a
shard is read. ``MOST_PARTS`` holds for fields, for teachers and for artefacts."""
MOST_DEPTH = 16  # of lists and objects inside each other in a teacher's ``model_args``


class Record(BaseModel):
    """A part of the manifest: immutable, unknown keys are errors, JSON numbers must be finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
    """Name of the decoding rules, ``featstore.sources.decode.DECODE_RULE``."""


class TextRecord(Record):
    """From a text to the teacher's input."""

    tokenizer: str
    """Kind of the tokenizer: wordpiece (lower case), tokenizers (a tokenizer.json), or the class of another library."""
    tokenizer_sha256: str = Field(pattern=SHA256)
    max_tokens: PositiveInt
    """Longest input with special tokens; the rest of a text is cut off."""
    pooling: Literal["mean", "cls", "model"]
    """How ``pooled`` is made of the tokens: their mean, the first one, or by the model itself."""

    def __str__(self) -> str:
        return (
            f"text, {self.tokenizer} tokenizer {self.tokenizer_sha256[:12]}, at most {self.max_tokens} tokens, pooled "
            f"by {self.pooling}"
        )


class PointRecord(Record):
    """From a point cloud to the teacher's input."""

    columns: int = Field(ge=3, le=64)
    """Numbers per point: x, y, z, and further columns of the file in its order."""
    most_points: int = Field(gt=0, le=2**24)
    """A larger cloud is thinned evenly, in the order of its coordinates."""
    grid: tuple[PositiveInt, PositiveInt]
    """(along y, along x) cells over the bounds."""
    bounds: tuple[float, float, float, float, float, float] | None = None
    """x, y and z from, then x, y and z to, in the unit of the files; points outside are left out. None: every cloud is
    centred, and scaled by its longest side."""

    @field_validator("bounds")
    @classmethod
    def _ordered(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if values and not all(low < high for low, high in zip(values[:3], values[3:], strict=True)):
            raise ValueError(f"bounds {values}: expected x, y and z from, then larger ones to")
        return values

    def __str__(self) -> str:
        within = (
            f"bounds {self.bounds}" if self.bounds else "every cloud scaled by its longest side"
        )
        return (
            f"point cloud, {self.columns} numbers per point, at most {self.most_points} points, {self.grid[0]} x "
            f"{self.grid[1]} cells, {within}"
        )


class TeacherRecord(Record):
    """The frozen model that computed features."""

    library: str
    """Library of the model: timm, open_clip, external (features were computed elsewhere), or another name."""
    name: str
    tag: str = ""
    model_args: dict[str, Any] = Field(default_factory=dict)
    weights_sha256: str = Field(pattern=SHA256)
    """SHA-256 over the state dict: sorted keys, dtypes, shapes, bytes (docs/format.md). Zeros: not known."""
    licence: str = ""
    mode: Literal["eval", "batch"] = "eval"
    """eval: normalisation layers used their stored statistics, so that a row does not depend on its neighbours.
    batch: they used the batch's; ``batch_seed`` determines how batches were drawn."""
    batch_seed: int | None = None
    """0: a batch is the next ``model_args.batch_rows`` rows of the store; fewer at its end."""
    precision: Literal["fp32", "bf16", "fp16"]
    """Arithmetic of the forward pass."""
    preprocessing: PreprocessingRecord | TextRecord | PointRecord | None = None
    """None where the inputs are neither images, texts nor point clouds, or it is not known how they were prepared."""

    @field_validator("model_args")
    @classmethod
    def _plain(cls, values: dict[str, Any]) -> dict[str, Any]:
        _check_json(values, MOST_DEPTH)
        return values

    @model_validator(mode="after")
    def _check(self) -> "TeacherRecord":
        if (self.mode == "batch") != (self.batch_seed is not None):
            raise ValueError("mode batch, and no other, needs a batch_seed")
        return self


class PlainEncoding(Record):
    """Stored in its own dtype, in one column."""

    kind: Literal["plain"] = "plain"


class Int8Encoding(Record):
    """A code of one byte per number, and scales; read back as ``dtype``. Column ``scale`` has one per last axis.

    value = (code * row scale) * channel scale + channel offset, each factor left out where the scheme has none.
    """

    kind: Literal["int8"] = "int8"
    scheme: Literal["row", "channel", "channel_row"]
    """row: one scale per row (per token of a grid). channel: one scale and offset per channel, from a sample of rows;
    values beyond the sample's range saturate. channel_row: standardised by channel, then one scale per row."""
    channels: str = ""
    """Name of the artefact that holds ``scale`` and ``offset`` of each channel, (C,) float32; "" with scheme row."""
    sample_rows: int = Field(ge=1)
    """Rows that the scales and the errors below were measured on."""
    relative_l2: float = Field(ge=0)
    """Mean over the sample of |x - x'| / |x|, x a row of one view."""
    cosine_mean: float
    cosine_worst: float

    @model_validator(mode="after")
    def _check(self) -> "Int8Encoding":
        if (self.scheme == "row") != (self.channels == ""):
            raise ValueError(
                "scales per channel need the artefact that holds them, scheme row has none"
            )
        return self


class TopKEncoding(Record):
    """The k largest numbers of an axis that is not stored: columns ``values`` and ``indices``, last axis k."""

    kind: Literal["topk"] = "topk"
    num_classes: int = Field(gt=0, lt=2**31)
    """Length of the axis that was reduced."""

    @property
    def index_dtype(self) -> NumberType:
        """uint16 up to 65,536 classes, else int32."""
        return "uint16" if self.num_classes <= 2**16 else "int32"


class RaggedEncoding(Record):
    """Any number of items per row and view: column ``values`` of items, and ``ranges`` of (first, last + 1)."""

    kind: Literal["ragged"] = "ragged"
    most_items: int = Field(gt=0)
    """Most items of one row, all its views together. It reserves positions, not bytes."""


Encoding = Annotated[
    PlainEncoding | Int8Encoding | TopKEncoding | RaggedEncoding, Field(discriminator="kind")
]


class FieldRecord(Record):
    """One field: rows x views x ``shape``."""

    shape: tuple[PositiveInt, ...] = Field(max_length=MOST_AXES)
    """Shape of one view of one row, e.g. (1024,) or (7, 7, 1024); of one item where rows are ragged."""
    dtype: NumberType | Literal["text"]
    """Dtype of the values that are read."""
    dims: tuple[str, ...]
    """Name of each axis of ``shape``, e.g. ("channel",)."""
    meaning: str
    """Description of the numbers."""
    teacher: str = ""
    """Name of the teacher that computed it; "" if none did (coordinates, captions)."""
    per_view: bool = True
    """Whether it has a view axis; otherwise a row has one value for all views."""
    encoding: Encoding = Field(default_factory=PlainEncoding)
    codec: Codec = "raw"
    """raw: rows can be memory-mapped. zstd, bitshuffle: chunks are compressed."""

    @model_validator(mode="after")
    def _check(self) -> "FieldRecord":
        if len(self.dims) != len(self.shape):
            raise ValueError(f"{len(self.dims)} dims for a shape of {len(self.shape)} axes")
        kind = self.encoding.kind
        if self.dtype == "text" and (kind != "plain" or self.codec != "raw"):
            raise ValueError("text is stored plain, without a codec")
        if kind in ("int8", "topk") and not self.shape:
            raise ValueError(f"encoding {kind} needs an axis to work along")
        if kind == "int8" and self.dtype not in ("float16", "bfloat16", "float32"):
            raise ValueError(f"encoding int8 of {self.dtype}: only floating point is quantised")
        if isinstance(self.encoding, TopKEncoding) and self.shape[-1] > self.encoding.num_classes:
            raise ValueError(f"top {self.shape[-1]} of {self.encoding.num_classes} classes")
        if math.prod(self.shape) > MOST_BYTES:
            raise ValueError(f"shape {self.shape} is beyond any machine")
        return self

    def row_bytes(self, num_views: int) -> int:
        """Bytes of one row with all its views, as read back; of a full row where rows are ragged, 0 for text."""
        if self.dtype == "text":
            return 0
        if isinstance(self.encoding, RaggedEncoding):
            copies = self.encoding.most_items
        else:
            copies = num_views if self.per_view else 1
        return copies * math.prod(self.shape) * ITEM_BYTES[self.dtype]


class ArtefactRecord(Record):
    """A small file that belongs to the store: a teacher's head, channel scales, a table of texts."""

    bytes: int = Field(ge=0, le=2**40)
    sha256: str = Field(pattern=SHA256)
    meaning: str
    teacher: str = ""


class SourceRecord(Record):
    """The samples that the rows belong to."""

    kind: str
    uri: str
    num_samples: int = Field(gt=0, le=MOST_ROWS)
    ids_sha256: str
    """SHA-256 over the ids in row order, each followed by a zero byte."""
    has_labels: bool
    class_names: tuple[str, ...] = ()


class WorkRecord(Record):
    """Rows per shard and batch; batches never cross a shard, so any number of processes gives the same bytes."""

    shard_rows: int = Field(gt=0, le=MOST_SHARD_ROWS)
    """Rows of every shard but the last; of the largest shard where ``shard_sizes`` is given."""
    batch_size: int = Field(gt=0)
    shard_sizes: tuple[PositiveInt, ...] = ()
    """webdataset only: rows of each shard, where shards mirror the tars of the images."""
    shard_names: tuple[str, ...] = ()
    """webdataset only: path of each shard without ``.tar``, as the image tars are called."""

    @model_validator(mode="after")
    def _check(self) -> "WorkRecord":
        if self.shard_names and len(self.shard_names) != len(self.shard_sizes):
            raise ValueError(
                f"{len(self.shard_names)} shard_names for {len(self.shard_sizes)} shard_sizes"
            )
        if self.shard_sizes and max(self.shard_sizes) != self.shard_rows:
            raise ValueError("shard_rows must be the largest of shard_sizes")
        if len(set(self.shard_names)) != len(self.shard_names):
            raise ValueError("shard_names repeats one")
        for name in self.shard_names:
            for part in name.split("/"):
                check_part(part)
        return self


class VersionRecord(Record):
    """A version of the store before rows were appended: its first ``rows`` rows."""

    version: int = Field(gt=0)
    """1, 2, ... from the oldest on."""
    created: str
    """When that version was made, ISO 8601."""
    rows: int = Field(gt=0)
    fingerprint: str = Field(pattern=SHA256)


class Manifest(Record):
    """The whole of ``manifest.json``."""

    format_version: int
    container: Container = "zarr"
    uuid: str
    created: str
    created_by: dict[str, str]
    """Versions of this package and of the libraries that decide a feature's bits."""
    teachers: dict[str, TeacherRecord] = Field(max_length=MOST_PARTS)
    views: ViewSet
    fields: dict[str, FieldRecord] = Field(min_length=1, max_length=MOST_PARTS)
    artefacts: dict[str, ArtefactRecord] = Field(default_factory=dict, max_length=MOST_PARTS)
    source: SourceRecord
    work: WorkRecord
    history: tuple[VersionRecord, ...] = Field(default=(), max_length=MOST_PARTS)
    """Earlier versions, the oldest first; not written where there is none."""

    @field_validator("teachers", "fields", "artefacts")
    @classmethod
    def _names(cls, parts: dict[str, Any]) -> dict[str, Any]:
        for name in parts:
            check_name(name)
        return parts

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        for name, field in self.fields.items():
            if field.teacher and field.teacher not in self.teachers:
                raise ValueError(f"field {name}: no teacher {field.teacher!r}")
            encoding = field.encoding
            if isinstance(encoding, Int8Encoding) and encoding.channels not in {
                "",
                *self.artefacts,
            }:
                raise ValueError(f"field {name}: no artefact {encoding.channels!r}")
            if field.row_bytes(len(self.views)) * self.work.shard_rows > MOST_BYTES:
                raise ValueError(f"field {name}: a shard of it is beyond any machine")
            if isinstance(encoding, RaggedEncoding) and (
                encoding.most_items * (self.num_rows + self.work.shard_rows) >= 2**62
            ):
                raise ValueError(f"field {name}: positions of its items are beyond 64 bits")
            if self.container == "webdataset" and field.codec != "raw":
                raise ValueError(f"field {name}: codec {field.codec} needs the zarr container")
        for name, artefact in self.artefacts.items():
            if artefact.teacher and artefact.teacher not in self.teachers:
                raise ValueError(f"artefact {name}: no teacher {artefact.teacher!r}")
        if self.num_shards > MOST_SHARDS:
            raise ValueError(f"{self.num_shards:,} shards; at most {MOST_SHARDS:,} can be read")
        sizes = self.work.shard_sizes
        if sizes and (self.container != "webdataset" or sum(sizes) != self.num_rows):
            raise ValueError(
                f"shard_sizes are for webdataset and must add up to {self.num_rows} rows"
            )
        rows = [0, *(item.rows for item in self.history), self.num_rows]
        if [item.version for item in self.history] != list(range(1, len(rows) - 1)) or any(
            after <= before for before, after in pairwise(rows)
        ):
            raise ValueError("history must count versions from 1 on, each with more rows")
        return self

    @property
    def version(self) -> int:
        """1, and one more for each time that rows were appended."""
        return len(self.history) + 1

    @property
    def num_rows(self) -> int:
        """Rows of the store, valid or not."""
        return self.source.num_samples

    @property
    def num_shards(self) -> int:
        """Shards when the store is complete."""
        return len(self.work.shard_sizes) or math.ceil(self.num_rows / self.work.shard_rows)

    @cached_property
    def shard_starts(self) -> Rows | None:
        """First row of each shard and the end of the last, (shards + 1,); None where all shards are of one size."""
        if not self.work.shard_sizes:
            return None
        return np.concatenate([[0], np.cumsum(self.work.shard_sizes)]).astype(np.int64)

    def shard_range(self, shard: int) -> range:
        if self.shard_starts is not None:
            return range(int(self.shard_starts[shard]), int(self.shard_starts[shard + 1]))
        start = shard * self.work.shard_rows
        return range(start, min(start + self.work.shard_rows, self.num_rows))

    def shards_of(self, rows: Rows) -> Rows:
        """Shard of each row; rows must lie inside the store."""
        if self.shard_starts is not None:
            return np.searchsorted(self.shard_starts, rows, side="right") - 1
        return rows // self.work.shard_rows

    def teacher_of(self, field: str) -> TeacherRecord:
        """The teacher that made a field. Raises ManifestMismatch: no teacher made it."""
        name = self.fields[field].teacher
        if not name:
            raise ManifestMismatch(
                f'field "{field}" was not made by a teacher ({self.fields[field].meaning}).'
            )
        return self.teachers[name]

    @property
    def resume_advice(self) -> str:
        """What to run again to fill a store that is not complete, for messages."""
        if any(teacher.library == "external" for teacher in self.teachers.values()):
            return (
                "Run featstore.create or featstore import again with the same arguments to resume."
            )
        if any(key.endswith("_by") for key in self.created_by):
            return "Run the command that began it again, with the same arguments, to resume."
        return (
            f"Run {command('extract')} again with the settings this store was made with to resume."
        )

    def contract(self) -> dict[str, Any]:
        """The part of the manifest that all runs which fill this store share, as JSON values.

        The address of the source and the licences may change later, so they are left out.
        """
        parts = self.model_dump(mode="json", exclude={"uuid", "created", "created_by", "history"})
        del parts["source"]["uri"]
        for teacher in parts["teachers"].values():
            del teacher["licence"]
        return parts

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the rows are: the contract without container, codecs and the cutting of the work.

        Equal fingerprints mean the same features of the same images, whatever they are packed in.
        """
        parts = self.contract()
        del parts["container"], parts["work"]
        for field in parts["fields"].values():
            del field["codec"]
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def new_manifest(
    *,
    teachers: dict[str, TeacherRecord],
    views: ViewSet,
    fields: dict[str, FieldRecord],
    source: SourceRecord,
    work: WorkRecord,
    created_by: dict[str, str],
    artefacts: dict[str, ArtefactRecord] | None = None,
    container: Container = "zarr",
) -> Manifest:
    """Build a manifest with a new uuid and the current time."""
    return Manifest(
        format_version=FORMAT_VERSION,
        container=container,
        uuid=str(uuid.uuid4()),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        created_by=created_by,
        teachers=teachers,
        views=views,
        fields=fields,
        artefacts=artefacts or {},
        source=source,
        work=work,
    )


def manifest_bytes(manifest: Manifest) -> bytes:
    """Bytes of ``manifest.json``."""
    unused = set() if manifest.history else {"history"}
    return seal(manifest.model_dump(mode="json", exclude=unused))


def write_manifest(store: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically."""
    write_bytes(store / MANIFEST_NAME, manifest_bytes(manifest))


def read_manifest(store: Path) -> Manifest:
    """Read and validate ``manifest.json``.

    Raises:
        StoreNotFound: No folder, no manifest, or one that does not follow the format.
        ManifestMismatch: Written in another version of the format.
    """
    path = store / MANIFEST_NAME
    if not store.is_dir():
        raise StoreNotFound(
            f"{Path(store).absolute()}: no such folder. Extract a store first: {command('extract')}"
        )
    try:
        values = unseal(read_plain(store, MANIFEST_NAME))
    except FileNotFoundError:
        raise StoreNotFound(
            f"{store}: no {MANIFEST_NAME}, so this is not a feature store. Expected the folder that "
            f"{command('extract')} wrote (--store.path)."
        ) from None
    except OSError as error:
        raise StoreNotFound(f"{path}: cannot be read ({error.strerror}).") from None
    except SealError as error:
        raise StoreNotFound(f"{path}: damaged ({error}). Fetch the store again.") from None
    except ValueError as error:
        raise StoreNotFound(
            f"{path}: not readable as JSON ({error}). Fetch the store again."
        ) from None
    version = values.get("format_version") if isinstance(values, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:  # True == 1
        newer = type(version) is int and version > FORMAT_VERSION
        raise ManifestMismatch(
            f"{path}: format version {version!r}; this featstore reads version {FORMAT_VERSION}. "
            + ("Upgrade featstore." if newer else "It was never released; extract again.")
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors()[:5]
        )
        raise StoreNotFound(f"{path}: does not follow the format: {problems}") from None
    except StoreError as error:  # a name that cannot be a path
        raise StoreNotFound(f"{path}: does not follow the format: {error}") from None


def check_same_contract(store: Path, *, found: Manifest, expected: Manifest) -> None:
    """Check that a store on disk has the contract of the current settings.

    Raises:
        ManifestMismatch: Names every value that differs, on both sides.
    """
    differing = recorded_differences(found.contract(), expected.contract())
    if not differing:
        return
    lines = "\n".join(
        f"  {key}: the store has {was!r}, now asked for {now!r}" for key, was, now in differing
    )
    more = expected.num_rows - found.num_rows
    grown = more > 0 and all(key.startswith(("source.", "work.shard_")) for key, *_ in differing)
    raise ManifestMismatch(
        f"{store / MANIFEST_NAME}: this store was made with other settings; rows of both cannot be mixed:\n{lines}\n"
        "Choose a new folder with --store.path, or run with the settings this store was made with."
        + (f" To put the {more:,} further images behind its rows: --append true." * grown)
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


def recorded_differences(found: Any, expected: Any) -> list[tuple[str, Any, Any]]:
    """As ``differences``, without class names of a teacher that one side does not state: older versions did not."""
    return [
        (key, was, now)
        for key, was, now in differences(found, expected)
        if not (key.endswith(f"model_args.{CLASS_NAMES}") and None in (was, now))
    ]


def _check_json(value: Any, depth: int) -> None:
    """Refuse numbers that JSON cannot hold, and values that are nested too deeply."""
    if isinstance(value, dict | list):
        if depth == 0:
            raise ValueError(f"nested more than {MOST_DEPTH} levels deep")
        for item in value.values() if isinstance(value, dict) else value:
            _check_json(item, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number that is not finite")
