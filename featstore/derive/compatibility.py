"""Check whether rows of several stores fit into one, and combine their manifests.

They fit if teachers, views and fields are the same. Codec, container, the positions that ragged rows reserve, and
errors that were measured on a sample may differ.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from featstore.derive.composition import artefact_bytes
from featstore.errors import ConfigError, ManifestMismatch, command, shorten
from featstore.files.array_types import Rows
from featstore.format.manifest import Manifest, recorded_differences
from featstore.format.manifest_records import (
    ArtefactRecord,
    FieldRecord,
    Int8Encoding,
    RaggedEncoding,
)
from featstore.format.version import __version__
from featstore.reading.store import FeatureStore

_MEASURED = ("sample_rows", "relative_l2", "cosine_mean", "cosine_worst")

_NOTE = re.compile(r"; from \w+, relative error [^;]*")
"""Note that requantise adds to the meaning of a field; it is measured on a sample, so it is not compared."""


def row_differences(first: Manifest, other: Manifest) -> list[tuple[str, Any, Any]]:
    """Differences that prevent rows of two stores from being in one: (dotted key, first value, other value)."""
    return recorded_differences(_made(first), _made(other))


def check_same_rows(first: FeatureStore, other: Manifest, *, where: object) -> None:
    """Check that rows of two stores fit into one.

    Args:
        where: Address of the second store, for the message.

    Raises:
        ManifestMismatch: Names every value that differs, on both sides.
    """
    differing = row_differences(first.manifest, other)
    if not differing:
        return
    lines = "\n".join(f"  {key}: {was!r} and {now!r}" for key, was, now in differing)
    scales = any(key.startswith("scales.") for key, *_ in differing)
    raise ManifestMismatch(
        f"{first.path} and {where}: rows of both cannot be mixed, because they differ in:\n{lines}\n"
        + (
            "Codes of eight bits are numbers only with the scales they were made with. "
            f"{command('extract')} --append true uses those of the store; or merge the stores "
            "that they were made from, and requantise the result."
            if scales
            else "Extract both with the same settings."
        )
    )


def _made(manifest: Manifest) -> dict[str, Any]:
    """The part of a manifest that rows in one store must share, as JSON values."""
    parts = manifest.contract()
    scales = {}
    for name, field in parts["fields"].items():
        encoding = field["encoding"]
        del field["codec"]
        field["meaning"] = _NOTE.sub("", field["meaning"])
        encoding.pop("most_items", None)
        if encoding["kind"] == "int8":
            for key in _MEASURED:
                del encoding[key]
            artefact = encoding.pop("channels")
            if artefact:
                scales[name] = manifest.artefacts[artefact].sha256
    return {**{key: parts[key] for key in ("teachers", "views", "fields")}, "scales": scales}


def common_fields(manifests: Sequence[Manifest]) -> dict[str, FieldRecord]:
    """Fields of a store with the rows of several; codec and names of artefacts are those of the first."""
    return {
        name: _common_field([manifest.fields[name] for manifest in manifests])
        for name in manifests[0].fields
    }


def _common_field(records: Sequence[FieldRecord]) -> FieldRecord:
    first = records[0]
    notes = [note for record in records for note in _NOTE.findall(record.meaning)]
    meaning = _NOTE.sub("", first.meaning) + "".join(dict.fromkeys(notes))
    encoding = first.encoding
    several = [record.encoding for record in records]
    if isinstance(encoding, RaggedEncoding):
        most = max(item.most_items for item in several if isinstance(item, RaggedEncoding))
        encoding = RaggedEncoding(most_items=most)
    elif isinstance(encoding, Int8Encoding) and not encoding.channels:
        encoding = _common_errors([item for item in several if isinstance(item, Int8Encoding)])
    return first.model_copy(update={"meaning": meaning, "encoding": encoding})


def _common_errors(several: Sequence[Int8Encoding]) -> Int8Encoding:
    """Errors over all samples together."""
    rows = sum(item.sample_rows for item in several)

    def mean(name: str) -> float:
        return float(sum(item.sample_rows * getattr(item, name) for item in several) / rows)

    if len({item.model_dump_json() for item in several}) == 1:
        return several[0]
    return several[0].model_copy(
        update={
            "sample_rows": rows,
            "relative_l2": mean("relative_l2"),
            "cosine_mean": mean("cosine_mean"),
            "cosine_worst": min(item.cosine_worst for item in several),
        }
    )


def common_artefacts(
    stores: Sequence[FeatureStore],
) -> tuple[dict[str, ArtefactRecord], dict[str, bytes]]:
    """Artefacts of several stores together, and the bytes of each. Raises ConfigError: two of one name differ."""
    records: dict[str, ArtefactRecord] = {}
    places: dict[str, FeatureStore] = {}
    for store in stores:
        for name, record in store.manifest.artefacts.items():
            if records.setdefault(name, record).sha256 != record.sha256:
                raise ConfigError(
                    f"{places[name].path} and {store.path}: artefacts named {name!r} with different content. "
                    "Leave out the field that it belongs to (featstore subset --fields)."
                )
            places.setdefault(name, store)
    return records, {name: artefact_bytes(places[name], [name])[name] for name in records}


def common_classes(
    stores: Sequence[FeatureStore],
) -> tuple[tuple[str, ...], list[Sequence[int] | None]]:
    """Combine the class names of several stores, the first store's first.

    Returns:
        Names, and per store the new number of each class; None if the numbers are unchanged.
    """
    named = [s.manifest.source.class_names for s in stores if s.manifest.source.has_labels]
    if len(set(named)) <= 1:
        return (named[0] if named else ()), [None for _ in stores]
    if () in named:
        raise ConfigError(
            f"{shorten([store.path for store in stores])}: classes of some have names, of others only numbers, so "
            "they cannot be matched. Extract those again with class names."
        )
    names = tuple(dict.fromkeys(name for several in named for name in several))
    number = {name: i for i, name in enumerate(names)}
    return names, [
        [number[name] for name in store.manifest.source.class_names]
        if store.manifest.source.has_labels
        else None
        for store in stores
    ]


def renumbered(labels: Rows, numbers: Sequence[int] | None) -> Rows:
    """Renumber labels; -1 is kept.

    Args:
        labels: (n,) class numbers.
        numbers: New number of each class; None: unchanged.
    """
    if numbers is None:
        return labels
    table: Rows = np.array([*numbers, -1], dtype=np.int64)  # the last one is found at -1
    found: Rows = table[labels]
    return found


def joined_labels(
    stores: Sequence[FeatureStore], numbers: Sequence[Sequence[int] | None], rows: Rows
) -> Rows | None:
    """(n,) labels of rows that are counted through several stores; None if those of the stores are right.

    Args:
        numbers: From ``common_classes``.
    """
    labelled = [store.manifest.source.has_labels for store in stores]
    if not any(labelled) or (all(labelled) and not any(numbers)):
        return None
    parts = [renumbered(store.labels, new) for store, new in zip(stores, numbers, strict=True)]
    return np.concatenate(parts)[rows]


def common_origin(stores: Sequence[FeatureStore], verb: str) -> dict[str, str]:
    """``created_by`` of a store made of several: the values of all of them, and the operation."""
    several: dict[str, dict[str, None]] = {}
    for store in stores:
        for key, text in store.manifest.created_by.items():
            several.setdefault(key, {})[text] = None
    return {
        **{key: " | ".join(texts) for key, texts in several.items()},
        f"{verb}_by": f"featstore {__version__}",
        f"{verb}_from": " ".join(store.fingerprint for store in stores),
    }
