"""Export rows of a store as npy arrays, Parquet files, or a Hugging Face data set.

Shards are read one after another, every byte is compared with the ledger, and memory holds one batch of rows. The
export is written to a temporary folder next to its destination, renamed when it is complete, and resumed after a kill.
"""

# n rows of a batch, N rows of the store, V views

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from featstore.derive.exporters.base import ExportColumn, Exporter, check_packages
from featstore.derive.exporters.fieldreader import FieldReader
from featstore.derive.exporters.npy import NpyExporter, files_of
from featstore.derive.exporters.selection import RowSelection
from featstore.display.text import format_bytes
from featstore.errors import ConfigError, StoreWriteError
from featstore.files.atomic import TEMPORARY_PREFIX, make_folder, refused, sync_folder, write_bytes
from featstore.files.disk import free_bytes
from featstore.files.locks import LOCK_NAME, exclusive
from featstore.format.version import __version__
from featstore.reading.store import FeatureStore
from featstore.writing.fill import check_apart

Format = Literal["npy", "parquet", "hf"]

PACKAGES: dict[Format, tuple[str, ...]] = {
    "npy": (),
    "parquet": ("pyarrow",),
    "hf": ("pyarrow", "datasets"),
}
"""Optional packages of each format."""

DESCRIPTION_NAME = "export.json"
PROGRESS_NAME = "progress.json"

BATCH_BYTES = 2**26  # bytes of a batch, about

SAMPLE_ROWS = 20
"""Rows of each of three shards that the size of texts and ragged items is measured on."""

STATE_S = 5.0  # seconds between two saved states to resume from


@dataclass(frozen=True)
class Exported:
    """Result of ``export``.

    Attributes:
        invalid: Rows left out because they have no usable feature.
        unmatched: Rows left out because no pattern matched their id.
        description: Content of ``export.json``.
        resumed: Rows that an earlier, stopped run had written.
    """

    path: Path
    rows: int
    invalid: int
    unmatched: int
    bytes: int
    description: dict[str, Any]
    resumed: int = 0


