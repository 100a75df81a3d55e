"""Pydantic models of the parts of ``manifest.json``: teachers, fields and their encodings, source, work, versions."""

import math
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from featstore.format.ids import check_part
from featstore.format.views import CropMode, Interpolation

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


def _check_json(value: Any, depth: int) -> None:
    """Refuse numbers that JSON cannot hold, and values that are nested too deeply."""
    if isinstance(value, dict | list):
        if depth == 0:
            raise ValueError(f"nested more than {MOST_DEPTH} levels deep")
        for item in value.values() if isinstance(value, dict) else value:
            _check_json(item, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number that is not finite")
