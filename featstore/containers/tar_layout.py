"""Layout of the tars of a store: the members of a sample, their names, and the key of a sample.

Writer and reader share it; docs/format.md describes it.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring as quoted
from typing import Any
from urllib.parse import quote

import ml_dtypes
import numpy as np

from featstore.errors import ConfigError, StoreError
from featstore.files.array_types import Array
from featstore.files.tar_headers import MOST_MEMBER_BYTES
from featstore.format.fields import Column, columns_of
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import RaggedEncoding

FOLDER = "shards"

INDEX = "__featstore__/"
"""Begin of the names of the index's members. Their last parts have no dot, so that they belong to no sample."""

STARTS = INDEX + "starts"
"""(rows + 1,) int64: byte of the tar where each sample begins, and where the last one ends."""

LONGEST_KEY = 150
"""Bytes of the longest key that spells out its sample id; a file's name may have 255."""

_PLAIN_ID = re.compile(r"(?!__)[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*")
"""Ids in which only dots are encoded."""


class TarLayout:
    """The members of a store's tars.

    Attributes:
        fixed: columns with one member of the same size per sample, in the order in which they are written.
        ragged: columns with one member of any size per sample.
        ranges: for each ragged column, the column of its ranges; its member is called offsets.
        indexed: columns that we read from the index; those of samples and of texts are in each sample's json as well.
    """

    def __init__(self, manifest: Manifest) -> None:
        """Sort the columns.

        Raises:
            ConfigError: two members of a sample would have one name, or one would be too large for a tar.
        """
        self.manifest = manifest
        self.columns = columns = columns_of(manifest)
        ragged = [
            f"fields/{name}"
            for name, field in sorted(manifest.fields.items())
            if isinstance(field.encoding, RaggedEncoding)
        ]
        self.ranges = {f"{name}/values": f"{name}/ranges" for name in ragged}
        self.ragged = {name: columns[name] for name in self.ranges}
        special = {*self.ranges, *self.ranges.values()}
        self.fixed = {
            name: column
            for name, column in columns.items()
            if column.of_field and column.dtype is not None and name not in special
        }
        self.indexed = {
            name: column
            for name, column in columns.items()
            if name not in self.fixed and name not in self.ragged
        }
        self.texts = [name for name, c in self.indexed.items() if c.of_field and c.dtype is None]
        self._check()

    def _check(self) -> None:
        names: dict[str, str] = {}
        for column in [*self.fixed, *self.ragged, *self.ranges.values()]:
            suffix = self.suffix(column)
            other = names.setdefault(suffix.lower(), column)
            if other != column:
                raise ConfigError(
                    f'columns "{other}" and "{column}" would both be members KEY.{suffix.lower()}, because webdataset '
                    "reads names in lower case. Rename one of the fields, or use container zarr."
                )
        for name, spec in self.fixed.items():
            if spec.entry_bytes > MOST_MEMBER_BYTES // 2:
                raise ConfigError(
                    f'column "{name}" has {spec.entry_bytes:,} bytes a row, a member of a tar at most '
                    f"{MOST_MEMBER_BYTES // 2:,}. Store less of it, or use container zarr."
                )

    def suffix(self, column: str) -> str:
        """What follows the key and a dot in the name of a column's member: ``logits.values.npy``."""
        name = column.removeprefix("fields/")
        if column in self.ranges.values():
            name = name.removesuffix("ranges") + "offsets"
        return name.replace("/", ".") + ".npy"

    def object_name(self, shard: int) -> str:
        """Path of a shard's tar inside the store."""
        names = self.manifest.work.shard_names
        return f"{FOLDER}/{names[shard] if names else f'{shard:06d}'}.tar"

    def keys(self, shard: int, sample_ids: Sequence[str]) -> list[str]:
        """Keys of some samples of a shard.

        Raises:
            StoreError: the shard mirrors a tar of images, and a sample is not of that tar.
        """
        names = self.manifest.work.shard_names
        if not names:
            return [key_of(sample_id) for sample_id in sample_ids]
        prefix = names[shard] + "/"
        keys = [sample_id.removeprefix(prefix) for sample_id in sample_ids]
        for key, sample_id in zip(keys, sample_ids, strict=True):
            base = key.rpartition("/")[2]
            if key == sample_id or not base or "." in base or "\0" in key:
                raise StoreError(
                    f"sample {sample_id!r} in shard {shard}, which mirrors the image tar {names[shard]!r}: expected an "
                    f"id '{prefix}KEY', without a dot after KEY's last '/'. List the images with --source.kind tars, "
                    "or do not mirror shards."
                )
        return keys

    def jsons(self, columns: Mapping[str, Array]) -> list[bytes]:
        """What the json member of each sample holds, as ``json.dumps`` writes it, which takes five times as long."""
        ids, valid = columns["sample_id"].tolist(), columns["valid"].tolist()
        hashes = columns["content_sha256"].tobytes().hex()
        labels = columns["label"].tolist() if "label" in columns else None
        found = []
        for row, sample_id in enumerate(ids):
            text = f'"sample_id":{quoted(sample_id)},"content_sha256":"{hashes[64 * row : 64 * row + 64]}"'
            text += ',"valid":true' if valid[row] else ',"valid":false'
            if labels is not None:
                text += f',"label":{labels[row]}'
            if self.texts:
                said = {
                    name.removeprefix("fields/"): _nested(columns[name][row]) for name in self.texts
                }
                text += f',"text":{json.dumps(said, ensure_ascii=False, separators=(",", ":"))}'
            found.append(f"{{{text}}}".encode())
        return found


def key_of(sample_id: str) -> str:
    """The key of a sample whose source was not tars: its id, percent-encoded as far as webdataset needs it.

    ASCII letters, digits, ``_``, ``-`` and ``/`` stay, so ``urllib.parse.unquote`` gives the id back. An id whose key
    would be longer than ``LONGEST_KEY`` gets ``~`` and its SHA-256 instead; the id is in the sample's json.
    """
    if _PLAIN_ID.fullmatch(sample_id):
        key = sample_id.replace(".", "%2E")
        if len(key) <= LONGEST_KEY:
            return key
    # Empty parts, as in "a//b", are no path.
    safe = "/" if all(sample_id.split("/")) else ""
    key = quote(sample_id, safe=safe).replace(".", "%2E").replace("~", "%7E")
    if key.startswith("__"):
        key = "%5F" + key[1:]  # webdataset skips __NAME__/...
    if len(key) > LONGEST_KEY:
        return "~" + hashlib.sha256(sample_id.encode()).hexdigest()
    return key


def stored_dtype(column: Column) -> np.dtype[Any]:
    """The type that a column's npy members state: little-endian, and for bfloat16, which npy lacks, its bits."""
    assert column.dtype is not None
    if column.dtype == ml_dtypes.bfloat16:
        return np.dtype("<u2")
    return column.dtype.newbyteorder("<")


def _nested(texts: Any) -> Any:
    return texts.tolist() if isinstance(texts, np.ndarray) else texts