def export(
    source: str | Path,
    out: Path,
    form: Format,
    *,
    fields: Sequence[str] | None = None,
    where: Sequence[str] = (),
    float32: bool = False,
    canonical: bool = False,
    keep_invalid: bool = False,
    announce: Callable[[int, int], None] = lambda rows, size: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Write rows of a store in another format, or resume.

    Quantised fields become float32, and so does bfloat16, which these formats do not know: nothing is lost by it.
    A top-k field becomes two columns; in npy a text or ragged one becomes two files.

    Arguments and errors as for ``featstore.export``; ``announce`` is called once with the numbers of rows and, about,
    of bytes before anything is written, ``progress`` with the numbers of rows done and to do.
    """
    check_packages(f"--format {form}", PACKAGES[form])
    store = FeatureStore.open(source)
    check_apart(out, store.path)
    names = _names(store, fields)
    reader = FieldReader(store, names, float32=float32, canonical=canonical)
    rows = RowSelection(store, where, keep_invalid)
    description = _describe(form, reader, rows)
    data = json.dumps(description, indent=2).encode()
    resumed = 0
    if not _is_done(out, data):
        aside = out.absolute().parent / f"{TEMPORARY_PREFIX}export-{out.name}"
        row_bytes = _row_bytes(reader, rows)
        announce(rows.count, row_bytes * rows.count)
        _check_room(aside, row_bytes * rows.count)
        make_folder(aside)
        with exclusive(aside):
            resumed = _fill(aside, form, data, reader, rows, row_bytes, progress)
            (aside / LOCK_NAME).unlink()
            with refused(out, 0):
                aside.replace(out)  # a folder may replace an empty one
                sync_folder(aside.parent)
    return Exported(out, rows.count, rows.invalid, rows.unmatched, _size(out), description, resumed)


def _is_done(out: Path, data: bytes) -> bool:
    """Whether a folder holds this export already."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    path = out / DESCRIPTION_NAME
    if path.is_file() and path.read_bytes() == data:
        return True
    raise ConfigError(
        f"{out}: exists, and is not this export. Choose another folder, or remove it."
    )


def _names(store: FeatureStore, fields: Sequence[str] | None) -> list[str]:
    known = store.manifest.fields
    unknown = [name for name in fields or () if name not in known]
    if unknown:
        raise ConfigError(
            f"{store.address}: no field {', '.join(map(repr, unknown))}; it has: {', '.join(sorted(known))}."
        )
    return sorted(known) if fields is None else list(dict.fromkeys(fields))


def _row_bytes(reader: FieldReader, rows: RowSelection) -> int:
    """Bytes of a row, about: measured in the first, the middle and the last shard."""
    parts = rows.parts
    some = dict.fromkeys(parts[place][0] for place in (0, len(parts) // 2, -1))
    return reader.row_bytes([(shard, rows.rows(shard)[:SAMPLE_ROWS]) for shard in some])


def _describe(form: Format, reader: FieldReader, rows: RowSelection) -> dict[str, Any]:
    """Content of ``export.json``: the same for the same rows of the same store."""
    manifest = reader.store.manifest
    fields = {name: manifest.fields[name] for name in reader.names}
    teachers = {record.teacher for record in fields.values()}
    kept = manifest.model_dump(mode="json", exclude={"work", "artefacts"})
    kept["fields"] = {name: kept["fields"][name] for name in reader.names}
    kept["teachers"] = {name: kept["teachers"][name] for name in sorted(teachers - {""})}
    class_names = kept["source"].pop("class_names")
    return {
        "format": form,
        "rows": rows.count,
        "left_out": {"invalid": rows.invalid, "unmatched": rows.unmatched},
        "where": rows.where,
        "views": [str(view) for view in manifest.views.views]
        if reader.view is None
        else ["canonical"],
        "columns": {column.name: _describe_column(column, form) for column in reader.columns},
        "class_names": class_names,
        "store": {"fingerprint": manifest.fingerprint, **kept},
        "exported_by": f"featstore {__version__}",
    }


def _describe_column(column: ExportColumn, form: Format) -> dict[str, Any]:
    known: dict[str, Any] = {
        "kind": column.kind,
        "dtype": "text" if column.dtype is None else column.dtype.name,
        "shape": list(column.shape),
    }
    if column.kind == "ragged":
        known["lists"] = column.lists
    if column.field:
        known["field"] = column.field
    if form == "npy":
        known["files"] = files_of(column)
    return known


def _fill(
    folder: Path,
    form: Format,
    data: bytes,
    reader: FieldReader,
    rows: RowSelection,
    row_bytes: int,
    progress: Callable[[int, int], None],
) -> int:
    """Write the missing rows; returns how many existed already."""
    parts_done, state = _state(folder, data)
    done = resumed = sum(count for _, count in rows.parts[:parts_done])
    step = max(1, BATCH_BYTES // row_bytes)
    saved = time.monotonic()
    progress(done, rows.count)
    with closing(_exporter(folder, form, data, reader, rows, state)) as exporter:
        for part, (shard, _) in enumerate(rows.parts[parts_done:], parts_done):
            chosen = rows.rows(shard)
            exporter.begin(part)
            for start in range(0, len(chosen), step):
                batch = chosen[start : start + step]
                exporter.add(reader.batch(shard, batch))
                done += len(batch)
                progress(done, rows.count)
            exporter.end()
            if time.monotonic() - saved >= STATE_S:
                _save(folder, data, part + 1, exporter.state())
                saved = time.monotonic()
        exporter.finish()
    write_bytes(folder / DESCRIPTION_NAME, data)
    (folder / PROGRESS_NAME).unlink(missing_ok=True)
    return resumed


def _save(folder: Path, data: bytes, parts: int, state: dict[str, int]) -> None:
    known = {"description": _digest(data), "parts": parts, "state": state}
    write_bytes(folder / PROGRESS_NAME, json.dumps(known).encode())


def _state(folder: Path, data: bytes) -> tuple[int, dict[str, int]]:
    """Saved state of an earlier run of the same export; files of other exports are deleted."""
    path = folder / PROGRESS_NAME
    if path.is_file():
        known = json.loads(path.read_bytes())
        if known["description"] == _digest(data):
            return known["parts"], known["state"]
    for item in folder.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name != LOCK_NAME:
            item.unlink()
    return 0, {}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_room(folder: Path, size: int) -> None:
    """Check the free space; files of an earlier run count as free."""
    free = free_bytes(folder)
    if free + _size(folder) < size:
        raise StoreWriteError(
            f"{folder.parent}: {format_bytes(free)} are free, and about {format_bytes(size)} are needed. Free some "
            "space, or export fewer fields (--fields), rows (--where) or views (--canonical)."
        )


def _exporter(
    folder: Path,
    form: Format,
    data: bytes,
    reader: FieldReader,
    rows: RowSelection,
    state: dict[str, int],
) -> Exporter:
    if form == "npy":
        return NpyExporter(folder, reader.columns, state)
    # pyarrow is an extra.
    from featstore.derive.exporters.arrow import ArrowExporter

    return ArrowExporter(
        folder,
        reader.columns,
        form,
        num_parts=len(rows.parts),
        class_names=reader.store.manifest.source.class_names,
        description=data,
        state=state,
    )


def _size(folder: Path) -> int:
    """Bytes of all files below a folder; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
