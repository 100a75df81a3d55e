"""A store's features in another type, without the teacher: same rows, ids, views and ledger in a new store.

It is filled shard by shard as an extraction is, so it resumes after a kill, any number of processes can help, and
nothing half-written can be read.
"""

# n rows of a sample, V views

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from featstore.containers import Backend, make_backend
from featstore.containers.base import Array, Rows
from featstore.derive.composition import artefact_bytes
from featstore.errors import ConfigError
from featstore.format.artefacts import describe, pack, read_channels
from featstore.format.fields import empty_columns, numpy_dtype, put
from featstore.format.int8 import Channels, RoundingError, calibrate, dequantise, rounding_error
from featstore.format.manifest import (
    ArtefactRecord,
    FieldRecord,
    FloatType,
    Int8Encoding,
    Manifest,
    PlainEncoding,
    RaggedEncoding,
    new_manifest,
)
from featstore.reading.store import FeatureStore
from featstore.version import __version__
from featstore.writing.commit import Shard
from featstore.writing.fill import Progress, check_apart, make_store, no_progress

StoredType = Literal["int8", "bfloat16", "float16", "float32"]

PRECISIONS: tuple[StoredType, ...] = ("int8", "bfloat16", "float16", "float32")
"""From the fewest digits to the most."""

MOST_NUMBERS = 2**24
"""Numbers of a sample; wide fields get fewer rows."""


@dataclass(frozen=True)
class Change:
    """What becomes of one field.

    Attributes:
        field: its name.
        before: its type in the old store.
        after: in the new one.
        error: measured on the sample; of a wider type nothing is lost.
        sample_rows: rows of the sample.
    """

    field: str
    before: StoredType
    after: StoredType
    error: RoundingError
    sample_rows: int


@dataclass(frozen=True)
class Conversion:
    """A store that is about to be made from another one.

    Attributes:
        manifest: what it will say of itself.
        artefacts: bytes of the files that the manifest lists, by name.
        changes: of fields; the others are copied.
        channels: scales of fields that become int8, by name.
    """

    manifest: Manifest
    artefacts: dict[str, bytes]
    changes: list[Change]
    channels: dict[str, Channels] = field(default_factory=dict)


def requantise(
    source: Path,
    out: Path,
    dtype: StoredType,
    *,
    allow_widening: bool = False,
    sample_rows: int = 2048,
    lease_s: float = 60,
    progress: Progress = no_progress,
) -> Conversion:
    """Write a store again in another type; go on with one that was begun.

    Plain and int8 fields that a teacher made are converted; all others (top-k, ragged, text, coordinates) are copied.

    Args:
        source: folder of a complete store.
        out: folder of the new one.
        dtype: of the new one.
        allow_widening: also write more digits than there are, e.g. for a reader that knows one type only.
        sample_rows: valid rows, evenly spread, that int8 scales and errors are measured on.
        lease_s: seconds without a sign of life after which another process counts as gone.
        progress: see ``Progress``.

    Raises:
        ConfigError: nothing would change, digits would be made up, or numbers do not fit the type.
        StoreIncomplete, ShardCorrupt: the old store is not whole.
        ManifestMismatch: ``out`` is a store of something else.
        StoreBusy, StoreWriteError: see ``featstore.writing.fill``.
    """
    check_apart(out, source)
    store = FeatureStore.open(source)
    plan = settle(store, dtype, allow_widening=allow_widening, sample_rows=sample_rows)
    work = _Work(store, make_backend(store.path, store.manifest), plan)
    make = partial(_convert_shard, work)
    make_store(out, plan.manifest, plan.artefacts, make, lease_s=lease_s, progress=progress)
    return plan


