"""Determine a store's manifest, and the scales of quantised fields, from settings, images and teacher.

Precision, scales and shard sizes of an existing store are kept, so that a run on other hardware resumes it instead of
refusing.
"""

# n rows of a sample, V views, C channels

import math
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from featstore.derive.composition import artefact_bytes
from featstore.errors import ConfigError, FeatstoreError, TeacherError
from featstore.extraction.config import ExtractConfig, TextTableConfig
from featstore.extraction.images import inputs_of
from featstore.extraction.shards import TEACHER, refuse_non_finite, run_teacher
from featstore.extraction.teachers import Precision, Teacher, best_precision
from featstore.extraction.text_tables import FIELD, encode_table, lines_of, table_origin, text_side
from featstore.files.array_types import Array
from featstore.format.artefacts import artefact_record, pack
from featstore.format.ids import ids_sha256
from featstore.format.int8 import calibrate
from featstore.format.ledger import committed_shards
from featstore.format.manifest import MANIFEST_NAME, Manifest, new_manifest, read_manifest
from featstore.format.manifest_records import (
    ArtefactRecord,
    FieldRecord,
    FloatType,
    Int8Encoding,
    SourceRecord,
    WorkRecord,
)
from featstore.format.pictures import PICTURES
from featstore.format.text_table import artefact_name, meaning_of
from featstore.format.version import __version__
from featstore.format.views import ViewSet, make_views
from featstore.planning.costs import Rates, power_of_two, shard_rows
from featstore.reading.store import FeatureStore
from featstore.sources import Source, mirror_work

MOST_NUMBERS = 2**24
"""Most numbers in a calibration sample, about 100 MB; wide fields get fewer rows."""


@dataclass(frozen=True)
class Design:
    """A store to be made or resumed."""

    manifest: Manifest  # of the store
    # bytes of the files that the manifest lists, by name; empty if the store exists
    artefacts: dict[str, bytes] = field(default_factory=dict)
    rates: Rates | None = None  # of teacher, decoding and disk, if they were measured
    new: bool = False  # whether there was no such store


def existing_manifest(config: ExtractConfig) -> Manifest | None:
    """Return the manifest of the store at the configured path, None if there is none."""
    store = Path(config.store.path)
    return read_manifest(store) if (store / MANIFEST_NAME).exists() else None


def resolve_precision(config: ExtractConfig, device: torch.device) -> Precision:
    """Resolve ``teacher.precision``: as set, else as in the existing store, else the fastest that the hardware has."""
    if config.teacher.library == "onnx":
        return "fp32"
    if config.teacher.precision != "auto":
        return config.teacher.precision
    found = existing_manifest(config)
    if found is not None and TEACHER in found.teachers:
        return found.teachers[TEACHER].precision
    return best_precision(device)


def forward_dtype(config: ExtractConfig) -> FloatType:
    """Return the type of the teacher's output: the stored one, or what is quantised."""
    return "float32" if config.store.dtype == "int8" else config.store.dtype


def agree(accelerator: Accelerator, make: Callable[[], Design]) -> Design:
    """Make the design on the main process and broadcast it, so that measured values are equal on all processes.

    Raises:
        FeatstoreError: On every process, what ``make`` raised on the main process.
    """
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome[0] = make()
        except FeatstoreError as error:
            outcome[0] = error
    broadcast_object_list(outcome)
    if isinstance(outcome[0], FeatstoreError):
        raise outcome[0]
    assert isinstance(outcome[0], Design)
    return outcome[0]


