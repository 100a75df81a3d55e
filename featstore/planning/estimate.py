"""Estimate bytes, files and hours of a store from shapes, or measure types and codecs on rows of a store."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featstore.display.text import format_bytes, format_rate, format_seconds
from featstore.errors import ConfigError
from featstore.files.disk import free_bytes, measure_disk
from featstore.format.ids import check_name
from featstore.format.manifest_records import FieldRecord
from featstore.planning.costs import TYPICAL_RATIO, Choice, shard_rows, typical_choices
from featstore.planning.types_and_codecs import measured_choices, sample_rows
from featstore.reading.store import FeatureStore

SHARD_MB = 256
SAMPLE_COLUMNS = 4  # columns beside those of fields: id, hash, validity, label


@dataclass(frozen=True)
class Wanted:
    """A field of a store that does not exist yet."""

    name: str
    shape: tuple[int, ...]  # of one image and view
    dtype: str  # float16, bfloat16, float32 or int8

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.dtype not in TYPICAL_RATIO:
            raise ConfigError(
                f"field {self.name}: dtype {self.dtype!r}, expected one of {', '.join(TYPICAL_RATIO)}."
            )
        if not self.shape or min(self.shape) < 1:
            raise ConfigError(f"field {self.name}: shape {self.shape}, expected positive numbers.")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Costs of a store, computed from shapes. ``print`` shows it as a table.

    Attributes:
        bytes: Size of all fields as they were asked for, without a codec.
        rates: Images per second of each resource, as far as it is known.
        free_bytes: Free space where the store would go, if a path was given.
        disk_bytes_per_second: Write speed there.
    """

    images: int
    views: int
    bytes: int
    shard_rows: int
    shards: int
    files: int
    fields: tuple[Wanted, ...]
    rates: dict[str, float] = field(default_factory=dict)
    free_bytes: int | None = None
    disk_bytes_per_second: float | None = None

    @property
    def fits(self) -> bool:
        """Whether the free space is enough, as far as it is known."""
        return self.free_bytes is None or self.free_bytes >= self.bytes

    @property
    def bottleneck(self) -> str | None:
        """The slowest resource; None without rates."""
        return min(self.rates, key=lambda name: self.rates[name], default=None)

    @property
    def seconds(self) -> float | None:
        """Time for all images; None without rates."""
        return None if self.bottleneck is None else self.images / self.rates[self.bottleneck]

    def as_json(self) -> dict[str, Any]:
        """The estimate as plain JSON values."""
        values = dataclasses.asdict(self)
        del values["rates"]
        values = {name: value for name, value in values.items() if value is not None}
        values["fields"] = {
            item.name: {
                "shape": list(item.shape),
                "dtype": item.dtype,
                "choices": choices_as_json(
                    typical_choices(item.shape, views=self.views), self.images
                ),
            }
            for item in self.fields
        }
        if self.rates:
            values["images_per_second"] = self.rates
            values |= {"bottleneck": self.bottleneck, "seconds": self.seconds}
        return values

    def __str__(self) -> str:
        free = "" if self.free_bytes is None else f"; {format_bytes(self.free_bytes)} free"
        lines = [
            f"rows      {self.images:,} images, {self.views} views each",
            f"bytes     {format_bytes(self.bytes)} as asked for, without a codec{free}",
            f"files     {self.files:,} in {self.shards:,} shards of up to {self.shard_rows:,} rows",
        ]
        if not self.fits:
            lines.append(
                "          TOO SMALL: choose another folder, fewer fields or views, or a smaller dtype"
            )
        if self.seconds is not None:
            rates = ", ".join(f"{name} {format_rate(rate)}" for name, rate in self.rates.items())
            lines.append(f"speed     {rates} images/s")
            lines.append(f"time      {format_seconds(self.seconds)}; bottleneck: {self.bottleneck}")
        for item in self.fields:
            shape = " x ".join(str(axis) for axis in item.shape)
            lines.append(
                f"field     {item.name}: {shape}, asked for as {item.dtype}; typical codecs"
            )
            lines += choices_table(typical_choices(item.shape, views=self.views), self.images)
        return "\n".join(lines)