def settle(
    store: FeatureStore, dtype: StoredType, *, allow_widening: bool, sample_rows: int
) -> Conversion:
    """Settle what the new store will be, and measure what it costs.

    Raises:
        ConfigError: see ``requantise``.
    """
    old = store.manifest
    before = {name: stored_type(record) for name, record in old.fields.items()}
    chosen = [name for name, found in before.items() if found not in (None, dtype)]
    if not chosen:
        raise ConfigError(
            f"{store.path}: no field of a teacher would change; they are "
            f"{', '.join(f'{name} {found}' for name, found in before.items() if found) or 'none'}, asked for {dtype}."
        )
    wider = [name for name in chosen if _digits(before[name]) < _digits(dtype)]
    if wider and not allow_widening:
        raise ConfigError(
            f"{store.path}: {', '.join(f'{name} is {before[name]}' for name in wider)}; as {dtype} it would claim "
            "digits that it does not have. Extract it again in that type, or say --allow-widening."
        )
    fields, files, changes = dict(old.fields), _artefacts_kept(store, set(chosen)), []
    scales: dict[str, Channels] = {}
    rows = _sample(store, sample_rows)
    for name in chosen:
        values = store.gather(name, _fewer(rows, old.fields[name], len(old.views)))
        record, channels, error = _convert_record(name, old.fields[name], values, dtype)
        if channels is not None:
            files[f"{name}.channels"] = pack({"scale": channels.scale, "offset": channels.offset})
            scales[name] = channels
        found = before[name]
        assert found is not None
        changes.append(Change(name, found, dtype, error, len(values)))
        note = f"; from {found}, relative error {error.relative_l2:.1e}, cosine {error.cosine_mean:.6f}"
        fields[name] = record.model_copy(update={"meaning": record.meaning + note})
    artefacts = {name: _describe(old, name, data) for name, data in files.items()}
    manifest = new_manifest(
        teachers=old.teachers,
        views=old.views,
        fields=fields,
        artefacts=artefacts,
        source=old.source,
        work=old.work,
        created_by={
            **old.created_by,
            "requantised_by": f"featstore {__version__}, numpy {np.__version__}",
            "requantised_from": old.fingerprint,
        },
        container=old.container,
    )
    return Conversion(manifest, files, changes, scales)


def stored_type(record: FieldRecord) -> StoredType | None:
    """The type of a field that can be converted; None for one that is copied."""
    if not record.teacher or not record.shape or record.encoding.kind not in ("plain", "int8"):
        return None
    if record.encoding.kind == "int8":
        return "int8"
    return next((name for name in PRECISIONS if name == record.dtype), None)


def _digits(name: StoredType | None) -> int:
    assert name is not None
    return PRECISIONS.index(name)


def _sample(store: FeatureStore, most: int) -> Rows:
    """Valid rows, evenly spread."""
    valid = np.flatnonzero(store.valid)
    if not len(valid):
        raise ConfigError(f"{store.path}: no row is valid; there is nothing to convert.")
    places = np.unique(np.linspace(0, len(valid) - 1, min(most, len(valid))).astype(np.int64))
    rows: Rows = valid[places].astype(np.int64)
    return rows