def design_store(
    config: ExtractConfig,
    *,
    source: Source,
    teacher: Teacher,
    like: FeatureStore | None = None,
    measure: Callable[[ViewSet], Rates | None] = lambda views: None,
) -> Design:
    """Make the manifest; measure scales of quantised fields and the size of shards unless the store exists.

    Args:
        like: a store whose scales are taken, because the rows are appended to it.
        measure: times teacher, decoding and disk; shards are then sized by time too.

    Raises:
        TeacherError: nothing in the calibration sample is usable.
    """
    there = existing_manifest(config)
    views = ViewSet(
        seed=config.views.seed,
        scale=(config.views.scale[0], config.views.scale[1]),
        ratio=(config.views.ratio[0], config.views.ratio[1]),
        views=make_views(
            canonical=config.views.canonical,
            seeded=config.views.seeded,
            mirrored=config.views.mirrored,
        ),
    )
    fields = {
        name: spec.model_copy(update={"teacher": TEACHER, "codec": config.store.codec})
        for name, spec in teacher.fields.items()
    }
    files: dict[str, bytes] = {}
    records: dict[str, ArtefactRecord] = {}
    found = there if like is None else like.manifest
    if config.store.dtype == "int8" and found is not None:
        fields, records = _scales_of(found, fields)
        files = {} if like is None else artefact_bytes(like, list(records))
    elif config.store.dtype == "int8":
        fields, files = _quantise(config, fields, views, source=source, teacher=teacher)
        meaning = "scale and offset of each channel, float32"
        for name, data in files.items():
            records[name] = artefact_record(data, meaning=meaning, teacher=TEACHER)
    if config.store.picture_format:
        fields[PICTURES] = config.store.picture_format.field
    for name, head in teacher.heads.items():
        files[name] = pack(head.tensors)
        records[name] = artefact_record(files[name], meaning=head.meaning, teacher=TEACHER)
    for name, (meaning, data) in source.artefacts.items():
        files[name], records[name] = data, artefact_record(data, meaning=meaning)
    for table in config.texts:
        name, record, embedded = _text_table(table, config, source, teacher, found)
        records[name] = record
        if embedded is not None:
            files[name] = embedded
        elif like is not None:
            files |= artefact_bytes(like, [name])
    complete = there is not None and _is_complete(config, there)
    rates = None if complete else measure(views)
    manifest = new_manifest(
        teachers={TEACHER: teacher.record},
        views=views,
        fields=fields,
        artefacts=records,
        source=_source_record(source),
        work=_cut_work(config, fields, views, source, found=there, rates=rates),
        created_by={
            "featstore": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "timm", "open_clip_torch", "pillow")},
        },
        container=config.store.container,
    )
    return Design(manifest, files, rates, new=there is None)


def _source_record(source: Source) -> SourceRecord:
    return SourceRecord(
        kind=source.kind,
        uri=source.uri,
        num_samples=len(source),
        ids_sha256=ids_sha256(source.sample_ids),
        has_labels=source.labels is not None,
        class_names=() if source.label_sets is not None else source.class_names,
    )


def _text_table(
    table: TextTableConfig,
    config: ExtractConfig,
    source: Source,
    teacher: Teacher,
    found: Manifest | None,
) -> tuple[str, ArtefactRecord, bytes | None]:
    """Name, record and bytes of a table; one that the store has is not made again (bytes None)."""
    lines = lines_of(table, source.class_names)
    name = artefact_name(table.name)
    model = " ".join([teacher.record.name, teacher.record.tag]).strip()
    meaning = meaning_of(lines, FIELD, table_origin(model, lines, table.templates))
    if found is not None and name in found.artefacts:
        return name, found.artefacts[name].model_copy(update={"meaning": meaning}), None
    made = encode_table(
        text_side(config.teacher),
        lines,
        table.templates,
        weights_sha256=teacher.record.weights_sha256,
    )
    data = made.to_bytes()
    return name, artefact_record(data, meaning=meaning, teacher=TEACHER), data


def _is_complete(config: ExtractConfig, found: Manifest) -> bool:
    return len(committed_shards(Path(config.store.path), found.num_shards)) == found.num_shards