def estimate(
    images: int,
    fields: Sequence[Wanted],
    *,
    views: int = 1,
    shard_rows: int = 4096,
    images_per_second: float | None = None,
    path: Path | None = None,
) -> Estimate:
    """Compute the costs of a store; arguments as for ``featstore.plan``."""
    if min(images, views, shard_rows) < 1:
        raise ConfigError(
            f"images {images}, views {views}, shard_rows {shard_rows}: expected positive numbers."
        )
    if not fields:
        raise ConfigError("fields: none was named, expected one or more.")
    if len({item.name for item in fields}) < len(fields):
        raise ConfigError("fields: one is named twice.")
    if images_per_second is not None and not images_per_second > 0:
        raise ConfigError(f"images per second {images_per_second}: expected a positive number.")
    most = _most_rows(fields, views, shard_rows)
    shards = math.ceil(images / most)
    row_bytes = sum(_row_bytes(item, views) for item in fields)
    columns = SAMPLE_COLUMNS + sum(2 if item.dtype == "int8" else 1 for item in fields)
    disk = None if path is None else measure_disk(path)
    rates = {} if images_per_second is None else {"teacher": images_per_second}
    if disk is not None:
        rates["disk"] = disk / max(1.0, row_bytes)
    return Estimate(
        images=images,
        views=views,
        bytes=int(row_bytes * images),
        shard_rows=most,
        shards=shards,
        files=shards * (columns + 1),
        fields=tuple(fields),
        rates=rates,
        free_bytes=None if path is None else free_bytes(path),
        disk_bytes_per_second=disk,
    )


def _row_bytes(item: Wanted, views: int) -> float:
    return next(
        choice.row_bytes
        for choice in typical_choices(item.shape, views=views)
        if (choice.dtype, choice.codec) == (item.dtype, "raw")
    )


def _most_rows(fields: Sequence[Wanted], views: int, most_rows: int) -> int:
    records = {
        item.name: FieldRecord.model_validate(
            {
                "shape": item.shape,
                "dtype": item.dtype,
                "dims": tuple(f"axis{i}" for i in range(len(item.shape))),
                "meaning": "planned",
            }
        )
        for item in fields
    }
    return shard_rows(records, num_views=views, most_rows=most_rows, most_mb=SHARD_MB)


@dataclass(frozen=True)
class Measured:
    """Types and codecs, measured on rows of a store."""

    path: str
    rows: int
    views: int
    # for each field, the number of measured rows and the choices
    fields: dict[str, tuple[int, list[Choice]]]

    def as_json(self) -> dict[str, Any]:
        """The measurements as plain JSON values."""
        fields = {
            name: {"measured_rows": count, "choices": choices_as_json(choices, self.rows)}
            for name, (count, choices) in self.fields.items()
        }
        return {"path": self.path, "rows": self.rows, "views": self.views, "fields": fields}

    def __str__(self) -> str:
        lines = [f"store     {self.path}: {self.rows:,} rows, {self.views} views"]
        for name, (count, choices) in self.fields.items():
            lines.append(f"field     {name}, measured on {count:,} rows")
            lines += choices_table(choices, self.rows)
        lines += [
            "error     mean of |x - x'| / |x| against the stored values; int8: channel_row, scales from these rows.",
            "          Codecs are not measured on types wider than the stored one, whose further bits are not known.",
        ]
        return "\n".join(lines)


def measure_store(address: str | Path, num_rows: int) -> Measured:
    """Measure size and error of each type and codec on rows of a store.

    Args:
        address: Folder or URL of the store; its extraction need not be finished.
    """
    store = FeatureStore.open(address, allow_incomplete=True)
    rows = sample_rows(store, num_rows)
    return Measured(
        store.address,
        store.num_rows,
        len(store.manifest.views),
        {name: measured_choices(store, name, rows) for name in sorted(store.manifest.fields)},
    )


def choices_as_json(choices: Sequence[Choice], rows: int) -> list[dict[str, Any]]:
    """Choices as plain JSON values, with the bytes of a whole store."""
    return [{**dataclasses.asdict(item), "bytes": int(item.row_bytes * rows)} for item in choices]


def choices_table(choices: Sequence[Choice], rows: int) -> list[str]:
    """Lines of a table of choices for a store of some rows."""
    half = next((item.row_bytes for item in choices if item.dtype == "float16"), None)
    base = half or choices[0].row_bytes or 1
    lines = [f"  {'dtype':10}{'codec':12}{'bytes a row':>14}{'total':>10}{'ratio':>8}{'error':>10}"]
    for item in choices:
        error = "" if item.relative_l2 is None else f"{item.relative_l2:.1e}"
        mark = "  (stored)" if item.stored else ""
        lines.append(
            f"  {item.dtype:10}{item.codec:12}{item.row_bytes:14,.0f}{format_bytes(item.row_bytes * rows):>10}"
            f"{item.row_bytes / base:8.2f}{error:>10}{mark}".rstrip()
        )
    return lines
