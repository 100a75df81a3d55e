"""``featstore inspect``."""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from featstore.card.statement import read_card
from featstore.cli import duplicates
from featstore.cli.arguments import STORE_OR_URL, flag, show
from featstore.display.text import format_bytes
from featstore.errors import ConfigError, StoreError, command, shorten
from featstore.format.file_names import CARD_NAME, SIGNATURE_NAME
from featstore.format.ledger import read_complete
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import (
    FieldRecord,
    Int8Encoding,
    PreprocessingRecord,
    RaggedEncoding,
    Record,
    TeacherRecord,
    TopKEncoding,
)
from featstore.maintenance.signing import changed_since_signed
from featstore.places.open_place import is_url, open_place
from featstore.reading.cached.cache import CacheConfig
from featstore.reading.store import FeatureStore

SHOWN = 20

SIGNED = "there, not checked; featstore verify STORE --public-key KEY.pub checks it"

COUNTED_SHARDS = 1000
"""Stores of fewer shards are counted without --counts: reading their ledger takes about a second."""


DESCRIPTION = """\
Show what a store holds: teachers, views, fields, counts, skipped images. Exit status 1 if shards are missing.
Counts that need every shard are shown for stores of fewer than 1,000 shards, or with --counts.
With --duplicates, also equal and nearly equal images; exit status 1 if test images are in another part too.
"""


ARGUMENTS = {"store": STORE_OR_URL, "--counts": flag("count for any number of shards")}

GROUPS = {"duplicates and leaks": duplicates.ARGUMENTS}


def run(arguments: argparse.Namespace) -> int:
    """Show what a store holds."""
    store = FeatureStore.open(arguments.store, allow_incomplete=True)
    manifest = store.manifest
    counts = arguments.counts or manifest.num_shards < COUNTED_SHARDS
    summary = inspect_values(store, counts=counts)
    text = [] if arguments.json else inspect_lines(manifest, summary)
    leak = False
    if duplicates.asked_for(arguments):
        found = duplicates.find(store, arguments)
        summary["duplicates"], leak = found, found["leak"]
        text += [] if arguments.json else duplicates.duplicate_lines(found)
    show(arguments, summary, text)
    return 0 if store.complete and not leak else 1


def inspect_values(store: FeatureStore, *, counts: bool) -> dict[str, Any]:
    """Return what ``inspect`` shows, as plain JSON values.

    Args:
        counts: Read the whole ledger and the small columns; without it, the values that need them are None.
    """
    manifest = store.manifest
    mark = read_complete(store.path, manifest.num_shards)
    summary: dict[str, Any] = {
        "path": store.address,
        "uuid": manifest.uuid,
        "fingerprint": manifest.fingerprint,
        "created": manifest.created,
        "created_by": manifest.created_by,
        "format_version": manifest.format_version,
        "version": manifest.version,
        "history": [item.model_dump(mode="json") for item in manifest.history],
        "container": manifest.container,
        "complete": store.complete,
        "shards": [len(store.shards), manifest.num_shards],
        "shard_rows": manifest.work.shard_rows,
        "rows": manifest.num_rows,
        "rows_done": manifest.num_rows
        if store.complete
        else sum(len(manifest.shard_range(shard)) for shard in store.shards),
        "rows_valid": None if mark is None else manifest.num_rows - mark.invalid_rows,
        "rows_labelled": None,
        "classes": len(manifest.source.class_names),
        "bytes": None if mark is None else mark.bytes,
        "teachers": _dumped(manifest.teachers),
        "views": [str(view) for view in manifest.views.views],
        "fields": _dumped(manifest.fields),
        "artefacts": _dumped(manifest.artefacts),
        "source": {"kind": manifest.source.kind, "uri": manifest.source.uri},
        **_beside(store),
        "seconds": None,
        "invalid": None,
    }
    return {**summary, **_counts(store)} if counts else summary


def _dumped(records: Mapping[str, Record]) -> dict[str, Any]:
    return {name: record.model_dump(mode="json") for name, record in records.items()}


def _counts(store: FeatureStore) -> dict[str, Any]:
    entries = store.entries()
    seconds = Counter[str]()
    for entry in entries:
        seconds.update(entry.seconds)
    return {
        "rows_valid": int(store.valid.sum()),
        "rows_labelled": int((store.labels >= 0).sum()),
        "bytes": sum(item.bytes for entry in entries for item in entry.objects.values()),
        "seconds": {name: round(value, 1) for name, value in sorted(seconds.items())},
        "invalid": [item.model_dump(mode="json") for item in store.invalid_rows()],
    }


