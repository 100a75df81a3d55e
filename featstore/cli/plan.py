"""``featstore plan``."""

import argparse
import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featstore.cli.arguments import positive, store_address
from featstore.errors import ConfigError
from featstore.files.disk import free_bytes, measure_disk
from featstore.format.ids import check_name
from featstore.format.manifest import FieldRecord
from featstore.planning.costs import TYPICAL_RATIO, Choice, shard_rows, typical_choices
from featstore.planning.types_and_codecs import measured_choices, sample_rows
from featstore.reading.store import FeatureStore
from featstore.text import format_bytes, format_rate, format_seconds

DEFAULT_DTYPE = "float16"
SHARD_MB = 256
SAMPLE_COLUMNS = 4
"""Columns beside those of fields: id, hash, validity, label."""


@dataclass(frozen=True)
class Wanted:
    """A field of a store to be."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def choice(self, views: int) -> Choice:
        """This field as it is asked for, without a codec."""
        return next(
            item
            for item in typical_choices(self.shape, views=views)
            if (item.dtype, item.codec) == (self.dtype, "raw")
        )


DESCRIPTION = """\
How many bytes, files and hours, before anything is written. Two forms:

  featstore plan STORE
      measures each type and codec on rows that a store has
  featstore plan --images 1281167 --field cls=1024 --field grid7=7x7x1024:float16
      reckons from shapes; what codecs save is then what is typical
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "store", nargs="?", type=store_address, help="folder or URL of a store to measure on"
    )
    parser.add_argument(
        "--rows", type=positive, default=512, help="rows that are measured (default: 512)"
    )
    parser.add_argument("--images", type=positive, help="images of the store to be")
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=SHAPE[:DTYPE]",
        help="a field of it, e.g. cls=1024 or grid7=7x7x1024:bfloat16; may be repeated",
    )
    parser.add_argument("--views", type=positive, default=1, help="views per image (default: 1)")
    parser.add_argument(
        "--shard-rows", type=positive, default=4096, help="most rows of a shard (default: 4096)"
    )
    parser.add_argument(
        "--images-per-second", type=float, help="rate of the teacher, all processes together"
    )
    parser.add_argument(
        "--path", type=Path, help="where it would go: measures the disk and looks for free space"
    )


def run(arguments: argparse.Namespace) -> int:
    """Reckon, on the rows of a store or from shapes; returns the exit status."""
    if (arguments.store is None) == (not arguments.field):
        raise ConfigError(
            "featstore plan needs either a STORE to measure on, or --images with a --field or more."
        )
    if arguments.store is not None:
        result = _of_store(arguments)
        text = _store_lines(result)
    else:
        if arguments.images is None:
            raise ConfigError("--images is missing: how many images will the store hold?")
        result = _of_shapes(arguments)
        text = _shape_lines(result)
    print(json.dumps(result, indent=2) if arguments.json else "\n".join(text))
    return 1 if _too_small(result) else 0


def _too_small(result: dict[str, Any]) -> bool:
    """Whether the disk that was named is."""
    return bool(result.get("free_bytes", math.inf) < result.get("bytes", 0))


def _of_store(arguments: argparse.Namespace) -> dict[str, Any]:
    store = FeatureStore.open(arguments.store, allow_incomplete=True)
    rows = sample_rows(store, arguments.rows)
    fields = {}
    for name in sorted(store.manifest.fields):
        count, choices = measured_choices(store, name, rows)
        fields[name] = {"measured_rows": count, "choices": _as_json(choices, store.num_rows)}
    return {
        "path": store.address,
        "rows": store.num_rows,
        "views": len(store.manifest.views),
        "fields": fields,
    }


def _of_shapes(arguments: argparse.Namespace) -> dict[str, Any]:
    wanted = [parse_field(text) for text in arguments.field]
    if len({item.name for item in wanted}) < len(wanted):
        raise ConfigError("--field names one field twice.")
    images, views = arguments.images, arguments.views
    most = shard_rows(
        {item.name: _record(item) for item in wanted},
        num_views=views,
        most_rows=arguments.shard_rows,
        most_mb=SHARD_MB,
    )
    shards = math.ceil(images / most)
    row_bytes = sum(item.choice(views).row_bytes for item in wanted)
    columns = SAMPLE_COLUMNS + sum(2 if item.dtype == "int8" else 1 for item in wanted)
    result: dict[str, Any] = {
        "images": images,
        "views": views,
        "bytes": int(row_bytes * images),
        "shard_rows": most,
        "shards": shards,
        "files": shards * (columns + 1),
        "fields": {
            item.name: {
                "shape": list(item.shape),
                "dtype": item.dtype,
                "choices": _as_json(typical_choices(item.shape, views=views), images),
            }
            for item in wanted
        },
    }
    rates: dict[str, float] = {}
    if arguments.images_per_second is not None:
        if not arguments.images_per_second > 0:
            raise ConfigError("--images-per-second must be positive.")
        rates["teacher"] = arguments.images_per_second
    if arguments.path is not None:
        result["free_bytes"] = free_bytes(arguments.path)
        result["disk_bytes_per_second"] = measure_disk(arguments.path)
        rates["disk"] = result["disk_bytes_per_second"] / max(1.0, row_bytes)
    if rates:
        wall = min(rates, key=lambda name: rates[name])
        result |= {"images_per_second": rates, "wall": wall, "seconds": images / rates[wall]}
    return result


