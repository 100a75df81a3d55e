"""Estimate bytes, files and hours of an extraction, and its bottleneck."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from featstore.containers import make_backend
from featstore.containers.metadata import metadata_files
from featstore.display.text import format_bytes, format_rate, format_seconds
from featstore.errors import StoreWriteError
from featstore.files.disk import free_bytes
from featstore.format.fields import Column, field_columns
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import ITEM_BYTES, Codec, FieldRecord
from featstore.format.pictures import PICTURES, typical_bytes

CODECS: tuple[Codec, ...] = get_args(Codec)

TYPICAL_RATIO: dict[str, dict[Codec, float]] = {
    "float32": {"raw": 1.0, "zstd": 1.08, "bitshuffle": 1.07},
    "float16": {"raw": 1.0, "zstd": 1.08, "bitshuffle": 1.0},
    "bfloat16": {"raw": 1.0, "zstd": 1.28, "bitshuffle": 1.28},
    "int8": {"raw": 1.0, "zstd": 1.06, "bitshuffle": 1.01},
}
"""Raw bytes over encoded bytes of patch features of a ViT-Ti/16 on 256 pictures; a ViT-L's came out within 0.1.
``featstore plan STORE`` measures those of a store."""


def shard_rows(
    fields: Mapping[str, FieldRecord], *, num_views: int, most_rows: int, most_mb: int
) -> int:
    """Rows per shard: the largest power of two within both limits, so that inner chunks divide it.

    Whole batches fit in whenever the batch size is a power of two too; any other leaves one short batch per shard.
    """
    columns = [
        (column, spec)
        for name, spec in fields.items()
        for column in field_columns(name, spec, num_views)
    ]
    widest = max(1, *(_entry_bytes(column, spec) for column, spec in columns))
    return power_of_two(min(most_rows, most_mb * 10**6 // widest))


def power_of_two(rows: int) -> int:
    """The largest power of two up to a number of rows."""
    return 1 << (max(1, rows).bit_length() - 1)


def stored_bytes(name: str, spec: FieldRecord, num_views: int) -> int:
    """Bytes that one row of a field takes on disk before any codec: codes and scales, the items of a full row.

    Text counts nothing: how long it is does not follow from the manifest.
    """
    columns = field_columns(name, spec, num_views)
    return sum(_entry_bytes(column, spec) for column in columns)


def _entry_bytes(column: Column, spec: FieldRecord) -> int:
    """Bytes of a row in one column: of a full row where rows are ragged, but pictures seldom fill their room."""
    if column.name == f"fields/{PICTURES}/values":
        return typical_bytes(spec)
    return column.entry_bytes * column.capacity


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A field as one type, with one codec."""

    dtype: str  # int8 stands for codes and scales
    codec: Codec
    row_bytes: float
    # mean of |x - x'| / |x| against what was measured on; None where nothing was measured
    relative_l2: float | None = None
    stored: bool = False  # whether it is what the store has