def inspect_lines(manifest: Manifest, summary: dict[str, Any]) -> list[str]:
    """Return the same as lines of text."""
    again = f"INCOMPLETE: run {command('extract')} again to resume"
    state = "complete" if summary["complete"] else again
    done, total = summary["shards"]
    size = "bytes not counted" if summary["bytes"] is None else f"{summary['bytes']:,} bytes"
    source = manifest.source
    found = [
        f"store        {summary['path']} (format {manifest.format_version}, {manifest.container}, {manifest.created})",
        f"fingerprint  {summary['fingerprint']}",
        f"state        {state}; {done:,} of {total:,} shards, {size}",
    ]
    if manifest.history:
        earlier = (
            f"{item.version} ({item.rows:,} rows, {item.created})" for item in manifest.history
        )
        found.append(f"version      {manifest.version}; before: {', '.join(earlier)}")
    found += [f"teacher      {_teacher(*item)}" for item in sorted(manifest.teachers.items())]
    found += _preprocessing(manifest)
    found += [
        f"images       licence {summary['image_licence'] or 'not stated'}",
        f"signature    {summary['signature']}",
        f"source       {source.kind} {source.uri}",
        f"rows         {_rows(summary)}",
        f"views        {len(summary['views'])}: {'; '.join(summary['views'])}",
    ]
    found += [f"field        {_field(*item)}" for item in sorted(manifest.fields.items())]
    found += [
        f"artefact     {name}: {format_bytes(item.bytes)}, {item.meaning}"
        for name, item in sorted(manifest.artefacts.items())
    ]
    if summary["seconds"] is None:
        return [*found, "counts       not read; --counts reads the whole ledger"]
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in summary["seconds"].items())
    found.append(f"spent        {spent or 'nothing yet'}")
    invalid = summary["invalid"]
    found += [f"skipped      {item['sample_id']}: {item['reason']}" for item in invalid[:SHOWN]]
    if len(invalid) > SHOWN:
        found.append(f"skipped      ... and {len(invalid) - SHOWN} more (--json lists all)")
    return found


def _preprocessing(manifest: Manifest) -> list[str]:
    """One line for each different preprocessing, and the values in which they differ."""
    by_text: dict[str, list[str]] = {}
    for name, teacher in sorted(manifest.teachers.items()):
        item = teacher.preprocessing
        text = "none (no images)"
        if item is not None and not isinstance(item, PreprocessingRecord):
            text = str(item)
        elif item is not None:
            text = (
                f"{item.size[0]} x {item.size[1]} px, crop {item.crop_mode} {item.crop_pct:g}, {item.interpolation}, "
                f"mean {_numbers(item.mean)}, std {_numbers(item.std)}"
            )
        by_text.setdefault(text, []).append(name)
    if len(by_text) <= 1:
        return [f"input        {text}" for text in by_text]
    return [f"input        {', '.join(names)}: {text}" for text, names in by_text.items()]


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _beside(store: FeatureStore) -> dict[str, str]:
    """What the card states of the images' licence, and whether there is a signature."""
    if is_url(store.address):
        signature = "not looked for"
        with suppress(StoreError):
            if not CacheConfig().offline:
                there = open_place(store.address).size(SIGNATURE_NAME) is not None
                signature = SIGNED if there else "none"
        return {"image_licence": "", "signature": signature}
    licence, signature = "", "none"
    with suppress(ConfigError):  # a card that was written by hand
        licence = read_card(store.path / CARD_NAME).statement.image_licence
    if (store.path / SIGNATURE_NAME).is_file():
        changed = changed_since_signed(store.path)
        signature = f"STALE: {shorten(changed)} changed since" if changed else SIGNED
    return {"image_licence": licence, "signature": signature}


def _teacher(name: str, teacher: TeacherRecord) -> str:
    model = f"{teacher.library} {teacher.name} {teacher.tag}".rstrip()
    batch = ", normalised by batch" if teacher.mode == "batch" else ""
    weights = teacher.weights_sha256[:12] if teacher.weights_sha256.strip("0") else "not known"
    return (
        f"{name}: {model}, {teacher.precision}{batch}, weights {weights}, "
        f"licence {teacher.licence or 'not stated'}"
    )


def _rows(summary: dict[str, Any]) -> str:
    text = f"{summary['rows']:,}"
    if summary["rows_valid"] is not None:
        text += f"; {summary['rows_valid']:,} valid"
    if summary["rows_labelled"] is not None:
        text += f", {summary['rows_labelled']:,} with a label"
    return f"{text} ({summary['classes']} classes)" if summary["classes"] else text


def _field(name: str, field: FieldRecord) -> str:
    shape = " x ".join(str(size) for size in field.shape) or "one"
    parts = [f"{name}: {shape} {field.dtype}"]
    encoding = field.encoding
    if isinstance(encoding, Int8Encoding):
        parts.append(
            f"stored as int8 by {encoding.scheme}: relative error {encoding.relative_l2:.2g}, cosine "
            f"{encoding.cosine_mean:.6f} (worst {encoding.cosine_worst:.6f}) on {encoding.sample_rows} rows"
        )
    if isinstance(encoding, TopKEncoding):
        parts.append(f"largest of {encoding.num_classes:,}")
    if isinstance(encoding, RaggedEncoding):
        parts.append(f"up to {encoding.most_items} items a row")
    if field.codec != "raw":
        parts.append(field.codec)
    if not field.per_view:
        parts.append("one for all views")
    parts.append(field.meaning)
    if field.teacher:
        parts.append(f"by {field.teacher}")
    return ", ".join(parts)