def parse_field(text: str) -> Wanted:
    """``cls=1024`` or ``grid7=7x7x1024:bfloat16``.

    Raises:
        ConfigError: it is neither.
    """
    found = re.fullmatch(r"([^=]+)=(\d+(?:x\d+)*)(?::(\w+))?", text)
    if found is None:
        raise ConfigError(
            f"--field {text}: expected NAME=SHAPE[:DTYPE], e.g. grid7=7x7x1024:float16."
        )
    name, sizes, dtype = found.groups()
    check_name(name)
    dtype = dtype or DEFAULT_DTYPE
    shape = tuple(int(size) for size in sizes.split("x"))
    if dtype not in TYPICAL_RATIO:
        raise ConfigError(f"--field {text}: dtype {dtype!r} is none of {', '.join(TYPICAL_RATIO)}.")
    if not all(shape):
        raise ConfigError(f"--field {text}: an axis of size 0 holds nothing.")
    return Wanted(name, shape, dtype)


def _record(wanted: Wanted) -> FieldRecord:
    """Enough of a field to cut shards by; codes of int8 are its widest column."""
    dtype = "int8" if wanted.dtype == "int8" else wanted.dtype
    dims = tuple(f"axis{i}" for i in range(len(wanted.shape)))
    return FieldRecord.model_validate(
        {"shape": wanted.shape, "dtype": dtype, "dims": dims, "meaning": "planned"}
    )


def _as_json(choices: list[Choice], rows: int) -> list[dict[str, Any]]:
    return [{**dataclasses.asdict(item), "bytes": int(item.row_bytes * rows)} for item in choices]


def _store_lines(result: dict[str, Any]) -> list[str]:
    lines = [f"store     {result['path']}: {result['rows']:,} rows, {result['views']} views"]
    for name, item in result["fields"].items():
        lines.append(f"field     {name}, measured on {item['measured_rows']:,} rows")
        lines += _table(item["choices"])
    return [
        *lines,
        "error     mean of |x - x'| / |x| against what this store holds; int8: channel_row, scales from these rows.",
        "          Codecs are not measured on a wider type than the stored one: its further bits are not there.",
    ]


def _shape_lines(result: dict[str, Any]) -> list[str]:
    size = format_bytes(result["bytes"])
    free = f"; {format_bytes(result['free_bytes'])} free" if "free_bytes" in result else ""
    lines = [
        f"rows      {result['images']:,} images, {result['views']} views each",
        f"bytes     {size} as asked for, without a codec{free}",
        f"files     {result['files']:,} in {result['shards']:,} shards of up to {result['shard_rows']:,} rows",
    ]
    if _too_small(result):
        lines.append(
            "          TOO SMALL: choose another place, fewer fields or views, or a smaller dtype"
        )
    if "wall" in result:
        rates = ", ".join(
            f"{name} {format_rate(rate)}" for name, rate in result["images_per_second"].items()
        )
        lines.append(f"speed     {rates} images/s")
        lines.append(
            f"time      {format_seconds(result['seconds'])}; the wall is the {result['wall']}"
        )
    for name, item in result["fields"].items():
        shape = " x ".join(str(axis) for axis in item["shape"])
        lines.append(
            f"field     {name}: {shape}, asked for as {item['dtype']}; codecs as is typical"
        )
        lines += _table(item["choices"])
    return lines


def _table(choices: list[dict[str, Any]]) -> list[str]:
    half = next((item["row_bytes"] for item in choices if item["dtype"] == "float16"), None)
    base = half or choices[0]["row_bytes"] or 1
    lines = [f"  {'dtype':10}{'codec':12}{'bytes a row':>14}{'total':>10}{'ratio':>8}{'error':>10}"]
    for item in choices:
        error = "" if item["relative_l2"] is None else f"{item['relative_l2']:.1e}"
        mark = "  (stored)" if item["stored"] else ""
        lines.append(
            f"  {item['dtype']:10}{item['codec']:12}{item['row_bytes']:14,.0f}{format_bytes(item['bytes']):>10}"
            f"{item['row_bytes'] / base:8.2f}{error:>10}{mark}".rstrip()
        )
    return lines
