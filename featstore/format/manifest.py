"""The model of ``manifest.json``: read, write and compare it. Its parts are in ``manifest_records.py``.

The *contract* is everything that runs which fill one store must share: teachers, views, fields, source, container and
size of shards. Library versions and paths are recorded but not compared. The *fingerprint* is the hash of the part of
the contract that defines the rows, whatever container and codec they are in.
"""

import datetime
import hashlib
import json
import math
import uuid
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from featstore.errors import ManifestMismatch, StoreError, StoreNotFound, command
from featstore.files.array_types import Rows
from featstore.files.atomic import write_bytes
from featstore.files.untrusted import read_plain
from featstore.format.checksummed_json import SealError, seal, unseal
from featstore.format.ids import check_name
from featstore.format.manifest_records import (
    CLASS_NAMES,
    MOST_BYTES,
    MOST_PARTS,
    MOST_SHARDS,
    ArtefactRecord,
    Container,
    FieldRecord,
    Int8Encoding,
    RaggedEncoding,
    Record,
    SourceRecord,
    TeacherRecord,
    VersionRecord,
    WorkRecord,
)
from featstore.format.views import ViewSet

FORMAT_VERSION = 1
"""Version of the format on disk (docs/format.md). Stores of every released version remain readable."""

MANIFEST_NAME = "manifest.json"


class Manifest(Record):
    """The whole of ``manifest.json``."""

    format_version: int
    container: Container = "zarr"
    uuid: str
    created: str
    created_by: dict[str, str]
    """Versions of this package and of the libraries that decide a feature's bits."""
    teachers: dict[str, TeacherRecord] = Field(max_length=MOST_PARTS)
    views: ViewSet
    fields: dict[str, FieldRecord] = Field(min_length=1, max_length=MOST_PARTS)
    artefacts: dict[str, ArtefactRecord] = Field(default_factory=dict, max_length=MOST_PARTS)
    source: SourceRecord
    work: WorkRecord
    history: tuple[VersionRecord, ...] = Field(default=(), max_length=MOST_PARTS)
    """Earlier versions, the oldest first; not written where there is none."""

    @field_validator("teachers", "fields", "artefacts")
    @classmethod
    def _names(cls, parts: dict[str, Any]) -> dict[str, Any]:
        for name in parts:
            check_name(name)
        return parts

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        for name, field in self.fields.items():
            if field.teacher and field.teacher not in self.teachers:
                raise ValueError(f"field {name}: no teacher {field.teacher!r}")
            encoding = field.encoding
            if isinstance(encoding, Int8Encoding) and encoding.channels not in {
                "",
                *self.artefacts,
            }:
                raise ValueError(f"field {name}: no artefact {encoding.channels!r}")
            if field.row_bytes(len(self.views)) * self.work.shard_rows > MOST_BYTES:
                raise ValueError(f"field {name}: a shard of it is beyond any machine")
            if isinstance(encoding, RaggedEncoding) and (
                encoding.most_items * (self.num_rows + self.work.shard_rows) >= 2**62
            ):
                raise ValueError(f"field {name}: positions of its items are beyond 64 bits")
            if self.container == "webdataset" and field.codec != "raw":
                raise ValueError(f"field {name}: codec {field.codec} needs the zarr container")
        for name, artefact in self.artefacts.items():
            if artefact.teacher and artefact.teacher not in self.teachers:
                raise ValueError(f"artefact {name}: no teacher {artefact.teacher!r}")
        if self.num_shards > MOST_SHARDS:
            raise ValueError(f"{self.num_shards:,} shards; at most {MOST_SHARDS:,} can be read")
        sizes = self.work.shard_sizes
        if sizes and (self.container != "webdataset" or sum(sizes) != self.num_rows):
            raise ValueError(
                f"shard_sizes are for webdataset and must add up to {self.num_rows} rows"
            )
        rows = [0, *(item.rows for item in self.history), self.num_rows]
        if [item.version for item in self.history] != list(range(1, len(rows) - 1)) or any(
            after <= before for before, after in pairwise(rows)
        ):
            raise ValueError("history must count versions from 1 on, each with more rows")
        return self

    @property
    def version(self) -> int:
        """1, and one more for each time that rows were appended."""
        return len(self.history) + 1

    @property
    def num_rows(self) -> int:
        """Rows of the store, valid or not."""
        return self.source.num_samples

    @property
    def num_shards(self) -> int:
        """Shards when the store is complete."""
        return len(self.work.shard_sizes) or math.ceil(self.num_rows / self.work.shard_rows)

    @cached_property
    def shard_starts(self) -> Rows | None:
        """First row of each shard and the end of the last, (shards + 1,); None where all shards are of one size."""
        if not self.work.shard_sizes:
            return None
        return np.concatenate([[0], np.cumsum(self.work.shard_sizes)]).astype(np.int64)

    def shard_range(self, shard: int) -> range:
        if self.shard_starts is not None:
            return range(int(self.shard_starts[shard]), int(self.shard_starts[shard + 1]))
        start = shard * self.work.shard_rows
        return range(start, min(start + self.work.shard_rows, self.num_rows))

    def shards_of(self, rows: Rows) -> Rows:
        """Shard of each row; rows must be inside the store."""
        if self.shard_starts is not None:
            return np.searchsorted(self.shard_starts, rows, side="right") - 1
        return rows // self.work.shard_rows

    def teacher_of(self, field: str) -> TeacherRecord:
        """The teacher that made a field. Raises ManifestMismatch: no teacher made it."""
        name = self.fields[field].teacher
        if not name:
            raise ManifestMismatch(
                f'field "{field}" was not made by a teacher ({self.fields[field].meaning}).'
            )
        return self.teachers[name]

    @property
    def resume_advice(self) -> str:
        """What to run again to fill a store that is not complete, for messages."""
        if any(teacher.library == "external" for teacher in self.teachers.values()):
            return (
                "Run featstore.create or featstore import again with the same arguments to resume."
            )
        if any(key.endswith("_by") for key in self.created_by):
            return "Run the command that began it again, with the same arguments, to resume."
        return (
            f"Run {command('extract')} again with the settings this store was made with to resume."
        )

    def contract(self) -> dict[str, Any]:
        """The part of the manifest that all runs which fill this store share, as JSON values.

        The address of the source and the licences may change later, so they are left out.
        """
        parts = self.model_dump(mode="json", exclude={"uuid", "created", "created_by", "history"})
        del parts["source"]["uri"]
        for teacher in parts["teachers"].values():
            del teacher["licence"]
        return parts

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the rows are: the contract without container, codecs and the cutting of the work.

        Equal fingerprints mean the same features of the same images, whatever they are packed in.
        """
        parts = self.contract()
        del parts["container"], parts["work"]
        for field in parts["fields"].values():
            del field["codec"]
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def new_manifest(
    *,
    teachers: dict[str, TeacherRecord],
    views: ViewSet,
    fields: dict[str, FieldRecord],
    source: SourceRecord,
    work: WorkRecord,
    created_by: dict[str, str],
    artefacts: dict[str, ArtefactRecord] | None = None,
    container: Container = "zarr",
) -> Manifest:
    """Build a manifest with a new uuid and the current time."""
    return Manifest(
        format_version=FORMAT_VERSION,
        container=container,
        uuid=str(uuid.uuid4()),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        created_by=created_by,
        teachers=teachers,
        views=views,
        fields=fields,
        artefacts=artefacts or {},
        source=source,
        work=work,
    )


def manifest_bytes(manifest: Manifest) -> bytes:
    """Bytes of ``manifest.json``."""
    unused = set() if manifest.history else {"history"}
    return seal(manifest.model_dump(mode="json", exclude=unused))


def write_manifest(store: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically."""
    write_bytes(store / MANIFEST_NAME, manifest_bytes(manifest))