def _fewer(rows: Rows, record: FieldRecord, num_views: int) -> Rows:
    most = max(8, MOST_NUMBERS // (math.prod(record.shape) * (num_views if record.per_view else 1)))
    return rows if len(rows) <= most else rows[:: -(-len(rows) // most)]


def _artefacts_kept(store: FeatureStore, converted: set[str]) -> dict[str, bytes]:
    """Files of the old store but for the scales of fields that are converted."""
    gone = {
        record.encoding.channels
        for name, record in store.manifest.fields.items()
        if name in converted and isinstance(record.encoding, Int8Encoding)
    }
    return artefact_bytes(store, [name for name in store.manifest.artefacts if name not in gone])


def _describe(old: Manifest, name: str, data: bytes) -> ArtefactRecord:
    if name in old.artefacts and describe(data, meaning="").sha256 == old.artefacts[name].sha256:
        return old.artefacts[name]
    teacher = old.fields[name.removesuffix(".channels")].teacher
    return describe(data, meaning="scale and offset of each channel, float32", teacher=teacher)


def _convert_record(
    name: str, record: FieldRecord, values: Array, dtype: StoredType
) -> tuple[FieldRecord, Channels | None, RoundingError]:
    """The field's new record, its scales if it has any, and the error on a sample (n, V, *shape)."""
    if dtype != "int8":
        error = rounding_error(values, to_float(values, dtype, name))
        changes = {"dtype": dtype, "encoding": PlainEncoding()}
        return record.model_copy(update=changes), None, error
    found = calibrate(values, "channel_row")
    encoding = Int8Encoding(
        scheme="channel_row",
        channels=f"{name}.channels",
        sample_rows=found.sample_rows,
        relative_l2=found.relative_l2,
        cosine_mean=found.cosine_mean,
        cosine_worst=found.cosine_worst,
    )
    # What is read back of int8 is float32.
    changed = record.model_copy(update={"dtype": "float32", "encoding": encoding})
    return changed, found.channels, found


def to_float(values: Array, dtype: FloatType, name: str) -> Array:
    """Round numbers to another floating point type.

    Raises:
        ConfigError: one is too large for it.
    """
    with np.errstate(over="ignore"):
        out = values.astype(numpy_dtype(dtype))
    if not np.isfinite(out).all():
        largest = float(np.abs(values.astype(np.float32)).max())
        raise ConfigError(
            f'field "{name}" holds {largest:g}, which {dtype} cannot; use --dtype bfloat16 or int8.'
        )
    return out


class _Work:
    """What the shards of a run share."""

    def __init__(self, store: FeatureStore, old: Backend, plan: Conversion) -> None:
        self.store, self.old, self.manifest = store, old, plan.manifest
        self.changes = plan.changes
        self.before = read_channels(store.path, store.manifest)
        self.after = plan.channels


def _convert_shard(work: _Work, number: int) -> Shard:
    """One shard with all its columns; every byte of the old one is checked on the way."""
    entry = work.store.entry(number)
    start = entry.rows[0]
    read = partial(work.old.read_shard, number, objects=entry.objects)
    reasons: list[str | None] = [None] * (entry.rows[1] - start)
    for item in entry.invalid:
        reasons[item.row - start] = item.reason
    bad = np.array([reason is not None for reason in reasons])
    changed = {change.field: change.after for change in work.changes}
    columns = empty_columns(work.manifest, number)
    for name in columns:
        if _field_of(name) not in changed:
            columns[name] = read(name)
    for name, record in work.manifest.fields.items():
        if isinstance(record.encoding, RaggedEncoding):
            # A container may reserve more items than there are.
            first = number * work.manifest.work.shard_rows * record.encoding.most_items
            used = int(columns[f"fields/{name}/ranges"].max(initial=first)) - first
            columns[f"fields/{name}/values"] = columns[f"fields/{name}/values"][:used]
    for name, dtype in changed.items():
        record = work.store.manifest.fields[name]
        if isinstance(record.encoding, Int8Encoding):
            with_scale = record.encoding.scheme != "channel"
            scale = read(f"fields/{name}/scale") if with_scale else None
            values = dequantise(read(f"fields/{name}/codes"), scale, work.before.get(name))
        else:
            values = read(f"fields/{name}")
        if dtype != "int8":
            values = to_float(values, dtype, name)
        put(work.manifest, columns, name, slice(None), values, channels=work.after.get(name))
        for column in (f"fields/{name}", f"fields/{name}/codes", f"fields/{name}/scale"):
            if column in columns:
                columns[column][bad] = 0
    return Shard(number, columns, reasons, {})


def _field_of(column: str) -> str:
    """Name of a column's field, or "" for one that describes the samples."""
    parts = column.split("/")
    return parts[1] if parts[0] == "fields" else ""
