"""Artefacts: small safetensors files of a store, such as a teacher's head, channel scales and tables of texts.

They are written when the store is created and never change; the manifest holds their size and SHA-256.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from featstore.errors import ConfigError, ShardCorrupt, shorten
from featstore.files.array_types import Array
from featstore.files.atomic import write_bytes
from featstore.files.untrusted import open_plain, plain_size
from featstore.format.int8 import Channels
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import ArtefactRecord, Int8Encoding

FOLDER = "artefacts"

ADVICE = "Fetch the store again, or extract it again."


def artefact_path(store: Path, name: str) -> Path:
    """Path of an artefact, whether or not it exists."""
    return store / artefact_file(name)


def artefact_file(name: str) -> str:
    """Path of an artefact inside a store."""
    return f"{FOLDER}/{name}.safetensors"


def pack(tensors: Mapping[str, Array]) -> bytes:
    """Bytes of a safetensors file with these arrays."""
    return save({name: np.ascontiguousarray(values) for name, values in tensors.items()})


def artefact_record(data: bytes, *, meaning: str, teacher: str = "") -> ArtefactRecord:
    """Record of a file for the manifest."""
    digest = hashlib.sha256(data).hexdigest()
    return ArtefactRecord(bytes=len(data), sha256=digest, meaning=meaning, teacher=teacher)


def write_artefacts(store: Path, manifest: Manifest, data: Mapping[str, bytes]) -> None:
    """Write every artefact that a manifest lists."""
    for name, record in manifest.artefacts.items():
        found = data.get(name)
        if found is None or hashlib.sha256(found).hexdigest() != record.sha256:
            raise ConfigError(
                f'artefact "{name}": {"not given" if found is None else "does not match the hash in the manifest"}.'
            )
        write_bytes(artefact_path(store, name), found)


def read_artefact(store: Path, manifest: Manifest, name: str) -> dict[str, Array]:
    """Read the arrays of an artefact, after its hash was compared.

    Raises:
        ConfigError: The store has no such artefact.
        ShardCorrupt: The file is missing, or its size or hash differs.
    """
    if name not in manifest.artefacts:
        raise ConfigError(
            f"{store}: no artefact {name!r}; it has: {shorten(sorted(manifest.artefacts)) or 'none'}."
        )
    path = check_artefact(store, manifest, name)
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ShardCorrupt(f"{path}: not a safetensors file ({error}). {ADVICE}") from None


def check_artefact(store: Path, manifest: Manifest, name: str) -> Path:
    """Compare size and hash of an artefact with the manifest, reading it in pieces.

    Raises:
        ShardCorrupt: The file is missing, or its size or hash differs.
    """
    path, record = artefact_path(store, name), manifest.artefacts[name]
    try:
        size = plain_size(store, path.relative_to(store).as_posix())
        if size != record.bytes:
            raise ShardCorrupt(f"{path}: {size:,} bytes, expected {record.bytes:,}. {ADVICE}")
        with os.fdopen(open_plain(path), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ShardCorrupt(f"{path}: cannot be read ({error.strerror}). {ADVICE}") from None
    if digest != record.sha256:
        raise ShardCorrupt(f"{path}: sha256 {digest}, expected {record.sha256}. {ADVICE}")
    return path


def read_channels(store: Path, manifest: Manifest) -> dict[str, Channels]:
    """Scales and offsets of the fields that are quantised by channel, by field.

    Raises:
        ShardCorrupt: See ``read_artefact``; also where an artefact does not fit its field.
    """
    found = {}
    for name, field in manifest.fields.items():
        if not isinstance(field.encoding, Int8Encoding) or not field.encoding.channels:
            continue
        tensors = read_artefact(store, manifest, field.encoding.channels)
        parts = [tensors.get(key) for key in ("scale", "offset")]
        for part in parts:
            if part is None or part.dtype != np.float32 or part.shape != field.shape[-1:]:
                raise ShardCorrupt(
                    f"{artefact_path(store, field.encoding.channels)}: no float32 scale and offset of "
                    f'{field.shape[-1]} channels, which field "{name}" needs. Fetch the store again.'
                )
        found[name] = Channels(parts[0], parts[1])  # type: ignore[arg-type]  # None was refused
    return found


def pack_texts(texts: Sequence[str]) -> dict[str, Array]:
    """A list of texts as two arrays: ``text.values`` (T,) uint8 of UTF-8, ``text.offsets`` (n + 1,) int64."""
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *(len(data) for data in encoded)], dtype=np.int64)
    values = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    return {"text.values": values, "text.offsets": offsets}


def unpack_texts(tensors: Mapping[str, Array]) -> list[str]:
    """The inverse of ``pack_texts``."""
    try:
        data = tensors["text.values"].astype(np.uint8, casting="equiv").tobytes()
        offsets = tensors["text.offsets"].astype(np.int64, casting="equiv").tolist()
        if offsets[0] != 0 or offsets[-1] != len(data) or offsets != sorted(offsets):
            raise ValueError("offsets do not ascend from 0 to the end")
        return [data[start:stop].decode() for start, stop in pairwise(offsets)]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"no table of texts: {error!r}.") from None
