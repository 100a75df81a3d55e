"""Whether rows of several stores may stand in one, and what that one says of them.

They may if they were made alike: the same teachers, views and fields. What only says how rows are packed (codec,
container, the room that ragged rows reserve) or what was measured on a sample may differ, and is brought together here.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from featstore.containers.base import Rows
from featstore.errors import ConfigError, ManifestMismatch, command, shorten
from featstore.format.manifest import (
    ArtefactRecord,
    FieldRecord,
    Int8Encoding,
    Manifest,
    RaggedEncoding,
    differences,
)
from featstore.reading.store import FeatureStore
from featstore.version import __version__

_MEASURED = ("sample_rows", "relative_l2", "cosine_mean", "cosine_worst")

_NOTE = re.compile(r"; from \w+, relative error [^;]*")
"""What requantise adds to the meaning of a field: measured on other rows, it differs though the fields are alike."""


def row_differences(first: Manifest, other: Manifest) -> list[tuple[str, Any, Any]]:
    """Why rows of two stores cannot stand in one: (dotted key, value there, value here) for each reason."""
    return differences(_made(first), _made(other))


def check_same_rows(first: FeatureStore, other: Manifest, *, where: object) -> None:
    """Refuse to put rows of two stores into one unless they were made alike.

    Args:
        first: that was opened.
        other: manifest of the second store.
        where: that one is, for the message.

    Raises:
        ManifestMismatch: names every value that differs, on both sides.
    """
    differing = row_differences(first.manifest, other)
    if not differing:
        return
    lines = "\n".join(f"  {key}: {was!r} and {now!r}" for key, was, now in differing)
    scales = any(key.startswith("scales.") for key, *_ in differing)
    raise ManifestMismatch(
        f"{first.path} and {where}: rows of both cannot be mixed, they were made differently:\n{lines}\n"
        + (
            "Codes of eight bits are numbers only with the scales they were made with. "
            f"{command('extract')} --append true uses those of the store; or merge the stores "
            "that they were made from, and requantise the result."
            if scales
            else "Extract both with the same settings."
        )
    )


def _made(manifest: Manifest) -> dict[str, Any]:
    """What rows that stand in one store must share, as plain JSON values."""
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
    """Fields of a store with the rows of several that were made alike; codec and names of artefacts are the first's."""
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
) -> tuple[dict[str, ArtefactRecord], dict[str, FeatureStore]]:
    """Artefacts of several stores together, and in which store each lies.

    Raises:
        ConfigError: two of one name differ.
    """
    records: dict[str, ArtefactRecord] = {}
    places: dict[str, FeatureStore] = {}
    for store in stores:
        for name, record in store.manifest.artefacts.items():
            if records.setdefault(name, record).sha256 != record.sha256:
                raise ConfigError(
                    f"{places[name].path} and {store.path}: artefacts of the one name {name!r} and different content. "
                    "Leave out the field that it belongs to (featstore subset --fields)."
                )
            places.setdefault(name, store)
    return records, places


def common_classes(
    stores: Sequence[FeatureStore],
) -> tuple[tuple[str, ...], list[Sequence[int] | None]]:
    """Class names of several stores together, the first store's first, and for each store its classes among them.

    Returns:
        Names, and per store the new number of each old one; None where numbers stay as they are.

    Raises:
        ConfigError: some classes have names and some have not.
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
    """Labels in new numbers; -1 stays.

    Args:
        labels: (n,) old numbers.
        numbers: new number of each old one, or None.
    """
    if numbers is None:
        return labels
    table: Rows = np.array([*numbers, -1], dtype=np.int64)  # the last one is found at -1
    found: Rows = table[labels]
    return found


def common_origin(stores: Sequence[FeatureStore], verb: str) -> dict[str, str]:
    """``created_by`` of a store made of several: what each says, and what was done."""
    several: dict[str, dict[str, None]] = {}
    for store in stores:
        for key, text in store.manifest.created_by.items():
            several.setdefault(key, {})[text] = None
    return {
        **{key: " | ".join(texts) for key, texts in several.items()},
        f"{verb}_by": f"featstore {__version__}",
        f"{verb}_from": " ".join(store.fingerprint for store in stores),
    }
