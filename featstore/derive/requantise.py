"""Store the features of a store again in another type, without the teacher: same rows, ids and views."""

# n rows of a sample, V views

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from featstore.derive.composition import Composition, artefact_bytes, compose, derived, whole
from featstore.errors import ConfigError
from featstore.files.array_types import Array, Rows
from featstore.files.progress import Progress, no_progress
from featstore.format.artefacts import artefact_record, pack, read_channels
from featstore.format.fields import numpy_dtype
from featstore.format.int8 import Channels, RoundingError, calibrate, dequantise, rounding_error
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import (
    ArtefactRecord,
    FieldRecord,
    FloatType,
    Int8Encoding,
    PlainEncoding,
)
from featstore.format.version import __version__
from featstore.reading.store import FeatureStore
from featstore.reading.stored_rows import RowReader

StoredType = Literal["int8", "bfloat16", "float16", "float32"]

PRECISIONS: tuple[StoredType, ...] = ("int8", "bfloat16", "float16", "float32")
"""From the fewest digits to the most."""

MOST_NUMBERS = 2**24  # numbers of a sample; wide fields get fewer rows


@dataclass(frozen=True)
class Change:
    """What becomes of one field."""

    field: str
    before: StoredType
    after: StoredType
    error: RoundingError  # measured on the sample; of a wider type nothing is lost
    sample_rows: int  # rows of the sample


def requantise(
    source: Path,
    out: Path,
    dtype: StoredType,
    *,
    allow_widening: bool = False,
    sample_rows: int = 2048,
    progress: Progress = no_progress,
) -> tuple[Manifest, list[Change]]:
    """Write a store again in another type, or resume.

    Plain and int8 fields that a teacher made are converted; all others (top-k, ragged, text, coordinates) are copied.

    Arguments and errors as for ``featstore.requantise``.

    Returns:
        The manifest of the new store, and what changed.
    """
    store = FeatureStore.open(source)
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
    origin = {
        "requantised_by": f"featstore {__version__}, numpy {np.__version__}",
        "requantised_from": old.fingerprint,
    }
    manifest = derived(old, origin, fields=fields, artefacts=artefacts)
    old_scales = read_channels(store.path, old)
    conversions = {name: _reader_of(store, name, dtype, old_scales.get(name)) for name in chosen}
    plan = Composition(manifest, files, whole(store), conversions=conversions, channels=scales)
    return compose(plan, out, progress=progress), changes


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
    if (
        name in old.artefacts
        and artefact_record(data, meaning="").sha256 == old.artefacts[name].sha256
    ):
        return old.artefacts[name]
    teacher = old.fields[name.removesuffix(".channels")].teacher
    return artefact_record(
        data, meaning="scale and offset of each channel, float32", teacher=teacher
    )


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
    """Round numbers to another floating point type. Raises ConfigError: one is too large for it."""
    with np.errstate(over="ignore"):
        out = values.astype(numpy_dtype(dtype))
    if not np.isfinite(out).all():
        largest = float(np.abs(values.astype(np.float32)).max())
        raise ConfigError(
            f'field "{name}" holds {largest:g}, which {dtype} cannot; use --dtype bfloat16 or int8.'
        )
    return out


def _reader_of(
    store: FeatureStore, name: str, dtype: StoredType, before: Channels | None
) -> Callable[[RowReader, Rows], Array]:
    """A function that reads rows of a field as numbers of the new type; codes are made of them later."""
    encoding = store.manifest.fields[name].encoding
    path = f"fields/{name}"

    def read(reader: RowReader, rows: Rows) -> Array:
        if isinstance(encoding, Int8Encoding):
            scale = reader.numbers(f"{path}/scale", rows) if encoding.scheme != "channel" else None
            values: Array = dequantise(reader.numbers(f"{path}/codes", rows), scale, before)
        else:
            values = reader.numbers(path, rows)
        return values if dtype == "int8" else to_float(values, dtype, name)

    return read