def read_manifest(store: Path) -> Manifest:
    """Read and validate ``manifest.json``.

    Raises:
        StoreNotFound: No folder, no manifest, or one that does not follow the format.
        ManifestMismatch: Written in another version of the format.
    """
    path = store / MANIFEST_NAME
    if not store.is_dir():
        raise StoreNotFound(
            f"{Path(store).absolute()}: no such folder. Extract a store first: {command('extract')}"
        )
    try:
        values = unseal(read_plain(store, MANIFEST_NAME))
    except FileNotFoundError:
        raise StoreNotFound(
            f"{store}: no {MANIFEST_NAME}, so this is not a feature store. Expected the folder that "
            f"{command('extract')} wrote (--store.path)."
        ) from None
    except OSError as error:
        raise StoreNotFound(f"{path}: cannot be read ({error.strerror}).") from None
    except SealError as error:
        raise StoreNotFound(f"{path}: damaged ({error}). Fetch the store again.") from None
    except ValueError as error:
        raise StoreNotFound(
            f"{path}: not readable as JSON ({error}). Fetch the store again."
        ) from None
    version = values.get("format_version") if isinstance(values, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:  # True == 1
        newer = type(version) is int and version > FORMAT_VERSION
        raise ManifestMismatch(
            f"{path}: format version {version!r}; this featstore reads version {FORMAT_VERSION}. "
            + ("Upgrade featstore." if newer else "It was never released; extract again.")
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors()[:5]
        )
        raise StoreNotFound(f"{path}: does not follow the format: {problems}") from None
    except StoreError as error:  # a name that cannot be a path
        raise StoreNotFound(f"{path}: does not follow the format: {error}") from None


def check_same_contract(store: Path, *, found: Manifest, expected: Manifest) -> None:
    """Check that a store on disk has the contract of the current settings.

    Raises:
        ManifestMismatch: Names every value that differs, on both sides.
    """
    differing = recorded_differences(found.contract(), expected.contract())
    if not differing:
        return
    lines = "\n".join(
        f"  {key}: the store has {was!r}, now asked for {now!r}" for key, was, now in differing
    )
    more = expected.num_rows - found.num_rows
    grown = more > 0 and all(key.startswith(("source.", "work.shard_")) for key, *_ in differing)
    raise ManifestMismatch(
        f"{store / MANIFEST_NAME}: this store was made with other settings; rows of both cannot be mixed:\n{lines}\n"
        "Choose a new folder with --store.path, or run with the settings this store was made with."
        + (f" To put the {more:,} further images behind its rows: --append true." * grown)
    )


def differences(found: Any, expected: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Compare nested settings: (dotted key, value found, value expected) for each that differs."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return [
            item
            for name in sorted(found.keys() | expected.keys())
            for item in differences(
                found.get(name), expected.get(name), f"{key}.{name}" if key else name
            )
        ]
    return [] if found == expected else [(key, found, expected)]


def recorded_differences(found: Any, expected: Any) -> list[tuple[str, Any, Any]]:
    """As ``differences``, without class names of a teacher that one side does not state: older versions did not."""
    return [
        (key, was, now)
        for key, was, now in differences(found, expected)
        if not (key.endswith(f"model_args.{CLASS_NAMES}") and None in (was, now))
    ]