def typical_choices(shape: Sequence[int], *, views: int) -> list[Choice]:
    """Return the cost of a float field as each type, with codec ratios typical of vision transformers."""
    count = views * math.prod(shape)
    # One scale of 4 bytes for each last axis.
    scales = {"int8": 4 * views * math.prod(shape[:-1])}
    return [
        Choice(
            dtype=dtype,
            codec=codec,
            row_bytes=count * ITEM_BYTES[dtype] / ratio + scales.get(dtype, 0),
        )
        for dtype, ratios in TYPICAL_RATIO.items()
        for codec, ratio in ratios.items()
    ]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Measured rates of one process with a teacher."""

    teacher: float  # images per second through the teacher, all views
    decode: float  # images per second through reading and decoding, all loader processes together
    disk: float | None  # bytes per second written and synced; None for a store in a bucket


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Estimated cost of a run, for the shards that are pending."""

    rows: int
    rows_left: int
    files: int
    field_bytes: dict[str, int]
    bytes_left: int
    free_bytes: int | None  # None for a store in a bucket
    rates: Rates | None
    processes: int
    # bytes of the whole store by codec, typical ones; empty where there is no choice
    codec_bytes: dict[Codec, int] = field(default_factory=dict)

    @property
    def images_per_second(self) -> dict[str, float]:
        """Rate of each resource for the whole run; they work in parallel."""
        if self.rates is None:
            return {}
        row_bytes = max(1, self.bytes_left // max(1, self.rows_left))
        rates = {
            "teacher": self.rates.teacher * self.processes,
            "decoding": self.rates.decode * self.processes,
        }
        return rates if self.rates.disk is None else {**rates, "disk": self.rates.disk / row_bytes}

    @property
    def bottleneck(self) -> str:
        """The slowest resource."""
        rates = self.images_per_second
        return min(rates, key=lambda name: rates[name])

    @property
    def seconds(self) -> float:
        """Expected seconds for the pending shards."""
        return self.rows_left / self.images_per_second[self.bottleneck]

    def lines(self) -> list[str]:
        """The plan as lines of text."""
        total = sum(self.field_bytes.values())
        parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.field_bytes.items())
        lines = [
            f"rows      {self.rows:,} images, {self.rows_left:,} still to do",
            f"bytes     {format_bytes(total)} ({parts})"
            + ("" if self.free_bytes is None else f"; {format_bytes(self.free_bytes)} free"),
            f"files     {self.files:,}",
        ]
        if self.codec_bytes:
            sizes = (f"{name} {format_bytes(size)}" for name, size in self.codec_bytes.items())
            lines.append(f"codecs    {', '.join(sizes)} (typical; featstore plan STORE measures)")
        if self.rates is not None and self.rows_left:
            rates = self.images_per_second
            shown = ", ".join(f"{name} {format_rate(rate)}" for name, rate in rates.items())
            lines.append(f"speed     {shown} images/s")
            lines.append(f"time      {format_seconds(self.seconds)}; bottleneck: {self.bottleneck}")
        return lines


def make_plan(
    manifest: Manifest, *, store: Path | None, pending: int, rates: Rates | None, processes: int
) -> Plan:
    """Estimate a plan. Raises StoreWriteError: what is left to write is more than the free space.

    Args:
        store: Folder of the store; None for a store in a bucket.
    """
    num_views = len(manifest.views)
    rows_left = min(manifest.num_rows, pending * manifest.work.shard_rows)
    sizes = {name: stored_bytes(name, spec, num_views) for name, spec in manifest.fields.items()}
    objects = len(make_backend(store or Path(), manifest).object_names(0))
    others = len(metadata_files(manifest)) + len(manifest.artefacts) + 2  # manifest, complete.json
    plan = Plan(
        rows=manifest.num_rows,
        rows_left=rows_left,
        files=manifest.num_shards * (objects + 1) + others,
        field_bytes={name: size * manifest.num_rows for name, size in sizes.items()},
        bytes_left=sum(sizes.values()) * rows_left,
        free_bytes=free_bytes(store) if store else None,
        rates=rates,
        processes=processes,
        codec_bytes=_codec_bytes(manifest),
    )
    if plan.free_bytes is not None and plan.bytes_left > plan.free_bytes:
        raise StoreWriteError(
            f"{store}: {format_bytes(plan.bytes_left)} are still to be written, {format_bytes(plan.free_bytes)} are "
            "free. Free some space, choose another --store.path, or store fewer fields or views (--store.fields, "
            "--views.seeded)."
        )
    return plan


def _codec_bytes(manifest: Manifest) -> dict[Codec, int]:
    """Bytes of the fields by codec; of columns that no codec is known to shrink, the bytes themselves."""
    if manifest.container != "zarr":
        return {}
    total = dict.fromkeys(CODECS, 0.0)
    for name, spec in manifest.fields.items():
        for column in field_columns(name, spec, len(manifest.views)):
            kind = "" if column.dtype is None else column.dtype.name
            ratios = TYPICAL_RATIO.get(kind, {})
            scale = column.name.endswith("/scale")  # of int8: never compressed
            for codec in CODECS:
                ratio = 1.0 if scale else ratios.get(codec, 1.0)
                total[codec] += _entry_bytes(column, spec) / ratio
    return {codec: int(size * manifest.num_rows) for codec, size in total.items()}