def _cut_work(
    config: ExtractConfig,
    fields: dict[str, FieldRecord],
    views: ViewSet,
    source: Source,
    *,
    found: Manifest | None,
    rates: Rates | None,
) -> WorkRecord:
    """Cut the work into shards by rows, bytes and time; a store that is there keeps its cut within these limits."""
    if config.store.container == "webdataset" and source.tars:
        return mirror_work(source, batch_size=config.batch_size)
    rows = shard_rows(
        fields,
        num_views=len(views),
        most_rows=config.store.shard_rows,
        most_mb=config.store.shard_mb,
    )
    if config.store.shard_s and found is not None:
        if not found.work.shard_sizes:
            rows = min(rows, found.work.shard_rows)
    elif config.store.shard_s and rates is not None:
        in_time = int(min(rates.teacher, rates.decode) * config.store.shard_s)
        rows = min(rows, power_of_two(max(config.batch_size, in_time)))
    if config.teacher.bn_mode == "batch":
        rows = _whole_batches(rows, config.batch_size, len(source))
    return WorkRecord(shard_rows=rows, batch_size=config.batch_size)


def _whole_batches(rows: int, batch_size: int, samples: int) -> int:
    """Rows of a shard, such that the batches are the same for every size of shards."""
    if samples % batch_size == 1:
        raise ConfigError(
            f"--teacher.bn_mode batch: {samples:,} samples in batches of {batch_size} leave one for the last batch. "
            "Choose another --batch_size."
        )
    return max(1, rows // batch_size) * batch_size


def _scales_of(
    found: Manifest, fields: dict[str, FieldRecord]
) -> tuple[dict[str, FieldRecord], dict[str, ArtefactRecord]]:
    """Fields with the scales of a store, and their records; other differences show when contracts are compared."""
    out, records = dict(fields), {}
    for name, spec in fields.items():
        encoding = found.fields[name].encoding if name in found.fields else None
        if isinstance(encoding, Int8Encoding):
            out[name] = spec.model_copy(update={"encoding": encoding})
            records[encoding.channels] = found.artefacts[encoding.channels]
    return out, records


def _quantise(
    config: ExtractConfig,
    fields: dict[str, FieldRecord],
    views: ViewSet,
    *,
    source: Source,
    teacher: Teacher,
) -> tuple[dict[str, FieldRecord], dict[str, bytes]]:
    """Measure scales per channel for every plain field with axes; top-k fields keep their type."""
    plain = [n for n, spec in fields.items() if spec.encoding.kind == "plain" and spec.shape]
    widest = max((math.prod(fields[name].shape) for name in plain), default=1)
    most = max(8, MOST_NUMBERS // (widest * len(views)))
    count = min(config.store.calibration_rows, len(source), most)
    rows = np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist()
    sample = _features_of(rows, config, views, source=source, teacher=teacher)
    out, files = dict(fields), {}
    for name in plain:
        result = calibrate(sample[name], "channel_row")
        assert result.channels is not None
        artefact = f"{name}.channels"
        files[artefact] = pack({"scale": result.channels.scale, "offset": result.channels.offset})
        encoding = Int8Encoding(
            scheme="channel_row",
            channels=artefact,
            sample_rows=result.sample_rows,
            relative_l2=result.relative_l2,
            cosine_mean=result.cosine_mean,
            cosine_worst=result.cosine_worst,
        )
        out[name] = fields[name].model_copy(update={"encoding": encoding})
    return out, files


def _features_of(
    rows: list[int],
    config: ExtractConfig,
    views: ViewSet,
    *,
    source: Source,
    teacher: Teacher,
) -> dict[str, Array]:
    """Features of some images, (n, V, *shape) by field; unusable images are left out."""
    dataset = inputs_of(source, views, teacher)
    parts: list[dict[str, Array]] = []
    reasons: list[str] = []
    for start in range(0, len(rows), config.batch_size):
        batch = dataset.load(rows[start : start + config.batch_size])
        features = run_teacher(teacher, batch.inputs)
        why = refuse_non_finite(features, batch.reasons)
        usable = np.array([reason is None for reason in why])
        reasons += [reason for reason in why if reason is not None]
        parts.append({name: values.numpy()[usable] for name, values in features.items()})
    sample = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if len(next(iter(sample.values()))) == 0:
        raise TeacherError(
            f"--store.dtype int8: none of the {len(rows)} images of the calibration sample is usable; the first: "
            f"{reasons[0]}. Mend the images, or store float16, which needs no sample."
        )
    return sample
